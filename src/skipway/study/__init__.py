"""Compare: a declared experiment, from trials to a table and a report; and train one network on any data."""

from skipway.study.answer import Answer
from skipway.study.data import Images, load_images
from skipway.study.declaration import Study
from skipway.study.prediction import Prediction, predict
from skipway.study.question import Question
from skipway.study.records import Record
from skipway.study.results import Results
from skipway.study.summary import Spread, Summary
from skipway.study.training import Trained, train
from skipway.study.variants import Trial, Variant

__all__ = [
    "Answer",
    "Images",
    "Prediction",
    "Question",
    "Record",
    "Results",
    "Spread",
    "Study",
    "Summary",
    "Trained",
    "Trial",
    "Variant",
    "load_images",
    "predict",
    "train",
]
