"""Telling the hidden characters of a text, from those on both sides."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from skipway.study.tasks.language import Language, Text, Windows, decode
from skipway.study.tasks.task import Batch, Batches, Network

# The shares of BERT: what is to be told, and of that what is shown as the mark, and as any character.
SHARE, _MARKED, _ANY = 0.15, 0.8, 0.1
_SHOWN = 64
# How people write a character that is to be told.
HIDDEN = "_"


class HiddenLanguage(Language):
    """Windows of a text in which a share of the characters is to be told: cross-entropy in nats a hidden character.

    Of those to be told 80 % are shown as a mark of their own, 10 % as any character and 10 % as they are (Devlin et
    al. 2018, arXiv:1810.04805). The mark is the last number of the network's vocabulary. What is hidden of a window is
    drawn from the seed that comes with it; of what is held out always the same.
    """

    kind = "hidden language"

    def __init__(self, text: Text, length: int) -> None:
        super().__init__(text, length)
        self.mark = len(text.characters)

    def batch(self, indices: Int64[Tensor, " n"], seeds: Int64[Tensor, " n"]) -> Batch:
        windows = self.text.train[indices[:, None] + torch.arange(self.length)]
        return hide(windows, seeds, self.mark)

    def loss(self, network: Network, batch: Batch) -> Float[Tensor, ""]:
        shown, windows, hidden = batch
        return F.cross_entropy(network(shown)[hidden].float(), windows[hidden])

    def sums(self, network: Network, batch: Batch) -> dict[str, Tensor]:
        shown, windows, hidden = batch
        logits, expected = network(shown)[hidden].float(), windows[hidden]
        return {
            "loss": F.cross_entropy(logits, expected, reduction="sum").double(),
            "right": (logits.argmax(dim=1) == expected).sum().double(),
            "count": hidden.sum().double(),
        }

    def check(self, network: Network) -> None:
        self._check_shape(network, len(self.text.characters) + 1)

    def samples(self, network: Network, device: torch.device) -> list[str]:
        windows = self.text.held_out[None, : min(_SHOWN, self.length)]
        shown, _, hidden = hide(windows, torch.zeros(1, dtype=torch.int64), self.mark)
        with torch.no_grad():
            told = network(shown.to(device)).argmax(dim=2).cpu()
        characters = self.text.characters + HIDDEN
        # What is told may be the mark itself, early in a training.
        return [
            decode(numbers.tolist(), characters)
            for numbers in (torch.where(hidden, self.mark, windows)[0], torch.where(hidden, told, windows)[0])
        ]

    def parts(self) -> dict[str, Batches]:
        return {"validation": HiddenWindows(Windows(self.text.held_out, self.length), self.mark)}


class HiddenWindows:
    """Windows of a text with a share of their characters hidden, the same ones whenever they are looked at."""

    def __init__(self, windows: Windows, mark: int) -> None:
        self.windows, self.mark = windows, mark

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: int) -> Batch:
        tokens, _ = self.windows[number]
        return hide(tokens, torch.arange(len(tokens)) + number * 2**20, self.mark)


def hide(
    windows: Int64[Tensor, "n t"], seeds: Int64[Tensor, " n"], mark: int
) -> tuple[Int64[Tensor, "n t"], Int64[Tensor, "n t"], Bool[Tensor, "n t"]]:
    """What is shown of windows, the windows, and which of their characters are to be told: one a window at the least.

    >>> shown, windows, hidden = hide(torch.zeros(1, 40, dtype=torch.int64), torch.tensor([0]), 9)
    >>> int(hidden.sum()), bool((shown[~hidden] == windows[~hidden]).all())
    (6, True)
    """
    n, t = windows.shape
    shown, hidden = windows.clone(), torch.zeros(n, t, dtype=torch.bool)
    count = max(1, round(SHARE * t))
    for row, seed in enumerate(seeds.tolist()):
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(t, generator=generator)[:count]
        chance = torch.rand(count, generator=generator)
        other = torch.randint(mark, (count,), generator=generator)
        as_it_is = windows[row, chosen]
        shown[row, chosen] = torch.where(chance < _MARKED, mark, torch.where(chance < _MARKED + _ANY, other, as_it_is))
        hidden[row, chosen] = True
    return shown, windows, hidden
