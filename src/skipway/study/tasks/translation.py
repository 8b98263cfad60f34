"""Telling in one language what a line says in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.models import Beam, Greedy, Transformer, smoothed_loss, translate
from skipway.study.tasks.bleu import bleu, bleu_counts
from skipway.study.tasks.lines import END, START, LinePairs, Tokenizer, padded
from skipway.study.tasks.task import Batch, Batches, Network, Task, bare, shown

_EVALUATION_BATCH = 128
_SAMPLES = 5


class Translation(Task):
    """Pairs of lines: trained by cross-entropy with labels smoothed by 0.1, measured by nats a token and by BLEU.

    The loss is a mean over tokens, the end of each line included, so that batches of long lines count for more. BLEU is
    of the translations that take the likeliest token at each step.
    """

    kind = "translation"
    judge = ("validation_bleu", "highest")

    def __init__(self, pairs: LinePairs, length: int) -> None:
        self.pairs, self.length = pairs, length

    @property
    def count(self) -> int:
        return len(self.pairs.train[0])

    @property
    def lengths(self) -> Int64[Tensor, " n"]:
        return torch.tensor([len(source) + len(target) for source, target in zip(*self.pairs.train, strict=True)])

    def batch(self, indices: Int64[Tensor, " n"], seeds: Int64[Tensor, " n"]) -> Batch:
        sources, targets = self.pairs.train
        return _batch([sources[index] for index in indices], [targets[index] for index in indices])

    def units(self, indices: Int64[Tensor, " n"]) -> int:
        return sum(len(self.pairs.train[1][index]) + 1 for index in indices)

    def loss(self, network: Network, batch: Batch) -> Float[Tensor, ""]:
        source, hidden, target, ends = batch
        logits = network(source, target[:, :-1], hidden, ends[:, :-1])
        return smoothed_loss(logits.float(), target[:, 1:], ends[:, 1:])

    def sums(self, network: Network, batch: Batch) -> dict[str, Tensor]:
        source, hidden, target, ends, numbers = batch
        logits = network(source, target[:, :-1], hidden, ends[:, :-1]).float()[~ends[:, 1:]]
        following = target[:, 1:][~ends[:, 1:]]
        loss = F.cross_entropy(logits, following, reduction="sum")
        lines = self._translated(bare(network), numbers.tolist())
        counts = bleu_counts(lines, [self.pairs.held_out_lines[1][number] for number in numbers.tolist()])
        return {
            "loss": loss.double(),
            "right": (logits.argmax(dim=1) == following).sum().double(),
            "count": torch.ones_like(following).sum().double(),
            "bleu": counts.to(source.device),
        }

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        count = float(sums["count"])
        return {
            "bleu": bleu(sums["bleu"].cpu()),
            "loss": float(sums["loss"]) / count,
            "error": 1 - float(sums["right"]) / count,
        }

    def check(self, network: Network) -> None:
        source, hidden, target, ends = _batch(*(side[:2] for side in self.pairs.train))
        logits = network(source, target[:, :-1], hidden, ends[:, :-1])
        expected = (*target[:, 1:].shape, len(self.pairs.tokenizer))
        if tuple(logits.shape) != expected:
            raise SkipwayError(f"the network gives {shown(logits.shape)}, and the pairs need {shown(expected)}")

    def parts(self) -> dict[str, Batches]:
        return {"validation": _HeldOut(self.pairs)}

    def samples(self, network: Network, device: torch.device) -> list[str]:
        sources, meant = self.pairs.held_out_lines
        numbers = list(range(min(_SAMPLES, len(sources))))
        written = self._translated(network, numbers)
        return [f"{sources[n]}\n-> {line}\n(meant: {meant[n]})" for n, line in zip(numbers, written, strict=True)]

    def _translated(self, model: Any, numbers: Sequence[int]) -> list[str]:
        rows = [self.pairs.held_out[0][number] for number in numbers]
        return [self.pairs.tokenizer.decode(tokens.tolist()) for tokens in likeliest(model, rows, self.length)]


class _HeldOut:
    def __init__(self, pairs: LinePairs) -> None:
        self.pairs = pairs
        # Lines of like length together: little of a batch is padding then.
        order = sorted(range(len(pairs.held_out[0])), key=lambda number: len(pairs.held_out[0][number]))
        self._pieces = torch.tensor(order).split(_EVALUATION_BATCH)

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, number: int) -> Batch:
        numbers = self._pieces[number]
        sources, targets = ([side[one] for one in numbers] for side in self.pairs.held_out)
        return *_batch(sources, targets), numbers


def translated(model: nn.Module, tokenizer: Tokenizer, lines: Sequence[str], length: int) -> list[str]:
    """Lines in the other language: by the beam search of 2017, or `likeliest` where the network is the user's own."""
    rows = [tokens or [END] for tokens in tokenizer.encode(lines)]
    if isinstance(model, Transformer):
        written = translate(model, rows, START, END, length, Beam())
    else:
        written = likeliest(model, rows, length)
    return [tokenizer.decode(tokens.tolist()) for tokens in written]


def likeliest(model: nn.Module, sources: Sequence[Sequence[int]], length: int) -> list[Tensor]:
    """For each source the likeliest token at every step, `length` at most, up to the end, which is left out.

    Any network will do that takes (source, target, source padding, target padding), as in evaluation; one that is not
    ours reads all that was written again for every token.
    """
    if isinstance(model, Transformer):
        return translate(model, sources, START, END, length, Greedy())
    first = next(model.parameters(), None)
    source, hidden = (one.to(None if first is None else first.device) for one in padded(sources))
    tokens = torch.full_like(source[:, :1], START)
    with torch.no_grad():
        while tokens.shape[1] <= length and not bool((tokens == END).any(dim=1).all()):
            logits = model(source, tokens, hidden, torch.zeros_like(tokens, dtype=torch.bool))
            tokens = torch.cat([tokens, logits[:, -1:].argmax(dim=2)], dim=1)
    ends = [(row == END).nonzero() for row in tokens]
    return [row[1 : int(end[0])] if len(end) else row[1:] for row, end in zip(tokens, ends, strict=True)]


def _batch(sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *padded(sources), *padded([[START, *row, END] for row in targets])
