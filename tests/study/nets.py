"""Small networks of a user's own, which tests name as `tests.study.nets:function` does for users."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def perceptron(num_classes: int, in_channels: int) -> nn.Module:
    """Of digits; without normalisation, so that a batch may be cut in any way."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, 16), nn.Tanh(), nn.Linear(16, num_classes))


def segmenter(num_classes: int, in_channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, num_classes, 3, padding=1))


class Noisy(nn.Module):
    """Draws in training, so that a resumed training has to draw the same."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.body = perceptron(num_classes, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(nn.functional.dropout(x, 0.3, self.training))


class Bigrams(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)


class Seer(Bigrams):
    """Sees the characters that follow."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens.roll(-1, dims=1))


def wrong_classes(in_channels: int) -> nn.Module:
    return perceptron(7, in_channels)


def not_a_network() -> int:
    return 3


def fails(num_classes: int) -> nn.Module:
    raise RuntimeError("on purpose")


def exploding(num_classes: int, in_channels: int) -> nn.Module:
    network = perceptron(num_classes, in_channels)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(float("inf"))
    return network
