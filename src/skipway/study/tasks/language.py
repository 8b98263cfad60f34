"""Telling the next character of a text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from skipway.errors import SkipwayError
from skipway.models import GPT, Greedy, Sampling, generate
from skipway.study.tasks.task import Batch, Batches, Network, Task, bare, shown

HELD_OUT = 0.1
_EVALUATION_TOKENS = 8192
# How many samples a training shows, how many characters of the text held out each begins with, and how many follow.
_SAMPLES, _START, _WRITTEN = 3, 32, 200


@dataclass(frozen=True, eq=False)
class Text:
    """A text as numbers of its characters, in a part to train on and a last part held out."""

    name: str
    characters: str
    train: Int64[Tensor, " t"]
    held_out: Int64[Tensor, " v"]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every character, in order, and of where the text is cut."""
        digest = hashlib.sha256(self.characters.encode())
        for part in (self.train, self.held_out):
            digest.update(f"{len(part)} ".encode())
            digest.update(part.numpy().data)
        return digest.hexdigest()[:16]

    def facts(self) -> dict[str, object]:
        """What a record says of the data."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "train": len(self.train),
            "held_out": len(self.held_out),
            "characters": self.characters,
        }


def read_text(path: Path, held_out: float | int = HELD_OUT, limit: int | None = None) -> Text:
    """The characters of a text file, its first `limit`; the last `held_out` of them, a share or a number, held out.

    Raises SkipwayError for a file that is not text or too short.
    """
    try:
        text = path.read_text(encoding="utf-8")[:limit]
    except UnicodeDecodeError as error:
        raise SkipwayError(f"'{path}' is not a text in UTF-8: {error.reason} at byte {error.start}") from error
    last = round(held_out * len(text)) if held_out < 1 else int(held_out)
    if held_out <= 0 or last < 2 or len(text) - last < 2:
        raise SkipwayError(
            f"{held_out:g} of the {len(text)} characters of '{path}' held out leave {max(0, len(text) - last)} to "
            f"train on and {last} to measure, and both need 2 at least"
        )
    characters = "".join(sorted(set(text)))
    numbers = encode(text, characters)
    return Text(str(path), characters, numbers[:-last], numbers[-last:])


class Language(Task):
    """Windows of a text: trained and measured by cross-entropy in nats a character.

    What is held out is cut into windows one behind the other, so that every character but the first is told once.
    """

    kind = "language"
    judge = ("validation_loss", "lowest")

    def __init__(self, text: Text, length: int) -> None:
        if length < 1 or length >= len(text.train):
            raise SkipwayError(
                f"{text.name}: windows of length {length} do not fit in {len(text.train)} characters to train on; "
                f"choose a length from 1 to {len(text.train) - 1}"
            )
        self.text, self.length = text, length

    @property
    def count(self) -> int:
        return len(self.text.train) - self.length

    def batch(self, indices: Int64[Tensor, " n"], seeds: Int64[Tensor, " n"]) -> Batch:
        windows = self.text.train[indices[:, None] + torch.arange(self.length + 1)]
        return windows[:, :-1], windows[:, 1:]

    def loss(self, network: Network, batch: Batch) -> Float[Tensor, ""]:
        tokens, following = batch
        return F.cross_entropy(network(tokens).float().flatten(0, 1), following.flatten())

    def sums(self, network: Network, batch: Batch) -> dict[str, Tensor]:
        tokens, following = batch
        logits = network(tokens).float().flatten(0, 1)
        right = (logits.argmax(dim=1) == following.flatten()).sum()
        loss = F.cross_entropy(logits, following.flatten(), reduction="sum")
        return {
            "loss": loss.double(),
            "right": right.double(),
            "count": torch.ones_like(following).sum().double(),
        }

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        count = float(sums["count"])
        return {"loss": float(sums["loss"]) / count, "error": 1 - float(sums["right"]) / count}

    def check(self, network: Network) -> None:
        logits = self._check_shape(network, len(self.text.characters))
        other = self.text.train[None, : self.length].clone()
        other[0, -1] = (other[0, -1] + 1) % len(self.text.characters)
        if not torch.allclose(network(other)[:, :-1], logits[:, :-1], rtol=1e-3, atol=1e-4):
            raise SkipwayError(
                "the network sees the characters that it is to tell: attention must be causal, as in 'gpt-micro'; of "
                "networks that see both sides, a BERT of 'skipway models' is trained on hidden characters"
            )

    def _check_shape(self, network: Network, vocabulary: int) -> Tensor:
        logits = network(self.text.train[None, : self.length])
        expected = (1, self.length, vocabulary)
        if tuple(logits.shape) != expected:
            raise SkipwayError(
                f"the network gives {shown(logits.shape)} for {self.length} tokens; the "
                f"{len(self.text.characters)} characters of {self.text.name} need logits of {shown(expected)}"
            )
        return logits

    def samples(self, network: Network, device: torch.device) -> list[str]:
        starts = self.text.held_out[: _SAMPLES * _START].split(_START)
        written = [
            start.tolist() + written_on(network, start.to(device), _WRITTEN, self.length, 0.8, seed)
            for seed, start in enumerate(starts)
        ]
        return [decode(numbers, self.text.characters) for numbers in written]

    def parts(self) -> dict[str, Batches]:
        return {"validation": Windows(self.text.held_out, self.length)}


class Windows:
    """A text in windows one behind the other, several a batch; the last window may be shorter, and is one alone."""

    def __init__(self, numbers: Int64[Tensor, " t"], length: int) -> None:
        whole, rest = divmod(len(numbers) - 1, length)
        size = max(1, _EVALUATION_TOKENS // length)
        starts = torch.arange(whole) * length
        self.numbers = numbers
        self._starts = [(piece, length) for piece in starts.split(size) if len(piece)]
        if rest:
            self._starts.append((torch.tensor([whole * length]), rest))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Batch:
        starts, length = self._starts[number]
        windows = self.numbers[starts[:, None] + torch.arange(length + 1)]
        return windows[:, :-1], windows[:, 1:]


def encode(text: str, characters: str) -> Int64[Tensor, " t"]:
    """The number of each character; raises SkipwayError for one that is not known.

    >>> encode("abba", "ab")
    tensor([0, 1, 1, 0])
    """
    numbers = {character: number for number, character in enumerate(characters)}
    if strange := sorted(set(text) - set(numbers)):
        raise SkipwayError(
            f"the character {strange[0]!r} does not occur in the text that the network learned from; "
            f"it knows {characters!r}"
        )
    return torch.tensor([numbers[character] for character in text], dtype=torch.int64)


def decode(numbers: Sequence[int], characters: str) -> str:
    """The text that numbers stand for.

    >>> decode([0, 1, 1, 0], "ab")
    'abba'
    """
    return "".join(characters[number] for number in numbers)


@torch.no_grad()
def written_on(
    network: Network,
    start: Int64[Tensor, " t"],
    count: int,
    length: int,
    temperature: float,
    seed: int,
) -> list[int]:
    """So many tokens drawn one by one behind `start`, of which the network sees the last `length`.

    Logits are divided by `temperature`; at 0 the likeliest is taken. A GPT of ours that sees all of them at once keeps
    what it has read.
    """
    model = bare(network)
    if isinstance(model, GPT) and len(start) + count <= length:
        strategy = Greedy() if temperature == 0 else Sampling(temperature, seed=seed)
        return generate(model, start[None], count, strategy)[0].tolist()
    generator = torch.Generator().manual_seed(seed)
    tokens = start.tolist()
    for _ in range(count):
        logits = network(torch.tensor([tokens[-length:]], device=start.device))[0, -1].float().cpu()
        if temperature == 0:
            tokens.append(int(logits.argmax()))
        else:
            chances = (logits / temperature).softmax(dim=0)
            tokens.append(int(torch.multinomial(chances, 1, generator=generator)))
    return tokens[len(start) :]
