"""How far a training is, for the person who waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingProgress:
    """A bar over the steps of one training, and a line for each round."""

    def __init__(self, rounds: int, quiet: bool) -> None:
        self._rounds = rounds
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bar = _bar(self._console)
        self._task = self._bar.add_task("starting", total=1.0)

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, number: int, share: float) -> None:
        """Tell that the training is in round `number`, counted from 0, and that a `share` of it is done."""
        current = min(number + 1, self._rounds)
        self._bar.update(self._task, completed=share, description=f"round {current} of {self._rounds}")

    def end(self, number: int, measured: Mapping[str, float], best: bool) -> None:
        """Tell what was measured after round `number`, counted from 1, and whether it is the best so far."""
        numbers = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in measured.items())
        count = str(self._rounds)
        star = " (best so far)" if best else ""
        self._console.print(f"[{number:>{len(count)}}/{count}] {numbers}{star}", soft_wrap=True, markup=False)


def _bar(console: Console) -> Progress:
    """A bar that is gone when it has ended, on a terminal that is not quiet."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("so far,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        disable=console.quiet or not console.is_terminal,
    )
