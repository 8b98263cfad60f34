"""How far a study is, for the person who waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live

from skipway.study.declaring.variants import Trial
from skipway.study.records.record import Record
from skipway.study.records.status import Status, told
from skipway.study.running.board import Board, make_row


class StudyProgress:
    """A live table of all trials; where the output is no terminal, a line for each that is finished.

    `status` gives what a running trial last told of itself, which is more than `step` does.
    """

    def __init__(
        self, trials: Sequence[Trial], quiet: bool, status: Callable[[int], Status | None] = lambda number: None
    ) -> None:
        self.board = Board([make_row(trial.title, trial.variant.labels) for trial in trials])
        self._status = status
        self._finished = 0
        self._began: dict[int, float] = {}
        # On stderr, so that what a study answers can be piped.
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._live: Live | None = None
        if self._console.is_terminal and not quiet:
            self._live = Live(get_renderable=self._look, console=self._console, refresh_per_second=2, transient=True)

    def __enter__(self) -> StudyProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self.note(self.board.line())

    def note(self, sentence: str) -> None:
        """Say something that is worth a line of its own."""
        self._console.print(sentence, soft_wrap=True, markup=False)

    def step(self, number: int, epoch: int, share: float) -> None:
        """Tell that trial `number` is in `epoch`, both counted from 0, and that a `share` of it is done."""
        row, now = self.board.rows[number], time.monotonic()
        if row.share == 0.0:
            # What a run before has done of it took none of this one's time.
            row.first_share, self._began[number] = share, now
        row.state, row.round, row.share, row.seconds = "running", epoch + 1, share, now - self._began[number]

    def end(self, number: int, record: Record, kept: bool) -> None:
        """Tell what came out of trial `number`, which was trained now or `kept` from a run before."""
        seconds = record.measures.get("seconds") or 0.0
        outcome, when = outcome_of(record), "finished before" if kept else f"{seconds:.1f} s"
        self.board.end(self.board.rows[number], "done" if record.diverged is None else "diverged", outcome, seconds)
        self._say(number, f"{outcome}, {when}", record.diverged is not None)

    def fail(self, number: int, why: str) -> None:
        """Tell that trial `number` failed by itself, and why; the others go on."""
        self.board.end(self.board.rows[number], "failed", why, None)
        self._say(number, f"failed: {why}", True)

    def _say(self, number: int, what: str, matters: bool) -> None:
        self._finished += 1
        # The table shows what is finished; what went wrong stays readable above it.
        if self._live is None or matters:
            count = str(len(self.board.rows))
            self.note(f"[{self._finished:>{len(count)}}/{count}] {self.board.rows[number].title}: {what}")

    def _look(self) -> Board:
        for number, row in enumerate(self.board.rows):
            if row.state == "running" and (status := self._status(number)) is not None:
                row.rounds, row.told = status.rounds, status.told
        return self.board


def outcome_of(record: Record) -> str:
    """What came out of a trial, in a few words."""
    if record.diverged is not None:
        return f"diverged in round {record.diverged['epoch']}"
    values = {name: record.value(name) for name in ("train_error", record.judge)}
    return told({name: value for name, value in values.items() if value is not None})
