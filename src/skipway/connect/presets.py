"""Connections by name: each preset is a paper's choice, with its equation and its source."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from skipway.connect.attention_gate import AttentionGate
from skipway.connect.connection import Kind
from skipway.connect.dense import Dense
from skipway.connect.drop import StochasticDepth
from skipway.connect.gates import Gate, Highway, PooledGate, ShortcutGate, SqueezeExcite
from skipway.connect.placement import Placement
from skipway.connect.residual import Plain, Residual, shown
from skipway.connect.residual_path import ResidualPath
from skipway.connect.scales import Constant, LayerScale, ReZero, Scale, SkipInit
from skipway.connect.shortcuts import Identity, Projection, ZeroPad
from skipway.errors import SkipwayError, choose

_PRESETS: dict[str, Callable[[], Kind]] = {}
# What people call some of them, letters and digits only.
_ALIASES = {
    **dict.fromkeys(("plain", "no", "off", "false", "without", "noskip", "noskips"), "none"),
    **dict.fromkeys(
        (
            "add",
            "addition",
            "additive",
            "sum",
            "identity",
            "skip",
            "shortcut",
            "standard",
            "resnet",
            "yes",
            "true",
            "on",
        ),
        "residual",
    ),
    **dict.fromkeys(("cat", "concatenate", "concatenation", "unet"), "concat"),
    **dict.fromkeys(("densenet", "denselyconnected"), "dense"),
    **dict.fromkeys(("se", "senet", "squeezeexcitation", "squeezeandexcitation"), "squeeze-excite"),
    **dict.fromkeys(("drop", "droppath", "droplayer", "layerdrop"), "stochastic-depth"),
    **dict.fromkeys(("gate", "gated"), "highway"),
    **dict.fromkeys(("preln", "prelayernorm"), "pre-norm"),
    **dict.fromkeys(("postln", "postlayernorm"), "post-norm"),
    **dict.fromkeys(("preact", "preactresnet", "resnetv2", "v2"), "pre-activation"),
    **dict.fromkeys(("optiona", "padding", "pad"), "zero-pad"),
    "optionb": "projection",
    "optionc": "projection-everywhere",
    "resnetd": "pooled-projection",
    "attention": "attention-gate",
}
_FIELDS: dict[type, str] = {
    Scale: "scale",
    Gate: "gate",
    AttentionGate: "gate",
    SqueezeExcite: "reweight",
    StochasticDepth: "drop",
    Placement: "placement",
    Identity: "shortcut",
    Projection: "shortcut",
    ZeroPad: "shortcut",
    ResidualPath: "shortcut",
}


def preset(name: str) -> Callable[[Callable[[], Kind]], Callable[[], Kind]]:
    """Register a function that returns a connection value; its docstring is the equation and the source.

    >>> @preset("doctest-only")
    ... def _():
    ...     "y = F(x)."
    ...     return Plain()
    >>> resolve("doctest-only"), _PRESETS.pop("doctest-only") is _
    (Plain(placement=None, reweight=None), True)
    """

    def register(make: Callable[[], Kind]) -> Callable[[], Kind]:
        _PRESETS[name] = make
        return make

    return register


def names() -> list[str]:
    """The names that `skip=` takes.

    >>> "rezero" in names()
    True
    """
    return list(_PRESETS)


def describe(name: str) -> str:
    """Equation and source of a named connection, in a line.

    >>> describe("none")
    'y = F(x): no skip, the plain network.'
    """
    return " ".join((inspect.getdoc(_PRESETS[choose("skip", name, _PRESETS, aliases=_ALIASES)]) or "").split())


def resolve(skip: str | Kind) -> Kind:
    """The connection value meant by a name, or the value itself.

    Raises SkipwayError for an unknown name (with the nearest one) and for what is no connection.

    >>> resolve("rezero").scale
    ReZero(initial=0.0, learned=True, per='tensor', depth_power=0.0)
    """
    if isinstance(skip, str):
        return _PRESETS[choose("skip", skip, _PRESETS, aliases=_ALIASES)]()
    for part, field in _FIELDS.items():
        if isinstance(skip, part):
            given = type(skip).__name__
            raise SkipwayError(f"{given} is a part of a connection: write skip=Residual({field}={given}(...))")
    if isinstance(skip, Kind) and not isinstance(skip, type):
        return skip
    raise SkipwayError(
        f"skip= takes a name (see skipway.connect.names()) or a value such as Residual(), not {shown(skip)}"
    )


def fill(skip: Kind, **defaults: Any) -> Kind:
    """The same connection with fields that were left open (None) set to a model family's defaults.

    >>> fill(Residual(drop=0.5), placement="original").placement
    'original'
    """
    if not dataclasses.is_dataclass(skip) or isinstance(skip, type):
        return skip
    left_open = {field.name for field in dataclasses.fields(skip) if getattr(skip, field.name) is None}
    return dataclasses.replace(skip, **{name: value for name, value in defaults.items() if name in left_open})


@preset("none")
def _none() -> Kind:
    """y = F(x): no skip, the plain network."""
    return Plain()


@preset("residual")
def _residual() -> Kind:
    """y = x + F(x), projected where shapes change, or as the family publishes it. He 2015, arXiv:1512.03385."""
    return Residual()


@preset("zero-pad")
def _zero_pad() -> Kind:
    """y = pad(x) + F(x), zeros appended as new channels: option A. He 2015, arXiv:1512.03385."""
    return Residual(shortcut=ZeroPad())


@preset("zero-pad-split")
def _zero_pad_split() -> Kind:
    """y = pad(x) + F(x), half the zeros on either side of the channels. The layout of many CIFAR checkpoints."""
    return Residual(shortcut=ZeroPad(channels="split"))


@preset("zero-pad-average")
def _zero_pad_average() -> Kind:
    """y = pad(mean over the stride of x) + F(x): option A that drops no pixel. After He 2015, arXiv:1512.03385."""
    return Residual(shortcut=ZeroPad(spatial="average"))


@preset("projection")
def _projection() -> Kind:
    """y = W x + F(x) where the shape changes, x + F(x) elsewhere: option B. He 2015, arXiv:1512.03385."""
    return Residual(shortcut=Projection())


@preset("projection-everywhere")
def _projection_everywhere() -> Kind:
    """y = W x + F(x) at every branch: option C. He 2015, arXiv:1512.03385."""
    return Residual(shortcut=Projection(everywhere=True))


@preset("pooled-projection")
def _pooled_projection() -> Kind:
    """y = W mean(x) + F(x) where the shape changes: ResNet-D's shortcut. He T. 2018, arXiv:1812.01187."""
    return Residual(shortcut=Projection(pool=True))


@preset("rezero")
def _rezero() -> Kind:
    """y = x + a F(x), one learned a from 0. Bachlechner 2020, arXiv:2003.04887."""
    return Residual(scale=ReZero())


@preset("skipinit")
def _skipinit() -> Kind:
    """y = x + a F(x), a from 0, made for nets without norms. De & Smith 2020, arXiv:2002.10444."""
    return Residual(scale=SkipInit())


@preset("layerscale")
def _layerscale() -> Kind:
    """y = x + diag(a) F(x), a from 1e-5 a channel. Touvron 2021, arXiv:2103.17239."""
    return Residual(scale=LayerScale())


@preset("deepnorm")
def _deepnorm() -> Kind:
    """y = norm(depth^(1/4) x + F(x)), depth counting branches. Wang H. 2022, arXiv:2203.00555."""
    return Residual(shortcut_scale=Constant(depth_power=0.25), placement="post-norm")


@preset("highway")
def _highway() -> Kind:
    """y = T(x) F(x) + (1 - T(x)) x, T = sigmoid(W x - 2). Srivastava 2015, arXiv:1505.00387."""
    return Residual(gate=Highway())


@preset("exclusive-gate")
def _exclusive_gate() -> Kind:
    """y = g(x) F(x) + (1 - g(x)) x, g = sigmoid(W x - 6). He 2016, arXiv:1603.05027."""
    return Residual(gate=Highway(bias=-6.0))


@preset("shortcut-gate")
def _shortcut_gate() -> Kind:
    """y = F(x) + (1 - g(x)) x, g = sigmoid(W x - 6). He 2016, arXiv:1603.05027."""
    return Residual(gate=ShortcutGate())


@preset("pooled-gate")
def _pooled_gate() -> Kind:
    """y = a F(x) + (1 - a) x, a = sigmoid(W mean(F(x))): one weight a channel."""
    return Residual(gate=PooledGate())


@preset("squeeze-excite")
def _squeeze_excite() -> Kind:
    """y = x + F(x) sigmoid(W2 relu(W1 mean(F(x)))). Hu 2017, arXiv:1709.01507."""
    return Residual(reweight=SqueezeExcite())


@preset("stochastic-depth")
def _stochastic_depth() -> Kind:
    """y = x + b/(1-p) F(x), b = 0 with p growing to 0.5, the branch then not run. Huang 2016, arXiv:1603.09382."""
    return Residual(drop=StochasticDepth(0.5))


@preset("stochastic-depth-row")
def _stochastic_depth_row() -> Kind:
    """y = x + b/(1-p) F(x), one b a sample, p growing to 0.5. Huang 2016, arXiv:1603.09382."""
    return Residual(drop=StochasticDepth(0.5, mode="row"))


@preset("pre-activation")
def _pre_activation() -> Kind:
    """y = x + F(relu(norm(x))): nothing on the path. He 2016 fig. 4e, arXiv:1603.05027."""
    return Residual(placement="pre-activation")


@preset("relu-pre-activation")
def _relu_pre_activation() -> Kind:
    """y = x + norm(F(relu(x))). He 2016 fig. 4d, arXiv:1603.05027."""
    return Residual(placement="relu-pre-activation")


@preset("relu-before-sum")
def _relu_before_sum() -> Kind:
    """y = x + relu(norm(F(x))). He 2016 fig. 4c, arXiv:1603.05027."""
    return Residual(placement="relu-before-sum")


@preset("norm-after-sum")
def _norm_after_sum() -> Kind:
    """y = relu(norm(x + F(x))). He 2016 fig. 4b, arXiv:1603.05027."""
    return Residual(placement="norm-after-sum")


@preset("original")
def _original() -> Kind:
    """y = relu(x + norm(F(x))). He 2016 fig. 4a, arXiv:1603.05027; He 2015, arXiv:1512.03385."""
    return Residual(placement="original")


@preset("pre-norm")
def _pre_norm() -> Kind:
    """y = x + F(norm(x)). Xiong 2020, arXiv:2002.04745."""
    return Residual(placement="pre-norm")


@preset("post-norm")
def _post_norm() -> Kind:
    """y = norm(x + F(x)). Vaswani 2017, arXiv:1706.03762."""
    return Residual(placement="post-norm")


@preset("branch-norm")
def _branch_norm() -> Kind:
    """y = x + norm(F(x)). Liu Z. 2021 (Swin v2), arXiv:2111.09883."""
    return Residual(placement="branch-norm")


@preset("sandwich")
def _sandwich() -> Kind:
    """y = x + norm(F(norm(x))). Ding 2021, arXiv:2105.13290; Kim 2025 (Peri-LN), arXiv:2502.02732."""
    return Residual(placement="sandwich")


@preset("concat")
def _concat() -> Kind:
    """y = [x, F(x)]: the merge of one dense step."""
    return Residual(merge="concat")


@preset("attention-gate")
def _attention_gate() -> Kind:
    """y = [a x, F(x)], a = sigmoid(psi(relu(theta x + phi F(x)))) a position. Oktay 2018, arXiv:1804.03999."""
    return Residual(gate=AttentionGate(), merge="concat")


@preset("residual-path")
def _residual_path() -> Kind:
    """y = [P(x), F(x)], P some relu(norm(conv3(x) + conv1(x))), one fewer a branch. Ibtehaz 2019, arXiv:1902.04049."""
    return Residual(shortcut=ResidualPath(), merge="concat")


@preset("dense")
def _dense() -> Kind:
    """y = [x, v_0, ..., v_k], every branch reading all before it. Huang 2016, arXiv:1608.06993."""
    return Dense()
