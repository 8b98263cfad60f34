"""What a person may get wrong: each gives one clear sentence that says what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.slips import gives_one_sentence
from torch import nn

import skipway as sw
from skipway import connect

pytestmark = pytest.mark.usefixtures("no_shape_checks")

wrong: Any = sw  # the same names, untyped: what follows is wrong on purpose
images = torch.ones(2, 8, 5, 5)
wrong_input: Any = [[1.0, 2.0]]


def conv(in_channels: int, out_channels: int, **options: Any) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, **options)


def dropping(rate: Any) -> Any:
    return lambda: wrong.Residual(drop=rate)


def placed(**slots: Any) -> Callable[[], Any]:
    return lambda: wrong.Placement(**slots)


def normed(kind: str, dims: int) -> Callable[[], Any]:
    def make() -> Any:
        placement = wrong.Placement(before=("norm",), norm=kind)
        return wrong.Skip(torch.sin, sw.Residual(placement=placement), channels=4, dims=dims)

    return make


def used(branch: Any, skip: Any = "residual", x: torch.Tensor = images, **site: Any) -> Callable[[], Any]:
    return lambda: wrong.Skip(branch, skip, **{"channels": 8, **site})(x)


SLIPS: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown name": (
        lambda: sw.Skip(conv(8, 8), "rezro", channels=8),
        "no skip 'rezro'; did you mean 'rezero'? allowed: none, residual",
    ),
    "what people call a sum": (
        lambda: sw.Skip(conv(8, 8), "add", channels=8),
        "no skip 'add'; did you mean 'residual'? allowed: none, residual",
    ),
    "what people call no skip": (lambda: sw.Skip(conv(8, 8), "No Skip", channels=8), "did you mean 'none'?"),
    "nothing like it": (lambda: sw.Skip(conv(8, 8), "xyz", channels=8), "no skip 'xyz'; allowed: none, residual"),
    "description of an unknown name": (lambda: connect.describe("hihgway"), "did you mean 'highway'?"),
    "class instead of value": (
        lambda: wrong.Skip(conv(8, 8), sw.Residual, channels=8),
        "not the class Residual: call it",
    ),
    "part instead of connection": (
        lambda: wrong.Skip(conv(8, 8), sw.ReZero(), channels=8),
        "ReZero is a part of a connection: write skip=Residual(scale=ReZero(...))",
    ),
    "shortcut instead of connection": (
        lambda: wrong.Skip(conv(8, 8), sw.ZeroPad(), channels=8),
        "Residual(shortcut=ZeroPad(...))",
    ),
    "placement instead of connection": (
        lambda: wrong.Skip(conv(8, 8), sw.Placement(), channels=8),
        "Residual(placement=Placement(...))",
    ),
    "nothing instead of connection": (
        lambda: wrong.Skip(conv(8, 8), None, channels=8),
        "skip= takes a name (see skipway.connect.names())",
    ),
    "class of a scale": (
        lambda: wrong.Residual(scale=sw.ReZero),
        "scale= takes a Scale or None, not the class ReZero: call it",
    ),
    "number as a scale": (lambda: wrong.Residual(shortcut_scale=0.5), "shortcut_scale= takes a Scale or None, not 0.5"),
    "class of a gate": (
        lambda: wrong.Residual(gate=sw.Highway),
        "gate= takes a Gate or None, not the class Highway: call it",
    ),
    "class of a reweighting": (
        lambda: wrong.Residual(reweight=sw.SqueezeExcite),
        "not the class SqueezeExcite: call it",
    ),
    "class of a plain connection's reweighting": (
        lambda: wrong.Plain(reweight=sw.SqueezeExcite),
        "reweight= takes a SqueezeExcite or None, not the class SqueezeExcite: call it",
    ),
    "class of a shortcut": (
        lambda: wrong.Residual(shortcut=sw.ZeroPad),
        "shortcut= takes Identity(), Projection() or ZeroPad(), not the class",
    ),
    "name of a shortcut": (
        lambda: wrong.Residual(shortcut="identity"),
        "shortcut= takes Identity(), Projection() or ZeroPad(), not 'identity'",
    ),
    "gate as a shortcut": (
        lambda: wrong.Residual(shortcut=sw.Highway()),
        "shortcut= takes Identity(), Projection() or ZeroPad(), not Highway",
    ),
    "unknown merge": (lambda: wrong.Residual(merge="sum"), "no merge 'sum'; allowed: add, concat"),
    "gated concatenation": (lambda: sw.Residual(merge="concat", gate=sw.Highway()), "which merge='concat' keeps apart"),
    "unknown placement": (lambda: sw.Residual(placement="preactivation"), "did you mean 'pre-activation'?"),
    "placement of the plain": (lambda: sw.Plain(placement="orginal"), "did you mean 'original'?"),
    "placement by a slot": (
        lambda: wrong.Residual(placement=("norm",)),
        "placement= takes a name or a Placement(...), not ('norm',)",
    ),
    "wrong slot": (
        placed(before=("relu", "norm")),
        "placement slot before=('relu', 'norm') is not one of: (), ('norm',)",
    ),
    "unknown slot content": (placed(out=("batchnorm",)), "placement slot out=('batchnorm',) is not one of"),
    "slot as a word": (placed(after="norm"), "placement slot after='norm' is not one of"),
    "unknown norm": (normed("bacth", 2), "no norm 'bacth'; did you mean 'batch'?"),
    "batch norm of tokens": (normed("batch", 0), "norm 'batch' is not for tokens: allowed are layer, rms"),
    "group norm of tokens": (normed("group", 0), "norm 'group' is not for tokens: allowed are layer, rms"),
    "rms norm of maps": (normed("rms", 2), "norm 'rms' is not for maps: allowed are batch, layer, group"),
    "always dropped": (dropping(1), "a drop rate lies in [0, 1), not 1: at 1 no branch would ever run"),
    "negative drop": (dropping(-0.1), "a drop rate lies in [0, 1), not -0.1"),
    "drop that is no number": (dropping(float("nan")), "a drop rate lies in [0, 1), not nan"),
    "drop as a word": (dropping("0.5"), "drop= takes a rate in [0, 1) or a StochasticDepth(...), not '0.5'"),
    "class of a drop": (dropping(sw.StochasticDepth), "not the class StochasticDepth: call it"),
    "unknown drop mode": (
        lambda: wrong.StochasticDepth(0.5, mode="sample"),
        "no drop mode 'sample'; allowed: batch, row",
    ),
    "unknown schedule": (lambda: wrong.StochasticDepth(0.5, "linar"), "did you mean 'linear'?"),
    "unknown extent": (lambda: wrong.Scale(per="chanel"), "did you mean 'channel'?"),
    "unknown side": (
        lambda: wrong.Gate(weighs="branch"),
        "no side that a gate weighs 'branch'; allowed: both, shortcut",
    ),
    "unknown source": (
        lambda: wrong.Gate(reads="input"),
        "no source that a gate reads 'input'; allowed: stream, branch",
    ),
    "no reduction": (lambda: sw.SqueezeExcite(0), "reduction must be at least 1, not 0"),
    "unknown thinning": (lambda: wrong.ZeroPad("mean"), "no spatial thinning 'mean'; allowed: subsample, average"),
    "unknown layout": (lambda: wrong.ZeroPad(channels="both"), "no channel layout 'both'; allowed: append, split"),
    "identity into another width": (
        lambda: sw.Skip(conv(8, 16), sw.Residual(shortcut=sw.Identity()), 8, 16),
        "an identity shortcut cannot carry 8 channels into 16 at stride 1: use shortcut=Projection() or",
    ),
    "identity at a stride": (
        lambda: sw.Skip(conv(8, 8, stride=2), sw.Residual(shortcut=sw.Identity()), 8, stride=2),
        "at stride 2",
    ),
    "padding to fewer": (lambda: sw.Skip(conv(8, 4), "zero-pad", 8, 4), "zero-padding cannot shrink 8 channels to 4"),
    "dense at a stride": (
        lambda: sw.Skip(conv(8, 8, stride=2), "dense", 8, stride=2),
        "put the stride into a transition",
    ),
    "no channels": (lambda: sw.Skip(conv(8, 8)), "say how many channels the stream has: channels=64, for one"),
    "negative channels": (lambda: sw.Skip(conv(8, 8), channels=-8), "channels must be at least 1, not -8 -> -8"),
    "no branch channels": (
        lambda: sw.Skip(conv(8, 8), channels=8, out_channels=0),
        "channels must be at least 1, not 8 -> 0",
    ),
    "four spatial axes": (
        lambda: sw.Skip(conv(8, 8), channels=8, dims=4),
        "dims is the number of spatial axes: 0 (tokens), 1, 2 or 3, not 4",
    ),
    "no stride": (
        lambda: sw.Skip(conv(8, 8), channels=8, stride=0),
        "stride must be at least 1, and 1 for tokens (dims=0), not 0",
    ),
    "strided tokens": (
        lambda: sw.Skip(nn.Linear(8, 8), channels=8, stride=2, dims=0),
        "stride must be at least 1, and 1 for tokens",
    ),
    "index beyond the depth": (
        lambda: sw.Skip(conv(8, 8), channels=8, index=3, depth=3),
        "index must lie in 0..2 (depth 3), not 3",
    ),
    "number as a branch": (
        lambda: wrong.Skip(3, channels=8),
        "a branch is a module or a function of a tensor, not int",
    ),
    "empty stack": (lambda: sw.Stack([], channels=8), "a stack needs at least one branch"),
    "number in a stack": (
        lambda: wrong.Stack([3], channels=8),
        "a branch is a module or a function of a tensor, not int",
    ),
    "too few widths": (
        lambda: sw.Stack([conv(8, 8)] * 3, channels=8, branch_channels=[8, 8]),
        "branch_channels has 2 entries for 3 branches",
    ),
    "too many strides": (
        lambda: sw.Stack([conv(8, 8)], channels=8, strides=[1, 1]),
        "strides has 2 entries for 1 branches",
    ),
    "stride 0 in a stack": (lambda: sw.Stack([conv(8, 8)], channels=8, strides=0), "stride must be at least 1"),
    "stack without channels": (lambda: sw.Stack([conv(8, 8)]), "say how many channels the stream has"),
    "stream of other channels": (
        used(conv(8, 8), channels=16),
        "the stream is (2, 8, 5, 5), where this connection was built for 16 channels",
    ),
    "other channels before a norm": (
        used(conv(8, 8), "pre-activation", channels=16),
        "built for 16 channels on axis 1 (dims=2)",
    ),
    "other channels before a projection": (
        used(conv(8, 16), channels=4, out_channels=16),
        "built for 4 channels on axis 1",
    ),
    "other channels into a dense block": (used(conv(8, 8), "dense", channels=4), "built for 4 channels on axis 1"),
    "other channels past a dropped branch": (
        used(conv(8, 8), sw.Residual(drop=sw.StochasticDepth(1 - 1e-9)), channels=4),
        "built for 4 channels",
    ),
    "maps as tokens": (
        used(conv(8, 8), dims=0),
        "the stream is (2, 8, 5, 5), where this connection was built for 8 channels on axis -1 (dims=0)",
    ),
    "tokens as maps": (
        used(nn.Linear(8, 8), x=torch.ones(2, 5, 8)),
        "the stream is (2, 5, 8), where this connection was built for 8 channels on axis 1",
    ),
    "list for a tensor": (used(torch.sin, x=wrong_input), "a connection takes one tensor, not list"),
    "a single vector": (
        used(torch.sin, x=torch.ones(8)),
        "the stream is (8,), where this connection was built for 8 channels",
    ),
    "branch of other channels": (
        used(conv(8, 6)),
        "the branch put out (2, 6, 5, 5), where this connection was built for 8 channels",
    ),
    "plain branch of other channels": (used(conv(8, 6), "none"), "the branch put out (2, 6, 5, 5)"),
    "one channel under a scale a channel": (
        used(conv(8, 1), "layerscale"),
        "the branch put out (2, 1, 5, 5), where this connection was built for 8",
    ),
    "other channels under squeeze-excite": (used(conv(8, 4), "squeeze-excite"), "the branch put out (2, 4, 5, 5)"),
    "other channels before a norm of the branch": (used(conv(8, 4), "branch-norm"), "the branch put out (2, 4, 5, 5)"),
    "branch that would broadcast": (
        used(nn.AdaptiveAvgPool2d(1)),
        "the branch put out (2, 8, 1, 1) and the shortcut carries (2, 8, 5, 5)",
    ),
    "branch that drops an axis": (
        used(lambda x: x.mean(-1)),
        "the branch put out (2, 8, 5) and the shortcut carries (2, 8, 5, 5)",
    ),
    "branch of one sample": (
        used(lambda x: x[:1]),
        "the branch put out (1, 8, 5, 5) and the shortcut carries (2, 8, 5, 5)",
    ),
    "branch with an untold stride": (used(conv(8, 8, stride=2)), "(2, 8, 3, 3) and the shortcut carries (2, 8, 5, 5)"),
    "branch that would broadcast under a gate": (
        used(nn.AdaptiveAvgPool2d(1), "highway"),
        "the shortcut carries (2, 8, 5, 5)",
    ),
    "concatenated branch of another size": (
        used(conv(8, 8, stride=2), "concat"),
        "(2, 8, 3, 3) and the shortcut carries (2, 8, 5, 5)",
    ),
    "branch that sums all up": (
        used(torch.sum),
        "the branch put out (), where this connection was built for 8 channels",
    ),
    "branch that returns a pair": (used(lambda x: (x, None)), "a branch must return one tensor, not tuple: wrap it"),
    "attention that returns a pair": (
        lambda: sw.Skip(nn.MultiheadAttention(8, 2), channels=8, dims=0)(*[torch.ones(5, 2, 8)] * 3),
        "a branch must return one tensor, not tuple: wrap it",
    ),
    "plain branch that returns a pair": (used(lambda x: (x, x), "none"), "a branch must return one tensor, not tuple"),
    "dense branch that returns a list": (used(lambda x: [x], "dense"), "a branch must return one tensor, not list"),
    "branch that returns nothing": (used(lambda x: None, "highway"), "a branch must return one tensor, not NoneType"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_each_slip_gives_one_clear_sentence(slip: str) -> None:
    gives_one_sentence(*SLIPS[slip])


def test_the_error_is_a_value_error() -> None:
    assert issubclass(sw.SkipwayError, ValueError)


def test_every_alias_tells_a_name_and_is_none():
    from skipway.connect import presets

    assert set(presets._ALIASES.values()) <= set(connect.names())
    assert not set(presets._ALIASES) & set(connect.names())
