"""The gradient probe, tracing and all, and the monitor, each against the training step that it takes, in turn.

Processor time of one thread: what other processes take is left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

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

    found: dict[str, object] = {"samples": samples, "skips": len(graph.skips)}
    for name, run in (("monitor", watched), ("probe", probe)):
        seconds = measure.alternate({"step": step, name: run}, rounds, warmup=3, clock=time.process_time)
        found[name] = {
            "step_milliseconds": round(1000 * statistics.median(seconds["step"]), 1),
            "milliseconds": round(1000 * statistics.median(seconds[name]), 1),
            "against_step": measure.ratio(seconds[name], seconds["step"]),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--samples", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure.keep_memory()
    found = {f"resnet{depth}": compare(depth, options.samples, options.rounds) for depth in (20, 56)}
    measure.record("gradients", {"limit": LIMIT, **found})
    beyond = [
        f"{name}: {kind}" for name, one in found.items() for kind in ("monitor", "probe")
        if one[kind]["against_step"]["median"] > LIMIT  # pyright: ignore[reportIndexIssue]
    ]  # fmt: skip
    if beyond:
        sys.exit(f"beyond {LIMIT} of a training step: {beyond}")


if __name__ == "__main__":
    main()
