"""Networks of a user's own with and without skips, which tests name as `tests.study.outside_nets:function`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from skipway import models

NETS = "tests.study.outside_nets"
# Tiny sizes of models of Hugging Face's transformers.
VIT = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8, "patch_size": 2}
RESNET = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [2, 1], "layer_type": "basic"}
GPT2 = {"hidden_size": 8, "num_hidden_layers": 2, "n_head": 2}


class Block(nn.Module):
    """Two layers, with a skip past them or without; ReLU follows the sum."""

    def __init__(self, width: int, skips: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.skips = skips

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.relu(self.norm(self.first(x))))
        return torch.relu(x + y if self.skips else y)


class Net(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, depth: int = 2, width: int = 4, skips: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(width, skips) for _ in range(depth)])
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))


def plain(num_classes: int, in_channels: int, depth: int = 2, width: int = 4) -> nn.Module:
    return Net(num_classes, in_channels, depth, width)


def residual(num_classes: int, in_channels: int, depth: int = 2, width: int = 4) -> nn.Module:
    return Net(num_classes, in_channels, depth, width, skips=True)


def takes_skip(num_classes: int, in_channels: int, skip: Any = "residual") -> nn.Module:
    return models.create("resnet8", num_classes=num_classes, in_channels=in_channels, width=4, skip=skip)


class Concatenating(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.layer = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return self.head(torch.cat([x, torch.relu(self.layer(x))], dim=1).mean(dim=(2, 3)))


def one_layer(num_classes: int, in_channels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))


class Shaped(nn.Module):
    """Takes images of one shape, which need not be square."""

    def __init__(self, num_classes: int, image_shape: list[int]) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.layers = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.head = nn.Linear(4 * height * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images).flatten(1))


ready = Net(10, 1, skips=True)
