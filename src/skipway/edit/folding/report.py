"""What folding did and what it left, a line each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from skipway.graph.ir import Site


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One thing that was folded, or was not: where, what, and into what or why not."""

    where: str
    what: str
    folded: bool
    detail: str

    def __str__(self) -> str:
        return f"{self.where or 'the model'}: {self.what} {'' if self.folded else 'stays: '}{self.detail}"


@dataclass(frozen=True)
class Report:
    """What one folding did: its entries in order, and how many operations there were before and are after.

    >>> print(Report((Entry("bn1", "batch_norm", True, "folded into conv1"),), 3, 2))
    bn1: batch_norm folded into conv1
    3 operations became 2
    """

    entries: tuple[Entry, ...]
    before: int
    after: int

    @property
    def folded(self) -> tuple[Entry, ...]:
        """What was folded."""
        return tuple(entry for entry in self.entries if entry.folded)

    @property
    def left(self) -> tuple[Entry, ...]:
        """What was not, and why."""
        return tuple(entry for entry in self.entries if not entry.folded)

    def rows(self) -> list[dict[str, str | bool]]:
        """The entries as rows of a table."""
        return [
            {"where": entry.where, "what": entry.what, "folded": entry.folded, "detail": entry.detail}
            for entry in self.entries
        ]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __str__(self) -> str:
        lines = [str(entry) for entry in self.entries]
        return "\n".join([*lines, f"{self.before} operations became {self.after}"])


class Log:
    """Collects the entries while programs are rewritten."""

    def __init__(self) -> None:
        self.entries: dict[Entry, None] = {}

    def copied(self) -> Log:
        """Another with the same entries."""
        log = Log()
        log.entries = dict(self.entries)
        return log

    def folded(self, site: Site, what: str, detail: str) -> None:
        self.entries[Entry(site.module, what, True, detail)] = None

    def left(self, site: Site, what: str, why: str) -> None:
        self.entries[Entry(site.module, what, False, why)] = None
