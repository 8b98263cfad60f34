"""What an edit costs: an edited model against the original in turn, eager and compiled; and what dropped branches save.

    python benchmarks/edit.py [--no-compile]
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

import skipway as sw
from measure import alternate, ratio, record
from skipway.connect import Constant, Residual, ReZero, StochasticDepth

ROUNDS = 9


def vit() -> tuple[nn.Module, Tensor]:
    """Six layers of torch's own encoder on 196 tokens, without its fused kernel: both run the same operations."""
    layer = nn.TransformerEncoderLayer(384, 6, 1536, batch_first=True, norm_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    for part in encoder.layers:
        part.activation_relu_or_gelu = 0  # pyright: ignore[reportArgumentType]
    return encoder.eval(), torch.randn(2, 196, 384)


def resnet50() -> tuple[nn.Module, Tensor]:
    return sw.models.create("resnet50", num_classes=1000).eval(), torch.randn(1, 3, 224, 224)


def edits(model: nn.Module, x: Tensor) -> dict[str, nn.Module]:
    graph = sw.trace(model, x)
    return {
        "swap, plain": sw.edit.swap(model, graph, "residual"),
        "swap, constant 1": sw.edit.swap(model, graph, Residual(scale=Constant(1.0))),
        "swap, rezero from 1": sw.edit.swap(model, graph, Residual(scale=ReZero(initial=1.0))),
    }


def runs_of(models: dict[str, nn.Module], x: Tensor) -> dict[str, Callable[[], Any]]:
    def run(model: nn.Module) -> Callable[[], Any]:
        def once() -> Any:
            with torch.no_grad():
                return model(x)

        return once

    return {name: run(model) for name, model in models.items()}


def compared(models: dict[str, nn.Module], x: Tensor) -> dict[str, Any]:
    seconds = alternate(runs_of(models, x), ROUNDS)
    first = sorted(seconds["original"])[ROUNDS // 2]
    return {"original_ms": round(first * 1e3, 2)} | {
        name: ratio(seconds[name], seconds["original"]) for name in models if name != "original"
    }


def dropped(build: Callable[[], tuple[nn.Module, Tensor]]) -> dict[str, Any]:
    """A training step of a foreign model with every branch kept, and with half of the branches left out by chance."""
    model, x = build()
    graph = sw.trace(model, x)
    models = {
        "original": model.train(),
        "rate 0.5": sw.edit.swap(model, graph, Residual(drop=StochasticDepth(0.5, "constant"))).train(),
    }

    def step(one: nn.Module) -> Callable[[], Any]:
        return lambda: one(x).square().mean().backward()

    seconds = alternate({name: step(one) for name, one in models.items()}, 2 * ROUNDS)
    means = {name: sum(times) / len(times) for name, times in seconds.items()}
    return {"mean_ratio": round(means["rate 0.5"] / means["original"], 4)}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: dict[str, Any] = {}
    for build in (resnet50, vit):
        model, x = build()
        models = {"original": model, "copy": copy.deepcopy(model), **edits(model, x)}
        results[build.__name__] = {"eager": compared(models, x), "stochastic_depth": dropped(build)}
        if "--no-compile" not in sys.argv:
            names = ("original", "copy", "swap, plain")
            compiled: dict[str, Any] = {}
            for name in names:
                compiled[name] = torch.compile(models[name], fullgraph=True)
                with torch.no_grad():
                    compiled[name](x)
            results[build.__name__]["compiled"] = compared(compiled, x)
    record("edit", results)


if __name__ == "__main__":
    main()
