"""`Result`: the numbers that a probe measured, the policy they were measured under, and their table, plot and file."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skipway.errors import SkipwayError, choose
from skipway.storing import write_whole, writing

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

FORMAT = 1
_HEADER = "header"


@dataclass(frozen=True)
class Policy:
    """What a number depends on besides the model and the data: two results compare only if their policies agree.

    `mode` is "eval" or "train"; `batch_norm` says where BatchNorm's statistics come from ("frozen": the running ones
    as stored; "batch"; "interpolated"; "recalibrated"; "none" where the model has no BatchNorm); `samples` is how many
    samples were measured on, `seed` what random choices were drawn with (None: there were none), `dtype` the precision.

    >>> str(Policy("ResNet", samples=512, seed=0))
    'ResNet, evaluation mode, BatchNorm frozen, 512 samples, seed 0, float32'
    """

    model: str
    mode: str = "eval"
    batch_norm: str = "frozen"
    samples: int = 0
    seed: int | None = None
    dtype: str = "float32"

    def __str__(self) -> str:
        parts = [self.model, {"eval": "evaluation", "train": "training"}.get(self.mode, self.mode) + " mode"]
        if self.batch_norm != "none":
            parts.append(f"BatchNorm {self.batch_norm}")
        parts.append(f"{self.samples} sample{'' if self.samples == 1 else 's'}")
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        return ", ".join([*parts, self.dtype])


@dataclass(frozen=True, eq=False)
class Result(ABC):
    """What a probe measured. Each probe has its own kind: a frozen dataclass, `policy` first.

    Its fields are numpy arrays, numbers, strings, None, other Results, and tuples of these; so every result can be
    saved and comes back equal. Two results are equal if they are of one kind and every field is, NaN like NaN.
    """

    policy: Policy

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Before dataclass() looks: what it would write compares arrays with ==, which has no single answer, and tells
        # them all where a session shows what was measured.
        cls.__eq__ = Result.__eq__
        cls.__repr__ = Result.__repr__
        cls.__hash__ = Result.__hash__

    @property
    @abstractmethod
    def what(self) -> str:
        """What was measured, as the beginning of a sentence: "Loss along 2 filter-normalised directions"."""

    @property
    def caption(self) -> str:
        """A sentence that says what was measured and under which policy; it stands under every plot."""
        return f"{self.what}. Measured on {self.policy}."

    @abstractmethod
    def table(self) -> pandas.DataFrame:
        """The numbers, one row a measurement."""

    @abstractmethod
    def plot(self, axes: Any = None) -> Any:
        """Draw with matplotlib into the given axes or into a new figure; returns the axes."""

    @abstractmethod
    def interactive(self) -> plotly.graph_objects.Figure:
        """The plot as a plotly figure."""

    def save(self, path: str | Path) -> Path:
        """Write all fields to one .npz file (arrays and a JSON header, no pickle), whole or not at all.

        Returns the path, to which ".npz" is added where it has no suffix. Raises SkipwayError for another suffix, a
        field that cannot be saved, and a place that cannot be written.
        """
        path = Path(path).expanduser()
        if not path.suffix:
            path = path.with_name(f"{path.name}.npz")
        if path.suffix != ".npz":
            raise SkipwayError(f"a result is saved as .npz, not '{path.suffix}'; plot() gives a picture, table() text")
        arrays: dict[str, np.ndarray] = {}
        header = json.dumps(_encode_result(self, "", arrays))
        file = io.BytesIO()
        np.savez_compressed(file, **{_HEADER: np.array(header)}, **arrays)  # pyright: ignore[reportArgumentType]
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, file.getvalue())
        return path

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.caption} See its table(), plot() and save(path).>"

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.policy))


def load(path: str | Path) -> Result:
    """Read a result that `Result.save` wrote; it comes back as the kind it was and equal to what was saved.

    Raises SkipwayError where there is no such file, or where it is cut short or not of skipway.
    """
    path = Path(path).expanduser()
    if not path.suffix and not path.exists():
        path = path.with_name(f"{path.name}.npz")
    try:
        # From memory: numpy leaves a file that it cannot read open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop(_HEADER)[()]))
        kind, form = header["class"], header["format"]
    except FileNotFoundError:
        raise SkipwayError(f"no file '{path}'; results are what Result.save(path) wrote") from None
    except OSError as error:
        raise SkipwayError(f"cannot read '{path}': {error.strerror or error}") from error
    except (ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error):
        raise SkipwayError(f"'{path}' is no result of skipway, or it is damaged; measure and save it again") from None
    if form != FORMAT:
        raise SkipwayError(
            f"'{path}' is of format {form}, written by skipway {header.get('skipway')}; this skipway reads {FORMAT}"
        )
    choose("kind of result", kind, sorted(_kinds()))
    try:
        return _decode(header, arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SkipwayError(
            f"'{path}' was written by skipway {header.get('skipway')}, whose {kind} has other fields ({error}); "
            "measure and save it again"
        ) from error


def _kinds() -> dict[str, type[Result]]:
    import skipway.probe  # noqa: F401 (which imports every module that defines a kind)

    found: dict[str, type[Result]] = {}
    waiting: list[type[Result]] = [Result]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            found[kind.__name__] = kind
            waiting.append(kind)
    return found


def _encode_result(result: Result, prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    from skipway import __version__

    fields = dataclasses.fields(result)
    return {
        "class": type(result).__name__,
        "format": FORMAT,
        "skipway": __version__,
        "fields": {f.name: _encode(getattr(result, f.name), f"{prefix}{f.name}", arrays) for f in fields},
    }


def _encode(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, Policy):
        return {"policy": dataclasses.asdict(value)}
    if isinstance(value, Result):
        return _encode_result(value, f"{name}.", arrays)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return {"tuple": [_encode(part, f"{name}.{place}", arrays) for place, part in enumerate(value)]}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufcSU":
        arrays[name] = value
        return {"array": name}
    kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    raise SkipwayError(
        f"field '{name}' is of kind {kind}, which is not saved; allowed: arrays of numbers or strings, numbers, "
        "strings, None, results, and tuples of these"
    )


def _decode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    if "class" in value:
        return _kinds()[value["class"]](**{name: _decode(part, arrays) for name, part in value["fields"].items()})
    if "policy" in value:
        return Policy(**value["policy"])
    if "tuple" in value:
        return tuple(_decode(part, arrays) for part in value["tuple"])
    return arrays[value["array"]]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        a, b = np.asarray(a), np.asarray(b)
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and isinstance(b, float) and a != a:
        return b != b
    return bool(a == b)
