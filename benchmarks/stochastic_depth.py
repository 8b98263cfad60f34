"""What stochastic depth saves: a training step of ResNet-110, final rate 0.5, against no drop and against masking."""

from __future__ import annotations

import argparse

import torch

import measure
import skipway as sw
from resnet import training_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    torch.manual_seed(0)
    images, labels = torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))
    kinds = {
        "no_drop": "residual",
        "skipping": sw.Residual(drop=sw.StochasticDepth(0.5)),
        "masking": sw.Residual(drop=sw.StochasticDepth(0.5, mode="row")),
    }
    runs = {
        name: training_step(sw.models.create("resnet110", skip=kind).train(), images, labels)
        for name, kind in kinds.items()
    }
    seconds = measure.alternate(runs, options.rounds)
    # The number of branches that run varies from step to step, so means are compared, not medians.
    mean = {name: sum(times) / len(times) for name, times in seconds.items()}
    memory = {name: sum(measure.peak_bytes(run) for _ in range(5)) / 5 for name, run in runs.items()}
    kept = sum(1 - 0.5 * (k + 1) / 54 for k in range(54)) / 54
    results = {
        "mean_milliseconds": {name: round(value * 1000, 1) for name, value in mean.items()},
        "saved_against_no_drop": round(1 - mean["skipping"] / mean["no_drop"], 4),
        "saved_against_masking": round(1 - mean["skipping"] / mean["masking"], 4),
        "memory_against_no_drop": round(memory["skipping"] / memory["no_drop"], 4),
        "limit_in_theory": round(1 - kept, 4),
        "batch": options.batch,
        "rounds": options.rounds,
    }
    measure.record("stochastic_depth", results)


if __name__ == "__main__":
    main()
