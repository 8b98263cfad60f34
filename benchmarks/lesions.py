"""All single deletions of a network's skips against as many forward passes, in turn, in processor time."""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch

import measure
import skipway as sw
from skipway.probe.lesions import lesions

LIMIT = 0.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure.keep_memory()
    torch.manual_seed(0)
    results: dict[str, object] = {"limit": LIMIT}
    beyond = []
    for name in ("resnet20", "resnet56"):
        net = sw.models.create(name, num_classes=10).eval()
        x, y = torch.randn(options.samples, 3, 32, 32), torch.randint(10, (options.samples,))
        n = len(sw.trace(net, x[:2]).skips)

        def forwards(net: torch.nn.Module = net, x: torch.Tensor = x, n: int = n) -> None:
            with torch.no_grad():
                for _ in range(n):
                    net(x)

        def deletions(net: torch.nn.Module = net, x: torch.Tensor = x, y: torch.Tensor = y) -> None:
            lesions(net, (x, y), "cross_entropy")

        seconds = measure.alternate(
            {"lesions": deletions, "forwards": forwards}, options.rounds, warmup=1, clock=time.process_time
        )
        ratio = measure.ratio(seconds["lesions"], seconds["forwards"])
        results[name] = {
            "deletions": n, "samples": options.samples, "share_of_n_forwards": ratio,
            "seconds": {run: round(statistics.median(times), 3) for run, times in seconds.items()},
        }  # fmt: skip
        beyond += [f"{name}: {ratio['median']}"] if ratio["median"] > LIMIT else []
    measure.record("lesions", results)
    if beyond:
        sys.exit(f"beyond {LIMIT} n forward passes: {beyond}")


if __name__ == "__main__":
    main()
