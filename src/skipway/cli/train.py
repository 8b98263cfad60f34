"""`skipway train`: one network on whatever the data are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipway.cli.options import ModelOptions, parse_options
from skipway.errors import SkipwayError
from skipway.torchrun import writes

if TYPE_CHECKING:
    from skipway.study import Trained

# One line a paragraph: the terminal breaks lines where it ends.
TRAIN = (
    "Train a network on images in classes, images with masks, a text, or pairs of lines.\n\n"
    "The data tell what there is to do, and what is not said is chosen for that. Everything is kept in a folder: "
    "best and last weights, history, curve and record. Ctrl-C keeps every finished round; the same command again goes "
    "on where the last one ended, with the same numbers as if it had not stopped. Several processes train one network "
    "under torchrun --nproc-per-node N -m skipway train ..."
)
_DATA = (
    "'digits', a folder of images in classes or of parquet files, a parquet file, or a Hugging Face name; a folder "
    "with images/ and masks/; a text file; or the start of file names, such as multi30k of multi30k.train.en, "
    "multi30k.train.de, multi30k.val.en ..."
)
_OF_TASK = "as the task needs"
_MODEL = (
    "One of 'skipway models'; hf:CONFIG-CLASS or hf:FOLDER, timm:NAME, torchvision:NAME; or package.module:factory. "
    "They are built for the data, and trained from scratch."
)
_SKIP = (
    "A name of 'skipway connections', a value such as 'Residual(drop=0.5)', or for a U-Net one a level, with commas "
    "between. Of a model from outside, 'none' is its plain twin, 'residual' its residual one, and any other is put in "
    "the place of its skips."
)


def train(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)],
    data: Annotated[str, typer.Option(metavar="NAME|PATH", help=_DATA)] = "digits",
    skip: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help=_SKIP,
            show_default="as published",
        ),
    ] = None,
    option: ModelOptions = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where everything is kept.", show_default="runs/MODEL-DATA")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set.", show_default=_OF_TASK)] = None,
    steps: Annotated[int | None, typer.Option(help="Steps, in place of epochs.", show_default=_OF_TASK)] = None,
    every: Annotated[
        int | None,
        typer.Option(help="Steps of a round, after which everything is measured and kept.", show_default="an epoch"),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples of a batch.", show_default=_OF_TASK)] = None,
    accumulate: Annotated[int, typer.Option(help="Batches of a step.")] = 1,
    learning_rate: Annotated[
        float | None, typer.Option(help="The highest learning rate.", show_default="0.1 for sgd, 0.001 for adamw")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd or adamw.", show_default=_OF_TASK)] = None,
    schedule: Annotated[
        str | None, typer.Option(help="one-cycle, cosine, inverse-root or constant.", show_default=_OF_TASK)
    ] = None,
    warm_up: Annotated[
        int | None, typer.Option(help="Steps over which the learning rate rises.", show_default=_OF_TASK)
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.", show_default=_OF_TASK)] = None,
    clip: Annotated[
        float | None, typer.Option(help="Longest gradient that is taken as it is.", show_default=_OF_TASK)
    ] = None,
    precision: Annotated[str, typer.Option(help="32 or bf16.")] = "32",
    channels_last: Annotated[
        bool | None, typer.Option("--channels-last/--channels-first", help="How images lie.", show_default=_OF_TASK)
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the network first.")] = False,
    seed: Annotated[int, typer.Option(help="What everything random is drawn from.")] = 0,
    augment: Annotated[
        str,
        typer.Option(
            help="none, or standard: moved and mirrored images; mirrored, turned and bent images with their masks."
        ),
    ] = "none",
    limit: Annotated[
        int | None, typer.Option(help="Use at most so many examples, or characters.", show_default="all")
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            help="The last of the images with masks, or of a text, to measure on: a share, or a number.",
            show_default="0.2 of images, 0.1 of a text",
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Bring images in classes to this many pixels a side.", show_default="as they are")
    ] = None,
    crop: Annotated[
        int | None, typer.Option(help="Train on crops of this many pixels a side of images with masks.")
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="Of masks: cross-entropy, dice, or both.", show_default="both"),
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Characters of a window of text, or tokens of a line.", show_default=_OF_TASK)
    ] = None,
    languages: Annotated[
        str | None, typer.Option(metavar="FROM,TO", help="The endings of two line-aligned files, such as en,de.")
    ] = None,
    logger: Annotated[str, typer.Option(help="csv; beside it tensorboard, mlflow or wandb.")] = "csv",
    workers: Annotated[int, typer.Option(help="Processes that make batches ahead of time.")] = 0,
    strategy: Annotated[
        str,
        typer.Option(help="Under torchrun: ddp, each process has the whole network; fsdp, a share of it."),
    ] = "ddp",
) -> None:
    """Train a network on data that tell what there is to do."""
    if writes():
        print("Reading the data and building the network ...", file=sys.stderr)
    from skipway import study

    try:
        trained = study.train(
            model,
            data,
            skip=parse_skip(skip),
            options=parse_options(option),
            epochs=epochs,
            steps=steps,
            every=every,
            batch_size=batch_size,
            accumulate=accumulate,
            learning_rate=learning_rate,
            optimizer=optimizer,  # pyright: ignore[reportArgumentType]
            schedule=schedule,  # pyright: ignore[reportArgumentType]
            warm_up=warm_up,
            weight_decay=weight_decay,
            clip=clip,
            precision=precision,  # pyright: ignore[reportArgumentType]
            channels_last=channels_last,
            compile=compile,
            seed=seed,
            augment=augment,  # pyright: ignore[reportArgumentType]
            limit=limit,
            held_out=held_out,
            image_size=image_size,
            crop=crop,
            loss=loss,  # pyright: ignore[reportArgumentType]
            length=length,
            languages=_pair(languages),
            folder=out if out is not None else Path("runs") / _folder_name(model, data),
            logger=logger,  # pyright: ignore[reportArgumentType]
            workers=workers,
            strategy=strategy,  # pyright: ignore[reportArgumentType]
        )
    except KeyboardInterrupt as interruption:
        # Typer would make "Aborted." of it, and say nothing of what is kept.
        print(f"skipway: {interruption}", file=sys.stderr)
        raise typer.Exit(130) from None
    if writes():
        _show(trained)


def parse_skip(text: str | None) -> Any:
    """A skip of the command line: a name, a value, or several with commas between, one a level."""
    from skipway.study.training.building import read_skip

    if text is None or "(" in text:
        return read_skip(text)
    names = [name.strip() for name in text.split(",")]
    return names[0] if len(names) == 1 else names


def _pair(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if len(words) != 2 or not all(words):
        raise SkipwayError(f"--languages takes two endings with a comma between, such as en,de, not {text!r}")
    return words[0], words[1]


def _folder_name(model: str, data: str) -> str:
    name = f"{model}-{Path(data).name}"
    return "".join(letter if letter.isalnum() or letter in ".-_" else "-" for letter in name)


def _show(trained: Trained) -> None:
    from rich.table import Table

    from skipway.cli.tables import print_table

    table = Table("", box=None, pad_edge=False)
    for column in (f"best (round {trained.best_round})", f"last (round {len(trained.curves['loss'])})"):
        table.add_column(column, justify="right")
    for name, value in trained.last.items():
        table.add_row(name.replace("_", " "), f"{trained.best[name]:.4g}", f"{value:.4g}")
    print_table(table)
    for number, sample in enumerate(trained.samples, start=1):
        print(f"\n--- sample {number}\n{sample}")
    print(f"\n{trained.parameters:,} parameters, {trained.seconds:.1f} s; everything is in {trained.folder}")
