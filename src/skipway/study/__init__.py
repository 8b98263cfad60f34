"""Compare: a declared experiment, from trials to a table and a report; and train one network on any data."""

from skipway.study.answer import Answer, Summary
from skipway.study.data import Images, load_images
from skipway.study.declaration import Study, Trial, Variant
from skipway.study.prediction import Prediction, predict
from skipway.study.records import Record
from skipway.study.results import Results
from skipway.study.training import Trained, train

__all__ = [
    "Answer",
    "Images",
    "Prediction",
    "Record",
    "Results",
    "Study",
    "Summary",
    "Trained",
    "Trial",
    "Variant",
    "load_images",
    "predict",
    "train",
]
