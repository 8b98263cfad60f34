"""Rules about the way past the branch: that it is open, cheap, and reads what its author thinks."""

from __future__ import annotations

import math
from collections.abc import Iterator

from skipway.graph.ir import Call, Operation
from skipway.graph.operations import CONVOLUTIONS, DROPOUTS, RESAMPLERS, Passage, constant_factor
from skipway.graph.rules.case import Case, layer_name, times
from skipway.graph.rules.registry import Found, rule
from skipway.graph.skips import Skip


@rule(
    "cut-gradient",
    "error",
    remedy="Use the tensor itself in the shortcut: no detach(), .data or no_grad between the source and the merge.",
    source="He et al. 2016, eq. 5 (arXiv:1603.05027): the gradient's direct way is the shortcut",
)
def cut_gradient(case: Case) -> Iterator[Found]:
    """A shortcut that passes `detach`, `.data` or `no_grad`, so that it carries the signal but no gradient.

    Silent where the branch's gradient is cut too (a frozen part of the network), and for a detached branch, as in
    straight-through estimators.
    """
    operations = case.trace.operations
    for skip in case.skips:
        cuts = [operations[index] for index in skip.shortcut_operations if not operations[index].gradient]
        branch_learns = any(
            operations[index].gradient and case.parameter_names(operations[index]) for index in skip.branch_operations
        )
        if cuts and branch_learns and operations[skip.merge].gradient:
            how = {"data": ".data", "detach": "detach()"}.get(cuts[0].name, "no_grad")
            yield Found(
                skip.site,
                f"The shortcut around {_branch(skip)} carries the signal, but {how} at {cuts[0].site} cuts its "
                "gradient: in the backward pass this skip does not exist.",
            )


@rule(
    "overwritten-shortcut",
    "error",
    remedy="Make the operation that changes the shortcut's tensor out of place (inplace=False, x = x + y for x += y).",
    source="torch.nn.ReLU, `inplace`; the same slip: iduta/iresnet PR 2, rosinality/vq-vae-2-pytorch issue 60",
)
def overwritten_shortcut(case: Case) -> Iterator[Found]:
    """An in-place operation of the branch that changes the tensor which the shortcut reads afterwards.

    An error where a module inside the branch changes the block's input and hands on another tensor, so that the block
    cannot know. A warning where the block's own first activation is in place: the shortcut then carries relu(x), which
    may be meant. Silent for `x += f(x)`, and for an in-place activation after the sum, which ends the block before.
    """
    readers = case.readers
    for skip in case.added:
        merge = case.trace.operations[skip.merge]
        block = case.call_of(merge)
        changed = _changed_in_place(case, skip, merge)
        if changed is None or not _made_before(case, changed.operands[0], block):
            continue
        hidden = _hidden(case, changed, merge, block)
        if hidden is not None and any(index >= hidden.stop for index in readers[changed.results[0]]):
            yield Found(
                skip.site,
                f"{hidden.module} begins with an in-place {changed.name} on the tensor that it was given, and the "
                f"shortcut reads that tensor afterwards: it adds {changed.name}(x), not x.",
            )
        elif Passage.ACTIVATION in {how for _, how in case.ways(changed)} and block.parent is not None:
            yield Found(
                skip.site,
                f"The in-place {changed.name} at {changed.site} changes the input of {layer_name(block.module)} "
                f"before its shortcut reads it: the sum adds {changed.name}(x), not x.",
                "warning",
            )


def _changed_in_place(case: Case, skip: Skip, merge: Operation) -> Operation | None:
    """The in-place operation that made what the shortcut carries, if one did inside the block."""
    made = case.trace.operation_of(skip.source)
    if made is None or not made.inplace or made.index in case.merges or not case.call_of(merge).start <= made.index:
        return None
    if made.name == "alias":
        # The tensor changed with a view of it: what changed it is the operation before, on the view.
        made = case.trace.operations[made.index - 1]
    ways = {how for _, how in case.ways(made)}
    return made if ways <= {Passage.ACTIVATION, Passage.SCALE, Passage.SUM, Passage.NORM} else None


def _made_before(case: Case, value: int, block: Call) -> bool:
    for made in case.back(value, frozenset({Passage.SAME})):
        if made.index >= block.start and {how for _, how in case.ways(made)} != {Passage.SAME}:
            return False
    return True


def _hidden(case: Case, changed: Operation, merge: Operation, block: Call) -> Call | None:
    """The outermost call below the block's that changed the tensor and then made something else of it."""
    calls = list(case.trace.enclosing(changed.call))
    inside = [
        call for call in calls if call.start >= block.start and call.stop <= merge.index and call.index != block.index
    ]
    return next((call for call in reversed(inside) if call.stop - 1 > changed.index), None)


@rule(
    "broadcast-sum",
    "error",
    remedy="Give shortcut and branch the same shape; where spreading is meant, write expand_as() so that it shows.",
    source="He et al. 2015, eq. 1 (arXiv:1512.03385): x and F(x) have equal dimensions",
)
def broadcast_sum(case: Case) -> Iterator[Found]:
    """A sum that silently spreads a smaller shortcut or branch over the larger: [n,c,1,1] + [n,c,h,w], [n,c] + [n,1].

    A warning where a branch of one number a channel is spread over positions, which global-context blocks mean. Silent
    for branches without parameters, and where an operand was expanded explicitly.
    """
    values = case.trace.values
    for skip in case.added:
        if not case.has_weights(skip):
            continue
        shortcut, shape = values[skip.carried].shape, skip.shape
        for index in skip.branches:
            branch = values[index].shape
            if shortcut == branch or math.prod(shape) == math.prod(shortcut) == math.prod(branch):
                continue
            spread = len(branch) == len(shape) and shortcut == shape and len(shape) > 2
            axes = [axis for axis in range(len(branch)) if branch[axis] != shape[axis]] if spread else []
            channels = 1 if len(shape) > 3 else len(shape) - 1
            meant = spread and all(axis not in (0, channels) for axis in axes)
            yield Found(
                skip.site,
                f"The shortcut carries {list(shortcut)} and the branch {_branch(skip)} puts out {list(branch)}: the "
                f"sum broadcasts them to {list(shape)} without a word.",
                "warning" if meant else "",
            )


@rule(
    "needless-projection",
    "warning",
    remedy="Use the identity (nn.Identity()) where in and out shapes agree, and project only where they differ.",
    source="He et al. 2015, table 3, and He et al. 2016, table 1 (arXiv:1512.03385, arXiv:1603.05027)",
)
def needless_projection(case: Case) -> Iterator[Found]:
    """A projection shortcut whose input and output have the same shape, so that the identity would do.

    Silent where the channels or the resolution change, and where the projection is what a branch reads as well.
    """
    for skip in case.added:
        projections = [
            operation for index in skip.shortcut_operations if case.is_weight(operation := case.trace.operations[index])
        ]
        carried = case.trace.values[skip.carried].shape
        if len(projections) != 1 or skip.source_shape != carried or skip.long:
            continue
        if set(skip.shortcut_operations) & set(skip.branch_operations):
            continue
        weight = case.parameter_names(projections[0])
        size = sum(math.prod(case.trace.parameters.get(name, ())) for name in weight)
        yield Found(
            skip.site,
            f"The shortcut projects {list(skip.source_shape)} to the same shape in {projections[0].site.module}: "
            f"{size:,} parameters stand on a path that the identity would keep clear.",
        )


@rule(
    "lossy-projection",
    "advice",
    remedy="Average over the stride first, then project with stride 1 (the shortcut of ResNet-D).",
    source="He T. et al. 2018, section 4.2 (arXiv:1812.01187)",
)
def lossy_projection(case: Case) -> Iterator[Found]:
    """A projection shortcut whose kernel is smaller than its stride, as a 1x1 convolution of stride 2 that drops 3/4 of
    the pixels.

    Silent where a pool stands before it, and for strides that the kernel covers.
    """
    for skip in case.added:
        for index in skip.shortcut_operations:
            operation = case.trace.operations[index]
            if operation.name in RESAMPLERS:
                break
            if operation.name not in CONVOLUTIONS or "transpose" in operation.name:
                continue
            weight, stride = operation.value("weight"), operation.argument("stride", 1)
            if weight is None:
                continue
            kernel = case.trace.values[weight].shape[2:]
            strides = stride if isinstance(stride, tuple) else (stride,) * len(kernel)
            seen = math.prod(min(size / step, 1.0) for size, step in zip(kernel, strides, strict=False))
            if seen < 1:
                yield Found(
                    skip.site,
                    f"The projection {operation.site.module} has kernel {_sizes(kernel)} and stride "
                    f"{_sizes(strides)}: it never reads {1 - seen:.0%} of the pixels that it carries past the branch.",
                )


@rule(
    "dropout-on-shortcut",
    "warning",
    remedy="Put the dropout at the end of the branch, before the sum, where it leaves the shortcut whole.",
    source="He et al. 2016, table 1 (arXiv:1603.05027): with dropout 0.5 on the shortcut ResNet-110 fails to converge",
)
def dropout_on_shortcut(case: Case) -> Iterator[Found]:
    """Dropout with p > 0 on the shortcut, or on the stream between one sum and the next.

    Silent for dropout inside branches, before the first skip and after the last.
    """
    for skip in case.skips:
        own = [case.trace.operations[index] for index in skip.shortcut_operations]
        between = case.between(skip) if skip in case.added else None
        for operation in (*own, *(between[1] if between else ())):
            p = operation.argument("p", 0.5) if operation.name in DROPOUTS else 0
            if isinstance(p, (int, float)) and p > 0:
                yield Found(
                    skip.site,
                    f"Dropout with p={p:g} at {operation.site} lies on the shortcut: in training it carries on only "
                    "part of the signal and of the gradient.",
                )
                break


@rule(
    "scaled-shortcut",
    "advice",
    remedy="Leave the shortcut at 1 and scale the branch, or weigh both so that the squares of the weights sum to 1.",
    source="He et al. 2016, eq. 6 and table 1 (arXiv:1603.05027): a factor l on L shortcuts makes l^L of the gradient",
)
def scaled_shortcut(case: Case) -> Iterator[Found]:
    """A shortcut that is multiplied by a number other than 1, which L blocks raise to the power L.

    A warning where the product over the network's skips is below 0.1 or above 10. Silent where a norm follows the sum
    (DeepNorm), where the weights of shortcut and branch keep the variance (their squares sum to 1), and for learned
    scales and gates.
    """
    factors: dict[Skip, float] = {}
    for skip in case.added:
        factor = _factor(case, skip.carried, skip.source)
        branch = _factor(case, skip.branches[0], skip.source)
        between = case.between(skip)
        if any(case.is_norm(reader) for reader in case.next(case.trace.operations[skip.merge].results[0])):
            continue
        along = math.prod(_number(operation) for operation in (between[1] if between else ()))
        factor *= along
        if factor <= 0 or math.isclose(factor, 1.0, rel_tol=1e-3):
            continue
        if not math.isclose(factor**2 + (branch * along) ** 2, 1.0, rel_tol=0.05):
            factors[skip] = factor
    total = math.prod(factors.values())
    for skip, factor in factors.items():
        yield Found(
            skip.site,
            f"The shortcut is multiplied by {factor:g}; over {times(len(factors), 'such skip')} that makes "
            f"{total:.2g} of the signal and of the gradient that the path carries.",
            "warning" if not 0.1 <= total <= 10 else "",
        )


def _factor(case: Case, value: int, source: int) -> float:
    """The product of the numbers that a value was multiplied by since the source, views apart."""
    factor = 1.0
    for operation in case.back(value, frozenset({Passage.SAME, Passage.SCALE})):
        if source in operation.results or [how for _, how in case.ways(operation)] != [Passage.SCALE]:
            if source in operation.results:
                break
            continue
        factor *= _number(operation)
        if source in operation.operands:
            break
    return factor


def _number(operation: Operation) -> float:
    factor = constant_factor(operation) if operation.name in ("mul", "div") else None
    return 1.0 if factor is None else factor


def _branch(skip: Skip) -> str:
    names = skip.branch_modules
    if not names:
        return f"the branch of {times(skip.span.most, 'weight layer')}"
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _sizes(sizes: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in sizes)
