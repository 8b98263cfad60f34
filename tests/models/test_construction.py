"""The construction argument of He 2015 (arXiv:1512.03385): a deeper network holds the shallower one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.models import ResNet, cifar_resnet


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 4, (16,), generator=generator)


def train(model: nn.Module, steps: int = 20) -> list[float]:
    images, labels = batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def deepened(shallow: ResNet, depth: int, skip: str, **options: Any) -> ResNet:
    """A deeper net whose first blocks of each stage are those of the shallow one; the others are new."""
    deep = cifar_resnet(depth, skip, num_classes=4, width=4, **options)
    missing, unexpected = deep.load_state_dict(shallow.state_dict(), strict=False)
    assert missing
    assert not unexpected
    return deep


@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_identity_blocks_leave_a_trained_network_as_it_was(preactivation: bool, training: bool) -> None:
    shallow = cifar_resnet(8, "rezero", num_classes=4, width=4, preactivation=preactivation)
    losses = train(shallow)
    assert losses[-1] < losses[0] / 2
    assert all(block.get_parameter("connection.scale.scale") != 0 for block in shallow.blocks)
    images, _ = batch()
    deep = deepened(shallow, 20, "rezero", preactivation=preactivation)
    assert torch.equal(deep.train(training)(images), shallow.train(training)(images))


def test_so_do_blocks_whose_last_norm_starts_at_zero() -> None:
    shallow = cifar_resnet(8, num_classes=4, width=4)
    train(shallow)
    images, _ = batch()
    deep = deepened(shallow, 20, "residual", zero_init=True)
    assert torch.equal(deep.eval()(images), shallow.eval()(images))


def test_deepened_it_trains_on_from_where_the_shallow_one_was() -> None:
    shallow = cifar_resnet(8, "rezero", num_classes=4, width=4)
    before = train(shallow)[-1]
    after = train(deepened(shallow, 20, "rezero"))
    assert after[0] <= before
    assert after[-1] < after[0]


@pytest.mark.parametrize("preactivation", [False, True])
def test_plain_layers_are_no_identity(preactivation: bool) -> None:
    """Without skips the same blocks added to the same trained network compute something else."""
    shallow = cifar_resnet(8, "none", num_classes=4, width=4, preactivation=preactivation)
    train(shallow)
    images, labels = batch()
    deep = deepened(shallow, 20, "none", preactivation=preactivation)
    ours, theirs = deep.eval()(images), shallow.eval()(images)
    assert (ours - theirs).abs().max() > 0.1 * theirs.abs().max()
    assert F.cross_entropy(ours, labels) > F.cross_entropy(theirs, labels)
