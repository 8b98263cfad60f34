"""The choices of a Residual combine freely: any of them together equal one formula, in outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import skipway as sw
from skipway.connect import Part
from skipway.connect.placement import PLACEMENTS

CONVOLUTIONS = {1: (nn.Conv1d, F.conv1d), 2: (nn.Conv2d, F.conv2d), 3: (nn.Conv3d, F.conv3d)}
POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
SHAPES = {0: (4, 3), 1: (4, 7), 2: (4, 6, 5), 3: (3, 4, 5, 3)}


@dataclass(frozen=True)
class Case:
    skip: sw.Residual
    dims: int
    in_channels: int
    out_channels: int
    stride: int


# Values are made here and only chosen below: the run-time shape checks sample with `random`, which a strategy may not.
BOTH = (False, True)
SCALES = (None, sw.Constant(0.3), sw.ReZero(), sw.LayerScale(0.5), sw.Scale(2.0, learned=True, depth_power=-0.5))
GATES = [
    sw.Gate(-0.5, weighs, reads, pooled)
    for weighs in ("both", "shortcut")
    for reads in ("stream", "branch")
    for pooled in BOTH
]
SHORTCUTS: list[Part | None] = [
    None,
    *(sw.Projection(everywhere, norm, pool) for everywhere in BOTH for norm in BOTH for pool in BOTH),
    *(sw.ZeroPad(spatial, channels) for spatial in ("subsample", "average") for channels in ("append", "split")),
]


@st.composite
def choices(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[int, int, int, int]]:
    dims = draw(st.sampled_from([0, 1, 2, 3]))
    in_channels = draw(st.sampled_from([2, 4]))
    out_channels = draw(st.sampled_from([4, 5]))
    stride = draw(st.sampled_from([1, 2, 3])) if dims else 1
    merge = draw(st.sampled_from(["add", "concat"]))
    carries_same = stride == 1 and (in_channels == out_channels or merge == "concat")
    fields = {
        "shortcut": draw(st.sampled_from([*SHORTCUTS, sw.Identity()] if carries_same else SHORTCUTS)),
        "scale": draw(st.sampled_from(SCALES)),
        "shortcut_scale": draw(st.sampled_from(SCALES)),
        "reweight": draw(st.sampled_from([None, sw.SqueezeExcite(2)])),
        "gate": draw(st.sampled_from([None, *GATES])) if merge == "add" else None,
        "merge": merge,
        "placement": draw(st.sampled_from([None, *PLACEMENTS])),
    }
    return fields, (dims, in_channels, out_channels, stride)


def case_of(choice: tuple[dict[str, Any], tuple[int, int, int, int]]) -> Case:
    return Case(sw.Residual(**choice[0]), *choice[1])


class Formula:
    """y = after( merge( b S(x), a reweight(out(F(before(x)))) ) ), from the weights of a block by their names."""

    def __init__(self, case: Case, branch: Callable[[Tensor], Tensor], weights: dict[str, Tensor]) -> None:
        self.case, self.skip, self.branch, self.weights = case, case.skip, branch, weights

    def linear(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        if self.case.dims == 0:
            return F.linear(x, weight, bias)
        return CONVOLUTIONS[self.case.dims][1](x, weight, bias, stride=stride)

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        if self.case.dims == 0:
            return F.layer_norm(x, weight.shape, weight, bias)
        return F.batch_norm(x, None, None, weight, bias, training=True)

    def slot(self, x: Tensor, slot: str) -> Tensor:
        placement = self.skip.placement
        content = getattr(PLACEMENTS[placement], slot) if isinstance(placement, str) else ()
        x = self.norm(x, f"connection.norm_{slot}") if "norm" in content else x
        return torch.relu(x) if "relu" in content else x

    def pool(self, x: Tensor) -> Tensor:
        stride, dims = self.case.stride, self.case.dims
        if stride == 1:
            return x
        return POOLS[dims](x, stride, stride, ceil_mode=True, count_include_pad=False)

    def shortcut(self, x: Tensor, read: Tensor) -> Tensor:
        case, part = self.case, self.skip.shortcut or sw.Projection()
        target = case.in_channels if self.skip.merge == "concat" else case.out_channels
        same = case.stride == 1 and case.in_channels == target
        if isinstance(part, sw.Projection) and (part.everywhere or not same):
            pools = part.pool and case.stride > 1
            read = self.pool(read) if pools else read
            first = "connection.shortcut.1" if pools else "connection.shortcut.0"
            y = self.linear(read, first, 1 if pools else case.stride)
            second = f"connection.shortcut.{2 if pools else 1}"
            return self.norm(y, second) if part.norm and case.dims else y
        if isinstance(part, sw.ZeroPad) and not same:
            thinned = x[(..., *[slice(None, None, case.stride)] * case.dims)]
            x = self.pool(x) if part.spatial == "average" else thinned
            new = target - case.in_channels
            before = new // 2 if part.channels == "split" else 0
            axis = 1 if case.dims else -1
            x = x.movedim(axis, -1)
            return F.pad(x, (before, new - before)).movedim(-1, axis)
        return x

    def mean(self, x: Tensor) -> Tensor:
        axes = list(range(2, x.ndim)) if self.case.dims else list(range(1, x.ndim - 1))
        return x.mean(axes, keepdim=True)

    def scaled(self, x: Tensor, scale: sw.Scale | None, field: str) -> Tensor:
        if scale is None:
            return x
        a = self.weights.get(f"connection.{field}.scale")
        if a is None:
            return 0.3 * x
        return x * (a if a.ndim == 0 or self.case.dims == 0 else a.view(-1, *(1,) * self.case.dims))

    def __call__(self, x: Tensor) -> Tensor:
        skip = self.skip
        read = self.slot(x, "before")
        value = self.slot(self.branch(read), "out")
        if skip.reweight is not None:
            squeezed = torch.relu(self.linear(self.mean(value), "connection.reweight.fc1"))
            value = value * torch.sigmoid(self.linear(squeezed, "connection.reweight.fc2"))
        value = self.scaled(value, skip.scale, "scale")
        # A projection reads what the branch reads (He's pre-activation nets), anything else the bare stream.
        projects = "connection.shortcut.0.weight" in self.weights or "connection.shortcut.1.weight" in self.weights
        source = read if projects else x
        shortcut = self.scaled(self.shortcut(x, read), skip.shortcut_scale, "shortcut_scale")
        if skip.gate is not None:
            assert isinstance(skip.gate, sw.Gate)
            seen = source if skip.gate.reads == "stream" else value
            strided = skip.gate.reads == "stream" and not skip.gate.pooled
            seen = self.mean(seen) if skip.gate.pooled else seen
            g = torch.sigmoid(self.linear(seen, "connection.gate.weight", self.case.stride if strided else 1))
            merged = (g if skip.gate.weighs == "both" else 1) * value + (1 - g) * shortcut
        elif skip.merge == "concat":
            merged = torch.cat([shortcut, value], 1 if self.case.dims else -1)
        else:
            merged = shortcut + value
        return self.slot(merged, "after")


def built(case: Case, dtype: torch.dtype = torch.float64) -> sw.Skip:
    if case.dims:
        convolution = CONVOLUTIONS[case.dims][0]
        branch = convolution(case.in_channels, case.out_channels, 3, stride=case.stride, padding=1)
    else:
        branch = nn.Linear(case.in_channels, case.out_channels)
    block = sw.Skip(branch, case.skip, case.in_channels, case.out_channels, case.stride, case.dims, 1, 4).to(dtype)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block


def data(case: Case, dtype: torch.dtype = torch.float64) -> Tensor:
    space = SHAPES[case.dims][1:]
    shape = (SHAPES[case.dims][0], *space, case.in_channels) if case.dims == 0 else (4, case.in_channels, *space)
    return torch.randn(shape, dtype=dtype)


def check(agree: Callable[..., None], case: Case, dtype: torch.dtype, tolerance: float) -> None:
    block = built(case, dtype)
    branch: Any = block.branch
    agree(block, lambda x, weights: Formula(case, branch, weights)(x), data(case, dtype), tolerance=tolerance)


@settings(max_examples=250)
@given(choice=choices(), seed=st.integers(0, 2**16))
def test_any_combination_equals_its_formula(agree: Callable[..., None], choice: Any, seed: int) -> None:
    torch.manual_seed(seed)
    check(agree, case_of(choice), torch.float64, 1e-9)


@settings(max_examples=30)
@given(choice=choices())
def test_single_precision_agrees_to_1e_5(agree: Callable[..., None], choice: Any) -> None:
    torch.manual_seed(1)
    check(agree, case_of(choice), torch.float32, 1e-5)


@settings(max_examples=30)
@given(choice=choices(), n=st.integers(1, 3))
def test_evaluation_works_on_each_sample_by_itself(choice: Any, n: int) -> None:
    torch.manual_seed(2)
    case = case_of(choice)
    block, x = built(case).eval(), data(case)[:n]
    torch.testing.assert_close(torch.cat([block(one[None]) for one in x]), block(x), rtol=1e-10, atol=1e-10)


def test_written_by_hand_a_stage_equals_the_call() -> None:
    """The four verbs may be used on their own, as the algebra writes them."""
    block = built(Case(sw.Residual(placement="pre-activation", scale=sw.LayerScale(0.5)), 2, 4, 4, 1))
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    connection = block.connection
    stream = connection.open(x)
    torch.testing.assert_close(
        connection.close(connection.write(stream, block.branch(connection.read(stream)))), block(x)
    )


@pytest.mark.parametrize("dims", SHAPES)
def test_with_nothing_chosen_it_is_the_sum(agree: Callable[..., None], dims: int) -> None:
    case = Case(sw.Residual(), dims, 4, 4, 1)
    agree(sw.Skip(torch.sin, channels=4, dims=dims), lambda x, weights: x + torch.sin(x), data(case))
