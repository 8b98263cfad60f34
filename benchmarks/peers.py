"""Networks that nobody here wrote, to measure against: torchvision's, and a CIFAR ResNet of torchvision's blocks.

torchvision is looked for in benchmarks/.peers (see README.md here), never in the product's environment.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PEERS = Path(__file__).parent / ".peers"


def peer(name: str) -> ModuleType:
    """A package from benchmarks/.peers."""
    if not (PEERS / name).is_dir():
        sys.exit(f"{name} is missing: see benchmarks/README.md for the one command that brings it")
    if str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    return importlib.import_module(name)


def torchvision() -> ModuleType:
    """torchvision's classification models; its compiled operators are not needed, only declared."""
    if not (PEERS / "torchvision").is_dir():
        sys.exit("torchvision is missing: see benchmarks/README.md for the one command that brings it")
    sys.path.append(str(PEERS))
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["_library"] = library
    return importlib.import_module("torchvision.models")


class Subsample(nn.Module):
    """Option A in the plainest form: every second pixel, zeros behind the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))


class CifarResNet(nn.Module):
    """A CIFAR ResNet of torchvision's BasicBlock, assembled as its authors' ImageNet nets are."""

    def __init__(self, block: type[nn.Module], n: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        channels, stages = 16, []
        for width in (16, 32, 64):
            for _ in range(n):
                changes = channels != width
                stages.append(block(channels, width, 2 if changes else 1, Subsample() if changes else None))
                channels = width
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.relu(self.bn1(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
