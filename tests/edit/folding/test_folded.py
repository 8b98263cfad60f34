"""What a folded model is as a module: copies, pickles, types, gradients, forms of inputs, constants."""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from tests.edit.folding.folding_nets import DenseNet, conv_norm, settle, small_resnet
from torch import Tensor, nn

from skipway.edit.folding import backend, fold
from skipway.errors import SkipwayError


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return settle(small_resnet())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def close(one: Tensor, other: Tensor, limit: float = 1e-4) -> bool:
    return bool((one.float() - other.float()).norm() <= limit * other.float().norm())


def test_inputs_may_come_later(net: nn.Module, images: Tensor):
    folded = fold(net)
    with pytest.raises(SkipwayError, match="nothing was folded yet"):
        _ = folded.report
    with torch.inference_mode():
        assert close(folded(images), net(images))
    assert folded.report.after < folded.report.before


def test_every_form_of_inputs_has_its_program_and_shares_the_weights(net: nn.Module, images: Tensor):
    folded = fold(net, images)
    n = len(folded.constants())
    with torch.no_grad():
        for shape in ((1, 3, 16, 16), (3, 3, 16, 16), (2, 3, 24, 32)):
            x = torch.randn(shape)
            assert close(folded(x), net(x))
            assert close(folded(x=x), net(x))
    assert len(folded.constants()) == n
    assert "7 forms" in repr(folded)


def test_copies_pickles_and_conversions_leave_the_original_alone(net: nn.Module, images: Tensor):
    folded = fold(net, images)
    with torch.no_grad():
        wanted = net(images)
        for other in (copy.deepcopy(folded), _through_a_file(folded)):
            assert close(other(images), wanted)
        double = copy.deepcopy(folded).double()
        assert double(images.double()).dtype == torch.float64
        assert close(double(images.double()), wanted)
        folded.double()
        assert next(net.parameters()).dtype == torch.float32
        assert close(folded(images.double()), wanted)
    parent = nn.Sequential(folded, nn.Linear(4, 2).double())
    assert [name for name, _ in parent.named_parameters()] == ["1.weight", "1.bias"]


def _through_a_file(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_it_is_for_inference_alone(net: nn.Module, images: Tensor):
    folded = fold(net, images)
    assert not folded.training
    assert folded.eval() is folded
    with pytest.raises(SkipwayError, match="cannot be trained"):
        folded.train()
    with pytest.raises(SkipwayError, match="computes no gradients"):
        folded(images.clone().requires_grad_())
    assert not folded(images).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert folded(images).dtype == torch.float32
        with pytest.raises(SkipwayError, match="outside of autocast"):
            folded(images[:1])


def test_weights_that_changed_are_not_mixed_with_folded_ones(net: nn.Module, images: Tensor):
    changed = fold(net, images)
    with torch.no_grad():
        net.get_parameter("fc.weight").mul_(2)
    with pytest.raises(SkipwayError, match="weights changed since it was folded"):
        changed(images)
    folded = fold(net, images)
    net.train()
    with pytest.raises(SkipwayError, match="is in training mode"):
        folded(images[:1])


def test_lower_precision(net: nn.Module, images: Tensor):
    folded = fold(net, images, dtype=torch.bfloat16)
    with torch.no_grad():
        found = folded(images)
        assert found.dtype == torch.float32
        assert close(found, net(images), 0.05)
    assert all(constant.dtype == torch.bfloat16 for constant in folded.constants())


def test_plain_forms_run_where_fused_calls_are_missing(net: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "fused_calls", lambda: False)
    folded = fold(net, images)
    assert "pointwise" not in folded.source
    with torch.no_grad():
        assert close(folded(images), net(images))


def test_a_wrong_fused_call_is_not_used(monkeypatch: pytest.MonkeyPatch):
    class Wrong:
        def __getattr__(self, name: str) -> Any:
            raise AttributeError(name)

    backend.fused_calls.cache_clear()
    monkeypatch.setattr(backend, "_ops", Wrong)
    assert not backend.fused_calls()
    backend.fused_calls.cache_clear()


@pytest.mark.parametrize("memory_format", ["auto", "channels_last", "contiguous"])
def test_results_have_the_layout_of_the_model(memory_format: str):
    model = settle(nn.Sequential(conv_norm(3, 4), nn.ReLU(), conv_norm(4, 4)))
    x = torch.randn(2, 3, 8, 8)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        folded = fold(model, given, memory_format=memory_format)
        with torch.no_grad():
            assert folded(given).stride() == model(given).stride()


class Pair(NamedTuple):
    first: Tensor
    second: int


@dataclass
class Result:
    logits: Tensor
    extra: dict[str, Any]


class Containers(nn.Module):
    def forward(self, x: dict[str, Any], *, factor: float = 1.0) -> Result:
        total = x["a"] + x["parts"][0] * factor
        return Result(total, {"pair": Pair(total * 2, 3), "list": [total, None], "name": "n"})


def test_containers_of_inputs_and_outputs():
    model, a, b = Containers().eval(), torch.randn(3), torch.randn(3)
    folded = fold(model, {"a": a, "parts": (b,)}, factor=2.0)
    found = folded({"a": b, "parts": (a,)}, factor=2.0)
    assert isinstance(found, Result)
    assert isinstance(found.extra["pair"], Pair)
    assert found.extra["pair"].second == 3
    assert found.extra["list"][1] is None
    torch.testing.assert_close(found.logits, b + 2 * a)
    torch.testing.assert_close(folded({"a": b, "parts": (a,)}, factor=3.0).logits, b + 3 * a)


def test_constants_are_linear_in_the_weights_while_norms_are_held(net: nn.Module, images: Tensor):
    net.double()
    images = images.double()
    folded = fold(net, images)
    weights = {name: tensor for name, tensor in net.state_dict().items() if tensor.ndim > 1}
    origin = folded.constants()
    directions = [{name: torch.randn_like(tensor) for name, tensor in weights.items()} for _ in range(2)]
    steps = []
    for direction in directions:
        moved = folded.constants({name: weights[name] + direction[name] for name in weights})
        steps.append([end - start for end, start in zip(moved, origin, strict=True)])
    point = tuple(start + 0.3 * one - 0.2 * two for start, one, two in zip(origin, *steps, strict=True))
    moved = copy.deepcopy(net)
    with torch.no_grad():
        for name in weights:
            moved.get_parameter(name).add_(0.3 * directions[0][name] - 0.2 * directions[1][name])
        wanted = moved(images)
        assert close(folded.run(point, images), wanted, 1e-9)
        assert close(folded.run(point, images[:1]), moved(images[:1]), 1e-9)
        assert close(folded.run(folded.constants(moved.state_dict()), images), wanted, 1e-9)
        assert close(folded(images), net(images), 1e-9)


def test_constants_of_other_weights_in_float32_and_for_dense_nets():
    torch.manual_seed(0)
    model, other, x = settle(DenseNet()), settle(DenseNet(), seed=1), torch.randn(2, 3, 16, 16)
    folded = fold(model, x)
    with torch.no_grad():
        assert close(folded.run(folded.constants(other.state_dict()), x), other(x))
        assert close(folded.run(folded.constants(), x), model(x))


def test_constants_refuse_what_does_not_fit(images: Tensor):
    model = small_resnet(skip="rezero").eval()
    folded = fold(model, images)
    state = dict(model.state_dict())
    folded.constants(state)
    with pytest.raises(SkipwayError, match="has no 'fc.wait'"):
        folded.constants({"fc.wait": state["fc.weight"]})
    with pytest.raises(SkipwayError, match=r"fc.bias has shape \(4,\)"):
        folded.constants({"fc.bias": torch.zeros(3)})
    state["layer1.0.connection.scale.scale"] = torch.ones(())
    with pytest.raises(SkipwayError, match="puts out zero"):
        folded.constants(state)
    kept = fold(model, images, keep_zeros=True)
    with torch.no_grad():
        model.load_state_dict(state)
        assert close(kept.run(kept.constants(state), images), model(images))


def test_shared_weights_have_all_their_names():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).eval()
    model[2] = model[0]
    folded, x = fold(model, torch.ones(2, 3)), torch.randn(2, 3)
    other = copy.deepcopy(model)
    torch.nn.init.normal_(other[0].get_parameter("weight"))
    with torch.no_grad():
        assert close(folded.run(folded.constants(other.state_dict()), x), other(x))


def test_one_tensor_given_several_times_is_told_from_several():
    model, x, y = nn.MultiheadAttention(4, 2).eval(), torch.randn(5, 2, 4), torch.randn(5, 2, 4)
    folded = fold(model, x, x, x)
    with torch.no_grad():
        for given in ((y, y, y), (x, y, y), (x, y, x)):
            assert close(folded(*given)[0], model(*given)[0])


def test_constants_computed_before_a_new_form_of_inputs_are_refused():
    class Positions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.arange(x.shape[0])

    folded = fold(Positions().eval(), torch.randn(3))
    constants = folded.constants()
    with pytest.raises(SkipwayError, match="call prepare"):
        folded.run(constants, torch.randn(4))
    assert folded.run(folded.constants(), torch.zeros(4)).tolist() == [0, 1, 2, 3]


class Overwriting(nn.Module):
    """Writes one map over another, and then over the first."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x * 2, x + 1
        first.copy_(second)
        second.mul_(3)
        return first, second


def test_what_is_copied_over_a_whole_tensor_is_its_value_from_then_on():
    folded, x = fold(Overwriting().eval(), torch.ones(2, 3)), torch.randn(2, 3)
    assert "copy_" not in folded.source
    first, second = folded(x)
    torch.testing.assert_close(first, x + 1)
    torch.testing.assert_close(second, 3 * (x + 1))
