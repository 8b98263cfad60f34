"""Rules about the path that the sums make together: that nothing stands on it, and that there is one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import torch

from skipway.graph.operations import Passage, weight_layers
from skipway.graph.rules.case import Case, times
from skipway.graph.rules.registry import Found, rule
from skipway.graph.skips import Skip

# He et al. 2015 see the degradation between 18 and 34 plain layers; VGG-19 has 19 and trains.
DEEPEST_PLAIN = 30
# Below this many additions a half-precision stream loses no more than its own last bit.
MANY_SUMS = 8


@rule(
    "activation-on-path",
    "advice",
    remedy="Move norm and activation to the front of the branch (pre-activation), above all beyond 100 layers.",
    source="He et al. 2016, table 3 (arXiv:1603.05027): ResNet-1001 7.61 % error with it, 4.92 % without",
)
def activation_on_path(case: Case) -> Iterator[Found]:
    """An activation after the sum, on the path to the next skip: post-activation, as ResNet v1 has it.

    Silent where the path between sums is clear, and for an activation after the last sum.
    """
    blocked = _on_path(case, "activation")
    if blocked:
        first, *rest = blocked
        names = " or ".join(sorted(set(blocked.values())))
        yield Found(
            first.site,
            f"{names} stands on the path behind {len(blocked)} of {times(len(case.added), 'sum')}, before the next "
            "shortcut reads it: no path of identities alone runs through the network.",
            also=tuple(skip.site for skip in rest),
        )


@rule(
    "norm-on-path",
    "advice",
    remedy="Normalise what the branch reads (pre-norm), or keep a learning-rate warm-up for the post-norm network.",
    source="Xiong et al. 2020 (arXiv:2002.04745)",
)
def norm_on_path(case: Case) -> Iterator[Found]:
    """A norm after the sum, on the path to the next skip: post-norm, as in the first Transformer and in BERT.

    Silent for pre-norm, for norms inside branches, after the last sum, and where the shortcut is scaled up to make up
    for it (DeepNorm).
    """
    blocked = {skip: name for skip, name in _on_path(case, "norm").items() if skip.shortcut != "scaled"}
    if blocked:
        first, *rest = blocked
        names = " or ".join(sorted(set(blocked.values())))
        yield Found(
            first.site,
            f"{names} stands on the path behind {len(blocked)} of {times(len(case.added), 'sum')}: at the start each "
            "norm shrinks the gradient of all blocks before it, so that training needs a warm-up.",
            also=tuple(skip.site for skip in rest),
        )


def _on_path(case: Case, what: str) -> dict[Skip, str]:
    """The sums behind which an activation or a norm stands before the next shortcut, with that operation's name.

    Empty where it stands before projections alone: pre-activation networks project what branch and shortcut share.
    """
    blocked: dict[Skip, str] = {}
    shared = True
    for skip in case.added:
        between = case.between(skip)
        if between is None or skip.long:
            continue
        before, path = between
        for operation in path:
            activates = not case.is_norm(operation) and any(
                how == Passage.ACTIVATION for _, how in case.ways(operation)
            )
            if case.is_norm(operation) if what == "norm" else activates:
                blocked[before] = operation.name
                shared = shared and skip.shortcut == "projection"
    return {} if shared else dict(sorted(blocked.items(), key=lambda item: item[0].index))


@rule(
    "mixed-activations",
    "warning",
    remedy="Choose one place for the activation, after the sum or at the front of the branch, and keep to it.",
    source="He et al. 2016, figure 4 (arXiv:1603.05027)",
)
def mixed_activations(case: Case) -> Iterator[Found]:
    """Sums of equal shape on one stream of which some are followed by an activation and some are not.

    Silent where all are or none is, and where only the border between stages differs.
    """
    behind: dict[tuple[int, ...], dict[Skip, bool]] = defaultdict(dict)
    for skip in case.added:
        between = case.between(skip)
        if between is None or skip.long or between[0].long or skip.shape != between[0].shape:
            continue
        before, path = between
        behind[skip.shape][before] = any(
            how == Passage.ACTIVATION
            for operation in path
            for _, how in case.ways(operation)
            if not case.is_norm(operation)
        )
    for found in behind.values():
        n = sum(found.values())
        if 0 < n < len(found):
            fewer = n <= len(found) - n
            odd = [skip for skip, activated in found.items() if activated == fewer]
            yield Found(
                odd[0].site,
                f"{n} of the {len(found)} sums of shape {list(odd[0].shape)} on this stream have an activation "
                f"between them and the next shortcut, {len(found) - n} have none.",
                also=tuple(skip.site for skip in odd[1:]),
            )


@rule(
    "low-precision-stream",
    "warning",
    remedy="Keep the stream in float32 and let only the branches run in half precision (torch.autocast).",
    source="Micikevicius et al. 2017, section 3 (arXiv:1710.03740): sums want float32",
)
def low_precision_stream(case: Case) -> Iterator[Found]:
    """A stream of at least 8 sums that accumulates in float16 or bfloat16.

    Advice where the model is in evaluation mode, as trained networks mostly bear it. Silent for float32 streams, and
    for few sums.
    """
    halves = [
        skip for skip in case.added
        if case.trace.values[case.trace.operations[skip.merge].results[0]].dtype in (torch.float16, torch.bfloat16)
    ]  # fmt: skip
    if len(halves) >= MANY_SUMS:
        dtype = case.trace.values[case.trace.operations[halves[0].merge].results[0]].dtype
        bits = 8 if dtype == torch.bfloat16 else 11
        yield Found(
            halves[0].site,
            f"{len(halves)} sums accumulate in {str(dtype).removeprefix('torch.')}, whose {bits} bits lose a branch "
            f"that is {2**bits} times smaller than the stream.",
            "" if case.model.training else "advice",
        )


@rule(
    "deep-without-skips",
    "warning",
    remedy="Give the blocks a shortcut: skipway.edit.graft, or a family of skipway.models with skip='residual'.",
    source="He et al. 2015, figures 1 and 4 (arXiv:1512.03385): plain-34 trains worse than plain-18",
)
def deep_without_skips(case: Case) -> Iterator[Found]:
    """A chain of more than 30 weight layers that no skip bypasses, where deeper plain networks train worse.

    Silent where skips leave a shorter way, and for shallower networks.
    """
    trace = case.trace
    sources = defaultdict(list)
    for skip in case.skips:
        sources[skip.merge].append(skip.source)
    depth: dict[int, int] = {}
    deepest = None
    for operation in trace.operations:
        reached = [depth.get(value, 0) for value in case.graph.flow.content(operation)]
        most = max(reached, default=0) + weight_layers(operation, trace)
        if operation.index in sources:
            most = min(depth.get(source, 0) for source in sources[operation.index])
        for result in operation.results:
            depth[result] = most
        if weight_layers(operation, trace) and (deepest is None or most > deepest[0]):
            deepest = (most, operation)
    if deepest is not None and deepest[0] > DEEPEST_PLAIN:
        skips = times(len(case.skips), "skip") if case.skips else "no skip at all"
        yield Found(
            deepest[1].site,
            f"{deepest[0]} weight layers follow one another up to {deepest[1].site.module} with nothing that "
            f"bypasses them ({skips} in the network): beyond about {DEEPEST_PLAIN} a plain network's training error "
            "rises with depth.",
        )


def growth(n: int) -> str:
    """How much variance n unscaled sums can make, for a sentence.

    >>> growth(10)
    'up to 2^10 = 1,024 times'
    """
    return f"up to 2^{n} = {2**n:,} times" if n <= 30 else f"up to 2^{n}, about 10^{n * math.log10(2):.0f} times"
