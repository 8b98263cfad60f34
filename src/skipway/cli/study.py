"""`skipway study`: declared experiments, ours and those of a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipway.cli.study_report import REPORT, report
from skipway.cli.study_watch import watch
from skipway.errors import SkipwayError
from skipway.torchrun import writes

if TYPE_CHECKING:
    from skipway.study import Results, Study

# One line a paragraph: the terminal breaks lines where it ends.
_DEGRADATION = (
    "Does depth hurt a plain network on its own training set, and do skips repair it?\n\n"
    "Trains the plain and the residual network at two or more depths, from the same seeds and alike in everything "
    "else, and writes a report for the browser. The defaults take about two minutes on two cores. Ctrl-C keeps what is "
    "done; the same command again goes on where it stopped."
)
_RUN = (
    "Run a study: a .toml or .yaml file, or one of 'skipway study list'.\n\n"
    "Every combination of its axes is trained from every seed, and a report for the browser is written. What a crash "
    "or Ctrl-C left is taken up where it stopped: the folder is the truth, and nothing done is redone. Under torchrun "
    "--nproc-per-node N -m skipway study run ... several processes train each trial together."
)

study_app = typer.Typer(
    help="Train networks that differ in declared ways, and report what the differences do.", no_args_is_help=True
)

study_app.command()(watch)
study_app.command(help=REPORT)(report)

Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the records and the report. What it already holds is not trained again.",
        show_default="runs/ and the study's name",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Processes that train side by side.", show_default="as many as suit this machine"),
]
Engine = Annotated[
    str,
    typer.Option(help="What runs the trials: 'local', this machine; 'ray', a cluster started here; or 'ray:ADDRESS'."),
]


@study_app.command(help=_RUN)
def run(
    study: Annotated[str, typer.Argument(metavar="FILE|NAME", help="A declaration, or the name of one of ours.")],
    out: Out = None,
    data: Annotated[str | None, typer.Option(help="Other data than the study's: a name, a folder or a file.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as in --set depth=[8,14]. Several: repeat it."),
    ] = None,
    workers: Workers = None,
    engine: Engine = "local",
    logger: Annotated[
        str | None,
        typer.Option(help="Tell tensorboard, mlflow or wandb of every trial.", show_default="as the study says"),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="Under torchrun: ddp, each process has the whole network; fsdp, a share of it.",
            show_default="as the study says",
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait where another process works in the folder, instead of refusing.")
    ] = False,
) -> None:
    """Run a study from its declaration."""
    if writes():
        print("Reading the study and building its networks ...", file=sys.stderr)
    from skipway.study.declaring.files import read_study

    changes = dict(_setting(text) for text in settings or ())
    given = {"data": data, "logger": logger, "strategy": strategy}
    changes |= {name: value for name, value in given.items() if value is not None}
    declared = read_study(study, changes)
    _run(declared, out or Path("runs") / declared.name, workers, engine, wait)


@study_app.command()
def new(
    name: Annotated[str, typer.Argument(help="The study's name; the file is NAME.toml.")],
) -> None:
    """Write a commented declaration to start from."""
    from skipway.storing import writing
    from skipway.study.declaring.files import template

    path = Path(name if name.endswith(".toml") else f"{name}.toml")
    if path.exists():
        raise SkipwayError(f"'{path}' is there already; choose another name, or remove it")
    with writing(path):
        path.write_text(template(path.stem), encoding="utf-8")
    print(f"Wrote {path}. Edit it, then: skipway study run {path}")


@study_app.command("list")
def list_studies() -> None:
    """List the studies that come with skipway, and what each asks."""
    from rich.table import Table

    from skipway.cli.tables import print_table
    from skipway.study.declaring.files import builtin_names, describe_builtin

    table = Table("study", "what it asks", box=None, pad_edge=False)
    for name in builtin_names():
        table.add_row(name, describe_builtin(name)[0])
    print_table(table)
    print("\nRun one with: skipway study run NAME. Start your own with: skipway study new NAME.")


@study_app.command(help=_DEGRADATION)
def degradation(
    out: Annotated[
        Path, typer.Option(help="Folder for the records and the report. What it already holds is not trained again.")
    ] = Path("runs/degradation"),
    data: Annotated[
        str,
        typer.Option(
            help="'digits' (embedded), a folder with train*.parquet and test*.parquet or with train/<class>/*.png "
            "and test/<class>/*.png, or a Hugging Face name such as 'uoft-cs/cifar10'."
        ),
    ] = "digits",
    depths: Annotated[
        str, typer.Option(help="Depths to compare, with commas between: 6n+2 for CIFAR ResNets.")
    ] = "20,56",
    skips: Annotated[
        str, typer.Option(help="Skips to compare, with commas between; 'skipway connections' lists them.")
    ] = "none,residual",
    epochs: Annotated[int, typer.Option(help="Passes over the training set for each trial.")] = 10,
    seeds: Annotated[
        str, typer.Option(help="Seeds, with commas between; every network is trained from each.")
    ] = "0,1,2",
    width: Annotated[int, typer.Option(help="Channels of the first stage; 16 in the paper.")] = 8,
    samples: Annotated[
        int | None, typer.Option(help="Use at most this many training images.", show_default="all")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Bring images to this many pixels a side.", show_default="as they are")
    ] = None,
    workers: Workers = None,
    engine: Engine = "local",
) -> None:
    """Train plain and residual networks of several depths alike, and report what depth and skips do."""
    print("Reading the data and building the networks ...", file=sys.stderr)
    from skipway.study.declaring.files import read_study

    changes = {
        "depth": _numbers("--depths", depths), "skip": _words("--skips", skips), "data": data,
        "seeds": _numbers("--seeds", seeds), "epochs": epochs, "width": width, "limit": samples,
        "image_size": image_size,
    }  # fmt: skip
    _run(read_study("degradation", changes), out, workers, engine)


def _run(study: Study, out: Path, workers: int | None, engine: str, wait: bool = False) -> None:
    try:
        results = study.run(out, workers=workers, engine=engine, wait=wait)
    except KeyboardInterrupt as interruption:
        # Typer would make "Aborted." of it, and say nothing of what is kept.
        print(f"skipway: {interruption}", file=sys.stderr)
        raise typer.Exit(130) from None
    if not writes():
        return
    if not results.records:
        raise SkipwayError(f"no trial came to its end; '{out}' says why")
    from skipway.study.running.manifest import is_reported

    # Drawing the page of a large study takes longer than all else where nothing had to be done.
    report = results.folder / "report.html"
    if not is_reported(results.folder, report):
        report = results.report()
    print(f"\n{results.answer.sentence}\n")
    _print_summaries(results)
    print(f"\nReport: {report}")


def _print_summaries(results: Results) -> None:
    from rich.table import Table

    from skipway.cli.tables import print_table

    shown = results.shown_measures()
    # The names of our families tell their depth.
    told = {"model", "skip"}
    if all("{depth}" in name for name in results.study.values("model")):
        told.add("depth")
    axes = [name for name in results.records[0].labels if name not in told]
    table = Table("model", "skip", *axes, *(name.replace("_", " ") for name in shown), box=None, pad_edge=False)
    table.add_column("seeds", justify="right")
    for summary in results.summaries:
        table.add_row(
            summary.model,
            summary.skip,
            *(summary.labels[name] for name in axes),
            *(summary.values[name].text(name) if name in summary.values else "" for name in shown),
            f"{summary.seeds} ({summary.diverged} diverged)" if summary.diverged else str(summary.seeds),
        )
    print_table(table)


def _setting(text: str) -> tuple[str, Any]:
    from skipway.study.declaring.files import read_value

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SkipwayError(f"--set takes KEY=VALUE, such as --set epochs=5, not '{text}'")
    return key.strip(), read_value(value.strip())


def _words(option: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise SkipwayError(f"{option} is empty; give one value at least, with commas between several")
    return words


def _numbers(option: str, text: str) -> Sequence[int]:
    words = _words(option, text)
    try:
        return [int(word) for word in words]
    except ValueError:
        raise SkipwayError(f"{option} takes whole numbers with commas between, such as 20,56, not '{text}'") from None
