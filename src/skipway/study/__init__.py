"""Compare: a declared experiment, from trials to a table and a report; and train one network on any data."""

from skipway.study.answering.answer import Answer
from skipway.study.answering.summary import Spread, Summary
from skipway.study.declaring.declaration import Study
from skipway.study.declaring.question import Question
from skipway.study.declaring.variants import Trial, Variant
from skipway.study.records.record import Record
from skipway.study.running.results import Results
from skipway.study.tasks.images import Images, load_images
from skipway.study.training.predict import Prediction, predict
from skipway.study.training.train import Trained, train

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
