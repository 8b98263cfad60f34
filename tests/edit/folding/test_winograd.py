"""Convolutions by Winograd's algorithm: the same as direct ones, and used where they were measured to be faster."""

from __future__ import annotations

import copy

import numpy
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.edit.folding.folding_nets import IMAGES, settle, small_resnet
from torch import Tensor, nn

from skipway.edit.folding import fold, winograd_rule
from skipway.edit.folding.backend import fused_calls
from skipway.edit.folding.winograd import Winograd, transformed_bias, transformed_weight, transforms

BOTH = (torch.float64, torch.float32)


def run(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], fused: bool) -> Tensor:
    convolution = Winograd(tuple(x.shape), padding, x.dtype, fused)
    ready = transformed_weight(weight)
    return convolution(
        x, convolution.packed(ready) if fused else ready, None if bias is None else transformed_bias(bias)
    )


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def test_one_axis_is_a_correlation():
    back, kernel, window = (matrix.numpy() for matrix in transforms())
    random = numpy.random.default_rng(0)
    signal, taps = random.normal(size=6), random.normal(size=3)
    found = back @ ((kernel @ taps) * (window @ signal))
    numpy.testing.assert_allclose(found, numpy.correlate(signal, taps, "valid"), atol=1e-13)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3), c=st.integers(1, 5), outputs=st.integers(1, 5), h=st.integers(1, 13), w=st.integers(1, 13),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)), biased=st.booleans(), last=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_equals_direct_convolution_for_any_shape(
    n: int, c: int, outputs: int, h: int, w: int, padding: tuple[int, int], biased: bool, last: bool, seed: int
):
    h, w = max(h, 3 - 2 * padding[0]), max(w, 3 - 2 * padding[1])
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, h, w, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, c, 3, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(outputs, generator=generator, dtype=torch.float64) if biased else None
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    wanted = F.conv2d(x, weight, bias, padding=padding)
    found = run(x, weight, bias, padding, False)
    assert found.shape == wanted.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - wanted).norm() <= 1e-12 * (1 + wanted.norm())
    for fused in (False, True) if fused_calls() else (False,):
        single = run(x.float(), weight.float(), None if bias is None else bias.float(), padding, fused)
        assert (single - wanted).norm() <= 1e-5 * (1 + wanted.norm())


def test_what_it_rounds():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 128, 16, 16, generator=generator), torch.randn(32, 128, 3, 3, generator=generator)
    wanted = F.conv2d(x.double(), weight.double(), padding=1)
    assert off(run(x, weight, None, (1, 1), False), wanted) < 1.5e-6


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every convolution that can be is run so, without being measured."""
    monkeypatch.setattr(winograd_rule, "promising", lambda *_: True)
    monkeypatch.setattr(winograd_rule, "quotient_of_times", lambda *_: 0.5)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("name", [*IMAGES, "resnet"])
def test_nets_fold_to_the_same_function(name: str, dtype: torch.dtype):
    torch.manual_seed(0)
    model = settle((IMAGES | {"resnet": small_resnet})[name]()).to(dtype)
    folded = fold(model, torch.randn(2, 3, 16, 16, dtype=dtype))
    assert ("winograd(" in folded.source) == (name not in ("mobilenet", "convnext"))
    with torch.no_grad():
        for shape in ((2, 3, 16, 16), (1, 3, 24, 20)):
            x = torch.randn(shape, dtype=dtype)
            assert off(folded(x), model(x)) < (1e-10 if dtype == torch.float64 else 1e-4)


def convolutions() -> nn.Module:
    """One that can be run so, and five that cannot."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(8, 8, 5, padding=2), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3),
    ).eval()  # fmt: skip


@pytest.mark.usefixtures("everywhere")
def test_only_what_it_serves_runs_so_and_the_report_says_it():
    model, x = convolutions(), torch.randn(1, 3, 12, 12)
    folded = fold(model, x)
    assert [entry.where for entry in folded.report if "Winograd" in entry.detail] == ["0"]
    assert folded.source.count("winograd(") == 1
    assert "0: convolution runs by Winograd's algorithm, in 0.50 of the time" in str(folded.report)
    others = (
        fold(model, x, winograd=False),
        fold(model, x, memory_format="contiguous"),
        fold(model, x, dtype=torch.bfloat16),
    )
    assert not any("winograd" in other.source for other in others)


def test_what_was_measured_to_be_slower_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(winograd_rule, "promising", lambda *_: True)
    monkeypatch.setattr(winograd_rule, "quotient_of_times", lambda *_: 1.1)
    assert "winograd" not in fold(convolutions(), torch.randn(1, 3, 12, 12)).source


def test_small_convolutions_are_not_measured(monkeypatch: pytest.MonkeyPatch):
    def measured(*_: object) -> float:
        raise AssertionError

    monkeypatch.setattr(winograd_rule, "quotient_of_times", measured)
    fold(settle(small_resnet()), torch.randn(2, 3, 16, 16))
    assert winograd_rule.promising((8, 256, 14, 14), 256, (1, 1))
    assert not winograd_rule.promising((8, 256, 14, 14), 2, (1, 1))
    assert not winograd_rule.promising((1, 32, 14, 14), 32, (1, 1))


@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_a_measurement_is_made_once_in_a_process(dtype: torch.dtype):
    given = ((1, 16, 12, 12), 16, (1, 1), dtype, fused_calls() and dtype == torch.float32, torch.get_num_threads())
    before = torch.get_rng_state()
    quotient = winograd_rule.quotient_of_times(*given)
    assert quotient > 0
    assert winograd_rule.quotient_of_times(*given) == quotient
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("everywhere")
def test_copies_conversions_and_constants_of_other_weights():
    torch.manual_seed(0)
    model, other = settle(small_resnet()), settle(small_resnet(), seed=1)
    x = torch.randn(2, 3, 16, 16)
    folded = fold(model, x)
    with torch.no_grad():
        assert off(copy.deepcopy(folded)(x), model(x)) < 1e-4
        assert off(copy.deepcopy(folded).double()(x.double()), copy.deepcopy(model).double()(x.double())) < 1e-10
        assert off(folded.run(folded.constants(other.state_dict()), x), other(x)) < 1e-4
        assert torch.equal(folded(x), folded(x))


@pytest.mark.usefixtures("everywhere")
def test_without_fused_calls_products_are_plain(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("skipway.edit.folding.optimize.fused_calls", lambda: False)
    monkeypatch.setattr("skipway.edit.folding.backend.fused_calls", lambda: False)
    model, x = settle(small_resnet()), torch.randn(2, 3, 16, 16)
    folded = fold(model, x)
    assert "winograd(" in folded.source
    assert "pointwise" not in folded.source
    with torch.no_grad():
        assert off(folded(x), model(x)) < 1e-4
