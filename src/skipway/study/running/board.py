"""The trials of a study at a glance: how far each is, what came of it, and how long the rest will take."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console, ConsoleOptions
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

State = Literal["running", "failed", "diverged", "done", "waiting"]
STATES: tuple[State, ...] = ("done", "running", "failed", "diverged", "waiting")
ENDED = ("done", "diverged", "failed")
_STYLES = {"running": "cyan", "done": "green", "failed": "bold red", "diverged": "yellow", "waiting": "dim"}
# Lines around the rows of the table, and columns below which the table leaves something out.
_AROUND, _NARROW, _NARROWEST = 6, 90, 60
_BAR, _STATE, _ROUND, _TIME = 60, len("diverged"), len("10 of 10"), len("1:00:00")
# Below this share, how long a trial took says little of how long it will take.
_TELLING = 0.03


@dataclass(eq=False)
class Row:
    """One trial: how heavy it is beside others, the group of those that are alike but for their seeds, how far it is.

    `seconds` is how long it took, or has been running; `first_share` is where it was gone on with.
    """

    title: str
    weight: float = 1.0
    group: str = ""
    state: State = "waiting"
    round: int = 0
    rounds: int | None = None
    share: float = 0.0
    first_share: float = 0.0
    seconds: float | None = None
    told: str = ""
    ended: int = 0


def make_row(title: str, labels: Mapping[str, str]) -> Row:
    """The row of a trial that waits; `labels` are its values of the axes that vary.

    >>> make_row("resnet20 none seed 0", {"depth": "20", "skip": "none"}).weight
    20.0
    """
    weight = 1.0
    for name in ("depth", "width", "epochs", "steps", "seconds"):
        with contextlib.suppress(KeyError, ValueError):
            weight *= float(labels[name])
    return Row(title, weight, str(sorted(labels.items())))


class Board:
    """A table of the trials that are of interest, with counts of all, a bar, and an estimate of the time left."""

    def __init__(self, rows: Sequence[Row], name: str = "") -> None:
        self.rows, self.name = list(rows), name
        self._ended = 0

    def end(self, row: Row, state: State, told: str, seconds: float | None) -> None:
        """Tell that a trial has ended."""
        if row.state not in ENDED:
            self._ended += 1
            row.ended = self._ended
        row.state, row.told, row.share = state, told, 1.0
        row.seconds = row.seconds if seconds is None else seconds

    def counts(self) -> dict[State, int]:
        """How many trials are in each state that some are in."""
        counted = Counter(row.state for row in self.rows)
        return {state: counted[state] for state in STATES if counted[state]}

    def share(self) -> float:
        """How much of the study is done; a trial counts as much as it is expected to take."""
        expected = self._expected()
        whole = sum(expected)
        return sum(row.share * time for row, time in zip(self.rows, expected, strict=True)) / whole if whole else 1.0

    def left(self) -> float | None:
        """Seconds until all is done, with as many trials at a time as now; None where nothing is known yet."""
        if not any(_known(row) is not None for row in self.rows):
            return None
        rest = [
            (1 - row.share) * time
            for row, time in zip(self.rows, self._expected(), strict=True)
            if row.state in ("running", "waiting")
        ]
        side_by_side = max(1, sum(row.state == "running" for row in self.rows))
        return max(sum(rest) / side_by_side, max(rest, default=0.0))

    def _expected(self) -> list[float]:
        """How long each trial takes: as long as it seems to, else as others of its group, else by its weight."""
        known = [(row, seconds) for row in self.rows if (seconds := _known(row)) is not None]
        groups: dict[str, list[float]] = {}
        for row, seconds in known:
            groups.setdefault(row.group, []).append(seconds)
        weight = sum(row.weight for row, _ in known)
        rate = sum(seconds for _, seconds in known) / weight if weight else 1.0
        found = []
        for row in self.rows:
            alike = groups.get(row.group)
            by_others = sum(alike) / len(alike) if alike else rate * row.weight
            own = _known(row)
            found.append(by_others if own is None else own)
        return found

    def line(self) -> str:
        """The counts and the time left in one line: "1 of 2 done, 1 waiting, about 1:00 left"."""
        counts = self.counts()
        told = [f"{counts.pop('done', 0)} of {len(self.rows)} done", *(f"{n} {state}" for state, n in counts.items())]
        if (left := self.left()) is not None and {"running", "waiting"} & set(counts):
            told.append(f"about {duration(left)} left")
        return ", ".join(told)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        width, height = options.max_width, options.height or console.size.height
        shown, hidden = self._chosen(max(3, height - _AROUND))
        table = Table(box=None, pad_edge=False, header_style="bold")
        # What was measured gives way first.
        titles = min(max((len(row.title) for row in shown), default=0), max(12, width // 2))
        columns = [("trial", titles, "left"), ("", _STATE, "left")]
        if width >= _NARROWEST:
            columns.append(("round", _ROUND, "right"))
        late = [("time", _TIME, "right")] if width >= _NARROW else []
        rest = width - sum(size + 2 for _, size, _ in columns + late)
        columns += [("measured", max(4, min(rest, max((len(row.told) for row in shown), default=0))), "left"), *late]
        for name, size, side in columns:
            table.add_column(name, no_wrap=True, overflow="ellipsis", width=max(size, len(name)), justify=side)  # pyright: ignore[reportArgumentType]
        for row in shown:
            table.add_row(*self._cells(row, width))
        yield table
        if hidden:
            yield Text(f"and {sum(hidden.values())} more: {', '.join(f'{n} {state}' for state, n in hidden.items())}",
                       style="dim")  # fmt: skip
        yield ProgressBar(total=1.0, completed=self.share(), width=min(width, _BAR))
        yield Segment.line()
        head = f"{self.name}: " if self.name else ""
        yield Text(f"{head}{self.line()}", overflow="fold")

    def _chosen(self, room: int) -> tuple[list[Row], dict[State, int]]:
        """The rows that there is room for, and how many others there are in each state."""
        if len(self.rows) <= room:
            return self.rows, {}
        room -= 1
        running = [row for row in self.rows if row.state == "running"]
        bad = [row for row in self._latest() if row.state in ("failed", "diverged")]
        chosen = running[:room]
        chosen += bad[: max(0, (room - len(chosen)) // 2)]
        rest = [row for row in self._latest() if row not in chosen]
        rest += [row for row in self.rows if row.state == "waiting"]
        chosen += rest[: room - len(chosen)]
        taken = set(chosen)
        others = Counter(row.state for row in self.rows if row not in taken)
        return [row for row in self.rows if row in taken], {state: others[state] for state in STATES if others[state]}

    def _latest(self) -> list[Row]:
        return sorted((row for row in self.rows if row.state in ENDED), key=lambda row: -row.ended)

    def _cells(self, row: Row, width: int) -> Iterator[Text]:
        style = _STYLES[row.state]
        yield Text(row.title, style="dim" if row.state == "waiting" else "")
        yield Text(row.state, style=style)
        if width >= _NARROWEST:
            rounds = f" of {row.rounds}" if row.rounds else ""
            yield Text(f"{row.round}{rounds}" if row.state == "running" and row.round else "")
        yield Text(row.told if width >= _NARROW else row.told.replace(" error", ""))
        if width >= _NARROW:
            seconds = _known(row) if row.state in ENDED else row.seconds
            yield Text("" if seconds is None or row.state == "waiting" else duration(seconds))


def duration(seconds: float) -> str:
    """A time as people write it.

    >>> duration(5.2), duration(125.0), duration(3723.0)
    ('0:05', '2:05', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _known(row: Row) -> float | None:
    """How long a trial took, or how long it will have taken where it is far enough to tell."""
    if row.state == "done":
        return row.seconds
    if row.state == "running" and row.seconds and row.share - row.first_share > _TELLING:
        return row.seconds / (row.share - row.first_share)
    return None
