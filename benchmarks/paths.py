"""Exact gradients by path length past 54 skips against the backward pass of a training step."""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
import torch.nn.functional as F

import measure
import skipway as sw
from skipway.probe.paths import paths

LIMIT = 40.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, nargs="+", default=[8, 32])
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, object] = {"limit": LIMIT}
    beyond = []
    for samples in options.samples:
        torch.manual_seed(0)
        net = sw.models.create("resnet110", num_classes=10).eval()
        x, y = torch.randn(samples, 3, 32, 32), torch.randint(10, (samples,))
        backwards, sweeps = [], []
        found = None
        for _ in range(options.rounds):
            for _ in range(3):
                loss = F.cross_entropy(net(x), y)
                start = time.perf_counter()
                loss.backward()
                backwards.append(time.perf_counter() - start)
                net.zero_grad()
            start = time.perf_counter()
            # All of the call: tracing, two forward passes, the sweep and the gradient that it is checked against.
            found = paths(net, (x, y), "cross_entropy", draws=0)
            sweeps.append(time.perf_counter() - start)
        assert found is not None
        ratio = statistics.median(sweeps) / statistics.median(backwards)
        results[f"{samples} samples"] = {
            "skips": len(found.lengths) - 1, "backward_seconds": round(statistics.median(backwards), 4),
            "paths_seconds": round(statistics.median(sweeps), 3), "backward_passes": round(ratio, 2),
            "residual": found.residual,
        }  # fmt: skip
        beyond += [f"{samples} samples: {ratio:.1f}"] if ratio > LIMIT else []
    measure.record("paths", results)
    if beyond:
        sys.exit(f"beyond the time of {LIMIT:g} backward passes: {beyond}")


if __name__ == "__main__":
    main()
