"""The commands, and what happens to a user's slips."""

from __future__ import annotations

import re
import sys
from typing import Annotated

import typer

from skipway.cli.predict import PREDICT, predict
from skipway.cli.probe import probe, report
from skipway.cli.see import doctor, trace
from skipway.cli.study import study_app
from skipway.cli.train import TRAIN, train
from skipway.errors import SkipwayError

app = typer.Typer(
    help="The workbench for skip connections in PyTorch.",
    epilog="Start with: skipway study degradation",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(study_app, name="study")
app.command()(trace)
app.command()(doctor)
app.command()(probe)
app.command()(report)
app.command(help=TRAIN)(train)
app.command(help=PREDICT)(predict)


@app.command()
def models(
    every: Annotated[
        bool, typer.Option("--all", help="Count those of 1000 layers and more too, which takes seconds.")
    ] = False,
) -> None:
    """List the models: depth, parameters and multiply-adds of each."""
    from rich.console import Console
    from rich.table import Table

    from skipway import models as families
    from skipway.cli.tables import print_table

    table = Table("model", box=None, pad_edge=False)
    for column in ("weight layers", "parameters", "multiply-adds", "input"):
        table.add_column(column, justify="right")
    names = families.names()
    left_out = [] if every else [name for name in names if re.search(r"\d{4}$", name)]
    with Console(stderr=True).status("Counting ..."):
        for name in names:
            if name not in left_out:
                facts = families.describe(name)
                adds = facts.multiply_adds
                shown = f"{adds / 1e9:,.3f} G" if adds >= 1e7 else f"{adds / 1e6:,.3f} M"
                table.add_row(
                    name, str(facts.depth), f"{facts.parameters:,}", shown, ", ".join(map(_shape, facts.inputs))
                )
    print_table(table)
    if left_out:
        print(f"\nNot counted here: {', '.join(left_out)} (--all counts them).")
    print("\nMost families take any size of their rule: resnet8, wrn-16-4, highway-30, densenet-bc-40-12, gpt-4x128.")


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) + (" tokens" if len(shape) == 1 else "")


@app.command()
def connections() -> None:
    """List the skip connections that --skips and skip= take: equation and source of each."""
    from rich.table import Table

    from skipway import connect
    from skipway.cli.tables import print_table

    table = Table("name", "what it computes, and where it comes from", box=None, pad_edge=False)
    for name in connect.names():
        table.add_row(name, connect.describe(name))
    print_table(table)


@app.command()
def version() -> None:
    """Print the versions of skipway and of what its results depend on."""
    import platform
    from importlib.metadata import version as installed

    import skipway

    print(f"skipway {skipway.__version__}")
    print(f"python {platform.python_version()}")
    for package in ("torch", "lightning", "numpy"):
        print(f"{package} {installed(package)}")


def main() -> None:
    """Run the command line; a user's slip is one sentence on stderr and exit code 2."""
    try:
        app(prog_name="skipway")
    except SkipwayError as error:
        print(f"skipway: {error}", file=sys.stderr)
        sys.exit(2)
