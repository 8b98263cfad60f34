"""Every connection that `skip=` takes, in small networks that are alike in all else: what it does to what they learn.

    python benchmarks/connections.py DATA [--runs FOLDER]

DATA is a folder with membrane/ (images and masks) and text/shakespeare.txt; the digits come with scikit-learn. Three
declared studies, of three seeds each: all connections that keep the width in ResNets of 20 and 56 layers, where norms
and scales stand in a GPT, and what a U-Net's long skips do. Then the time of a training step of each ResNet-56, in
turn, and its gradient by layer before the first step. A run that was interrupted goes on. About 20 minutes of one core.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import measure
import skipway as sw
from skipway.study import Record
from skipway.study.answering.differences import compare

WIDENING = ("concat", "attention-gate", "residual-path", "dense")
SKIPS = tuple(name for name in sw.connect.names() if name not in WIDENING)
STUDIES: dict[str, dict[str, Any]] = {
    "resnet20": {"model": "resnet20", "width": 4, "skip": SKIPS, "data": "digits", "epochs": 8},
    "gpt": {
        "model": "gpt-8x32",
        "skip": ("none", "residual", "post-norm", "branch-norm", "sandwich", "deepnorm", "rezero"),
        "data": "text/shakespeare.txt",
        "held_out": 0.02,
        "length": 64,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "steps": 120,
        "every": 120,
    },
    "unet": {
        "model": "unet",
        "options": {"levels": 3},
        "width": 8,
        "skip": ("none", "residual", "concat", "attention-gate", "residual-path", "dense"),
        "data": "membrane",
        "held_out": 6,
        "crop": 64,
        "augment": "standard",
        "batch_size": 4,
        "steps": 100,
        "every": 100,
    },
    "resnet56": {"model": "resnet56", "width": 4, "skip": SKIPS, "data": "digits", "epochs": 8},
}
# What each study is judged by, and what it is told beside.
JUDGED = {
    "resnet20": ("test_error", "train_error"),
    "resnet56": ("test_error", "train_error"),
    "gpt": ("validation_loss",),
    "unet": ("validation_dice_0", "validation_dice_255"),
}
BASELINES = ("residual", "none")


def told(records: Sequence[Record], measures: Sequence[str]) -> list[dict[str, Any]]:
    """Each network over its seeds: its numbers, and how they differ from those of the same network's baselines."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.skip, []).append(record)
    differences: dict[str, dict[str, Any]] = {}
    for baseline in BASELINES:
        for one in compare(records, "skip", baseline, measures[0]):
            differences.setdefault(one.value, {})[baseline] = {
                "difference": rounded(one.difference),
                "low": rounded(one.low),
                "high": rounded(one.high),
                "verdict": one.verdict,
            }
    found = []
    for skip, group in groups.items():
        first = group[0]
        found.append(
            {
                "model": first.model,
                "layers": first.depth,
                "skip": skip,
                "parameters": first.measures["parameters"],
                "multiply_adds": first.measures["multiply_adds"],
                "memory": first.measures["memory"],
                "seeds": [record.seed for record in group],
                "diverged": sum(record.diverged is not None for record in group),
                "measures": {name: [rounded(record.value(name)) for record in group] for name in measures},
                "loss": [rounded(record.curves["loss"][-1]) if record.curves.get("loss") else None for record in group],
                "first_gradient_over_last": rounded(quotient(group)),
                "against": differences.get(skip, {}),
            }
        )
    return found


def quotient(group: Sequence[Record]) -> float | None:
    """The gradient's norm at the first weight layer over that at the last before the first step: median over seeds."""
    known = [r.first_gradients for r in group if r.first_gradients and r.first_gradients[0] and r.first_gradients[-1]]
    return statistics.median(norms[0] / norms[-1] for norms in known) if known else None  # pyright: ignore


def rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def steps(rounds: int) -> dict[str, float]:
    """The time of a training step of ResNet-56 with each connection, over that with `residual`: medians over rounds."""
    data = sw.study.load_images("digits")
    mean, deviation = data.statistics
    images, labels = (data.train_images[:64] - mean) / deviation, data.train_labels[:64]

    def step(skip: str) -> Callable[[], None]:
        torch.manual_seed(0)
        model = sw.models.create("resnet56", skip, num_classes=10, in_channels=1, width=4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

        def run() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()

        return run

    # One thread's own time, without what other processes take.
    seconds = measure.alternate({skip: step(skip) for skip in SKIPS}, rounds, clock=measure.time.process_time)
    return {skip: measure.ratio(taken, seconds["residual"])["median"] for skip, taken in seconds.items()}


def draw(results: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(11, 8))
    panels = [
        (figure.add_subplot(grid[:, 0]), results["resnet20"]["networks"], "test_error", "ResNet-20"),
        (figure.add_subplot(grid[:, 1]), results["resnet56"]["networks"], "test_error", "ResNet-56"),
        (figure.add_subplot(grid[0, 2]), results["gpt"]["networks"], "validation_loss", "GPT of 8 layers"),
        (figure.add_subplot(grid[1, 2]), results["unet"]["networks"], "validation_dice_0", "U-Net, long skips"),
    ]
    for axes, shown, name, title in panels:
        baseline = next(one for one in shown if one["skip"] == "residual")["measures"][name]
        axes.axvline(sum(baseline) / len(baseline), color="#888888", linewidth=0.8)
        for row, one in enumerate(reversed(shown)):
            values = [value for value in one["measures"][name] if value is not None]
            if not values:
                axes.annotate("diverged", (0.5, row), xycoords=("axes fraction", "data"), fontsize=7, va="center")
                continue
            colour = {"none": "#d55e00", "residual": "#0072b2"}.get(one["skip"], "#444444")
            axes.plot([min(values), max(values)], [row, row], color=colour, linewidth=1.5)
            axes.plot(values, [row] * len(values), "o", color=colour, markersize=3)
        axes.set_yticks(range(len(shown)), [one["skip"] for one in reversed(shown)], fontsize=8)
        if name == "test_error":
            axes.set_xscale("log")
            axes.set_xticks([0.01, 0.03, 0.1, 0.3, 1], ["1 %", "3 %", "10 %", "30 %", "100 %"])
            axes.set_xticks([], minor=True)
            axes.set_xlim(0.007, 1)
        unit = {"test_error": "test error", "validation_loss": "held out, nats a character"}
        axes.set_xlabel(unit.get(name, "Dice of the membranes, held out"), fontsize=8)
        axes.tick_params(axis="x", labelsize=7, which="both")
        axes.set_title(title, fontsize=10)
        axes.grid(axis="x", alpha=0.25)
    figure.savefig(measure.RESULTS / "connections.png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/connections"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, settings in STUDIES.items():
        source = settings["data"] if settings["data"] == "digits" else str(options.data / settings["data"])
        study = sw.Study(seeds=list(range(options.seeds)), **(settings | {"data": source}))
        found = study.run(options.runs / name)
        results[name] = {"settings": settings, "networks": told(found.records, JUDGED[name])}
    results["step_over_residual"] = steps(options.rounds)
    measure.record("connections", results)
    draw(results)


if __name__ == "__main__":
    main()
