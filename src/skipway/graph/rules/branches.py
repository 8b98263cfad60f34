"""Rules about the branch: what it begins and ends with, and how it starts out."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean, pstdev
from typing import NamedTuple

import torch
from torch import Tensor

from skipway.graph.ir import Operation
from skipway.graph.operations import Passage, constant_factor, scaling
from skipway.graph.rules.case import Case, times
from skipway.graph.rules.path import growth
from skipway.graph.rules.registry import Found, rule
from skipway.graph.skips import Skip

_NEVER_NEGATIVE = frozenset(
    {"relu", "relu6", "sigmoid", "hardsigmoid", "softplus", "softmax", "abs", "square", "exp", "sqrt"}
)
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
# What the end of a branch may pass between its last weight layer and the sum.
_END = frozenset({Passage.SAME, Passage.SCALE, Passage.ACTIVATION, Passage.POOL, Passage.PART, Passage.PAD})
MANY_UNSCALED = 4
MANY_BRANCHES = 8


@rule(
    "unscaled-branch",
    "warning",
    remedy="End the branch with a norm, scale it by 1/sqrt(blocks), or start it at zero (skip='rezero', Fixup).",
    source="De & Smith 2020 (arXiv:2002.10444); Zhang et al. 2019 (arXiv:1901.09321)",
)
def unscaled_branch(case: Case) -> Iterator[Found]:
    """A branch with no norm and no scale, whose variance is added to the stream at every block.

    Advice for fewer than four such skips, which grow little. Silent where a norm stands in the branch or behind the
    sum, where the end of the branch is scaled (by a number, learned or gated) or starts at zero, and for branches that
    a recurrent layer bounds.
    """
    bare = [skip for skip in case.added if _is_bare(case, skip)]
    if bare:
        first, *rest = bare
        grows = f", and {len(bare)} such sums make it grow {growth(len(bare))}" if rest else ""
        yield Found(
            first.site,
            f"No norm or scale stands between the branch's {times(first.span.most, 'weight layer')} and this sum: at "
            f"the start its variance is added to the stream's{grows}.",
            "" if len(bare) >= MANY_UNSCALED else "advice",
            also=tuple(skip.site for skip in rest),
        )


def _is_bare(case: Case, skip: Skip) -> bool:
    trace = case.trace
    if skip.shortcut not in ("identity", "padding", "activation") or skip.long or skip.span.most == 0:
        return False
    inside = [trace.operations[index] for index in skip.branch_operations]
    if any(case.is_norm(operation) or operation.name in _RECURRENT for operation in inside):
        return False
    if any(case.is_norm(reader) for reader in case.next(trace.operations[skip.merge].results[0])):
        return False
    for value in skip.branches:
        for operation in case.back(value, _END):
            how = {how for _, how in case.ways(operation)}
            number = constant_factor(operation) if operation.name in ("mul", "div") else None
            if Passage.GATE in how or (number is not None and abs(number) != 1.0):
                return False
            if Passage.SCALE in how and scaling(operation, trace) in ("learned", "fixed"):
                return False
            if operation.name in ("tanh", "sigmoid", "softmax") or _all_zero(case.parameters(operation)):
                return False
    return bool(skip.kind != "scaled add" or trace.operations[skip.merge].kwargs.get("alpha", 1) == 1)


def _all_zero(parameters: list[Tensor]) -> bool:
    """Whether an operation's weights are all zero; a bias beside a matrix is no weight."""
    weights = [parameter for parameter in parameters if parameter.ndim > 1] or parameters
    return bool(weights) and not any(bool(weight.detach().any()) for weight in weights)


@rule(
    "relu-ends-branch",
    "warning",
    remedy="Take the last activation off the branch: end it with the norm or the weight layer.",
    source="He et al. 2016, figure 4c and table 2 (arXiv:1603.05027): 7.84 % error against 6.61 % for ResNet-110",
)
def relu_ends_branch(case: Case) -> Iterator[Found]:
    """A branch that ends with an activation that is never negative, so that the stream can only grow.

    Silent for long skips from encoder to decoder, for gates and concatenations, and where a weight layer, a norm or a
    signed activation ends the branch.
    """
    for skip in case.added:
        last = case.last(skip.branches[0])
        if (
            skip.long
            or len(skip.branches) > 1
            or last is None
            or last.name not in _NEVER_NEGATIVE
            or skip.span.most == 0
        ):
            continue
        if skip.shortcut not in ("identity", "padding", "projection", "activation"):
            continue
        yield Found(
            skip.site,
            f"The branch ends with {last.name} at {last.site}: it can only add to the stream, never take away, and "
            "the residual that it is to learn has both signs.",
        )


@rule(
    "unzeroed-norm",
    "advice",
    remedy="Start the scale of the branch's last norm at zero, so that each block begins as the identity.",
    source="Goyal et al. 2017, section 5.1 (arXiv:1706.02677)",
)
def unzeroed_norm(case: Case) -> Iterator[Found]:
    """A branch whose last operation is a norm with its scale still all ones, in a network that has not been trained.

    Silent for trained norms (their scales differ), norms without a scale, and those that start at zero.
    """
    found = []
    for skip in case.added:
        last = case.last(skip.branches[0])
        scale = None if last is None else last.value("weight")
        if last is None or scale is None or skip.shortcut not in ("identity", "padding") or not case.is_norm(last):
            continue
        scales = [tensor for tensor in case.parameters(last) if tensor.ndim == 1 and tensor.requires_grad]
        if scales and bool((scales[0].detach() == 1).all()):
            found.append((skip, last))
    if found:
        (first, norm), *rest = found
        every = f", as do {len(found)} in all" if rest else ""
        yield Found(
            first.site,
            f"The norm {norm.site.module} that ends this branch starts with scale 1{every}: at the start each block "
            "adds as much as the stream holds already.",
            also=tuple(skip.site for skip, _ in rest),
        )


@rule(
    "unscaled-init",
    "advice",
    remedy="Divide the initial weights of each branch's last layer by sqrt(number of branches).",
    source="Radford et al. 2019 (GPT-2), section 2.3; Shoeybi et al. 2019 (arXiv:1909.08053)",
)
def unscaled_init(case: Case) -> Iterator[Found]:
    """A pre-norm stack of at least 8 branches whose last layers start out as large as all others, whatever the depth.

    Silent for trained weights (their sizes differ from block to block by more than chance), for scaled branches, and
    for last layers that start out smaller.
    """
    lasts: list[tuple[Skip, str, _Weight]] = []
    inner: dict[str, _Weight] = {}
    for skip in case.added:
        operations = [case.trace.operations[index] for index in skip.branch_operations]
        reads_norm = any(case.is_norm(reader) for reader in case.next(skip.source))
        last = case.last(skip.branches[0])
        if skip.kind != "add" or skip.shortcut != "identity" or not reads_norm or last is None:
            continue
        for operation in operations:
            found = _weight_of(case, operation)
            if found is not None and operation is last:
                lasts.append((skip, *found))
            elif found is not None:
                inner[found[0]] = found[1]
    if len(lasts) < MANY_BRANCHES or not inner:
        return
    shapes: dict[torch.Size, list[_Weight]] = {}
    for _, _, weight in lasts:
        shapes.setdefault(weight.tensor.shape, []).append(weight)
    # Whether sizes follow the fan-in or not is the scheme's choice: a last layer that is small by either is scaled.
    plain, by_fan = mean(weight.rms for weight in inner.values()), mean(weight.gain for weight in inner.values())
    ratios = [
        min(
            mean(weight.rms for weight in group) / max(plain, 1e-30),
            mean(weight.gain for weight in group) / max(by_fan, 1e-30),
        )
        for group in shapes.values()
    ]
    # Drawn alike, root mean squares differ by about 1/sqrt(2 numel) from block to block; trained ones by far more.
    drawn = all(
        pstdev(weight.rms for weight in group) * (2 * group[0].tensor.numel()) ** 0.5
        < 4 * mean(weight.rms for weight in group)
        for group in shapes.values()
    )
    # A ratio well above 1 means that the inner layers were made smaller instead, as CLIP does with depth.
    if drawn and 2 / 3 < max(ratios) < 1.5:
        yield Found(
            lasts[0][0].site,
            f"The last layers of {len(lasts)} pre-norm branches start with weights as large as the others' (ratio "
            f"{max(ratios):.2f}, where 1/sqrt({len(lasts)}) = {len(lasts) ** -0.5:.2f} would keep the stream's "
            "variance).",
            also=tuple(skip.site for skip, _, _ in lasts[1:]),
        )


class _Weight(NamedTuple):
    """A weight matrix with its root mean square, and that times the square root of its fan-in."""

    tensor: Tensor
    rms: float
    gain: float


def _weight_of(case: Case, operation: Operation) -> tuple[str, _Weight] | None:
    found = case.weight(operation) if case.is_weight(operation) else None
    if found is None or found[1].ndim != 2:
        return None
    name, tensor = found
    rms = float(torch.linalg.vector_norm(tensor.detach().float())) / max(tensor.numel(), 1) ** 0.5
    return name, _Weight(tensor, rms, rms * tensor.shape[1 if operation.name == "linear" else 0] ** 0.5)
