"""What the boxes of a drawing say: operations in a few words, modules by their paths."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from skipway.graph.ir import Call, Operation, Trace
from skipway.graph.operations import ACTIVATIONS, CONVOLUTIONS, Passage

if TYPE_CHECKING:
    from skipway.graph.flow import Flow

_SHOWN_ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish",
    "hardtanh", "hardsigmoid", "sigmoid", "tanh", "softmax", "log_softmax", "softplus", "glu",
}  # fmt: skip
_POOLS = {
    "max_pool1d": "max pool", "max_pool2d": "max pool", "max_pool3d": "max pool", "avg_pool1d": "average pool",
    "avg_pool2d": "average pool", "avg_pool3d": "average pool", "adaptive_avg_pool1d": "global pool",
    "adaptive_avg_pool2d": "global pool", "adaptive_avg_pool3d": "global pool",
    "adaptive_max_pool2d": "global max pool", "interpolate": "upsample", "upsample": "upsample",
    "pixel_shuffle": "pixel shuffle", "pixel_unshuffle": "pixel unshuffle", "mean": "mean", "sum": "sum", "amax": "max",
    "fft_fftn": "Fourier transform", "grid_sample": "resample",
}  # fmt: skip
_TABLES = {"embedding", "embedding_bag"}
_LEARNED_SHORT = {"multi_head_attention_forward", "_native_multi_head_attention", "scaled_dot_product_attention"}


class Labels:
    """Words for the operations and modules of one trace."""

    def __init__(self, trace: Trace, flow: Flow):
        self.trace = trace
        self.flow = flow

    def lines(self, operations: Iterable[int]) -> list[str]:
        """Operations in the order in which they run, a weight layer with its norm and activation a line."""
        tokens = self._attention(self._tokens(operations))
        lines: list[list[str]] = []
        leading = bool(tokens) and not tokens[0][1] and "pool" not in tokens[0][0]
        for word, heavy in tokens:
            starts = not lines or (heavy if not leading else lines[-1][-1] in self._heavy_words)
            if starts:
                lines.append([word])
            else:
                lines[-1].append(word)
        if len(lines) > 1 and lines[0][1:] == lines[1]:
            lines[0:1] = [lines[0][:1], lines[0][1:]]
        return _counted([" · ".join(line) for line in lines])

    def _tokens(self, operations: Iterable[int]) -> list[tuple[str, bool]]:
        tokens: list[tuple[str, bool]] = []
        told: set[int] = set()
        self._heavy_words: set[str] = set()
        for index in sorted(operations):
            operation = self.trace.operations[index]
            whole = self._whole_call(operation)
            if whole is not None:
                if whole.index not in told:
                    told.add(whole.index)
                    tokens.append((_spoken(whole.kind), False))
                continue
            word, heavy = self._word(operation)
            if word and not (tokens and not heavy and tokens[-1][0] == word):
                tokens.append((word, heavy))
            if heavy:
                self._heavy_words.add(word)
        return tokens

    def _whole_call(self, operation: Operation) -> Call | None:
        """The module call that is told by its name in place of its operations: a norm or an activation written out."""
        call = self.trace.calls[operation.call]
        if re.search(r"norm|gelu|relu|silu|swish|activation|rotary", call.kind.lower()) and call.stop - call.start > 1:
            inside = self.trace.operations[call.start : call.stop]
            if len(inside) < 40 and not any(Passage.WEIGHT in self.flow.passages[one.index] for one in inside):
                return call
        return None

    def _word(self, operation: Operation) -> tuple[str, bool]:
        name = operation.name
        ways = {how for _, how in self.flow.carried(operation)}
        if name in CONVOLUTIONS:
            return self._convolution(operation), True
        if name in ("embedding", "embedding_bag"):
            return f"embedding, {self.trace.values[operation.results[0]].shape[-1]}", True
        if name in _LEARNED_SHORT:
            return "attention", True
        if name == "opaque":
            return self.trace.calls[operation.call].kind, True
        if Passage.WEIGHT in ways:
            word = name if name in ("lstm", "gru", "bilinear") else "linear"
            return f"{word}, {self.trace.values[operation.results[0]].shape[-1]}", True
        if Passage.NORM in ways:
            return name.replace("_", " "), False
        if Passage.POOL in ways:
            return _POOLS.get(name, name.replace("_", " ") if name in _POOLS else ""), False
        if Passage.PRODUCT in ways:
            return name, True
        if Passage.ACTIVATION in ways and (name in _SHOWN_ACTIVATIONS or name not in ACTIVATIONS):
            return name.replace("_", " "), False
        if Passage.GATE in ways and len([1 for _, how in self.flow.carried(operation) if how == Passage.GATE]) > 1:
            return "gate", False
        return "", False

    def _convolution(self, operation: Operation) -> str:
        weight = operation.value("weight")
        shape = self.trace.values[weight].shape if weight is not None else ()
        result = self.trace.values[operation.results[0]].shape
        source = self.trace.values[operation.operands[0]].shape
        kernel = "×".join(str(extent) for extent in shape[2:])
        groups = operation.argument("groups", 1)
        name = "transposed conv" if "transpose" in operation.name else "conv"
        channels = result[1] if len(result) == len(source) and len(shape) == len(result) else result[0]
        kind = ""
        if isinstance(groups, int) and groups > 1:
            kind = (
                " depthwise"
                if groups == (source[1] if len(source) == len(shape) else source[0])
                else f" {groups} groups"
            )
        stride = operation.argument("stride", 1)
        strides = stride if isinstance(stride, tuple) else (stride,)
        step = "" if all(one == 1 for one in strides) else " /" + "×".join(str(one) for one in dict.fromkeys(strides))
        return f"{name} {kernel}{kind}, {channels}{step}"

    def _attention(self, tokens: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
        """Products around a softmax are one word: attention."""
        products = {"matmul", "bmm", "einsum", "baddbmm", "rmatmul"}
        made: list[tuple[str, bool]] = []
        position = 0
        while position < len(tokens):
            word = tokens[position][0]
            if word in products:
                ahead = [one[0] for one in tokens[position + 1 : position + 5]]
                if "softmax" in ahead:
                    after = [i for i in range(ahead.index("softmax") + 1, len(ahead)) if ahead[i] in products]
                    if after:
                        made.append(("attention", True))
                        position += after[0] + 2
                        continue
            made.append(tokens[position])
            position += 1
        self._heavy_words.add("attention")
        return made

    def home(self, branch: Iterable[int], unit: set[int], merge: int | None = None) -> tuple[str, str]:
        """The class and the path of the module that best stands for a branch: its block, or its own outermost module.

        The block is the outermost module around the branch and its merge that holds no weight layer of another unit.
        """
        inside = sorted(branch)
        if not inside:
            return "", ""
        heavy = [index for index in inside if self.is_heavy(index)] or inside
        around = [call for call in self.trace.enclosing(self._common_call(heavy)) if call.parent is not None]
        own = [call for call in around if all(i in unit for i in range(call.start, call.stop) if self.is_heavy(i))]
        if not own:
            whole = self.trace.calls[self._common_call(inside if merge is None else [*inside, merge])]
            return (whole.kind, whole.module) if whole.parent is not None else ("", "")
        if merge is not None:
            own = [call for call in own if call.start <= merge < call.stop] or own
        named = [call for call in own if call.kind not in ("Sequential", "ModuleList")] or own
        return named[-1].kind, (own if merge is None else named)[-1].module

    def is_heavy(self, index: int) -> bool:
        """Whether an operation is a layer that does work: with weights, or a product of signals."""
        ways = self.flow.passages[index]
        return Passage.WEIGHT in ways or Passage.PRODUCT in ways or self.trace.operations[index].name in _TABLES

    def _common_call(self, operations: list[int]) -> int:
        around = [call.index for call in self.trace.enclosing(self.trace.operations[operations[0]].call)]
        for index in operations[1:]:
            other = {call.index for call in self.trace.enclosing(self.trace.operations[index].call)}
            around = [call for call in around if call in other]
        return around[0] if around else 0


def _spoken(kind: str) -> str:
    """A class's name in words: `LlamaRMSNorm` is "rms norm", `NewGELUActivation` is "gelu"."""
    known = (
        "RMSNorm",
        "LayerNorm",
        "GroupNorm",
        "BatchNorm",
        "InstanceNorm",
        "GELU",
        "SiLU",
        "ReLU",
        "Swish",
        "Rotary",
    )
    for name in known:
        if name.lower() in kind.lower():
            return {"RMSNorm": "rms norm", "Rotary": "rotary positions"}.get(
                name, re.sub(r"(?<=[a-z])Norm", " norm", name).lower()
            )
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind).lower()


def _counted(lines: list[str]) -> list[str]:
    made: list[tuple[str, int]] = []
    for line in lines:
        if made and made[-1][0] == line:
            made[-1] = (line, made[-1][1] + 1)
        else:
            made.append((line, 1))
    return [line if count == 1 else f"{line}  ×{count}" for line, count in made]


def shape_words(shape: tuple[int, ...]) -> str:
    """A shape as it is written in a drawing.

    >>> shape_words((1, 64, 56, 56))
    '1 × 64 × 56 × 56'
    """
    return " × ".join(str(extent) for extent in shape) if shape else "scalar"


def path_range(first: str, last: str) -> str:
    """Two paths that differ in one number as one: the modules from the first to the last.

    >>> path_range("encoder.layer.0.attention", "encoder.layer.11.attention")
    'encoder.layer.0…11.attention'
    """
    if first == last:
        return first
    a, b = first.split("."), last.split(".")
    if len(a) == len(b):
        different = [i for i, (one, other) in enumerate(zip(a, b, strict=True)) if one != other]
        if len(different) == 1:
            i = different[0]
            stem = a[i].rstrip("0123456789")
            if stem == b[i].rstrip("0123456789") and len(stem) < min(len(a[i]), len(b[i])):
                return ".".join([*a[:i], f"{a[i]}…{b[i][len(stem) :]}", *a[i + 1 :]])
    return f"{first} … {last}"
