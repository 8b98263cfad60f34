"""`graft`: a skip around modules that had none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.edit.edit_nets import ConvBlock, equal, pulled, ran
from torch import Tensor, nn

from skipway import edit
from skipway.connect import Constant, Residual, ReZero, StochasticDepth
from skipway.errors import SkipwayError
from skipway.graph import trace


def layers(n: int = 4) -> nn.Sequential:
    return nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(n)])


def test_one_module():
    model, x = layers(), torch.randn(3, 4)
    grafted = edit.graft(model, "1", Residual(scale=Constant(0.5)))
    y = model[0](x)
    equal(grafted(x), model[2:](y + 0.5 * model[1](y)))
    assert list(grafted.state_dict()) == list(model.state_dict())


def test_a_run_of_modules():
    model, x = layers(), torch.randn(3, 4)
    grafted = edit.graft(model, ("1", "3"))
    y = model[0](x)
    equal(grafted(x), y + model[1:](y))
    assert [change.where for change in edit.history(grafted)] == ["1 ... 3"]
    assert len(trace(grafted, x).skips) == 1


def test_several_by_pattern_and_nested():
    model, x = layers(2), torch.randn(3, 4)
    grafted = edit.graft(edit.graft(model, "*"), ("0", "1"))
    y = x + model[0](x)
    equal(grafted(x), x + y + model[1](y))
    equal(edit.undo(grafted)(x), y + model[1](y))


@pytest.mark.parametrize("traced", [True, False])
def test_a_projection_where_shapes_change(traced: bool):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8))
    x = torch.randn(2, 3, 8, 8)
    grafted = edit.graft(model, ("1", "2"), graph=trace(model, x) if traced else None)
    projection = next(m for name, m in grafted.named_modules() if name.endswith("connection.shortcut"))
    y = model[0](x)
    equal(grafted(x), model[2](model[1](y)) + projection(y))
    new = set(grafted.state_dict()) - set(model.state_dict())
    assert new
    assert all("connection" in name for name in new)
    assert not set(model.state_dict()) - set(grafted.state_dict())


def test_pre_norm_around_a_module_with_several_arguments():
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    model, x = Attending(), torch.randn(2, 3, 8)
    grafted = edit.graft(model, "attention", graph=trace(model, x))
    equal(grafted(x), x + model(x))


def test_stochastic_depth_in_a_foreign_model():
    model, x = layers(4).train(), torch.randn(3, 4)
    grafted = edit.graft(model, [str(k) for k in range(4)], Residual(drop=StochasticDepth(0.8)))
    runs = 200
    found = ran(grafted, lambda: [grafted(x) for _ in range(runs)])
    for index, rate in enumerate([0.2, 0.4, 0.6, 0.8]):
        expected = runs * (1 - rate)
        assert abs(found.count(f"{index}.0") - expected) < 4 * (runs * rate * (1 - rate)) ** 0.5
    equal(grafted.eval()(x), edit.graft(model, "*")(x))


def test_a_dropped_run_is_not_computed():
    model, x = layers(4).train(), torch.randn(3, 4)
    grafted = edit.graft(model, ("1", "3"), Residual(drop=StochasticDepth(0.999, "constant")))
    equal(grafted(x), model[0](x))
    assert [name for name in ran(grafted, lambda: grafted(x)) if "connection" not in name] == ["0.0", "0.1"]
    pulled(grafted, x)


def test_outputs_that_are_not_one_tensor():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRU(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.cell(x)

    model, x = Recurrent(), torch.randn(2, 3, 4)
    grafted = edit.graft(model, "cell", Residual(scale=ReZero(initial=1.0)), graph=trace(model, x))
    (ours, state), (theirs, expected) = grafted(x), model(x)
    equal([ours, state], [x + theirs, expected])


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("00", "did you mean '0.0'"),
        ("7.*", "no module matches"),
        (("2", "1"), "comes before"),
        (("0", "1.0"), "not children of one module"),
        (("0", "1", "2"), "by its first and last"),
        ([], "given by path"),
        (3, "given by path"),
    ],
)
def test_where_it_cannot_be(where: Any, message: str):
    with pytest.raises(SkipwayError, match=message):
        edit.graft(layers(), where)


def test_shapes_that_do_not_fit():
    model = nn.Sequential(nn.Linear(4, 6), nn.ConvTranspose2d(6, 6, 2, 2), nn.Tanh())
    with pytest.raises(SkipwayError, match="enlarges"):
        edit.graft(model, "1")
    with pytest.raises(SkipwayError, match="none of its layers tells"):
        edit.graft(model, "2")
    with pytest.raises(SkipwayError, match="what follows takes 6 channels"):
        edit.graft(model, "0", "concat")


def test_around_a_part_that_ends_in_place():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True))
    x = torch.randn(2, 3, 4, 4)
    grafted = edit.graft(model, "2")
    y = F.relu(model[0](x))
    equal(grafted(x), F.relu(y + model[2](y)))
    pulled(grafted, x)


def test_strides_in_ways_beside_each_other_are_not_multiplied():
    model, x = ConvBlock(3, 4, 2), torch.randn(2, 3, 8, 8)
    host = nn.Sequential(model, nn.Identity()).eval()
    with pytest.raises(SkipwayError, match=r"do not follow one another in a row, .* give graph="):
        edit.graft(host, "0")
    grafted = edit.graft(host, "0", graph=trace(host, x)).eval()
    shortcut = grafted.get_submodule("0.connection.shortcut")
    equal(grafted(x), shortcut(x) + host(x))
