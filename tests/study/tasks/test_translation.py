import math
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skipway.errors import SkipwayError
from skipway.models import Greedy, transformer, translate
from skipway.study import predict, train
from skipway.study.tasks.bleu import bleu, bleu_counts
from skipway.study.tasks.lines import END, START, Tokenizer, padded, parts_of, read_pairs
from skipway.study.tasks.translation import Translation, likeliest

_WORDS = {"cat": "Katze", "dog": "Hund", "red": "rote", "old": "alte", "sleeps": "schläft", "runs": "läuft"}

_COLOURS, _ANIMALS, _VERBS = ("red", "old"), ("cat", "dog"), ("sleeps", "runs")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Lines that are translated word by word."""
    generator = random.Random(0)
    for part, count in (("train", 120), ("val", 12)):
        lines = [
            [generator.choice(words) for words in (_COLOURS, _ANIMALS, _VERBS, _COLOURS, _ANIMALS)]
            for _ in range(count)
        ]
        (tmp_path / f"toy.{part}.en").write_text("".join(" ".join(line) + "\n" for line in lines))
        (tmp_path / f"toy.{part}.de").write_text(
            "".join(" ".join(_WORDS[word] for word in line) + "\n" for line in lines)
        )
    return tmp_path / "toy"


def test_a_transformer_learns_to_translate(data: Path, tmp_path: Path):
    trained = train(
        "transformer-1x32",
        data,
        languages=("en", "de"),
        options={"vocabulary": 300, "dropout": 0.0, "placement": "pre-norm"},
        epochs=10,
        batch_size=8,
        warm_up=10,
        learning_rate=5e-3,
        folder=tmp_path / "run",
        quiet=True,
    )
    assert trained.last["validation_loss"] < 0.5 * trained.curves["validation_loss"][0]
    assert trained.best["validation_bleu"] > trained.curves["validation_bleu"][0]
    assert "-> " in trained.samples[0]
    (prediction,) = predict(tmp_path / "run", ["red dog sleeps"])
    assert "Hund" in prediction.answer


class Own(nn.Module):
    """A network of the user's own, of which nothing is known but what it takes and gives."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(*inputs)


def test_networks_of_ones_own_translate_token_by_token():
    sources = [[5, 6, 7, 8], [9], [4, 4]]
    for seed in range(4):
        torch.manual_seed(seed)
        model = transformer(1, 8, vocabulary=10, length=12).eval()
        expected = translate(model, sources, START, END, 6, Greedy())
        written = likeliest(Own(model), sources, 6)
        assert [one.tolist() for one in written] == [one.tolist() for one in expected]


def test_the_loss_is_a_mean_over_tokens_whatever_the_batches(data: Path):
    pairs = read_pairs(str(data), ("en", "de"), 300, 64)
    task = Translation(pairs, 64)
    model = transformer(1, 16, vocabulary=len(pairs.tokenizer), dropout=0.0).eval().requires_grad_(False)
    indices = torch.arange(7)
    whole = task.loss(model, task.batch(indices, indices))
    pieces = [(task.loss(model, task.batch(piece, piece)), task.units(piece)) for piece in indices.tensor_split(3)]
    assert sum(units for _, units in pieces) == task.units(indices)
    mean = sum(float(loss) * units for loss, units in pieces) / task.units(indices)
    assert float(whole) == pytest.approx(mean, rel=1e-5)
    one = task.batch(indices[:1], indices[:1])
    source, _, target, _ = one
    logits = model(source, target[:, :-1])
    expected = F.cross_entropy(logits[0], target[0, 1:], label_smoothing=0.1)
    assert float(task.loss(model, one)) == pytest.approx(float(expected), rel=1e-5)


def test_tokens_write_every_text_and_come_back_the_same():
    lines = ["Ein Mann schläft.", "A man sleeps, 你好!"]
    tokenizer = Tokenizer.trained(lines * 4, 280)
    assert Tokenizer.trained(lines * 4, 280).description == tokenizer.description
    again = Tokenizer(tokenizer.description)
    unseen = [*lines, "Größe ✓ 123"]
    encoded = again.encode(unseen)
    assert [again.decode([START, *tokens, END][1:-1]) for tokens in encoded] == unseen
    assert all(END < token < len(again) for tokens in encoded for token in tokens)


def test_rows_are_padded_to_the_longest():
    tokens, hidden = padded([[5, 6, 7], [8]])
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert hidden.tolist() == [[False, False, False], [False, True, True]]


def test_bleu_by_hand_and_over_parts():
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours; 6 words for 7: e^(1 - 7/6).
    written, meant = "the cat sat on the rug", "the cat sat on a big rug"
    counts = bleu_counts([written], [meant])
    assert counts.tolist() == [5, 3, 2, 1, 6, 5, 4, 3, 6, 7]
    expected = 100 * math.exp(1 - 7 / 6) * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu(counts) == pytest.approx(expected)
    assert bleu(bleu_counts(["a b"], ["a b"])) == 0.0


def test_bleu_is_that_of_the_shared_tasks():
    from torchmetrics.text import SacreBLEUScore

    written = ["The cat sat on the mat.", 'It\'s 3.5 per-cent, "he" said; no?', "Ein Hund läuft über die Wiese"]
    meant = ["The cat sat on a mat.", 'It is 3.5 per-cent "he" said; no!', "Ein Hund rennt über die Wiese"]
    parts = torch.stack([bleu_counts([a], [b]) for a, b in zip(written, meant, strict=True)]).sum(0)
    score = SacreBLEUScore()
    score.update(written, [[line] for line in meant])
    assert bleu(parts) == pytest.approx(100 * float(score.compute()), rel=1e-6)


def test_files_are_found_by_how_they_begin(data: Path):
    found = parts_of(str(data))
    assert {part: sorted(files) for part, files in found.items()} == {"train": ["de", "en"], "val": ["de", "en"]}
    assert parts_of(str(data.parent / "other")) == {}


@pytest.mark.usefixtures("no_shape_checks")
def test_slips_are_one_sentence(data: Path, tmp_path: Path):
    with pytest.raises(SkipwayError, match="is there in de, en: say from which to which"):
        read_pairs(str(data), None, 300, 64)
    with pytest.raises(SkipwayError, match="no training file in 'fr'"):
        read_pairs(str(data), ("en", "fr"), 300, 64)
    with pytest.raises(SkipwayError, match="does not hold the 259 tokens"):
        read_pairs(str(data), ("en", "de"), 100, 64)
    with pytest.raises(SkipwayError, match="none of the 120 pairs"):
        read_pairs(str(data), ("en", "de"), 300, 1)
    with pytest.raises(SkipwayError, match=r"gpt-nano is for a text .* such as transformer"):
        train("gpt-nano", data, languages=("en", "de"), folder=tmp_path / "run", quiet=True)
    (tmp_path / "toy.val.de").write_text("one\n")
    with pytest.raises(SkipwayError, match="has 12 lines and .* 1; line n of one"):
        read_pairs(str(data), ("en", "de"), 300, 64)
    (tmp_path / "toy.val.de").unlink()
    with pytest.raises(SkipwayError, match="holds no lines to measure on"):
        read_pairs(str(data), ("en", "de"), 300, 64)
