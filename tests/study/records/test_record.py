import errno
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.study.make import make_record

from skipway.errors import SkipwayError
from skipway.study.records.record import read_record, write_record
from skipway.study.records.sealed import Unreadable, write_sealed
from skipway.study.records.writing import set_aside, storage, write_json, write_text


@given(st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2))
def test_a_record_comes_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, losses: list[float | None]):
    path = tmp_path_factory.mktemp("records") / "r.json"
    record = make_record(curves={"train_loss": losses, "test_error": [0.5, 0.25]})
    write_record(path, record)
    assert read_record(path, record.id) == record
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]


def test_no_file_is_no_record(tmp_path: Path):
    assert read_record(tmp_path / "none.json", "x") is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"id": "20-none-0", "mod', "it is not JSON"),
        (b"", "it is not JSON"),
        (b"\xff\xfe\x00binary", "it is not text"),
        (b"[]", "it is of another program"),
        (b'{"id": "20-none-0"}', "it is of another program"),
        (b'{"id": "20-none-0", "format": 2}', "it is of format 2, and this version of skipway has format 3"),
        (b'{"id": "20-none-0", "format": 3}', "it is damaged"),
    ],
)
def test_a_damaged_record_says_how(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=reason):
        read_record(path, "20-none-0")


def test_records_of_something_else_are_not_taken(tmp_path: Path):
    path = tmp_path / "r.json"
    write_record(path, make_record())
    with pytest.raises(Unreadable, match="another trial"):
        read_record(path, "other")
    write_sealed(path, {"id": "20-none-0"})
    with pytest.raises(Unreadable, match="its fields are not those of a record"):
        read_record(path, "20-none-0")


def test_every_letter_and_digit_of_a_record_is_noticed(tmp_path: Path):
    """Each in turn becomes another one of its kind, so that what is left is good JSON."""
    path = tmp_path / "r.json"
    record = make_record()
    write_record(path, record)
    text = path.read_text()
    for place, letter in enumerate(text):
        other = chr(ord(letter) ^ 1)
        if letter.isascii() and letter.isalnum() and other.isalnum():
            path.write_text(text[:place] + other + text[place + 1 :])
            with pytest.raises(Unreadable):
                read_record(path, record.id)
    path.write_text(json.dumps(dict(reversed(json.loads(text).items()))))
    assert read_record(path, record.id) == record


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "r.json"
    write_text(path, "before")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("skipway.storing.os.fsync", full)
    with pytest.raises(SkipwayError, match="the disk is full"), storage(tmp_path):
        write_text(path, "after")
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_what_is_no_number_is_never_written_as_one(tmp_path: Path):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "x.json", {"loss": math.nan})


def test_setting_aside_never_overwrites(tmp_path: Path):
    for content in ("first", "second"):
        (tmp_path / "r.json").write_text(content)
        set_aside(tmp_path / "r.json")
    assert sorted(p.read_text() for p in tmp_path.iterdir()) == ["first", "second"]


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "no permission to use"),
        (errno.EROFS, "no permission to use"),
        (errno.ENOTDIR, "is in the way"),
        (errno.EIO, "cannot write in"),
    ],
)
def test_what_the_system_says_becomes_a_sentence(tmp_path: Path, number: int, sentence: str):
    with pytest.raises(SkipwayError, match=sentence), storage(tmp_path):
        raise OSError(number, "as the system says it")


def test_a_curve_is_taken_at_its_end_its_best_its_mean_or_where_it_arrives():
    record = make_record(curves={"test_error": [0.5, 0.125, 0.25], "validation_dice": [0.2, 0.6, 0.4]})
    assert [record.value("test_error", at) for at in ("last", "best", "mean")] == [0.25, 0.125, 0.875 / 3]
    assert [record.value("validation_dice", at) for at in ("last", "best")] == [0.4, 0.6]
    assert [record.value("test_error", reach=reach) for reach in (0.5, 0.2, 0.1)] == [1, 2, 4]
    assert record.value("validation_dice", reach=0.5) == 2
    assert record.value("seconds") == 1.5
    assert record.value("no_such") is None


def test_a_diverged_trial_tells_everything_wrong_and_knows_no_loss():
    record = make_record(diverged={"epoch": 2, "step": 3}, curves={"test_error": [0.5], "test_loss": [1.0]})
    assert record.value("test_error") == 1.0
    assert record.value("test_loss") is None
    assert record.value("test_loss", reach=2.0) == 2
