import math
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.errors import SkipwayError
from skipway.study import predict, train
from skipway.study.tasks.hidden import HiddenLanguage, hide
from skipway.study.tasks.language import encode, read_text


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Words that leave little to guess for who sees both sides."""
    path = tmp_path / "text.txt"
    path.write_text(" ".join(random.Random(0).choices(["skip", "way", "net"], k=700)))
    return path


def test_a_bert_tells_hidden_characters(text: Path, tmp_path: Path):
    trained = train(
        "bert-2x64", text, options={"dropout": 0.0}, steps=200, every=100, length=16, batch_size=32,
        learning_rate=0.004, warm_up=20, folder=tmp_path / "run", quiet=True,
    )  # fmt: skip
    assert trained.kind == "hidden language"
    # What is told by chance alone costs ln 11 = 2.4.
    assert trained.best["validation_loss"] < 1.3
    (prediction,) = predict(tmp_path / "run", ["net s_ip way net"])
    known = "".join(sorted(set(text.read_text())))
    shown = encode("net s ip way net", known)
    shown[5] = len(known)
    with torch.no_grad():
        likeliest = int(trained.network()(shown[None])[0, 5, : len(known)].argmax())
    assert prediction.answer == f"net s{known[likeliest]}ip way net"
    for refused, said in (("net", "hides nothing to be told"), ("_" * 17, "17 characters, and the network sees 16")):
        with pytest.raises(SkipwayError, match=said):
            predict(tmp_path / "run", [refused])


def test_the_shares_are_those_of_bert():
    windows = torch.randint(50, (400, 100), generator=torch.Generator().manual_seed(1))
    shown, whole, hidden = hide(windows, torch.arange(400), mark=50)
    assert torch.equal(whole, windows)
    assert (hidden.sum(dim=1) == 15).all()
    assert torch.equal(shown[~hidden], windows[~hidden])
    marked = float((shown[hidden] == 50).float().mean())
    kept = float((shown[hidden] == windows[hidden]).float().mean())
    assert abs(marked - 0.8) < 0.02
    # Of those shown as any character one in fifty is its own.
    assert abs(kept - 0.1 - 0.1 / 50) < 0.02
    again, _, _ = hide(windows[7:9], torch.tensor([7, 8]), mark=50)
    assert torch.equal(again, shown[7:9])


def test_loss_and_measure_are_over_what_is_hidden(text: Path):
    task = HiddenLanguage(read_text(text), 16)
    logits = torch.randn(12, generator=torch.Generator().manual_seed(2))

    def network(tokens: Tensor) -> Tensor:
        return logits.expand(*tokens.shape, 12)

    batch = task.batch(torch.arange(5), torch.arange(5))
    _, windows, hidden = batch
    expected = F.cross_entropy(logits.expand(int(hidden.sum()), 12), windows[hidden])
    assert torch.allclose(task.loss(network, batch), expected)
    sums = task.sums(network, batch)
    assert math.isclose(task.metrics(sums)["loss"], float(expected), rel_tol=1e-6)
    held_out = task.parts()["validation"]
    first, second = held_out[0], held_out[0]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_who_sees_the_next_character_may_not_be_asked_for_it(text: Path, tmp_path: Path):
    with pytest.raises(SkipwayError, match="sees the characters that it is to tell"):
        train("tests.study.nets:Seer", text, steps=1, length=8, folder=tmp_path / "run", quiet=True)
