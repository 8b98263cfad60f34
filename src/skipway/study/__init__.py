"""Compare: a declared experiment, variants x depths x seeds, from trials to a table and a report."""

from skipway.study.answer import Answer, Summary
from skipway.study.data import Images, load_images
from skipway.study.declaration import Study, Trial, Variant
from skipway.study.records import Record
from skipway.study.results import Results

__all__ = ["Answer", "Images", "Record", "Results", "Study", "Summary", "Trial", "Variant", "load_images"]
