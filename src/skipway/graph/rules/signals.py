"""Rules that need data: what the branches and the gates do on the inputs that were given."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from skipway.graph.operations import Passage, scaling
from skipway.graph.rules.case import Case
from skipway.graph.rules.observe import SATURATION
from skipway.graph.rules.registry import Found, rule
from skipway.graph.skips import Skip

# A branch below this share of its shortcut is lost in the rounding of half precision, and nearly so in the sum.
DEAD = 1e-4
# The cosine between what enters and what leaves a sum, below which the identity is no more than a trace.
LOST = 0.1
_GATES = frozenset({"sigmoid", "hardsigmoid", "softmax"})


def watched(case: Case) -> list[int]:
    """The values that these rules want measured: shortcuts, branches and sums, and the openings of gates."""
    values: dict[int, None] = {}
    for skip in case.skips:
        for value in (skip.carried, *skip.branches, *case.trace.operations[skip.merge].results, *_openings(case, skip)):
            values[value] = None
    return list(values)


@rule(
    "dead-branch",
    "warning",
    remedy="Remove the block, or look at its initial weights, its dead ReLUs and the weight decay on its scale.",
    source="Veit et al. 2016 (arXiv:1605.06431): such blocks can go without loss",
)
def dead_branch(case: Case) -> Iterator[Found]:
    """On the data given, a branch whose size is below 1/10,000 of its shortcut's: the block computes the identity.

    Silent for branches that were built to start there and are untouched (a zero weight, a zero or constant scale, as in
    ReZero and LayerScale), where stochastic depth is at work, and in evaluation mode before batch norms saw any data.
    """
    for skip, carried, branch, _ in _sums(case):
        excused = _starts_small(case, skip) or _noisy(case, skip) or _untouched(case, skip)
        if carried > 0 and branch < DEAD * carried and not excused:
            yield Found(
                skip.site,
                f"On this data the branch puts out {branch:.2g} where the shortcut carries {carried:.2g} (root mean "
                f"squares): it adds {branch / carried:.1g} of the stream, next to nothing.",
            )


@rule(
    "lost-identity",
    "advice",
    remedy="Scale the branch down or normalise it.",
    source="De & Smith 2020 (arXiv:2002.10444): a block is to stay close to the identity",
)
def lost_identity(case: Case) -> Iterator[Found]:
    """On the data given, a sum of which the identity is hardly a part: the cosine of input and output is below 0.1.

    Silent for shortcuts that are no identity, for sums of several branches, and in evaluation mode before batch norms
    saw any data.
    """
    for skip, carried, branch, summed in _sums(case):
        if skip.shortcut != "identity" or not carried or not summed or _untouched(case, skip):
            continue
        cosine = (summed**2 + carried**2 - branch**2) / (2 * summed * carried)
        if cosine < LOST:
            yield Found(
                skip.site,
                f"On this data what leaves the sum has a cosine of {cosine:.2f} with what its shortcut carries: the "
                f"branch is {branch / carried:.3g} times as large.",
            )


def _sums(case: Case) -> Iterator[tuple[Skip, float, float, float]]:
    """The added skips of one branch with the sizes of shortcut, branch and sum, where all are finite."""
    if case.responses is None:
        return
    for skip in case.added:
        (result,) = case.trace.operations[skip.merge].results
        same = case.trace.values[skip.carried].shape == skip.branch_shape
        if len(skip.branches) > 1 or skip.span.most == 0 or not same:
            continue
        found = [case.responses.of(case.trace, value) for value in (skip.carried, *skip.branches, result)]
        sizes = [response.rms for response in found if response is not None and response.finite]
        if len(sizes) == 3:
            yield skip, sizes[0], sizes[1], sizes[2]


def _starts_small(case: Case, skip: Skip) -> bool:
    """Whether a parameter at the end of the branch is as it was made: all zero, or a scale of one small constant."""
    end = frozenset({Passage.SAME, Passage.SCALE, Passage.NORM, Passage.PAD})
    for operation in case.back(skip.branches[0], end):
        for name, parameter in zip(case.parameter_names(operation), case.parameters(operation), strict=False):
            whole = parameter.detach()
            if name.endswith("bias") or whole.numel() == 0 or not bool((whole == whole.flatten()[0]).all()):
                continue
            start = abs(float(whole.flatten()[0]))
            if start == 0 or (whole.numel() > 1 and start < 0.1):
                return True
    return False


def _untouched(case: Case, skip: Skip) -> bool:
    """Whether the branch holds a batch norm that evaluates with statistics it never gathered."""
    for index in skip.branch_operations:
        operation = case.trace.operations[index]
        module = case.modules.get(operation.site.module) if operation.name == "batch_norm" else None
        seen = getattr(module, "num_batches_tracked", None)
        if not case.training and isinstance(seen, Tensor) and int(seen) == 0:
            return True
    return False


def _noisy(case: Case, skip: Skip) -> bool:
    return any(
        operation.name in ("mul", "div") and bool(case.ways(operation)) and scaling(operation, case.trace) == "noise"
        for operation in case.back(skip.branches[0], frozenset({Passage.SAME, Passage.SCALE}))
    )


@rule(
    "saturated-gate",
    "warning",
    remedy="Start the gate's bias nearer to zero (-1 to -3 for a transform gate), or normalise what the gate reads.",
    source="Srivastava et al. 2015, section 2.2 (arXiv:1505.00387); He et al. 2016, section 3.1 (arXiv:1603.05027)",
)
def saturated_gate(case: Case) -> Iterator[Found]:
    """On the data given, a gate of which 99 % of the elements lie within 0.001 of shut or open, and so learn nothing.

    Silent for gates that still move, at whatever value.
    """
    if case.responses is None:
        return
    for skip in case.skips:
        for value in _openings(case, skip):
            response = case.responses.of(case.trace, value)
            operation = case.trace.operation_of(value)
            if response is not None and operation is not None and response.finite and response.saturated >= 0.99:
                state = "open" if response.rms > 0.5 else "shut"
                yield Found(
                    skip.site,
                    f"On this data {response.saturated:.0%} of the gate at {operation.site} lies within "
                    f"{SATURATION:g} of fully {state}: at most {SATURATION:g} of the gradient reaches what computes "
                    "it.",
                )


def _openings(case: Case, skip: Skip) -> list[int]:
    """The values of the gates by which a skip's shortcut or its branches are multiplied last."""
    found: dict[int, None] = {}
    for value in (skip.carried, *skip.branches):
        for operation in case.back(value, frozenset({Passage.SAME, Passage.SCALE})):
            factors = [operand for operand, how in case.ways(operation) if how == Passage.GATE]
            for factor in factors if len(factors) > 1 else ():
                for made in case.back(factor, frozenset({Passage.SAME, Passage.SCALE, Passage.SUM})):
                    if made.name in _GATES:
                        found[made.results[0]] = None
    return list(found)


@rule(
    "not-finite",
    "error",
    remedy="Find what the branch divides by or exponentiates; scale the branches, or keep the stream in float32.",
    source="IEEE 754: what is added to infinity or NaN stays so, and a skip carries it to every later layer",
)
def not_finite(case: Case) -> Iterator[Found]:
    """On the data given, the first sum that is infinite or not a number, from which the path carries it on.

    Silent where all sums are finite.
    """
    if case.responses is None:
        return
    for skip in case.skips:
        result = case.trace.operations[skip.merge].results[0]
        response = case.responses.of(case.trace, result)
        if response is not None and not response.finite:
            yield Found(skip.site, "On this data the merge is not finite, and every layer behind it inherits that.")
            return
