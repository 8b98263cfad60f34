"""Models for the tests of faults: what goes wrong is told by the environment, so that it can be put right."""

from __future__ import annotations

import os

import torch
from torch import nn


def sometimes(num_classes: int, in_channels: int) -> nn.Module:
    """A small network, for which there is no memory while LACKS_MEMORY is set."""
    if "LACKS_MEMORY" in os.environ:
        torch.empty(2**60, dtype=torch.uint8)
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))
