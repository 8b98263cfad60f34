"""Tracing against the forward pass that it takes, and against torchlens, torchview and torch.export, in turn."""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

import measure
import peers
from skipway.graph import trace
from skipway.graph.symmetry import symmetry

LIMIT_FACTOR, LIMIT_SECONDS, LIMIT_MEMORY = 2.0, 0.020, 1.2


def cases() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """The three networks of the promise, torchvision's, on one image of 224 x 224."""
    models = peers.torchvision()
    image = torch.randn(1, 3, 224, 224)
    return {
        "resnet50": (models.resnet50(), image),
        "densenet121": (models.densenet121(), image),
        "vit_b_16": (models.vit_b_16(), image),
    }


def forward(model: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    def run() -> None:
        with torch.no_grad():
            model(x)

    return run


def traced(model: nn.Module, x: torch.Tensor) -> Any:
    return trace(model, x).skips


def rivals(model: nn.Module, x: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """The other ways to see a model's graph that leave torch as it is, without drawing it."""
    torchview = peers.peer("torchview")

    def export() -> None:
        torch.export.export(model, (x,))

    def with_torchview() -> None:
        torchview.draw_graph(model, input_data=x, save_graph=False)

    return {"torchview": with_torchview, "torch_export": export}


def with_torchlens(model: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    torchlens = peers.peer("torchlens")

    def run() -> None:
        with torch.no_grad():
            torchlens.trace(model, x)

    return run


def once(run: Callable[[], Any], rounds: int) -> float:
    """Median seconds of a run that caches what it finds, made anew each time."""
    return statistics.median(measure.alternate({"run": run}, rounds, warmup=1)["run"])


def compare(model: nn.Module, x: torch.Tensor, rounds: int, rival_rounds: int) -> dict[str, Any]:
    model.eval()
    runs = {"forward": forward(model, x), "trace": lambda: trace(model, x)}
    seconds = measure.alternate(runs, rounds)
    limits = [LIMIT_FACTOR * plain + LIMIT_SECONDS for plain in seconds["forward"]]
    memory = {name: measure.peak_bytes(run) for name, run in runs.items()}
    graph = trace(model, x)

    def fresh() -> Any:
        return type(graph)(graph.trace)

    skips = once(lambda: fresh().skips, 5)
    milliseconds = {name: round(1000 * statistics.median(times), 1) for name, times in seconds.items()}
    result: dict[str, Any] = {
        "operations": len(graph.trace.operations),
        "skips": len(graph.skips),
        "paths": str(graph.paths().total),
        "symmetry_log10_order": round(symmetry(graph).log10_order, 1),
        "milliseconds": milliseconds,
        "trace_against_forward": measure.ratio(seconds["trace"], seconds["forward"]),
        "trace_against_limit": measure.ratio(seconds["trace"], limits),
        "peak_mib": {name: round(held / 2**20, 2) for name, held in memory.items()},
        "memory_against_forward": round(memory["trace"] / memory["forward"], 4),
        "milliseconds_after_tracing": {
            "skips": round(1000 * skips, 1),
            "paths_with_skips": round(1000 * once(lambda: fresh().paths(), 5), 1),
            "symmetry_with_skips": round(1000 * once(lambda: symmetry(fresh()).log10_order, 5), 1),
        },
    }
    result["rivals"] = compared_with_rivals(model, x, rival_rounds)
    return result


def compared_with_rivals(model: nn.Module, x: torch.Tensor, rounds: int) -> dict[str, Any]:
    runs = {"ours": partial(traced, model, x), **rivals(model, x)}
    seconds = measure.alternate(runs, rounds, warmup=1)
    return {name: told(times, seconds["ours"], measure.peak_bytes(runs[name])) for name, times in seconds.items()}


def told(seconds: list[float], ours: list[float], held: int) -> dict[str, float]:
    return {
        "milliseconds": round(1000 * statistics.median(seconds), 1),
        "times_ours": round(statistics.median(seconds) / statistics.median(ours), 2),
        "peak_mib": round(held / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--rival-rounds", type=int, default=3)
    parser.add_argument("--only", help="one of the networks; nothing is written then")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    networks = cases()
    chosen = {options.only: networks[options.only]} if options.only else networks
    results: dict[str, Any] = {
        "versions": {name: version(name) for name in ("torchlens", "torchview")},
        **{name: compare(model, x, options.rounds, options.rival_rounds) for name, (model, x) in chosen.items()},
    }
    # torchlens wraps torch's functions for good, which slows all that runs after it: it comes last, after ours alone.
    ours = {name: measure.alternate({"ours": partial(traced, model, x)}, options.rival_rounds, warmup=1)["ours"]
            for name, (model, x) in chosen.items()}  # fmt: skip
    for name, (model, x) in chosen.items():
        run = with_torchlens(model, x)
        seconds = measure.alternate({"torchlens": run}, options.rival_rounds, warmup=1)["torchlens"]
        results[name]["rivals"]["torchlens"] = told(seconds, ours[name], measure.peak_bytes(run))
    if options.only:
        print(results)
        return
    measure.record("trace", results)
    broken = [
        name for name in networks
        if results[name]["trace_against_limit"]["median"] > 1 or results[name]["memory_against_forward"] > LIMIT_MEMORY
    ]  # fmt: skip
    if broken:
        sys.exit(
            f"beyond the limit of {LIMIT_FACTOR:g}x + {1000 * LIMIT_SECONDS:g} ms or {LIMIT_MEMORY:g}x memory: {broken}"
        )


if __name__ == "__main__":
    main()
