"""Which convolutions run by Winograd's algorithm: those that it was seen to make faster, on the shapes at hand."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skipway.edit.folding.backend import pack_convolution
from skipway.edit.folding.code import Packer
from skipway.edit.folding.program import Node, Program
from skipway.edit.folding.winograd import KERNEL, PRODUCTS, TILE, WINDOW, Winograd, transformed_bias, transformed_weight

_TYPES = (torch.float32, torch.float64)
# Below this many products the calls themselves cost more than there is to gain.
_FEWEST = 20_000_000
# With fewer tiles than this it is reading the weights, which are four times as many, that takes the time; and these
# crowd out of the caches what other layers have there, which no measurement of one layer shows.
_FEWEST_TILES = 32
_SECONDS, _ROUNDS, _GAIN = 0.4, 15, 0.95
# More numbers than the caches hold.
_MANY = 1 << 24


def use_winograd(program: Program, fused: bool) -> dict[tuple[int, int], Packer]:
    """Let 3x3 convolutions with stride 1 run by Winograd's algorithm where that is faster.

    `fused` says that oneDNN's calls are there, which then take the products. Returns how weights are to be packed, by
    node and place.
    """
    packers: dict[tuple[int, int], Packer] = {}
    for node in list(program.nodes):
        if node.name != "convolution" or node.source is None or program.touches_pinned(node):
            continue
        fact = program.facts[node.source]
        shape, outputs = fact.shape, node.args[1].shape[0]
        padding = tuple(node.args[4])
        if not _possible(program, node) or not promising(shape, outputs, padding):
            continue
        calls = fused and fact.dtype == torch.float32
        quotient = quotient_of_times(shape, outputs, padding, fact.dtype, calls, torch.get_num_threads())
        if quotient > _GAIN:
            continue
        program.log.folded(node.site, node.name, f"runs by Winograd's algorithm, in {quotient:.2f} of the time")
        convolution = Winograd(shape, padding, fact.dtype, calls)
        if calls:
            packers[id(node), 1] = convolution.packed
        make, (x, weight, bias) = program.constants.make, node.args[:3]
        node.name, node.function = "winograd", convolution
        node.args = (x, make(transformed_weight, weight), None if bias is None else make(transformed_bias, bias))
    return packers


def _possible(program: Program, node: Node) -> bool:
    x, weight, _, stride, padding, dilation, transposed, _, groups = node.args
    fact = program.facts[x.value]
    return (
        len(fact.shape) == 4
        and fact.device.type == "cpu"
        and fact.dtype == weight.dtype == program.facts[node.result].dtype
        and fact.dtype in _TYPES
        and weight.shape[2:] == (KERNEL, KERNEL)
        and not transposed
        and groups == 1
        and all(size == 1 for size in (*stride, *dilation))
        and max(padding) < KERNEL
    )


def promising(shape: tuple[int, ...], outputs: int, padding: tuple[int, ...]) -> bool:
    """Whether there is enough to gain that it is worth a measurement: by the number of products."""
    n, c, h, w = shape
    out_h, out_w = (side + 2 * pad - KERNEL + 1 for side, pad in zip((h, w), padding, strict=True))
    down, across = math.ceil(out_h / TILE), math.ceil(out_w / TILE)
    direct = KERNEL**2 * c * outputs * out_h * out_w
    before = c * across * WINDOW * (h * w + down * WINDOW**2)
    behind = outputs * down * across * TILE**2 * PRODUCTS
    if n * direct < _FEWEST or n * down * across < _FEWEST_TILES:
        return False
    return before + PRODUCTS * c * outputs * down * across + behind < 0.45 * direct


@functools.cache
def quotient_of_times(
    shape: tuple[int, ...], outputs: int, padding: tuple[int, ...], dtype: torch.dtype, fused: bool, threads: int
) -> float:
    """The time that a convolution of this kind takes by Winograd's algorithm, over its time without.

    Measured once in a process, in turn, for a fraction of a second. As in a network, weights come from memory, while
    the input, and what is made on the way, lie where the layer before has left them.
    """
    generator = torch.Generator().manual_seed(0)
    least = [math.inf, math.inf]
    with torch.inference_mode():
        x = torch.randn(shape, generator=generator, dtype=dtype).contiguous(memory_format=torch.channels_last)
        weights = torch.randn(2, outputs, shape[1], KERNEL, KERNEL, generator=generator, dtype=dtype)
        bias = torch.randn(outputs, generator=generator, dtype=dtype)
        ways = [[way(x, weight, bias, padding, fused) for weight in weights] for way in (_direct, _transformed)]
        others = torch.zeros(_MANY)
        begun = time.perf_counter()
        for turn in range(_ROUNDS):
            for place, (before, run) in enumerate(ways):
                others.sum()
                before()
                start = time.perf_counter()
                run()
                least[place] = min(least[place], time.perf_counter() - start)
            if turn and time.perf_counter() - begun > _SECONDS:
                break
    return least[1] / least[0]


def _direct(x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, ...], fused: bool) -> Callable[[], Tensor]:
    weight = weight.contiguous(memory_format=torch.channels_last)
    if not fused:
        return lambda: torch.conv2d(x, weight, bias, padding=padding).relu_()
    how = (list(padding), [1, 1], [1, 1], 1)
    packed = pack_convolution(weight, *how, list(x.shape))
    call: Any = torch.ops.mkldnn._convolution_pointwise.default
    return lambda: call(x, packed, bias, *how, "relu", [], "")


def _transformed(
    x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, ...], fused: bool
) -> Callable[[], Tensor]:
    convolution = Winograd(tuple(x.shape), padding, x.dtype, fused)
    weight, bias = transformed_weight(weight), transformed_bias(bias)
    if fused:
        weight = convolution.packed(weight)
    return lambda: convolution(x, weight, bias).relu_()
