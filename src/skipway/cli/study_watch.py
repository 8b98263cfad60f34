"""`skipway study watch`: how far a study is that another process runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

_EVERY = 1.0


def watch(
    folder: Annotated[Path, typer.Argument(help="The folder of a study, on a disk that this machine can read.")],
    once: Annotated[bool, typer.Option("--once", help="Print how far it is, and end.")] = False,
) -> None:
    """Show the trials of a study that is run elsewhere, until all have ended or Ctrl-C.

    All comes from the study's folder: nothing has to be told to the process that runs it, and nothing is asked of it.
    """
    from rich.console import Console
    from rich.live import Live

    from skipway.study.running.watching import Watch

    watched = Watch(folder)
    watched.look()
    console = Console(highlight=False)
    if once or not console.is_terminal:
        if not console.is_terminal:
            # Whoever reads this from a pipe wants all of it.
            console = Console(highlight=False, width=200, height=len(watched.board.rows) + 10)
        console.print(watched.board)
        if once:
            return
    try:
        if not console.is_terminal:
            while not watched.complete:
                time.sleep(_EVERY)
                for row in watched.look():
                    print(f"{row.title}: {row.state}: {row.told}; {watched.board.line()}", flush=True)
            return
        with Live(watched.board, console=console, auto_refresh=False) as live:
            while not watched.complete:
                time.sleep(_EVERY)
                watched.look()
                live.update(watched.board, refresh=True)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
