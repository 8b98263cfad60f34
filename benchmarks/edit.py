"""What an edit costs: edited models against the original in turn, eager and compiled; and what dropped branches save.

An edit costs Python, the same for every size of tensor, so it is measured twice: in microseconds a block on tensors so
small that nothing else is left, and as a ratio on real ones. A copy of the original runs beside the edited ones as the
control. One thread, in processor time: what other processes take is left out.

    python benchmarks/edit.py [--nets resnet50 vit] [--no-compile]
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
import types
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

import measure
import peers
import skipway as sw
from skipway.connect import Constant, Residual, ReZero, StochasticDepth

BLOCK_MS = 1.0


class Case(NamedTuple):
    """A model with its input, and blocks of the same code on tensors of next to no size."""

    model: nn.Module
    x: Tensor
    small: nn.Module
    small_x: Tensor


def encoder(layers: int, width: int, heads: int) -> nn.Module:
    """torch's own encoder without its fused kernel: edited or not, the same operations run."""
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True, norm_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    for part in model.layers:
        part.activation_relu_or_gelu = 0  # pyright: ignore[reportArgumentType]
    return model.eval()


def vit() -> Case:
    return Case(encoder(6, 384, 6), torch.randn(2, 196, 384), encoder(6, 8, 2), torch.randn(1, 4, 8))


def resnet50() -> Case:
    """torchvision's, whose blocks write the sum over the branch."""
    models = peers.torchvision()
    blocks = nn.Sequential(*[models.resnet.Bottleneck(16, 4) for _ in range(16)])
    return Case(models.resnet50().eval(), torch.randn(1, 3, 224, 224), blocks.eval(), torch.randn(1, 16, 4, 4))


CASES: dict[str, Callable[[], Case]] = {"resnet50": resnet50, "vit": vit}
SWAPS = {
    "swap, plain": Residual(),
    "swap, constant 0.5": Residual(scale=Constant(0.5)),
    "swap, rezero": Residual(scale=ReZero(initial=1.0)),
    "swap, stochastic depth": Residual(drop=StochasticDepth(0.2)),
}


def edits(model: nn.Module, x: Tensor) -> dict[str, nn.Module]:
    """The original, a copy, and the model with every skip edited in one way."""
    graph = sw.trace(model, x)
    edited = {name: sw.edit.swap(model, graph, skip).eval() for name, skip in SWAPS.items()}
    return {"original": model, "copy": copy.deepcopy(model), **edited}


def compiled(models: dict[str, nn.Module], x: Tensor) -> dict[str, Any]:
    """Some of the models compiled, each as a function of its own, so that none asks for the guards of another."""
    found: dict[str, Any] = {}
    for name in ("original", "copy", "swap, plain"):
        model = models[name]

        def run(x: Tensor, model: nn.Module = model) -> Any:
            return model(x)

        code = run.__code__.replace(co_name=f"run_{len(found)}")
        own = types.FunctionType(code, run.__globals__, code.co_name, run.__defaults__, run.__closure__)
        found[name] = torch.compile(own, fullgraph=True)
        with torch.no_grad():
            found[name](x)
    return found


def runs_of(models: dict[str, Any], x: Tensor, times: int = 1) -> dict[str, Callable[[], Any]]:
    def run(model: Any) -> Callable[[], Any]:
        def once() -> None:
            with torch.no_grad():
                for _ in range(times):
                    model(x)

        return once

    return {name: run(model) for name, model in models.items()}


def microseconds(models: dict[str, Any], x: Tensor, blocks: int, rounds: int = 400, times: int = 4) -> dict[str, float]:
    """What each model takes above the original, a block: of the least that each took in any round."""
    seconds = measure.alternate(runs_of(models, x, times), rounds, clock=time.process_time)
    least = {name: min(spent) for name, spent in seconds.items()}
    scale = 1e6 / times / blocks
    return {name: round(scale * (spent - least["original"]), 2) for name, spent in least.items() if name != "original"}


def compared(models: dict[str, Any], x: Tensor, rounds: int, blocks: int, cost: dict[str, float]) -> dict[str, Any]:
    """The ratios on real tensors, and beside them what the microseconds a block come to."""
    seconds = measure.alternate(runs_of(models, x), rounds, clock=time.process_time)
    block = 1e3 * statistics.median(seconds["original"]) / blocks
    return {
        "milliseconds_a_block": round(block, 3),
        "microseconds_a_block": cost,
        "percent_of_a_block": {name: round(spent / block / 10, 3) for name, spent in cost.items()},
        f"percent_of_a_block_of_{BLOCK_MS:g}_ms": {
            name: round(spent / BLOCK_MS / 10, 2) for name, spent in cost.items()
        },
        "ratio": {
            name: measure.ratio(spent, seconds["original"]) for name, spent in seconds.items() if name != "original"
        },
    }


def dropped(model: nn.Module, x: Tensor, rounds: int) -> dict[str, float]:
    """A training step with every branch kept, and with half of the branches left out by chance."""
    graph = sw.trace(model, x)
    models = {
        "original": model.train(),
        "rate 0.5": sw.edit.swap(model, graph, Residual(drop=StochasticDepth(0.5, "constant"))).train(),
    }

    def step(one: nn.Module) -> Callable[[], Any]:
        return lambda: one(x).square().mean().backward()

    seconds = measure.alternate({name: step(one) for name, one in models.items()}, rounds, clock=time.process_time)
    means = {name: statistics.fmean(times) for name, times in seconds.items()}
    return {"mean_ratio": round(means["rate 0.5"] / means["original"], 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nets", nargs="*", default=tuple(CASES), choices=CASES)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--no-compile", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measure.keep_memory()
    results: dict[str, Any] = {}
    for name in chosen.nets:
        case = CASES[name]()
        real, small = edits(case.model, case.x), edits(case.small, case.small_x)
        blocks, few = (len(sw.trace(model, x).skips) for model, x in ((case.model, case.x), (case.small, case.small_x)))
        cost = microseconds(small, case.small_x, few)
        results[name] = {"skips": blocks, "eager": compared(real, case.x, chosen.rounds, blocks, cost)}
        if not chosen.no_compile:
            cost = microseconds(compiled(small, case.small_x), case.small_x, few)
            fast = compared(compiled(real, case.x), case.x, chosen.rounds, blocks, cost)
            results[name]["compiled"] = fast
        results[name]["stochastic_depth"] = dropped(case.model, case.x, chosen.rounds)
        # Written after each net: compiling takes minutes.
        measure.record("edit", results)


if __name__ == "__main__":
    main()
