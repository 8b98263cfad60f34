"""Rules that need a loss: which gradient arrives where."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from skipway.graph.ir import Site
from skipway.graph.rules.case import Case
from skipway.graph.rules.registry import Found, rule

# Four decades between the first and the last third of the layers: no one step size serves both.
DECADES = 4.0
_NOTHING = 1e-45


class _Layer(NamedTuple):
    site: Site
    gradient: float
    weight: float


def _layers(case: Case) -> list[_Layer]:
    """The weight layers in the order in which they run, each with the size of its weight's gradient."""
    assert case.gradients is not None
    found: dict[str, _Layer] = {}
    for operation in case.trace.operations:
        weight = case.weight(operation) if case.is_weight(operation) else None
        if weight is not None and weight[0] in case.gradients.parameters and weight[0] not in found:
            size = case.gradients.parameters[weight[0]]
            if size is not None:
                found[weight[0]] = _Layer(
                    operation.site, size, float(weight[1].detach().double().square().mean().sqrt())
                )
    return list(found.values())


def _ends(case: Case) -> tuple[float, float, _Layer, _Layer] | None:
    """The typical gradient of the first and of the last third of the layers, and the two at the ends."""
    layers = _layers(case)
    if len(layers) < 4 or not all(math.isfinite(layer.gradient) for layer in layers):
        return None
    third = max(len(layers) // 3, 1)
    first = median(layer.gradient for layer in layers[:third])
    last = median(layer.gradient for layer in layers[-third:])
    return max(first, _NOTHING), max(last, _NOTHING), layers[0], layers[-1]


@rule(
    "vanishing-gradient",
    "warning",
    remedy="Give the blocks an identity shortcut, norms, and activations that do not saturate.",
    source="Glorot & Bengio 2010; He et al. 2016, eq. 5 (arXiv:1603.05027)",
)
def vanishing_gradient(case: Case) -> Iterator[Found]:
    """With the loss given, gradients of the first third of the weight layers 10,000 times below those of the last.

    Silent where they are of one size throughout, however small.
    """
    ends = _ends(case) if case.gradients is not None else None
    if ends is not None and ends[1] >= 10**DECADES * ends[0]:
        first, last, layer, end = ends
        arriving = "no gradient at all arrives in" if first == _NOTHING else f"the gradient shrinks to {first:.1g} in"
        yield Found(
            layer.site,
            f"From {end.site.module} back to {layer.site.module} {arriving} the first third of the layers, from "
            f"{last:.1g} in the last third (root mean squares): the first layers do not learn.",
        )


@rule(
    "exploding-gradient",
    "warning",
    remedy="Normalise or scale the branches (1/sqrt(number of blocks)), lower the initial weights, clip the gradient.",
    source="Pascanu et al. 2013 (arXiv:1211.5063); Hanin & Rolnick 2018 (arXiv:1803.01719)",
)
def exploding_gradient(case: Case) -> Iterator[Found]:
    """With the loss given, gradients that are not finite, that are 10,000 times as large as the weights they change, or
    that grow 10,000 times from the last third of the weight layers to the first.

    Silent where they are of one size throughout and in proportion to the weights.
    """
    if case.gradients is None:
        return
    broken = [layer for layer in _layers(case) if not math.isfinite(layer.gradient)]
    if broken:
        yield Found(broken[-1].site, f"The gradient of {broken[-1].site.module} is not finite.", "error")
    ends = _ends(case)
    if ends is not None and ends[0] >= 10**DECADES * ends[1]:
        first, last, layer, end = ends
        yield Found(
            layer.site,
            f"From {end.site.module} back to {layer.site.module} the gradient grows from {last:.1g} in the last "
            f"third of the layers to {first:.1g} in the first (root mean squares).",
        )
        return
    moved = [
        layer.gradient / layer.weight for layer in _layers(case) if layer.weight > 0 and math.isfinite(layer.gradient)
    ]
    if len(moved) >= 4 and median(moved) >= 10**DECADES:
        layer = max(_layers(case), key=lambda layer: layer.gradient / layer.weight if layer.weight > 0 else 0.0)
        yield Found(
            layer.site,
            f"The gradient of {layer.site.module} is {layer.gradient:.1g}, {layer.gradient / layer.weight:.1g} times "
            f"its weights (root mean squares), and half of the layers fare no better than {median(moved):.1g} times: "
            "one step of any usual size throws them away.",
        )


@rule(
    "no-gradient",
    "warning",
    remedy="Connect these layers to the loss, or freeze them (requires_grad=False) if they are not meant to learn.",
    source="torch.autograd: a parameter that does not reach the loss keeps grad=None",
)
def no_gradient(case: Case) -> Iterator[Found]:
    """With the loss given, weight layers that run inside skips' branches and whose weights no gradient reaches.

    Silent for frozen weights, layers that do not run, and gradients that are zero because a scale starts there.
    """
    if case.gradients is None or case.gradients.failure:
        return
    inside = sorted({index for skip in case.skips for index in skip.branch_operations})
    for index in inside:
        operation = case.trace.operations[index]
        weight = case.weight(operation) if case.is_weight(operation) else None
        if (
            weight is not None
            and weight[0] in case.gradients.parameters
            and case.gradients.parameters[weight[0]] is None
        ):
            yield Found(operation.site, f"{weight[0]} runs in a branch, and the loss sends no gradient back to it.")


@rule(
    "backward-fails",
    "error",
    remedy="Make the in-place operation that it names out of place (inplace=False, x = x + y for x += y).",
    source="the exception that was raised",
)
def backward_fails(case: Case) -> Iterator[Found]:
    """With the loss given, a backward pass that raises an exception, mostly for a tensor that was changed in place.

    Silent where it runs.
    """
    if case.gradients is not None and case.gradients.failure:
        last = case.trace.operations[-1].site if case.trace.operations else Site("", "forward")
        yield Found(last, f"The backward pass fails: {case.gradients.failure}")


@rule(
    "loss-without-target",
    "warning",
    remedy="Measure gradients with the real loss on real data: loss=lambda logits: F.cross_entropy(logits, labels).",
    source="Balduzzi et al. 2017 (arXiv:1702.08591): what a gradient says depends on the loss that sends it",
)
def loss_without_target(case: Case) -> Iterator[Found]:
    """A loss that weighs every output alike, as output.sum() and output.mean() do: the gradient knows no target.

    Silent for losses that depend on the output's values or on labels, and for models of a single output.
    """
    if case.gradients is not None and case.gradients.constant:
        last = case.trace.operations[-1].site if case.trace.operations else Site("", "forward")
        yield Found(
            last,
            "The loss sends the same gradient to every element of the output, as a sum or a mean does: nothing that "
            "is measured with it says how the model learns its task.",
        )


@rule(
    "norm-counted-twice",
    "warning",
    remedy="Checkpoint only what holds no batch norm, or stop its statistics while the checkpoint is recomputed.",
    source="gpleiss/efficient_densenet_pytorch issue 73; torchvision's DenseNet with memory_efficient=True",
)
def norm_counted_twice(case: Case) -> Iterator[Found]:
    """With the loss given, a batch norm whose running statistics one training step updates more often than it runs.

    Silent where each run counts once.
    """
    if case.gradients is None or not case.gradients.updates:
        return
    runs: dict[str, int] = {}
    sites: dict[str, Site] = {}
    for operation in case.trace.operations:
        if operation.name == "batch_norm":
            runs[operation.site.module] = runs.get(operation.site.module, 0) + 1
            sites.setdefault(operation.site.module, operation.site)
    for module, n in case.gradients.updates.items():
        if module in sites and n > runs[module]:
            yield Found(
                sites[module],
                f"{module} ran {runs[module]} time(s) and updated its running statistics {n} times in one step.",
            )
