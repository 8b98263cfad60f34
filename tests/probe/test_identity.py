"""Learning the identity, and the deeper net made of a shallow one."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skipway.errors import SkipwayError
from skipway.probe import construction, deepened, identity, load

mpl.use("Agg")


def test_a_stack_that_is_the_identity_has_no_error_and_stays_there():
    """ReZero starts as the identity: nothing is left to learn, and weight decay alone moves weights."""
    found = identity(torch.randn(60, 6), skips=("rezero",), depths=(1, 5), seeds=(0, 1), steps=10)
    np.testing.assert_array_equal(found.starts, 0)
    np.testing.assert_array_equal(found.errors, 0)
    np.testing.assert_array_equal(found.distances, 0)
    assert (found.norms < 1).all()


@pytest.mark.parametrize(("skip", "carried"), [("none", 0.0), ("residual", 1.0)])
def test_linear_stacks_that_do_not_move_are_products_of_matrices(skip: str, carried: float):
    """Y = X (I + W_1)^T ... (I + W_L)^T with skips, without I without them; J is that product."""
    width, depth = 5, 3
    weights = [torch.randn(width, width, dtype=torch.float64) / 3 for _ in range(depth)]
    waiting = iter(weights)

    def branch(size: int) -> nn.Module:
        layer = nn.Linear(size, size, bias=False).double()
        layer.weight = nn.Parameter(next(waiting).clone())
        return layer

    features = torch.randn(40, width, dtype=torch.float64)
    found = identity(features, skips=(skip,), depths=(depth,), seeds=(0,), branch=branch, steps=1, rate=0.0,
                     weight_decay=0.0)  # fmt: skip
    jacobian = np.linalg.multi_dot([carried * np.eye(width) + weight.numpy() for weight in reversed(weights)])
    assert found.distances.item() == pytest.approx(np.linalg.norm(jacobian - np.eye(width)) / np.sqrt(width))
    x = features.numpy()
    x = (x - x.mean()) / x.std(ddof=1)
    held_out = x[torch.randperm(40, generator=torch.Generator().manual_seed(0))[:8]]
    wrong = held_out @ (jacobian - np.eye(width)).T
    assert found.errors.item() == pytest.approx((wrong**2).mean() / (held_out**2).mean())
    assert (found.moved.item(), found.norms.item()) == (0, 1)


def test_a_linear_layer_finds_the_identity_as_least_squares_does():
    features = torch.randn(200, 4, dtype=torch.float64)
    found = identity(features, skips=("none",), depths=(1,), seeds=(0,), branch=lambda width: nn.Linear(width, width),
                     steps=400, rate=0.03, weight_decay=0.0)  # fmt: skip
    assert found.errors.max() < 1e-5
    assert found.distances.max() < 1e-2


def test_strong_weight_decay_leads_plain_stacks_to_zero_and_residual_ones_to_the_identity():
    found = identity(torch.randn(100, 6), depths=(4,), seeds=(0,), steps=150, rate=0.02, weight_decay=10.0)
    plain, residual = found.errors[:, 0, 0]
    assert plain == pytest.approx(1, abs=0.2)
    assert residual < 0.1


def test_skips_learn_the_identity_better_and_keep_it_with_depth():
    found = identity(torch.randn(200, 8), skips=("none", "residual"), depths=(1, 6), seeds=(0,), steps=100, rate=0.01)
    plain, residual = found.errors[:, :, 0]
    assert (residual < 0.6 * plain).all()
    assert plain[1] > 0.3


def test_seeds_repeat_and_nothing_global_moves(tmp_path: Any):
    features = torch.randn(50, 4)
    kept, state = features.clone(), torch.get_rng_state()
    found = identity(features, depths=(2, 1), seeds=(3, 4), steps=12)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(kept, features)
    assert found == identity(features, depths=(1, 2), seeds=(3, 4), steps=12)
    assert load(found.save(tmp_path / "identity")) == found
    assert len(found.table()) == 2 * 2 * 2
    assert len(found.plot()) == 3
    assert len(list(found.interactive().data)) == 2
    assert found.curves.shape == (2, 2, 2, 12)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 6), st.lists(st.integers(1, 7), min_size=1, max_size=3))
def test_the_deeper_net_is_the_same_to_the_last_bit(seed: int, layers: int, widths: list[int]):
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    inputs = 3
    for width in widths:
        parts += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    net = nn.Sequential(*parts, nn.Linear(inputs, 2))
    deep = deepened(net, layers)
    x = torch.randn(9, 3) * 10
    assert torch.equal(deep(x), net(x))
    assert len(deep) == len(net) + 2 * layers
    assert not {id(part) for part in deep.parameters()} & {id(part) for part in net.parameters()}


def test_the_construction_starts_where_the_shallow_net_is(tmp_path: Any):
    x = torch.randn(120, 5)
    state = torch.get_rng_state()
    found = construction(x, (x[:, 0] * x[:, 1] > 0).long(), depth=1, deeper=4, width=8, seeds=(0, 1), steps=30)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(found.equality, 0)
    np.testing.assert_array_equal(found.losses[0, :, 0], found.losses[1, :, 0])
    assert not np.array_equal(found.losses[0, :, -1], found.losses[1, :, -1])
    assert load(found.save(tmp_path / "construction")) == found
    assert len(found.table()) == 8
    assert len(found.plot()) == 2
    assert len(list(found.interactive().data)) == 4


def test_slips_are_told():
    x = torch.randn(20, 4)
    with pytest.raises(SkipwayError, match="did you mean 'residual'"):
        identity(x, skips=("residal",))
    with pytest.raises(SkipwayError, match="10 rows at least"):
        identity(x[:5])
    with pytest.raises(SkipwayError, match="depths, seeds, skips"):
        identity(x, depths=(0,))
    with pytest.raises(SkipwayError, match="between a ReLU and the linear layer"):
        deepened(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)), 2)
    with pytest.raises(SkipwayError, match="more hidden layers"):
        construction(x, torch.zeros(20).long(), depth=3, deeper=3)


@pytest.mark.usefixtures("no_shape_checks")
def test_labels_that_do_not_fit_are_told():
    with pytest.raises(SkipwayError, match="as many class numbers"):
        construction(torch.randn(20, 4), torch.zeros(19).long())
