"""The hypothesis on real digits: what skips do to collisions, and what matching does to the barrier between nets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.probe import barrier, symmetry_breaking
from skipway.study import load_images

pytestmark = pytest.mark.slow


class Digits(nn.Module):
    """A linear stem, two blocks of two layers past which skips go or not, a classifier."""

    def __init__(self, skips: bool, width: int, activation: type[nn.Module] = nn.Tanh):
        super().__init__()
        self.skips, self.activation = skips, activation()
        self.stem, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, width), activation(), nn.Linear(width, width)) for _ in range(2)]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = self.activation(x + block(x) if self.skips else block(x))
        return self.head(x)


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = load_images("digits")
    return found.train_images / 16, found.train_labels, found.test_images / 16, found.test_labels


def trained(net: nn.Module, seed: int) -> nn.Module:
    x, y, _, _ = digits()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(200):
        index = torch.randint(len(y), (128,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(net(x[index]), y[index]).backward()
        optimizer.step()
    return net


def test_skips_keep_two_units_of_a_layer_from_becoming_one():
    x, y, _, _ = digits()
    torch.manual_seed(0)
    net = trained(Digits(True, 6), 0)
    torch.manual_seed(0)
    plain = trained(Digits(False, 6), 0)
    found = symmetry_breaking(
        net, (x[:150], y[:150]), "cross_entropy", plain=plain, layer="blocks.0.2.weight", steps=50, grid=7
    )
    alone, tied, without = found.collisions
    more = [int(one.output_zeros[1] - one.output_zeros[0]) for one in found.collisions]
    assert more[0] < without.flat <= more[2]
    assert more[1] >= tied.flat
    assert alone.apart[-1] > 0.1 > 1e-6 > max(tied.apart.max(), without.apart.max())


@pytest.mark.parametrize("skips", [False, True])
def test_matching_lowers_the_barrier_between_two_seeds(skips: bool):
    x, y, test_x, test_y = digits()
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(trained(Digits(skips, 64, nn.ReLU), seed))
    found = barrier(nets[0], nets[1], (x[:512], y[:512]), "cross_entropy", test=(test_x, test_y), steps=11)
    assert found.barriers[0] > 0.5
    assert found.barriers[1] < 0.4 * found.barriers[0]
