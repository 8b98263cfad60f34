"""`Results`: the records of a study, as a table, an answer and a report."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from skipway.errors import SkipwayError, choose
from skipway.storing import write_whole
from skipway.study.answering.answer import Answer, answer
from skipway.study.answering.summary import Summary, summarise
from skipway.study.declaring.declaration import Study
from skipway.study.records.record import Record, read_record
from skipway.study.records.sealed import Unreadable
from skipway.study.records.writing import storage, write_text
from skipway.study.running.failures import read_failure
from skipway.study.running.manifest import read_manifest

if TYPE_CHECKING:
    import pandas

Format = Literal["html", "md", "print"]
_FILES = {"html": "report.html", "md": "report.md", "print": "report-print.html"}
# Of every variant the table has these, where they are known, and then what the question asks for.
_SHOWN = ("train_error", "test_error", "train_loss", "test_loss", "validation_loss", "parameters", "memory", "seconds")


@dataclass(frozen=True)
class Results:
    """What a study's trials gave; `failed` says of those that gave nothing why."""

    study: Study
    folder: Path
    records: tuple[Record, ...]
    failed: tuple[tuple[str, str], ...] = ()

    @property
    def summaries(self) -> list[Summary]:
        """Each variant over its seeds, in the study's order."""
        return summarise(self.records)

    @cached_property
    def answer(self) -> Answer:
        """What the records say to the study's question."""
        return answer(self.study, self.records)

    def table(self) -> pandas.DataFrame:
        """A row a variant: its axes, and each number's mean, lowest and highest over seeds; errors are fractions."""
        import pandas

        rows = []
        for summary in self.summaries:
            row: dict[str, object] = {"model": summary.model, "depth": summary.depth, "skip": summary.skip}
            row |= {name: text for name, text in summary.labels.items() if name not in row}
            row |= {"seeds": summary.seeds, "diverged": summary.diverged}
            for name, spread in summary.values.items():
                row |= {name: spread.mean, f"{name}_low": spread.low, f"{name}_high": spread.high}
            rows.append(row)
        return pandas.DataFrame(rows)

    def shown_measures(self) -> list[str]:
        """The measures that a person wants to see first: what is asked for, errors or losses, and what they cost."""
        known = {name for summary in self.summaries for name in summary.values}
        wanted = [self.answer.asked.measure, self.records[0].judge, *_SHOWN]
        return [name for name in dict.fromkeys(wanted) if name in known]

    def report(self, path: str | Path | None = None, format: Format = "html", against: Results | None = None) -> Path:
        """Write the report and return its path; by default it lies in the study's folder, as report.html or the like.

        "html" is one page that needs nothing beside it; "print" is one that does not move, for paper and PDF; "md" is
        Markdown, with its pictures in a folder beside it. With `against`, the page says what differs between this study
        and the other. Raises SkipwayError for another format, and for studies that have nothing in common.
        """
        from skipway.study.pages.comparison import comparison_page
        from skipway.study.pages.study import study_page

        choose("format", format, _FILES)
        name = _FILES[format] if against is None else f"compared-{_FILES[format]}"
        target = self.folder / name if path is None else Path(path).expanduser()
        page = study_page(self, target) if against is None else comparison_page(self, against, target)
        with storage(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            if format == "md":
                from skipway.report.markdown import markdown

                pictures = target.with_name(f"{target.stem}-pictures")
                text, files = markdown(page, pictures.name)
                pictures.mkdir(exist_ok=True)
                for file, content in files.items():
                    write_whole(pictures / file, content)
            elif format == "print":
                from skipway.report.printed import printed

                text = printed(page)
            else:
                text = page.html()
            write_text(target, text)
        return target


def read_results(folder: str | Path) -> Results:
    """The results that lie in a study's folder, from its manifest and records alone: no data are read.

    Trials that are not finished are left out. Raises SkipwayError for a folder of anything else, and where no trial is
    finished.
    """
    place = Path(folder).expanduser()
    manifest = read_manifest(place)
    study, trials = Study(**manifest["study"]), manifest["trials"]
    records, failed = [], []
    for trial in trials:
        try:
            if (record := read_record(place / trial["record"], trial["id"])) is not None:
                records.append(record)
            elif (why := read_failure(place, trial["id"])) is not None:
                failed.append((str(trial["title"]), why))
        except Unreadable as error:
            failed.append((str(trial["title"]), f"its record cannot be read: {error}; run the study again"))
    if not records:
        told = f": {failed[0][0]}: {failed[0][1]}" if failed else " yet"
        raise SkipwayError(f"no trial of '{place}' is finished{told}")
    return Results(study, place, tuple(records), tuple(failed))
