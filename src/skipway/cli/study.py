"""`skipway study`: the declared experiments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skipway.errors import SkipwayError

if TYPE_CHECKING:
    import skipway.study

# One line a paragraph: the terminal breaks lines where it ends.
_DEGRADATION = (
    "Does depth hurt a plain network on its own training set, and do skips repair it?\n\n"
    "Trains the plain and the residual network at two or more depths, from the same seeds and alike in everything "
    "else, and writes a report for the browser. The defaults take about two minutes on two cores. Ctrl-C keeps what is "
    "done; the same command again goes on where it stopped."
)

study_app = typer.Typer(
    help="Train networks that differ in one thing, and report what it does.", no_args_is_help=True
)


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
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that train side by side.", show_default="as many as suit this machine"),
    ] = None,
) -> None:
    """Train plain and residual networks of several depths alike, and report what depth and skips do."""
    print("Reading the data and building the networks ...", file=sys.stderr)
    from skipway.study import Study

    study = Study(
        depth=_numbers("--depths", depths),
        skip=_words("--skips", skips),
        data=data,
        seeds=_numbers("--seeds", seeds),
        epochs=epochs,
        width=width,
        samples=samples,
        image_size=image_size,
    )
    try:
        results = study.run(out, workers=workers)
    except KeyboardInterrupt as interruption:
        # Typer would make "Aborted." of it, and say nothing of what is kept.
        print(f"skipway: {interruption}", file=sys.stderr)
        raise typer.Exit(130) from None
    report = results.report()
    print(f"\n{results.answer.sentence}\n")
    _print_summaries(results)
    print(f"\nReport: {report}")


def _print_summaries(results: skipway.study.Results) -> None:
    from rich.table import Table

    from skipway.cli.tables import print_table

    table = Table("model", "skip", "training error", "test error", box=None, pad_edge=False)
    for column in ("seeds", "parameters", "seconds"):
        table.add_column(column, justify="right")
    for summary in results.summaries:
        table.add_row(
            summary.model,
            summary.skip,
            summary.train_error.percent(),
            summary.test_error.percent(),
            f"{summary.seeds} ({summary.diverged} diverged)" if summary.diverged else str(summary.seeds),
            f"{summary.parameters:,}",
            f"{summary.seconds:.1f}",
        )
    print_table(table)


def _words(option: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise SkipwayError(f"{option} is empty; give one value at least, with commas between several")
    return words


def _numbers(option: str, text: str) -> list[int]:
    words = _words(option, text)
    try:
        return [int(word) for word in words]
    except ValueError:
        raise SkipwayError(f"{option} takes whole numbers with commas between, such as 20,56, not '{text}'") from None
