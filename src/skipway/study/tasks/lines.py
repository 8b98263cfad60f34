"""Pairs of lines that say the same in two languages, and the tokens that both are written in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from skipway.errors import SkipwayError

PADDING, START, END = 0, 1, 2
_SPECIAL = ("<padding>", "<start>", "<end>")
_HELD_OUT = ("val", "valid", "validation", "dev", "test")


class Tokenizer:
    """Byte pairs merged by how often they occur, one vocabulary for both languages; every text can be written in it.

    Sennrich et al. 2016 (arXiv:1508.07909), over bytes.
    """

    def __init__(self, description: str) -> None:
        import tokenizers

        self.description = description
        self._tokenizer: Any = tokenizers.Tokenizer.from_str(description)

    @classmethod
    def trained(cls, lines: Sequence[str], vocabulary: int) -> Tokenizer:
        """Learn at most `vocabulary` tokens from lines; raises SkipwayError for fewer than bytes need."""
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers

        alphabet = pre_tokenizers.ByteLevel.alphabet()
        least = len(alphabet) + len(_SPECIAL)
        if vocabulary < least:
            raise SkipwayError(f"a vocabulary of {vocabulary} does not hold the {least} tokens that bytes need")
        tokenizer: Any = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(_SPECIAL),
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        )
        tokenizer.train_from_iterator(lines, trainer)
        return cls(tokenizer.to_str())

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The tokens of each line, without start and end."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(lines), add_special_tokens=False)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text that tokens stand for."""
        return self._tokenizer.decode(list(tokens)).strip()


@dataclass(frozen=True, eq=False)
class LinePairs:
    """Pairs of lines as tokens, those to train on and those held out, and how they were told apart."""

    name: str
    languages: tuple[str, str]
    train: tuple[list[list[int]], list[list[int]]]
    held_out: tuple[list[list[int]], list[list[int]]]
    held_out_lines: tuple[list[str], list[str]]
    tokenizer: Tokenizer
    left_out: int

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every line, in order, and of the tokens."""
        digest = hashlib.sha256(self.tokenizer.description.encode())
        for side in (*self.train, *self.held_out):
            digest.update(repr(side).encode())
        return digest.hexdigest()[:16]

    def facts(self) -> dict[str, object]:
        """What a record says of the data."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "languages": list(self.languages),
            "train": len(self.train[0]),
            "held_out": len(self.held_out[0]),
            "left_out_for_length": self.left_out,
            "vocabulary": len(self.tokenizer),
        }


def parts_of(data: str) -> dict[str, dict[str, Path]]:
    """The files that begin with `data`, by part and language: multi30k gives {"train": {"en": multi30k.train.en}}.

    A folder holds train.en and so on.
    """
    start = Path(data).expanduser()
    folder, prefix = (start, "") if start.is_dir() else (start.parent, f"{start.name}.")
    found: dict[str, dict[str, Path]] = {}
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            pieces = path.name.removeprefix(prefix).split(".")
            if path.name.startswith(prefix) and len(pieces) == 2 and pieces[0] in ("train", *_HELD_OUT):
                found.setdefault(pieces[0], {})[pieces[1]] = path
    return found if len(found.get("train", {})) > 1 else {}


def read_pairs(
    data: str, languages: tuple[str, str] | None, vocabulary: int, length: int, limit: int | None = None
) -> LinePairs:
    """Read line-aligned files and learn their tokens from the training lines, the first `limit` of them.

    Training pairs longer than `length` tokens on either side are left out. Raises SkipwayError for languages that
    there are not, for files that do not go together, and where nothing is held out.
    """
    parts = parts_of(data)
    available = sorted(parts["train"])
    if languages is None:
        raise SkipwayError(
            f"'{data}' is there in {', '.join(available)}: say from which to which, "
            f"as in --languages {available[0]},{available[1]}"
        )
    if strange := [language for language in languages if language not in available]:
        raise SkipwayError(f"'{data}' has no training file in '{strange[0]}'; there are {', '.join(available)}")
    if languages[0] == languages[1]:
        raise SkipwayError(f"languages '{languages[0]},{languages[1]}' are one; translation needs two")
    part = next((name for name in _HELD_OUT if all(one in parts.get(name, {}) for one in languages)), None)
    if part is None:
        raise SkipwayError(
            f"'{data}' holds no lines to measure on: put .val.{languages[0]} and .val.{languages[1]} beside .train"
        )
    lines = [side[:limit] for side in _aligned([parts["train"][one] for one in languages])]
    measured = _aligned([parts[part][one] for one in languages])
    tokenizer = Tokenizer.trained([*lines[0], *lines[1]], vocabulary)
    sources, targets = (tokenizer.encode(side) for side in lines)
    short = [n for n, (a, b) in enumerate(zip(sources, targets, strict=True)) if 0 < len(a) <= length >= len(b) > 0]
    if not short:
        raise SkipwayError(
            f"none of the {len(sources)} pairs of '{data}' fits in {length} tokens; allow more (--length)"
        )
    return LinePairs(
        data,
        languages,
        ([sources[n] for n in short], [targets[n] for n in short]),
        (
            [tokens[:length] or [END] for tokens in tokenizer.encode(measured[0])],
            [tokens[:length] for tokens in tokenizer.encode(measured[1])],
        ),
        (measured[0], measured[1]),
        tokenizer,
        len(sources) - len(short),
    )


def padded(rows: Sequence[Sequence[int]]) -> tuple[Int64[Tensor, "n t"], Bool[Tensor, "n t"]]:
    """Rows of several lengths as one tensor, and where it is padding.

    >>> padded([[5, 6], [7]])[0].tolist()
    [[5, 6], [7, 0]]
    """
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[PADDING] * (longest - len(row))] for row in rows], dtype=torch.int64)
    lengths = torch.tensor([len(row) for row in rows])
    return tokens, torch.arange(longest)[None] >= lengths[:, None]


def _aligned(paths: Sequence[Path]) -> list[list[str]]:
    sides: list[list[str]] = []
    for path in paths:
        try:
            sides.append(path.read_text(encoding="utf-8").rstrip("\n").split("\n"))
        except UnicodeDecodeError as error:
            raise SkipwayError(f"'{path}' is not a text in UTF-8: {error.reason} at byte {error.start}") from error
    if len(sides[0]) != len(sides[1]):
        raise SkipwayError(
            f"'{paths[0]}' has {len(sides[0])} lines and '{paths[1]}' {len(sides[1])}; line n of one has to say "
            "what line n of the other says"
        )
    return sides
