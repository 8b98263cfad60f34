"""Which earlier values each value of a trace can be reached from, and past how much work.

The values that reach a value are kept as sets in the bits of Python integers, one bit a value, so that the sets of a
whole network follow in one pass over its operations. For the content that arrives at a value they answer:

* from where does it come at all (`all`), and from where not merely as the gate of something else (`content`)?
* from where does it come past no work, that is past views, arithmetic and activations alone (`calm`; `strict` refuses
  to be multiplied by what did work)?
* past no more than norms, learned scales and pools besides (`light`), past one weight layer besides (`once`)?
* of which earlier value is it the only carrier, unmixed with any other signal: what a shortcut may be? `bare` is past
  arithmetic, `gated` past gates that did work, `dressed` past norms, learned scales and pools, `projected` past one
  linear weight layer (`linear` past none), `lateral` past one weight layer and activations (`plain` past none).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from skipway.graph.ir import Operation, Trace
from skipway.graph.layout import joins_positions
from skipway.graph.operations import CONVOLUTIONS, SATURATING, Passage, has_parameters, passages, scaling

_CALM = {
    Passage.SAME, Passage.PART, Passage.PICK, Passage.PAD, Passage.SCALE, Passage.GATE, Passage.SUM, Passage.CONCAT,
    Passage.ACTIVATION,
}  # fmt: skip
_LIGHT = (Passage.NORM, Passage.POOL)
_WORK = (Passage.ACTIVATION, Passage.NORM, Passage.WEIGHT, Passage.PRODUCT)
# An operation that joins several signals ends every shortcut; with one signal (a bias, padding) it does not.
_JOINS = {Passage.SUM, Passage.CONCAT}


@dataclass(slots=True)
class Reach:
    """The earlier values that reach one value, as bits: see the module's docstring.

    `learned` and `bent` tell an activation with a learned parameter (x + sin(ax)^2 / a) from a branch: past arithmetic
    with a learned scale, and past a function of that.
    """

    all: int = 0
    content: int = 0
    weighted: int = 0
    calm: int = 0
    strict: int = 0
    learned: int = 0
    bent: int = 0
    light: int = 0
    once: int = 0
    bare: int = 0
    gated: int = 0
    dressed: int = 0
    linear: int = 0
    projected: int = 0
    plain: int = 0
    lateral: int = 0

    @classmethod
    def start(cls, bit: int) -> Reach:
        """What a value that nothing reaches, or that every search stops at, is reached from: itself."""
        made = cls()
        for name in ("all", "content", "calm", "strict", "light", "bare", "gated", "dressed", "linear", "plain"):
            setattr(made, name, bit)
        return made


_FIELDS = tuple(Reach.__slots__)


class Flow:
    """The reach of every value of a trace, filled in the order of its operations by `advance`.

    `passages` says for each operation how it passes on each operand, `readers` for each value which operations read it;
    `arranging` are the concatenations that put positions side by side, which keep what they carry apart; `cancelled`
    are the operands (operation, value) that a blend s + t * (v - s) takes back.
    """

    def __init__(self, trace: Trace):
        self.trace = trace
        self.passages = [passages(operation, trace) for operation in trace.operations]
        self.readers = trace.readers()
        self.arranging = {
            operation.index for operation in trace.operations
            if Passage.CONCAT in self.passages[operation.index]
            and joins_positions(operation, trace, self.passages, self.readers)
        }  # fmt: skip
        self.reach = [
            Reach.start(1 << value.index) if value.live and value.producer is None else Reach()
            for value in trace.values
        ]
        self.cancelled: set[tuple[int, int]] = set()
        self._saturated: dict[int, bool] = {}

    def carried(self, operation: Operation) -> list[tuple[int, Passage]]:
        """The operands that an operation passes on as content, each with how."""
        pairs = zip(operation.operands, self.passages[operation.index], strict=True)
        return [(value, how) for value, how in pairs if how != Passage.ASIDE]

    def advance(self, operation: Operation, shortcuts: frozenset[int] = frozenset()) -> None:
        """Fill in the reach of what an operation made.

        `shortcuts` are the values that the operation merges as shortcuts of skips. What they carry has passed a whole
        block, branch and all, so from here on it no longer counts as having come past no work.
        """
        edges = self.carried(operation)
        parameters = has_parameters(operation, self.trace)
        learned = parameters and scaling(operation, self.trace) == "learned"
        several = len(edges) > 1 and operation.index not in self.arranging
        crossed = [self._cross(how, value, parameters, learned, several) for value, how in edges]
        if len(edges) > 1 and all(how == Passage.GATE for _, how in edges):
            self._temper(operation, crossed, [value for value, _ in edges])
        for result in operation.results:
            made = Reach.start(1 << result)
            for part, (value, _) in zip(crossed, edges, strict=True):
                stop = any(self.reach[value].calm >> shortcut & 1 for shortcut in shortcuts)
                for name in ("all", "content", "weighted") if stop else _FIELDS:
                    setattr(made, name, getattr(made, name) | getattr(part, name))
            self.reach[result] = made

    def through(self, operation: Operation, position: int) -> Reach:
        """What reaches an operation by way of one of its operands, the operation's own passage included."""
        how = self.passages[operation.index][position]
        value = operation.operands[position]
        if how in _JOINS or how == Passage.SAME:
            return self.reach[value]
        return self._cross(how, value, has_parameters(operation, self.trace), False, False)

    def _cross(self, how: Passage, value: int, parameters: bool, learned: bool, several: bool) -> Reach:
        at = self.reach[value]
        learned = learned and how == Passage.SCALE
        made = Reach(all=at.all, content=at.content, weighted=at.all if parameters and how in _WORK else at.weighted)
        if how in _CALM:
            made.bent = at.bent
            if how == Passage.ACTIVATION:
                made.bent |= at.learned
            made.learned = at.learned
            if learned:
                made.learned |= at.calm
            else:
                made.calm, made.strict = at.calm, at.strict
        if how in _CALM or how in _LIGHT:
            made.light, made.once = at.light, at.once
        elif how == Passage.WEIGHT:
            made.once = at.light
        if how in _JOINS and several:
            return made
        self._carry(made, at, how, learned)
        return made

    @staticmethod
    def _carry(made: Reach, at: Reach, how: Passage, learned: bool) -> None:
        """The part of `_cross` that is about shortcuts."""
        if how in (Passage.SAME, Passage.PART, Passage.PAD, Passage.SCALE, Passage.ACTIVATION, Passage.GATE, *_JOINS):
            made.dressed = at.dressed
            if not learned:
                made.bare, made.gated = at.bare, at.gated
        elif how in _LIGHT:
            made.dressed = at.dressed
        if how in (Passage.SAME, Passage.PAD, Passage.SCALE, *_LIGHT, *_JOINS):
            made.linear, made.projected, made.plain, made.lateral = at.linear, at.projected, at.plain, at.lateral
        elif how == Passage.PART:
            made.projected, made.lateral = at.projected, at.lateral
        elif how == Passage.ACTIVATION:
            made.plain, made.lateral = at.plain, at.lateral
        elif how == Passage.WEIGHT:
            made.projected, made.lateral = at.linear, at.plain

    def _temper(self, operation: Operation, crossed: list[Reach], values: list[int]) -> None:
        """Where signals are multiplied, drop from one what the other adds work to: x * f(x) is no plain x.

        A shortcut goes on through what is weighted only, not through the weights.
        """
        strict = [part.strict for part in crossed]
        content = self.content(operation)
        for part, value in zip(crossed, values, strict=True):
            if value not in content:
                part.bare = part.gated = part.dressed = 0
                # What an attention's weights depend on, its queries, does shape the content; a gate only lets it pass.
                if not self.weighs(value):
                    part.content = 0
        for position, part in enumerate(crossed):
            for other, value in enumerate(values):
                if other != position:
                    unworked = strict[other] | ~self.reach[value].all
                    part.strict &= unworked
                    part.bare &= unworked

    def weighs(self, value: int) -> bool:
        """Whether a value is the weights of an attention: the output of a softmax, perhaps reshaped or cut."""
        made = self.trace.operation_of(value)
        while made is not None and made.name != "softmax":
            edges = self.carried(made)
            plain = len(edges) == 1 and edges[0][1] in (Passage.SAME, Passage.PART, Passage.PICK)
            made = self.trace.operation_of(edges[0][0]) if plain else None
        return made is not None

    def saturated(self, value: int) -> bool:
        """Whether a value is a weighting: the output of a sigmoid or a softmax, perhaps reshaped, cut or scaled."""
        if value not in self._saturated:
            made = self.trace.operation_of(value)
            answer = False
            if made is not None:
                edges = self.carried(made)
                if made.name in SATURATING:
                    answer = True
                elif len(edges) == 1 and edges[0][1] in (
                    Passage.SAME, Passage.PART, Passage.PICK, Passage.SCALE, Passage.PAD, Passage.SUM, Passage.POOL
                ):  # fmt: skip
                    answer = self.saturated(edges[0][0])
            self._saturated[value] = answer
        return self._saturated[value]

    def content(self, operation: Operation) -> list[int]:
        """The operands whose content an operation passes on, save those that only weight it (gates, queries)."""
        edges = self.carried(operation)
        if len(edges) < 2 or not any(how in (Passage.GATE, Passage.PRODUCT) for _, how in edges):
            return [value for value, _ in edges]
        if operation.name in ("scaled_dot_product_attention", "multi_head_attention_forward"):
            value = operation.value("value")
            return [] if value is None else [value]
        if operation.name in CONVOLUTIONS or operation.name in ("linear", "grid_sample"):
            return [operation.operands[0]]
        sizes = {value: prod(self.trace.values[value].shape) for value, _ in edges}
        whole = prod(self.trace.values[operation.results[0]].shape)

        def spread(value: int) -> bool:
            return sizes[value] < whole and whole in sizes.values()

        weighting = [value for value, how in edges if self.saturated(value) or (how == Passage.GATE and spread(value))]
        kept = [value for value, _ in edges if value not in weighting]
        return kept or [value for value, _ in edges]


def reaching_outputs(flow: Flow, content_only: bool) -> int:
    """The values that reach one of the outputs, as bits; with `content_only` those that do so not merely as weights."""
    trace = flow.trace
    found = 0
    # Where a model returns its loss beside what it computed, what only the loss compares is no part of the network.
    for value in [value for value in trace.outputs if trace.values[value].shape] or trace.outputs:
        found |= 1 << value
    for operation in reversed(trace.operations):
        if any(found >> result & 1 for result in operation.results):
            values = flow.content(operation) if content_only else operation.operands
            for value in values:
                found |= 1 << value
    return found
