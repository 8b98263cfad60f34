"""Twins: the plain net of a residual one, and the residual net of a plain one."""

from __future__ import annotations

import pytest
import torch
from tests.edit.edit_nets import Chain, UNet, equal, pulled, ran
from torch import Tensor, nn

import skipway as sw
from skipway import edit
from skipway.connect import Residual, StochasticDepth
from skipway.errors import SkipwayError
from skipway.graph import trace


@pytest.mark.parametrize("training", [True, False])
def test_resnet56_and_plain56(training: bool):
    residual = sw.models.create("resnet56", skip="zero-pad").train(training)
    plain = sw.models.create("resnet56", skip="none").train(training)
    plain.load_state_dict(residual.state_dict())
    x = torch.randn(2, 3, 16, 16)
    twin = edit.plain_twin(residual, x)
    equal(pulled(twin, x), pulled(plain, x), 1e-5)
    assert not trace(twin, x).skips

    back = edit.residual_twin(plain, x, skip="zero-pad")
    equal(back(x), residual(x), 1e-5)
    assert len(trace(back, x).skips) == 27
    assert list(back.state_dict()) == list(plain.state_dict())


def test_a_flat_plain_net():
    model = nn.Sequential(*[part for _ in range(4) for part in (nn.Linear(4, 4), nn.ReLU(inplace=True))])
    x = torch.randn(3, 4)
    twin = edit.residual_twin(model, x)
    y = torch.relu(x + model[2](torch.relu(model[0](x))))
    equal(twin(x), torch.relu(y + model[6](torch.relu(model[4](y)))))
    pulled(twin, x)


def test_stochastic_depth_past_blocks_that_had_no_skip():
    model = sw.models.create("resnet20", skip="none").train()
    x = torch.randn(2, 3, 8, 8)
    twin = edit.residual_twin(model, x, skip=Residual(drop=StochasticDepth(0.999, "constant")))
    found = ran(twin, lambda: pulled(twin, x))
    assert not [name for name in found if name.startswith("layer") and "connection" not in name and "conv" in name]
    assert [name for name in found if "connection" in name]


def test_stochastic_depth_past_pairs_of_a_flat_sequence():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU())
    x = torch.randn(3, 4)
    twin = edit.residual_twin(model, x, skip=Residual(drop=StochasticDepth(0.5, "constant"))).train()
    found = [twin(x) for _ in range(12)]
    branch = model[2](torch.tanh(model[0](x)))
    dropped = [torch.equal(y, torch.relu(x)) for y in found]
    assert set(dropped) == {True, False}
    for y, left_out in zip(found, dropped, strict=True):
        equal(y, torch.relu(x if left_out else x + 2 * branch))


def test_a_twin_keeps_skips_that_concatenate():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain, self.unet = nn.Conv2d(3, 3, 1), UNet()

        def forward(self, x: Tensor) -> Tensor:
            return self.unet(x + self.chain(x))

    model, x = Both(), torch.randn(1, 3, 8, 8)
    equal(edit.plain_twin(model, x)(x), model.unet(model.chain(x)))


def test_nothing_to_do():
    x = torch.randn(3, 4)
    with pytest.raises(SkipwayError, match="its own plain twin"):
        edit.plain_twin(nn.Sequential(nn.Linear(4, 4)), x)
    with pytest.raises(SkipwayError, match="no block of this Chain"):
        edit.residual_twin(Chain(), x)
