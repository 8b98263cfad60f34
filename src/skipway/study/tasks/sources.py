"""Reading labelled images from parquet files, image folders and the Hugging Face Hub."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from skipway.errors import SkipwayError
from skipway.study.tasks.images import Images, pick, split

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
_TEST_NAMES = ("test", "validation", "valid", "val")
_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_LAYOUTS = "train*.parquet and test*.parquet, or train/<class>/*.png and test/<class>/*.png, or <class>/*.png"


@dataclass(frozen=True)
class Rows:
    """Images as they lie in a file, not yet decoded, and their labels."""

    encoded: list[bytes | Path]
    labels: list[int]

    def take(self, indices: Iterable[int]) -> Rows:
        chosen = list(indices)
        return Rows([self.encoded[i] for i in chosen], [self.labels[i] for i in chosen])


def read_source(source: str | Path, samples: int | None, image_size: int | None) -> Images:
    """Images of a folder, or of the Hub where no such folder exists."""
    folder = Path(source).expanduser()
    name = str(source)
    if folder.suffix == ".parquet" and folder.is_file():
        train, test, classes = _read_parquet({"train": [str(folder)]}, name)
    elif folder.is_dir():
        parquet = _parquet_files(folder)
        train, test, classes = _read_parquet(parquet, name) if parquet else _read_folders(folder, name)
    elif folder.exists():
        raise SkipwayError(f"'{name}' is a file; a data set is a parquet file, or a folder that holds {_LAYOUTS}")
    else:
        train, test, classes = _read_hub(name)
    _check_labels(train, test, classes, name)
    if test is None:
        train_part, test_part = split(train.labels, classes, name)
        train, test = train.take(train_part), train.take(test_part)
    train = train.take(pick(len(train.labels), samples))
    test = test.take(pick(len(test.labels), samples))
    pixels = decode([*train.encoded, *test.encoded], name, image_size)
    count = len(train.labels)
    return Images(
        name,
        pixels[:count],
        torch.tensor(train.labels, dtype=torch.int64),
        pixels[count:],
        torch.tensor(test.labels, dtype=torch.int64),
        classes,
    )


def _parquet_files(folder: Path) -> dict[str, list[str]]:
    for place in (folder, folder / "data"):
        found = {part: sorted(str(path) for path in place.glob(f"{part}*.parquet")) for part in ("train", *_TEST_NAMES)}
        if found["train"]:
            return {part: files for part, files in found.items() if files}
    if stray := sorted(folder.rglob("*.parquet")):
        raise SkipwayError(f"'{folder}' holds '{stray[0].name}' but no train*.parquet; a folder holds {_LAYOUTS}")
    return {}


def _read_parquet(files: dict[str, list[str]], name: str) -> tuple[Rows, Rows | None, tuple[str, ...]]:
    import datasets

    try:
        # Streaming: a set that is read whole needs no second copy in a cache on disk.
        parts = datasets.load_dataset("parquet", data_files=files, streaming=True)
        return _split_parts(parts, name)
    except SkipwayError:
        raise
    except Exception as error:
        raise SkipwayError(f"cannot read the parquet files of '{name}': {first_line(error)}") from error


def _read_hub(name: str) -> tuple[Rows, Rows | None, tuple[str, ...]]:
    import datasets

    try:
        return _split_parts(datasets.load_dataset(name), name)
    except SkipwayError:
        raise
    except Exception as error:
        raise SkipwayError(
            f"there is no folder '{name}', and the Hugging Face Hub gave no such data set: {first_line(error)}"
        ) from error


def _split_parts(parts: Any, name: str) -> tuple[Rows, Rows | None, tuple[str, ...]]:
    available = list(parts)
    train_name = "train" if "train" in available else available[0]
    test_name = next((part for part in _TEST_NAMES if part in available and part != train_name), None)
    train, classes = _rows(parts[train_name], name)
    if test_name is None:
        return train, None, classes
    test, test_classes = _rows(parts[test_name], name)
    return train, test, max(classes, test_classes, key=len)


def _rows(part: Any, name: str) -> tuple[Rows, tuple[str, ...]]:
    import datasets

    features = part.features or {}
    columns = list(features)
    image = _column(features, datasets.Image, _IMAGE_COLUMNS)
    label = _column(features, datasets.ClassLabel, _LABEL_COLUMNS)
    if image is None or label is None:
        missing = "image column (img, image)" if image is None else "label column (label)"
        raise SkipwayError(f"{name} has no {missing}; its columns are {', '.join(columns) or 'not known'}")
    # Undecoded, so that choosing a few of many images does not decode them all.
    part = part.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
    encoded: list[bytes | Path] = []
    labels: list[int] = []
    for row in part:
        encoded.append(row[image]["bytes"] if row[image]["bytes"] is not None else Path(row[image]["path"]))
        labels.append(row[label])
    feature = features[label]
    if isinstance(feature, datasets.ClassLabel):
        return Rows(encoded, labels), tuple(feature.names)
    if not all(isinstance(value, int) for value in labels):
        raise SkipwayError(f"{name}: labels in column '{label}' are not integers; encode each class as 0, 1, 2, ...")
    return Rows(encoded, labels), tuple(str(value) for value in range(max(labels, default=-1) + 1))


def _column(features: Any, kind: type, usual: tuple[str, ...]) -> str | None:
    typed = [column for column, feature in features.items() if isinstance(feature, kind)]
    named = [column for column in usual if column in features]
    return next(iter([column for column in named if column in typed] + typed + named), None)


def _read_folders(folder: Path, name: str) -> tuple[Rows, Rows | None, tuple[str, ...]]:
    inside = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    if "train" not in inside:
        rows, classes = _walk(folder, None, name)
        return rows, None, classes
    train, classes = _walk(inside["train"], None, name)
    test_name = next((part for part in _TEST_NAMES if part in inside), None)
    if test_name is None:
        return train, None, classes
    return train, _walk(inside[test_name], classes, name)[0], classes


def _walk(folder: Path, classes: tuple[str, ...] | None, name: str) -> tuple[Rows, tuple[str, ...]]:
    found = {
        path.name: sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    }
    found = {class_name: files for class_name, files in found.items() if files}
    if not found:
        raise SkipwayError(f"'{folder}' holds no folders of images, one a class; a data set holds {_LAYOUTS}")
    known = tuple(found) if classes is None else classes
    if strange := [class_name for class_name in found if class_name not in known]:
        raise SkipwayError(f"{name}: the test set has a class '{strange[0]}' that the training set has not")
    encoded: list[bytes | Path] = []
    labels: list[int] = []
    for class_name, files in found.items():
        encoded.extend(files)
        labels.extend([known.index(class_name)] * len(files))
    return Rows(encoded, labels), known


def _check_labels(train: Rows, test: Rows | None, classes: tuple[str, ...], name: str) -> None:
    if len(classes) < 2:
        raise SkipwayError(f"{name} has {len(classes)} class; telling classes apart needs 2 at least")
    for part, rows in (("training", train), ("test", test)):
        if rows is None:
            continue
        if not rows.labels:
            raise SkipwayError(f"{name}: the {part} set is empty")
        if min(rows.labels) < 0 or max(rows.labels) >= len(classes):
            wrong = min(rows.labels) if min(rows.labels) < 0 else max(rows.labels)
            raise SkipwayError(f"{name}: the {part} set has the label {wrong}; labels go from 0 to {len(classes) - 1}")


def decode(encoded: list[bytes | Path], name: str, image_size: int | None) -> UInt8[Tensor, "n c h w"]:
    from PIL import Image, ImageOps

    arrays: list[np.ndarray] = []
    for item in encoded:
        try:
            with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as image:
                # A palette may carry transparency, which only RGBA can take over.
                whole = image.convert("RGBA") if image.mode == "P" else image
                pixels = whole.convert("L" if image.mode in ("1", "L") else "RGB")
        except (OSError, Image.DecompressionBombError) as error:
            which = f"'{item}'" if isinstance(item, Path) else f"image {len(arrays)}"
            raise SkipwayError(f"{name}: {which} cannot be read as an image: {first_line(error)}") from error
        if image_size is not None:
            pixels = ImageOps.fit(pixels, (image_size, image_size))
        arrays.append(np.asarray(pixels))
        if arrays[-1].shape[:2] != arrays[0].shape[:2]:
            (h, w), (other_h, other_w) = arrays[0].shape[:2], arrays[-1].shape[:2]
            raise SkipwayError(
                f"{name}: images differ in size, {h} x {w} and {other_h} x {other_w}; "
                f"image_size={min(h, w)} (--image-size) brings them to one"
            )
    if any(array.ndim == 3 for array in arrays):
        arrays = [array if array.ndim == 3 else np.repeat(array[:, :, None], 3, axis=2) for array in arrays]
    else:
        arrays = [array[:, :, None] for array in arrays]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
