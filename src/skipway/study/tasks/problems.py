"""What there is to train on: data of any kind as a task, with what the data settle and how such tasks are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipway.errors import SkipwayError, check_whole, choose
from skipway.study.tasks.images import check_source, load_images
from skipway.study.tasks.task import Task

TOKENIZER = "tokenizer.json"
AUGMENTATIONS = ("none", "standard")
_CHARACTERS = 128
_CROP = 256
_TOKENS, _VOCABULARY = 64, 8000


@dataclass(frozen=True)
class Problem:
    """A task, what its data settle for a network, what is to be known of them later, and how it is trained by default.

    `facts` are plain values: what a record says of the data, and what a prediction needs to know of them.
    """

    task: Task
    offered: dict[str, Any]
    facts: dict[str, Any]
    defaults: dict[str, Any]
    # Texts that a run keeps beside these, by file name.
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DataChoice:
    """Which data, and what of them; None leaves a choice to the task. What a task has no use for is refused.

    `hides` is for networks that see a text from both sides: they tell hidden characters rather than the next.
    """

    data: str
    limit: int | None = None
    held_out: float | int | None = None
    image_size: int | None = None
    augment: str = "none"
    crop: int | None = None
    loss: str | None = None
    length: int | None = None
    languages: tuple[str, str] | None = None
    vocabulary: int | None = None
    hides: bool = False

    def __post_init__(self) -> None:
        choose("augmentation", self.augment, AUGMENTATIONS)
        for name in ("limit", "image_size", "crop", "length", "vocabulary"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)


def check_data(source: str | Path) -> None:
    """Raise SkipwayError if `source` can be no data of any kind, before anything is read."""
    from skipway.study.tasks.lines import parts_of

    if not parts_of(str(source)):
        check_source(source)


def open_problem(choice: DataChoice) -> Problem:
    """Read the data, which tell what there is to do: masks, a text, pairs of lines, or images in classes."""
    path = Path(choice.data).expanduser()
    from skipway.study.tasks.lines import parts_of
    from skipway.study.tasks.masks import is_masked

    if path.is_dir() and is_masked(path):
        return _open(choice, "segmentation", ("limit", "held_out", "augment", "crop", "loss"), _segmentation)
    if parts_of(choice.data):
        return _open(choice, "translation", ("limit", "length", "languages", "vocabulary"), _translation)
    if path.is_file() and path.suffix != ".parquet":
        return _open(choice, "language", ("limit", "held_out", "length"), _language)
    return _open(choice, "classification", ("limit", "image_size", "augment"), _classification)


class Problems:
    """The problems of a study's variants, each opened once, when it is first asked for."""

    def __init__(self) -> None:
        self._opened: dict[DataChoice, Problem] = {}

    def of(self, choice: DataChoice) -> Problem:
        if choice not in self._opened:
            self._opened[choice] = open_problem(choice)
        return self._opened[choice]


def _open(choice: DataChoice, kind: str, useful: tuple[str, ...], opener: Callable[[DataChoice], Problem]) -> Problem:
    for name, nothing in (
        ("limit", None), ("held_out", None), ("image_size", None), ("augment", "none"), ("crop", None), ("loss", None),
        ("length", None), ("languages", None),
    ):  # fmt: skip
        if name not in useful and getattr(choice, name) != nothing:
            raise SkipwayError(f"{name.replace('_', '-')} is not for {kind}, which '{choice.data}' is read as")
    return opener(choice)


def _classification(choice: DataChoice) -> Problem:
    from skipway.study.tasks import augmentation
    from skipway.study.tasks.classification import Classification

    check_source(choice.data)
    images = load_images(choice.data, choice.limit, choice.image_size)
    augment = augmentation.images(images.size) if choice.augment == "standard" else None
    mean, deviation = images.statistics
    return Problem(
        Classification(images, augment=augment),
        {
            "num_classes": len(images.classes), "in_channels": images.channels, "image_size": images.size[0],
            "image_shape": [images.channels, *images.size],
        },
        {
            **images.facts(), "class_names": list(images.classes),
            "mean": mean.flatten().tolist(), "deviation": deviation.flatten().tolist(),
        },
        {
            "optimizer": "sgd", "schedule": "one-cycle", "batch_size": 64, "weight_decay": 5e-4, "epochs": 10,
            "channels_last": True,
        },
    )  # fmt: skip


def _segmentation(choice: DataChoice) -> Problem:
    from skipway.study.tasks import augmentation, masks
    from skipway.study.tasks.segmentation import Segmentation

    held_out = masks.HELD_OUT if choice.held_out is None else choice.held_out
    images = masks.read_masked_images(Path(choice.data).expanduser(), held_out, choice.limit)
    # Most networks halve the resolution several times, and take sides that can be halved as often.
    fitting = max(1, min(images.smallest) // 16) * 16 if min(images.smallest) >= 16 else min(images.smallest)
    crop = min(_CROP, fitting) if choice.crop is None else choice.crop
    augment = augmentation.masked_images((crop, crop)) if choice.augment == "standard" else None
    task = Segmentation(images, crop, "both" if choice.loss is None else choice.loss, augment)
    mean, deviation = images.statistics
    return Problem(
        task,
        {
            "num_classes": task.logits, "in_channels": images.channels,
            "image_shape": [images.channels, crop, crop],
        },
        {**images.facts(), "mean": mean.flatten().tolist(), "deviation": deviation.flatten().tolist()},
        {
            "optimizer": "adamw", "schedule": "cosine", "batch_size": 4, "weight_decay": 1e-2, "epochs": 20,
            "channels_last": True, "clip": 1.0,
        },
    )  # fmt: skip


def _language(choice: DataChoice) -> Problem:
    from skipway.study.tasks.hidden import HiddenLanguage
    from skipway.study.tasks.language import HELD_OUT, Language, read_text

    held_out = HELD_OUT if choice.held_out is None else choice.held_out
    text = read_text(Path(choice.data).expanduser(), held_out, choice.limit)
    length = _CHARACTERS if choice.length is None else choice.length
    return Problem(
        HiddenLanguage(text, length) if choice.hides else Language(text, length),
        {"vocabulary": len(text.characters) + choice.hides, "length": length},
        {**text.facts(), "length": length},
        {
            "optimizer": "adamw", "schedule": "cosine", "batch_size": 32, "weight_decay": 0.1, "steps": 2000,
            "every": 250, "warm_up": 100, "clip": 1.0,
        },
    )  # fmt: skip


def _translation(choice: DataChoice) -> Problem:
    from skipway.study.tasks.lines import END, PADDING, START, read_pairs
    from skipway.study.tasks.translation import Translation

    length = _TOKENS if choice.length is None else choice.length
    vocabulary = _VOCABULARY if choice.vocabulary is None else choice.vocabulary
    pairs = read_pairs(choice.data, choice.languages, vocabulary, length, choice.limit)
    size = len(pairs.tokenizer)
    # The start is one token more than a line has.
    return Problem(
        Translation(pairs, length),
        {
            "vocabulary": size,
            "target_vocabulary": size,
            "length": length + 1,
            "padding": PADDING,
            "start": START,
            "end": END,
        },
        {**pairs.facts(), "length": length},
        {
            "optimizer": "adamw",
            "schedule": "cosine",
            "batch_size": 64,
            "weight_decay": 1e-2,
            "epochs": 10,
            "warm_up": 400,
            "clip": 1.0,
        },
        {TOKENIZER: pairs.tokenizer.description},
    )
