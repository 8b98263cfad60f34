import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.errors import SkipwayError
from skipway.models import gpt
from skipway.study import predict, train
from skipway.study.tasks.language import Language, Windows, decode, encode, read_text, written_on

BIGRAMS = "tests.study.nets:Bigrams"


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skipway.study.tasks.language._WRITTEN", 10)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Words that leave little to guess."""
    words = random.Random(0).choices(["skip", "way", "net"], k=700)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(words))
    return path


def test_a_network_learns_to_tell_characters(text: Path, tmp_path: Path):
    trained = train(
        BIGRAMS, text, steps=150, every=75, length=16, learning_rate=0.1, folder=tmp_path / "run", quiet=True
    )
    # Bigrams of these words: "i", "k", "w", "n" and so on are certain, a space has three ways and "s" none to choose.
    assert trained.best["validation_loss"] < 0.6
    assert len(trained.samples) == 3
    assert all(set(sample) <= set("skipwaynet ") for sample in trained.samples)
    (prediction,) = predict(tmp_path / "run", ["net sk"], length=2, temperature=0.0)
    assert prediction.answer == "net skip"


def test_gpt_trains_and_writes(text: Path, tmp_path: Path):
    small: dict[str, Any] = {"steps": 30, "every": 10, "length": 16, "learning_rate": 0.01, "warm_up": 2, "quiet": True}
    trained = train("gpt-1x16", text, folder=tmp_path / "run", **small)
    assert trained.last["validation_loss"] < 0.9 * trained.curves["validation_loss"][0] < math.log(11)
    (prediction,) = predict(tmp_path / "run", ["skip"], length=5)
    assert prediction.answer.startswith("skip")
    assert len(prediction.answer) == 9


def test_every_character_held_out_but_the_first_is_told_once():
    numbers = torch.arange(23)
    told: list[int] = []
    for piece in (Windows(numbers, 5)[n] for n in range(len(Windows(numbers, 5)))):
        tokens, following = piece
        assert torch.equal(tokens + 1, following)
        told.extend(following.flatten().tolist())
    assert told == list(range(1, 23))


def test_nats_a_character_are_those_of_the_whole_text(text: Path):
    read = read_text(text, 0.1)
    table = torch.randn(11, 11)
    task = Language(read, length=7)

    def network(tokens: Tensor) -> Tensor:
        return table[tokens]

    windows = task.parts()["validation"]
    sums: dict[str, Any] = {}
    for number in range(len(windows)):
        for name, value in task.sums(network, windows[number]).items():
            sums[name] = sums.get(name, 0) + value
    expected = F.cross_entropy(table[read.held_out[:-1]], read.held_out[1:])
    assert task.metrics(sums)["loss"] == pytest.approx(float(expected), rel=1e-6)


def test_windows_start_everywhere(text: Path):
    read = read_text(text, 0.1)
    task = Language(read, length=7)
    tokens, following = task.batch(torch.tensor([0, task.count - 1]), torch.tensor([0, 0]))
    assert torch.equal(tokens[0], read.train[:7])
    assert torch.equal(following[1], read.train[-7:])


def test_writing_on_is_a_function_of_the_seed_with_and_without_a_memory():
    model = gpt(1, 8, vocabulary=5, length=12).eval()
    start = torch.tensor([1, 2])
    assert written_on(model, start, 6, 12, 1.0, 3) == written_on(model, start, 6, 12, 1.0, 3)
    # A window that is too short for all of it is moved along; the likeliest first characters are the same.
    whole, moved = written_on(model, start, 6, 12, 0.0, 0), written_on(model, start, 6, 7, 0.0, 0)
    assert whole[:5] == moved[:5]


def test_characters_and_numbers():
    assert decode(encode("a net", " aent").tolist(), " aent") == "a net"
    with pytest.raises(SkipwayError, match="the character 'z' does not occur"):
        encode("z", "abc")


@pytest.mark.usefixtures("no_shape_checks")
def test_slips_are_one_sentence(text: Path, tmp_path: Path):
    with pytest.raises(SkipwayError, match="windows of length 5000 do not fit"):
        train(BIGRAMS, text, length=5000, folder=tmp_path / "run", quiet=True)
    with pytest.raises(SkipwayError, match="held out leave 0 to train on"):
        read_text(text, 1e9)
    with pytest.raises(SkipwayError, match=r"unet is for images with masks .* such as gpt-mini"):
        train("unet", text, folder=tmp_path / "run", quiet=True)
    text.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(SkipwayError, match="is not a text in UTF-8"):
        read_text(text)
