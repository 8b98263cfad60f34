"""Rules about stochastic depth: branches left out in training."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from skipway.graph.ir import Operation, Site
from skipway.graph.operations import DROPOUTS, Passage, constant_factor, scaling
from skipway.graph.rules.case import Case, layer_name
from skipway.graph.rules.registry import Found, rule

_DROPPER = re.compile(r"drop_?path|stochastic_?depth|drop_?connect|layer_?drop|dropper", re.IGNORECASE)
_RATES = (
    "p",
    "drop_prob",
    "drop_rate",
    "drop_path",
    "drop_path_rate",
    "rate",
    "prob",
    "p_drop",
    "drop_p",
    "death_rate",
    "drop",
)
_KEPT = ("keep_prob", "survival_prob", "survival_rate", "keep_rate", "p_keep")


class _Drop(NamedTuple):
    site: Site
    p: float


def _rates(module: nn.Module) -> list[float]:
    """The probabilities of dropping that a module's attributes name."""
    found = [(getattr(module, name, None), False) for name in _RATES] + [
        (getattr(module, name, None), True) for name in _KEPT
    ]
    numbers = [
        (value, kept) for value, kept in found if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    return [1.0 - value if kept else float(value) for value, kept in numbers]


def _drops(case: Case) -> list[_Drop]:
    """The modules that leave out whole branches: known by their name, or seen to mask a branch a sample at a time."""
    masked = {
        operation.site.module: operation.site for operation in case.trace.operations if _masks_samples(case, operation)
    }
    found = []
    for path, module in case.modules.items():
        if path in masked or _DROPPER.search(type(module).__name__):
            rates = _rates(module)
            if rates:
                found.append(_Drop(masked.get(path, Site(path, "forward")), rates[0]))
    return found


def _masks_samples(case: Case, operation: Operation) -> bool:
    if operation.name not in ("mul", "div") or not case.ways(operation) or scaling(operation, case.trace) != "noise":
        return False
    noise = [case.trace.values[value].shape for value in operation.operands if not case.trace.values[value].live]
    return bool(noise) and all(extent == 1 for extent in noise[0][1:])


@rule(
    "constant-drop",
    "advice",
    remedy="Let the rate grow with depth, p_l = p_L l/L: the early layers are the ones that all later ones need.",
    source="Huang et al. 2016, section 3 (arXiv:1603.09382)",
)
def constant_drop(case: Case) -> Iterator[Found]:
    """Stochastic depth with one and the same rate at three blocks or more.

    Silent where the rates differ, and where they are zero.
    """
    drops = _drops(case)
    rates = {drop.p for drop in drops}
    if len(drops) >= 3 and len(rates) == 1 and 0 < drops[0].p < 1:
        yield Found(
            drops[0].site,
            f"All {len(drops)} blocks are dropped at the same rate of {drops[0].p:g}, the first like the last.",
            also=tuple(drop.site for drop in drops[1:]),
        )


@rule(
    "drop-everything",
    "error",
    remedy="Choose a rate below 1; if it was meant as the probability of keeping, pass 1 minus it.",
    source="Huang et al. 2016 (arXiv:1603.09382); Srivastava et al. 2014 (JMLR 15)",
)
def drop_everything(case: Case) -> Iterator[Found]:
    """Stochastic depth, or a dropout on a branch, with p = 1: the branch is never trained.

    Silent for every rate below 1.
    """
    for drop in _drops(case):
        if drop.p >= 1:
            yield Found(
                drop.site,
                f"{layer_name(drop.site.module)} drops its branch with probability {drop.p:g}: it never learns.",
            )
    inside = {index for skip in case.skips for index in skip.branch_operations}
    for index in sorted(inside):
        operation = case.trace.operations[index]
        p = operation.argument("p", 0.5) if operation.name in DROPOUTS else 0
        if isinstance(p, (int, float)) and p >= 1:
            yield Found(
                operation.site, f"Dropout with p={p:g} at {operation.site} leaves nothing of the branch in training."
            )


@rule(
    "drop-that-scales",
    "warning",
    remedy="Draw b ~ Bernoulli(1 - p), add b F(x) / (1 - p) in training, F(x) in evaluation (skip='stochastic-depth').",
    source="Huang et al. 2016, eq. 2 (arXiv:1603.09382): b is drawn, not its mean",
)
def drop_that_scales(case: Case) -> Iterator[Found]:
    """A drop rate that multiplies the branch instead of deciding whether it is there: y = x + p F(x) in training.

    Looked for in training mode alone. Silent where the branch is masked at random, where the number is no rate by its
    name (a residual scale), and for rates of 0 and 1.
    """
    if not case.training:
        return
    for skip in case.added:
        merge = case.trace.operations[skip.merge]
        around = {call.module for call in case.trace.enclosing(merge.call)} - {""} or {""}
        for value in skip.branches:
            tail = list(case.back(value, frozenset({Passage.SAME, Passage.SCALE})))
            if any(operation.name in DROPOUTS or _is_noise(case, operation) for operation in tail):
                continue
            for operation in tail:
                factor = constant_factor(operation) if operation.name in ("mul", "div") else None
                owner = case.modules.get(operation.site.module)
                if factor is None or owner is None or not 0 < factor < 1:
                    continue
                named = operation.site.module in {merge.site.module, *skip.branch_modules, *around}
                by_rate = any(abs(rate - factor) < 1e-9 or abs(1 - rate - factor) < 1e-9 for rate in _rates(owner))
                if (named and by_rate) or _DROPPER.search(type(owner).__name__):
                    yield Found(
                        operation.site,
                        f"{type(owner).__name__} multiplies its branch by {factor:g} in every training step: nothing "
                        "is ever dropped, the branch is only made smaller.",
                    )


def _is_noise(case: Case, operation: Operation) -> bool:
    return operation.name in ("mul", "div") and bool(case.ways(operation)) and scaling(operation, case.trace) == "noise"
