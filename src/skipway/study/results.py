"""`Results`: the records of a study, as a table, an answer and a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skipway.study.answer import Answer, Summary, answer, summarise
from skipway.study.declaration import Study
from skipway.study.records import Record, storage, write_text

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Results:
    """What a study's trials gave, all of them finished."""

    study: Study
    folder: Path
    records: tuple[Record, ...]

    @property
    def summaries(self) -> list[Summary]:
        """Each variant over its seeds, in the study's order."""
        return summarise(self.records)

    @property
    def answer(self) -> Answer:
        """Does depth hurt the plain network on the training set, and does the skip repair it?"""
        return answer(self.summaries)

    def table(self) -> pandas.DataFrame:
        """A row a variant: errors as fractions, their mean, lowest and highest over seeds; seconds a trial."""
        import pandas

        return pandas.DataFrame(
            [
                {
                    "depth": summary.depth,
                    "skip": summary.skip,
                    "seeds": summary.seeds,
                    "diverged": summary.diverged,
                    "train_error": summary.train_error.mean,
                    "train_error_low": summary.train_error.low,
                    "train_error_high": summary.train_error.high,
                    "test_error": summary.test_error.mean,
                    "test_error_low": summary.test_error.low,
                    "test_error_high": summary.test_error.high,
                    "parameters": summary.parameters,
                    "seconds": summary.seconds,
                }
                for summary in self.summaries
            ]
        )

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report, one HTML page that needs nothing beside it, and return its path.

        Without a path it is `report.html` in the study's folder.
        """
        from skipway.study.page import study_page

        target = self.folder / "report.html" if path is None else Path(path).expanduser()
        with storage(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_text(target, study_page(self, target))
        return target
