"""What the families learn from real data in minutes on a CPU: curves, best rounds and samples, by `study.train`.

    python benchmarks/training.py DATA [GROUP ...] [--runs FOLDER]

DATA is a folder with cifar10/ (parquet files), membrane/ (images and masks), text/shakespeare.txt and
text/multi30k.*. A training that was interrupted goes on; one that is done is read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import measure
from skipway.study import Trained, train

CIFAR: dict[str, Any] = {
    "data": "cifar10",
    "limit": 10_000,
    "epochs": 3,
    "batch_size": 64,
    "learning_rate": 0.1,
    "channels_last": True,
}
UNET: dict[str, Any] = {
    "model": "unet",
    "data": "membrane",
    "options": {"levels": 3, "width": 16},
    "crop": 128,
    "augment": "standard",
    "batch_size": 4,
    "held_out": 6,
    "steps": 300,
    "every": 60,
}
GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "gpt": {
        "gpt-micro": {
            "model": "gpt-micro",
            "data": "text/shakespeare.txt",
            "length": 128,
            "batch_size": 32,
            "steps": 1500,
            "every": 250,
            "learning_rate": 2e-3,
        }
    },
    "unet": {
        skip + (f", seed {seed}" if seed else ""): UNET | {"skip": skip, "seed": seed}
        for seed in range(3)
        for skip in ("concat", "residual", "attention-gate", "none")
    },
    "cifar": {model: CIFAR | {"model": model} for model in ("se_resnet20", "densenet-bc-40-12", "highway-conv-20")},
    "translation": {
        "transformer-mini": {
            "model": "transformer-mini",
            "data": "text/multi30k",
            "languages": ("en", "de"),
            "epochs": 4,
        }
    },
}


def facts(trained: Trained, values: dict[str, Any]) -> dict[str, Any]:
    """What a record keeps of a training: how it was set, and what came of it."""
    return {
        "settings": values | {"data": str(values["data"])},
        "parameters": trained.parameters,
        "seconds": round(trained.seconds, 1),
        "best_round": trained.best_round,
        "best": {name: round(value, 4) for name, value in trained.best.items()},
        "curves": {name: [round(value, 4) for value in values] for name, values in trained.curves.items()},
        "samples": list(trained.samples)[:6],
    }


def without_seed(label: str) -> str:
    return label.partition(", seed")[0]


def draw(group: str, results: dict[str, Any]) -> None:
    """The judged curve of every training of a group, in one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in next(iter(results.values()))["curves"] if name.startswith("validation")]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    size = (4 * columns, 3.2 * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    # Seeds of one network have one colour.
    colours = {label: f"C{place}" for place, label in enumerate(dict.fromkeys(map(without_seed, results)))}
    for axis, name in zip(axes.flat, names, strict=False):
        for label, one in results.items():
            curve, network = one["curves"][name], without_seed(label)
            axis.plot(
                range(1, len(curve) + 1), curve, marker="o", markersize=3, color=colours[network],
                label=network if label == network else None,
            )  # fmt: skip
        axis.set(title=name.replace("_", " "), xlabel="round")
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=7)
    figure.savefig(measure.RESULTS / f"training_{group}.png", dpi=80)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("groups", nargs="*", help=", ".join(GROUPS))
    parser.add_argument("--runs", type=Path, default=Path("runs/training"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for group in options.groups or GROUPS:
        results: dict[str, Any] = {}
        for name, values in GROUPS[group].items():
            folder = options.runs / group / name.replace(", ", "-").replace(" ", "-")
            trained = train(**(values | {"data": options.data / values["data"]}), folder=folder)
            results[name] = facts(trained, values)
            print(group, name, results[name]["best"], flush=True)
        measure.record(f"training_{group}", results)
        draw(group, results)


if __name__ == "__main__":
    main()
