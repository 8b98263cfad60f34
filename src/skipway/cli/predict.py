"""`skipway predict`: what a trained network makes of what it has not seen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

PREDICT = (
    "What a network that 'skipway train' left makes of inputs that it has not seen.\n\n"
    "Image files, to a class each; image files, to masks; prompts, to what follows, or by a BERT texts with each _ "
    "told; lines, to their translations: by what it was trained for. '-' reads the lines of the standard input."
)


def predict(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the training.")],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Image files, prompts or lines.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where masks go.", show_default="beside the images")
    ] = None,
    weights: Annotated[str, typer.Option(help="Those of the best round, or of the last.")] = "best",
    length: Annotated[int, typer.Option(help="How many characters follow a prompt.")] = 200,
    temperature: Annotated[float, typer.Option(help="How freely they are drawn; 0 takes the likeliest.")] = 0.8,
    seed: Annotated[int, typer.Option(help="What they are drawn from.")] = 0,
) -> None:
    """What a trained network makes of inputs that it has not seen."""
    from skipway import study

    given = [line.rstrip("\n") for line in sys.stdin] if inputs == ["-"] else inputs
    found = study.predict(
        folder,
        given,
        out=out,
        weights=weights,  # pyright: ignore[reportArgumentType]
        length=length,
        temperature=temperature,
        seed=seed,
    )
    for note in dict.fromkeys(one.note for one in found if one.note):
        print(f"skipway: {note}", file=sys.stderr)
    for one in found:
        if one.path is not None:
            print(f"{one.given}: {one.path} ({one.answer})")
        elif one.probability is not None:
            print(f"{one.given}: {one.answer} ({one.probability:.1%})")
        else:
            print(one.answer)
