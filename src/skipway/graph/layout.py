"""Along which axis an operation joins tensors: over the features that layers mix, or over positions and the batch."""

from __future__ import annotations

from skipway.graph.ir import Operation, Trace
from skipway.graph.operations import CONVOLUTIONS, Passage

_SAME_LAYOUT = (Passage.ACTIVATION, Passage.SCALE, Passage.GATE, Passage.SUM, Passage.NORM, Passage.POOL)


def joins_positions(
    operation: Operation, trace: Trace, passages: list[tuple[Passage, ...]], readers: list[list[int]]
) -> bool:
    """Whether a concatenation or a write into a tensor puts positions (tokens, examples) side by side, not features."""
    if operation.name == "setitem":
        index = operation.argument("index")
        parts = index if isinstance(index, tuple) else (index,)
        return not all(isinstance(part, (slice, type(Ellipsis))) for part in parts)
    if operation.name != "cat":
        return False
    n = len(trace.values[operation.results[0]].shape)
    dim = operation.argument("dim", 0)
    if not isinstance(dim, int):
        return False
    axis = _feature_axis(operation.results[0], trace, passages, readers)
    return dim % n == 0 and n > 2 if axis is None else dim % n != axis


def _feature_axis(
    value: int, trace: Trace, passages: list[tuple[Passage, ...]], readers: list[list[int]]
) -> int | None:
    """Along which axis the next layer that reads a value mixes it, if no change of layout lies before it."""
    waiting, seen = [value], set[int]()
    n = len(trace.values[value].shape)
    while waiting:
        current = waiting.pop(0)
        if current in seen:
            continue
        seen.add(current)
        for index in readers[current]:
            reader = trace.operations[index]
            how = passages[index][reader.operands.index(current)]
            if reader.name in CONVOLUTIONS and how == Passage.WEIGHT:
                digits = [letter for letter in reader.name if letter.isdigit()]
                return n - 1 - int(digits[0]) if digits else 1
            if reader.name in ("batch_norm", "group_norm", "instance_norm"):
                return 1
            if reader.name in ("linear", "layer_norm", "rms_norm") or how == Passage.WEIGHT:
                return n - 1
            result = reader.results[0]
            shape = trace.values[result].shape
            if (how in _SAME_LAYOUT and len(shape) == n) or (
                how == Passage.SAME and shape == trace.values[current].shape
            ):
                waiting.append(result)
    return None
