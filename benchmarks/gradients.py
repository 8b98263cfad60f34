"""The gradient probe against the training step's forward and backward pass that it takes, in turn.

Tracing costs the same for any number of samples, so the limit holds for a model that was traced before.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch
import torch.nn.functional as F

import measure
import skipway as sw
from skipway.probe.gradients import gradients
from skipway.probe.monitor import GradientMonitor

LIMIT = 1.1


def compare(depth: int, samples: int, rounds: int) -> dict[str, object]:
    torch.manual_seed(0)
    net = sw.models.create(f"resnet{depth}", num_classes=10).train()
    x, y = torch.randn(samples, 3, 32, 32), torch.randint(10, (samples,))
    graph = sw.trace(net, x[:2])
    monitor = GradientMonitor(net, graph, updates=False)

    def step() -> None:
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()

    def watched() -> None:
        net.zero_grad()
        with monitor.forward():
            output = net(x)
        F.cross_entropy(output, y).backward()
        monitor.after_backward()

    def probe() -> None:
        gradients(net, (x, y), "cross_entropy")

    def traced_before() -> None:
        gradients(net, (x, y), "cross_entropy", graph=graph)

    runs = {"step": step, "monitor": watched, "probe_of_a_traced_model": traced_before, "probe": probe}
    seconds = measure.alternate(runs, rounds)
    return {
        "model": f"resnet{depth}", "samples": samples, "skips": len(graph.skips),
        "milliseconds": {name: round(1000 * statistics.median(times), 1) for name, times in seconds.items()},
        **{f"{name}_against_step": measure.ratio(seconds[name], seconds["step"]) for name in runs if name != "step"},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--samples", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {f"resnet{depth}": compare(depth, options.samples, options.rounds) for depth in (20, 56)}
    measure.record("gradients", {"limit": LIMIT, **found})
    beyond = [
        f"{name}: {kind}" for name, one in found.items()
        for kind in ("monitor_against_step", "probe_of_a_traced_model_against_step")
        if one[kind]["median"] > LIMIT  # pyright: ignore[reportIndexIssue]
    ]  # fmt: skip
    if beyond:
        sys.exit(f"beyond {LIMIT} of a training step: {beyond}")


if __name__ == "__main__":
    main()
