"""Watching a study that another process runs, on this machine or another: its folder says all there is to know."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from skipway.study.records.record import read_record
from skipway.study.records.sealed import Unreadable
from skipway.study.records.status import Status, read_status, status_path
from skipway.study.running.board import ENDED, Board, Row, duration, make_row
from skipway.study.running.manifest import read_manifest
from skipway.study.running.progress import outcome_of

# A trial tells of itself every few seconds; one that has not for so long may have lost its process.
_SILENCE = 120.0


class Watch:
    """The board of a study's folder, which `look` brings up to date.

    Raises SkipwayError for a folder that holds no study.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser()
        content = read_manifest(self.folder)
        trials: list[dict[str, Any]] = content["trials"]
        self.ids = [trial["id"] for trial in trials]
        rows = [make_row(trial["title"], trial["labels"]) for trial in trials]
        self.board = Board(rows, content["study"].get("name", ""))
        self._heard: dict[int, tuple[Status, float]] = {}

    @property
    def complete(self) -> bool:
        """Whether every trial has ended."""
        return all(row.state in ENDED for row in self.board.rows)

    def look(self) -> list[Row]:
        """Read the folder again, and return the rows of the trials that have ended since."""
        fresh = []
        for number, (row, trial_id) in enumerate(zip(self.board.rows, self.ids, strict=True)):
            # A trial that failed may have been begun again; one that is done stays so.
            if row.state in ("done", "diverged"):
                continue
            before = row.state, row.told
            self._look_at(number, row, trial_id)
            if row.state in ENDED and before != (row.state, row.told):
                fresh.append(row)
        return fresh

    def _look_at(self, number: int, row: Row, trial_id: str) -> None:
        if self._look_for_record(row, trial_id):
            return
        if (status := read_status(status_path(self.folder, trial_id))) is not None:
            row.state, row.ended = "running", 0
            row.round, row.rounds, row.share = status.round, status.rounds, status.share
            row.first_share, row.seconds = status.first_share, status.seconds
            silent = self._silence(number, status)
            row.told = f"no word for {duration(silent)}" if silent > _SILENCE else status.told
        elif (why := _failure(self.folder / "failed" / f"{trial_id}.json")) is not None:
            self.board.end(row, "failed", why, None)
        else:
            row.state, row.share, row.ended = "waiting", 0.0, 0
            row.told = "begun" if (self.folder / "unfinished" / f"{trial_id}.ckpt").exists() else ""

    def _look_for_record(self, row: Row, trial_id: str) -> bool:
        try:
            record = read_record(self.folder / "trials" / f"{trial_id}.json", trial_id)
        except (Unreadable, OSError):
            record = None
        if record is None:
            return False
        state = "done" if record.diverged is None else "diverged"
        self.board.end(row, state, outcome_of(record), record.measures.get("seconds"))
        return True

    def _silence(self, number: int, status: Status) -> float:
        """For how long nothing new was heard; only of what was not seen to be written, another clock is asked."""
        known = self._heard.get(number)
        if known is None or known[0] != status:
            age = max(0.0, time.time() - status.time) if known is None else 0.0
            self._heard[number] = status, time.monotonic() - age
        return time.monotonic() - self._heard[number][1]


def _failure(path: Path) -> str | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(content.get("error", "")) if isinstance(content, dict) else None
