"""Random small convolutional nets with random branches fold to the same function."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.edit.folding.folding_nets import settle
from torch import Tensor, nn

from skipway.edit.folding import fold

CHANNELS = 4
STEPS = st.sampled_from(
    ["conv1", "conv3", "biased3", "valid-same", "grouped", "depthwise", "norm", "relu", "silu", "scale", "vector",
     "shift", "mean", "dropout", "identity", "dilated", "zero"]
)  # fmt: skip
BRANCH = st.lists(STEPS, max_size=4)
BLOCK = st.tuples(
    st.lists(BRANCH, min_size=1, max_size=4), st.sampled_from(["sum", "difference", "cat", "gate", "inplace"])
)
NETS = st.lists(BLOCK, min_size=1, max_size=3)


class Scaled(nn.Module):
    """x * scale + shift, either left out."""

    def __init__(self, scale: Any = None, shift: Any = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale) if isinstance(scale, Tensor) else scale
        self.shift = nn.Parameter(shift) if isinstance(shift, Tensor) else shift

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.scale is None else self.scale * x
        return x if self.shift is None else x - self.shift


def step(name: str) -> nn.Module:
    c = CHANNELS
    made: dict[str, Any] = {
        "conv1": lambda: nn.Conv2d(c, c, 1, bias=False),
        "conv3": lambda: nn.Conv2d(c, c, 3, padding=1, bias=False),
        "biased3": lambda: nn.Conv2d(c, c, 3, padding="same"),
        "valid-same": lambda: nn.Sequential(nn.Conv2d(c, c, 1, padding=1), nn.BatchNorm2d(c), nn.Conv2d(c, c, 3)),
        "grouped": lambda: nn.Conv2d(c, c, 3, padding=1, groups=2),
        "depthwise": lambda: nn.Conv2d(c, c, (1, 3), padding=(0, 1), groups=c, bias=False),
        "dilated": lambda: nn.Conv2d(c, c, 3, padding=2, dilation=2, bias=False),
        "norm": lambda: nn.BatchNorm2d(c),
        "relu": lambda: nn.ReLU(inplace=True),
        "silu": nn.SiLU,
        "scale": lambda: Scaled(torch.tensor(0.5), None),
        "vector": lambda: Scaled(torch.randn(c, 1, 1), None),
        "shift": lambda: Scaled(None, torch.randn(1, c, 1, 1)),
        "mean": lambda: nn.AvgPool2d(3, 1, 1),
        "dropout": lambda: nn.Dropout(0.3, inplace=True),
        "identity": nn.Identity,
        "zero": lambda: Scaled(torch.zeros(c, 1, 1), None),
    }
    return made[name]()


class Net(nn.Module):
    def __init__(self, blocks: list[tuple[list[list[str]], str]]) -> None:
        super().__init__()
        self.merges = [merge for _, merge in blocks]
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Sequential(*map(step, branch)) for branch in branches) for branches, _ in blocks
        )
        self.joins = nn.ModuleList(nn.Conv2d(len(branches) * CHANNELS, CHANNELS, 1) for branches, _ in blocks)
        self.fc = nn.Linear(CHANNELS, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block, merge, join in zip(self.blocks, self.merges, self.joins, strict=True):
            # An inplace step overwrites what it is given: each branch has a copy of its own.
            parts = [branch(x.clone()) for branch in block]  # pyright: ignore[reportGeneralTypeIssues]
            if merge == "cat":
                x = join(torch.cat(parts, 1))
                continue
            total = parts[0]
            for part in parts[1:]:
                if merge == "sum":
                    total = total + part
                elif merge == "difference":
                    total = part - total
                elif merge == "gate":
                    total = total * torch.sigmoid(part)
                else:
                    total += part
            x = total
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


@settings(max_examples=40)
@given(blocks=NETS, seed=st.integers(0, 1000), side=st.sampled_from([3, 5]))
def test_random_nets_fold_to_the_same_function(blocks: list[tuple[list[list[str]], str]], seed: int, side: int):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = settle(Net(blocks), seed).double()
        x, other = torch.randn(2, 2, CHANNELS, side, side, dtype=torch.float64)
    folded = fold(model, x)
    assert not [entry for entry in folded.report.left if entry.detail == "undone"], str(folded.report)
    with torch.no_grad():
        wanted = model(other)
        assert (folded(other) - wanted).norm() <= 1e-9 * wanted.norm()
        single = fold(model.float(), x.float())
        assert not [entry for entry in single.report.left if entry.detail == "undone"], str(single.report)
        assert (single(other.float()) - wanted).norm() <= 1e-3 * wanted.norm()


@settings(max_examples=20)
@given(blocks=st.lists(st.tuples(st.lists(st.lists(st.sampled_from(
    ["conv1", "conv3", "norm", "vector", "depthwise", "identity"]), max_size=3), min_size=2, max_size=4),
    st.just("sum")), min_size=1, max_size=2))  # fmt: skip
def test_constants_of_other_weights_are_those_of_the_fold_of_other_weights(blocks: Any):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, other = settle(Net(blocks)).double(), settle(Net(blocks), 5).double()
        x = torch.randn(1, CHANNELS, 5, 5, dtype=torch.float64)
    folded = fold(model, x, keep_zeros=True)
    with torch.no_grad():
        wanted = other(x)
        assert (folded.run(folded.constants(other.state_dict()), x) - wanted).norm() <= 1e-9 * wanted.norm()
