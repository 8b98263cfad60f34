"""Results: equal by value, saved whole, and loaded as what they were."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from skipway.errors import SkipwayError
from skipway.probe import Policy, Result, load


@dataclass(frozen=True)
class Example(Result):
    """A result of every kind of field; dataclass() is asked for an == of its own, and must not write it."""

    numbers: Any
    word: str = "a"
    parts: tuple[Any, ...] = ()
    inner: Any = None

    @property
    def what(self) -> str:
        return "An example"

    def table(self) -> Any:
        raise NotImplementedError

    def plot(self, axes: Any = None) -> Any:
        raise NotImplementedError

    def interactive(self) -> Any:
        raise NotImplementedError


POLICY = Policy("Net", samples=3, seed=1)
VALUES = arrays.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.bool_]), arrays.array_shapes(min_dims=0, max_side=4)
)


class TestEquality:
    def test_arrays_are_compared_by_value(self):
        one = Example(POLICY, np.array([1.0, np.nan]))
        assert one == Example(POLICY, np.array([1.0, np.nan]))
        assert hash(one) == hash(Example(POLICY, np.array([1.0, np.nan])))
        for other in (
            Example(POLICY, np.array([1.0, 2.0])),
            Example(POLICY, np.array([1.0, np.nan]), "b"),
            Example(POLICY, np.array([1.0, np.nan], dtype=np.float32)),
            Example(replace(POLICY, seed=2), np.array([1.0, np.nan])),
        ):
            assert one != other
        assert one != 3


class TestSaving:
    @given(VALUES, st.lists(st.one_of(st.integers(-5, 5), st.floats(), st.text(max_size=3), st.none(), VALUES)))
    def test_what_comes_back_is_equal(self, tmp_path_factory: pytest.TempPathFactory, array: Any, parts: list[Any]):
        result = Example(POLICY, array, "é", tuple(parts), Example(POLICY, np.arange(3), parts=((), (1, (2.5,)))))
        found = load(result.save(tmp_path_factory.getbasetemp() / "result.npz"))
        assert found == result
        assert type(found) is Example
        assert isinstance(found, Example)
        assert found.inner.parts == ((), (1, (2.5,)))

    def test_the_suffix_is_added_and_another_refused(self, tmp_path: Path):
        result = Example(POLICY, np.arange(2))
        assert result.save(tmp_path / "new" / "run").name == "run.npz"
        assert load(tmp_path / "new" / "run") == result
        with pytest.raises(SkipwayError, match=r"saved as \.npz, not '\.png'; plot\(\) gives a picture"):
            result.save(tmp_path / "run.png")

    def test_a_failed_save_leaves_the_file_before(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        path = Example(POLICY, np.arange(2)).save(tmp_path / "run.npz")
        monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(SkipwayError, match=r"cannot write '.*run\.npz': No space left"):
            Example(POLICY, np.arange(9)).save(path)
        assert load(path) == Example(POLICY, np.arange(2))
        assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]

    @pytest.mark.parametrize("value", [{"a": 1}, np.array([object()]), [1], lambda: 0])
    def test_what_cannot_be_saved_is_named(self, tmp_path: Path, value: Any):
        with pytest.raises(SkipwayError, match=r"field 'parts\.1' is of kind .*which is not saved; allowed: arrays"):
            Example(POLICY, np.arange(2), parts=(0, value)).save(tmp_path / "x")
        assert not list(tmp_path.iterdir())


class TestLoading:
    def test_no_file(self, tmp_path: Path):
        with pytest.raises(SkipwayError, match=r"no file '.*nothing\.npz'; results are what Result\.save"):
            load(tmp_path / "nothing.npz")

    @given(st.integers(0, 10_000))
    def test_a_file_cut_short_anywhere(self, tmp_path_factory: pytest.TempPathFactory, length: int):
        folder = tmp_path_factory.getbasetemp()
        content = Example(POLICY, np.arange(50.0)).save(folder / "whole.npz").read_bytes()
        cut = folder / "cut.npz"
        cut.write_bytes(content[: length % len(content)])
        with pytest.raises(SkipwayError, match="is no result of skipway, or it is damaged"):
            load(cut)

    def test_files_of_others(self, tmp_path: Path):
        np.savez(tmp_path / "other.npz", a=np.arange(3))
        np.save(tmp_path / "single.npy", np.arange(3))
        (tmp_path / "text.npz").write_text("hello")
        (tmp_path / "pickled.npz").write_bytes(b"\x80\x04K\x01.")
        for name in ("other.npz", "single.npy", "text.npz", "pickled.npz"):
            with pytest.raises(SkipwayError, match="is no result of skipway"):
                load(tmp_path / name)
        with pytest.raises(SkipwayError, match="cannot read"):
            load(tmp_path)

    def test_another_format_and_an_unknown_kind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        path = Example(POLICY, np.arange(2)).save(tmp_path / "x")
        monkeypatch.setattr("skipway.probe.result.FORMAT", 2)
        with pytest.raises(SkipwayError, match=r"is of format 1, written by skipway .*; this skipway reads 2"):
            load(path)
        monkeypatch.undo()
        monkeypatch.setattr("skipway.probe.result._kinds", lambda: {"Exampel": Example})
        with pytest.raises(SkipwayError, match="no kind of result 'Example'; did you mean 'Exampel'"):
            load(path)

    def test_nothing_is_unpickled(self, tmp_path: Path):
        with open(tmp_path / "bad.npz", "wb") as file:
            np.savez(file, header=np.array([print], dtype=object))
        with pytest.raises(SkipwayError, match="is no result of skipway"):
            load(tmp_path / "bad.npz")


def test_a_session_shows_a_sentence_and_not_the_arrays():
    result = Example(Policy("Net"), np.arange(9.0))
    assert repr(result) == f"<Example: {result.caption} See its table(), plot() and save(path).>"


def test_the_policy_reads_as_a_sentence():
    assert str(Policy("Net", "train", "batch", 1, None, "float64")) == (
        "Net, training mode, BatchNorm batch, 1 sample, float64"
    )
    assert Example(POLICY, 1).caption == (
        "An example. Measured on Net, evaluation mode, BatchNorm frozen, 3 samples, seed 1, float32."
    )


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, skipway.probe; "
        "print([name for name in ('matplotlib', 'plotly', 'scipy', 'pandas', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
