"""How long the report of a study takes to build and how large it is, with landscapes and drawings of every network.

    python benchmarks/report.py [--trials 30 200] [--out FOLDER] [--dry]

The trials are made up (50 epochs each, gradient norms of every layer), their networks, drawings and probes are not;
landscapes have 51 x 51 points. It writes benchmarks/results/report.json unless --dry.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import measure
import skipway as sw
from skipway import probe
from skipway.probe import Landscape, Result
from skipway.study import Record, Results, Study
from skipway.study.declaring.variants import Variant, connection
from skipway.study.records.record import write_record
from skipway.study.records.sealed import write_sealed

EPOCHS = 50
SKIPS = ["none", "residual", "rezero", "skipinit", "highway"]


def declared(trials: int) -> Study:
    """Five skips at several depths, from five seeds or ten."""
    seeds, depths = (3, [20, 56]) if trials <= 30 else (10, [20, 32, 44, 56])
    return Study(
        name=f"made-up-{trials}", depth=depths, skip=SKIPS, seeds=list(range(seeds)), width=8, epochs=EPOCHS,
        probes=["gradients", "landscape"],
        question={"compare": "skip", "along": "depth", "rule": "difference", "measure": "test_error"},
    )  # fmt: skip


def record(study: Study, variant: Variant, seed: int) -> Record:
    """A training that never was, with curves as they look."""
    draw = random.Random(f"{variant.title} {seed}")
    depth = variant.depth or 0
    end = draw.uniform(0.02, 0.05) + (depth / 100 if variant.plain else 0)
    falls: list[float | None] = [end + (0.9 - end) * math.exp(-epoch / draw.uniform(3, 9)) for epoch in range(EPOCHS)]
    layers = [f"layer{n}" for n in range(depth)]
    return Record(
        id=f"{variant.title.replace(' ', '-')}-{seed}", labels=dict(variant.labels), model=variant.model, depth=depth,
        skip=variant.label, connection=connection(variant.skip), plain=variant.plain, options={"width": 8}, seed=seed,
        task="classification", judge="test_error", diverged=None,
        curves=dict.fromkeys(("loss", "train_error", "train_loss", "test_error", "test_loss"), falls),
        measures={"parameters": 1e3 * depth, "seconds": draw.uniform(20, 30), "memory": 1e6 * depth},
        layers=layers, first_gradients=[draw.uniform(0.1, 2) for _ in layers],
        last_gradients=[draw.uniform(0.01, 0.2) for _ in layers],
        recipe={"epochs": EPOCHS, "batch_size": 64, "learning_rate": 0.1, "loop": 2},
        data={"name": "digits", "fingerprint": "0" * 16, "train": 1438, "test": 359, "classes": 10, "shape": [1, 8, 8]},
        versions={"skipway": sw.__version__, "torch": torch.__version__},
    )  # fmt: skip


def probes(model: torch.nn.Module, seed: int) -> dict[str, Result]:
    """What the probes find in a network, and a landscape whose 2601 points are made up."""
    batch = (torch.randn(8, 1, 8, 8), torch.arange(8))
    found: dict[str, Result] = {"gradients": probe.gradients(model, batch, "cross_entropy")}
    surface: Landscape = probe.landscape(model, batch, "cross_entropy", steps=3)
    along = np.linspace(-1, 1, 51)
    x, y = np.meshgrid(along, along, indexing="ij")
    loss = 0.1 + x**2 + 2 * y**2 + 0.1 * np.sin(5 * x + seed) * np.cos(7 * y)
    measured = np.ones_like(loss, dtype=bool)
    found["landscape"] = dataclasses.replace(
        surface, x=along, y=along, loss=loss, error=np.clip(loss / 3, 0, 1), measured=measured
    )
    return found


def make(study: Study, folder: Path) -> Results:
    """The folder of the study, as a run leaves it."""
    for name in ("trials", "probes"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    trials = []
    for number, trial in enumerate(study.trials()):
        made = record(study, trial.variant, trial.seed)
        write_record(folder / "trials" / f"{made.id}.json", made)
        trials.append(made)
        if trial.seed == 0:
            net = sw.models.create(trial.variant.model, skip=trial.variant.skip, width=8, num_classes=10, in_channels=1)
            for name, result in probes(net, number).items():
                result.save(folder / "probes" / made.id / f"{name}.npz")
    write_sealed(folder / "manifest.json", {
        "study": study.declaration(),
        "trials": [{"id": one.id, "title": one.title, "record": f"trials/{one.id}.json"} for one in trials],
    })  # fmt: skip
    return Results(study, folder, tuple(trials))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[30, 200])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry", action="store_true", help="print, and write nothing to benchmarks/results")
    chosen = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for count in chosen.trials:
            results = make(declared(count), (chosen.out or Path(temporary)) / str(count))
            begin = time.perf_counter()
            path = results.report()
            seconds = time.perf_counter() - begin
            found[f"{len(results.records)} trials"] = {
                "seconds": round(seconds, 2), "megabytes": round(path.stat().st_size / 1e6, 2),
                "variants": len(results.summaries),
            }  # fmt: skip
    print(found) if chosen.dry else measure.record("report", found)


if __name__ == "__main__":
    main()
