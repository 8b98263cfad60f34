"""How far a study is, for the person who waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from skipway.study.measures import written
from skipway.study.records import Record
from skipway.study.variants import Trial


def make_bar(console: Console) -> Progress:
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


class StudyProgress:
    """A bar over all trials, and a line for each that is finished.

    A trial counts in proportion to its depth: that is what its time is closest to.
    """

    def __init__(self, trials: list[Trial], quiet: bool) -> None:
        self._trials = trials
        self._finished = 0
        self._done = [0.0] * len(trials)
        # On stderr, so that what a study answers can be piped.
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bar = make_bar(self._console)
        self._task = self._bar.add_task("starting", total=sum(_weight(trial) for trial in trials))

    def __enter__(self) -> StudyProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, sentence: str) -> None:
        """Say something that is worth a line of its own."""
        self._console.print(sentence, soft_wrap=True, markup=False)

    def step(self, number: int, epoch: int, share: float) -> None:
        """Tell that trial `number` is in `epoch`, both counted from 0, and that a `share` of it is done."""
        trial = self._trials[number]
        self._show(number, share, f"{trial.title}, round {epoch + 1}")

    def end(self, number: int, record: Record, kept: bool) -> None:
        """Tell what came out of trial `number`, which was trained now or `kept` from a run before."""
        self._finished += 1
        title = self._trials[number].title
        self._show(number, 1.0, title)
        if record.diverged is None:
            told = [name for name in ("train_error", record.judge) if record.value(name) is not None]
            outcome = ", ".join(
                f"{name.replace('_', ' ')} {written(name, record.value(name) or 0.0)}" for name in dict.fromkeys(told)
            )
        else:
            outcome = f"diverged in round {record.diverged['epoch']}"
        when = "finished before" if kept else f"{record.measures.get('seconds') or 0.0:.1f} s"
        count = str(len(self._trials))
        self.note(f"[{self._finished:>{len(count)}}/{count}] {title}: {outcome}, {when}")

    def _show(self, number: int, share: float, doing: str) -> None:
        self._done[number] = share * _weight(self._trials[number])
        current = min(self._finished + 1, len(self._trials))
        self._bar.update(
            self._task, completed=sum(self._done), description=f"trial {current} of {len(self._trials)}: {doing}"
        )


def _weight(trial: Trial) -> int:
    return trial.variant.depth or 1


class TrainingProgress:
    """A bar over the steps of one training, and a line for each round."""

    def __init__(self, rounds: int, quiet: bool) -> None:
        self._rounds = rounds
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bar = make_bar(self._console)
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
