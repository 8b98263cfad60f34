"""Rules about norms, which skips lean on to keep their scales."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from skipway.graph.ir import Operation
from skipway.graph.operations import CONVOLUTIONS, Passage
from skipway.graph.rules.case import NORMS, Case, layer_name, times
from skipway.graph.rules.registry import Found, rule

_LINEAR = CONVOLUTIONS | {"linear", "addmm"}


@rule(
    "shared-norm",
    "error",
    remedy="Give every site a norm of its own: one module each in __init__.",
    source="Ioffe & Szegedy 2015 (arXiv:1502.03167): the statistics are those of one layer's output",
)
def shared_norm(case: Case) -> Iterator[Found]:
    """One norm module that normalises the outputs of different layers.

    An error for batch and instance norm with running statistics, which mix the two layers'; a warning for other norms,
    which share a scale only. Silent where the layers before it are shared as well (heads over several resolutions,
    siamese and recurrent networks), or the whole block around it.
    """
    sites: dict[str, list[Operation]] = defaultdict(list)
    for operation in case.trace.operations:
        if operation.name in NORMS and (names := case.parameter_names(operation)):
            sites[names[0]].append(operation)
        elif (
            operation.name in ("batch_norm", "instance_norm")
            and (running := operation.value("running_mean")) is not None
        ):
            sites[case.trace.values[running].name].append(operation)
    for operations in sites.values():
        places = {_place(case, operation) for operation in operations}
        layers = dict.fromkeys(_layers(case, operation) for operation in operations)
        if len(places) < 2 or len(layers) < 2:
            continue
        counts = operations[0].value("running_mean") is not None
        named = [" and ".join(sorted(names)) for names in layers if names]
        before = ", then ".join(dict.fromkeys(named[:3])) or "different tensors"
        norm = layer_name(operations[0].site.module)
        shares = "one set of running statistics mixes them" if counts else "they share one scale and bias"
        yield Found(
            operations[0].site,
            f"{case.kind_of(operations[0].site.module)} {norm} runs at {times(len(operations), 'site')}, behind "
            f"{before}: {shares}.",
            "" if counts else "warning",
            also=tuple(operation.site for operation in operations[1:]),
        )


def _place(case: Case, operation: Operation) -> tuple[str, int]:
    """Where in the code a norm is called: the module that calls it, and which of that module's calls it is."""
    call = case.call_of(operation)
    if call.parent is None:
        return "", operation.index
    parent = case.trace.calls[call.parent]
    earlier = [
        one for one in case.trace.calls
        if one.parent == call.parent and one.module == call.module and one.index <= call.index
    ]  # fmt: skip
    return parent.module, len(earlier)


def _layers(case: Case, operation: Operation) -> frozenset[str]:
    """The nearest weight layers whose output a norm sees, by the names of their weights."""
    found: set[str] = set()
    waiting, seen = [operation.operands[0]], set[int]()
    while waiting:
        made = case.trace.operation_of(waiting.pop())
        if made is None or made.index in seen:
            continue
        seen.add(made.index)
        names = case.parameter_names(made) if not case.is_norm(made) else []
        if names and not {how for _, how in case.ways(made)} <= {Passage.SCALE, Passage.SUM}:
            found.add(names[0].rpartition(".")[0] or names[0])
        else:
            waiting += [value for value, _ in case.ways(made)]
    return frozenset(found)


@rule(
    "bias-before-norm",
    "advice",
    remedy="Build the layer with bias=False: the norm's own bias does its work.",
    source="Ioffe & Szegedy 2015, section 3.2 (arXiv:1502.03167)",
)
def bias_before_norm(case: Case) -> Iterator[Found]:
    """A convolution or linear layer with a bias directly before batch or instance norm, which subtracts it again.

    Silent for norms that take their mean over several channels, and where anything else reads the layer's output.
    """
    for operation in case.trace.operations:
        if operation.name not in ("batch_norm", "instance_norm"):
            continue
        layer = case.trace.operation_of(operation.operands[0])
        if layer is None or layer.name not in _LINEAR or len(case.readers[layer.results[0]]) != 1:
            continue
        bias = layer.value("input" if layer.name == "addmm" else "bias")
        if bias is not None and case.trace.values[bias].live and not case.trace.values[bias].fed:
            n = case.trace.values[bias].shape[-1]
            yield Found(
                layer.site,
                f"The {n} biases of {layer.site.module} do nothing: {operation.site.module} subtracts each channel's "
                "mean right after it.",
            )
