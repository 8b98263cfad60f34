"""A loss landscape: ours against the package loss-landscapes and against rewriting every parameter at each point."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import measure
import skipway as sw
from peers import PEERS, peer
from skipway.probe import random_direction
from skipway.probe.batches import read_batches
from skipway.probe.landscape_points import LandscapeTask, with_way
from skipway.probe.plane import make_plane
from skipway.study import load_images


def rewriting(model: nn.Module, images: Tensor, labels: Tensor, points: np.ndarray) -> Callable[[], list[float]]:
    """As tomgoldstein/loss-landscape goes: at every point each parameter is made anew, w + a * d1 + b * d2."""
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    directions = []
    for number in range(2):
        drawn, _ = random_direction(model, 0, number)
        directions.append([drawn.get(name, torch.zeros_like(w)) for name, w in model.named_parameters()])

    def run() -> list[float]:
        losses = []
        for a, b in points.tolist():
            changes = [first * a + second * b for first, second in zip(*directions, strict=True)]
            for parameter, weight, change in zip(model.parameters(), weights, changes, strict=True):
                parameter.data = weight + change.to(weight.dtype)
            with torch.no_grad():
                output = model(images)
                losses.append(F.cross_entropy(output, labels).item())
                # It counts the right answers too, as we do.
                output.argmax(1).eq(labels).sum().item()
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.data = weight
        return losses

    return run


def package(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Callable[[], Any]:
    """The package's plane of steps x steps points; it computes losses alone, and its surface is another one."""
    landscapes = peer("loss_landscapes")
    metrics = __import__("loss_landscapes.metrics", fromlist=["Loss"])
    metric = metrics.Loss(F.cross_entropy, images, labels)

    def run() -> Any:
        with torch.no_grad():
            return landscapes.random_plane(
                model, metric, distance=1, steps=steps, normalization="filter", deepcopy_model=True
            )

    return run


def compare(model: nn.Module, images: Tensor, labels: Tensor, steps: int, rounds: int, low: bool) -> dict[str, Any]:
    side = np.linspace(-0.5, 0.5, steps) + 0.01
    points = np.stack([axis.ravel() for axis in np.meshgrid(side, side, indexing="ij")], -1)
    batches = read_batches(model, (images, labels), "cross_entropy")
    plane = make_plane(model, 2, None, None, "filter", 0, "frozen")
    tasks = {"ours": with_way(LandscapeTask(model, plane, points, (batches,), "frozen"))}
    if low:
        tasks["ours_bfloat16"] = with_way(
            LandscapeTask(model, plane, points, (batches,), "frozen", dtype=torch.bfloat16)
        )
    measured = {name: task.measure() for name, task in tasks.items()}
    naive = rewriting(model, images, labels, points)
    runs: dict[str, Callable[[], Any]] = {
        name: lambda at=at: [at(point)[0] for point in range(len(points))] for name, at in measured.items()
    }
    found, expected = runs["ours"](), naive()
    lower = runs["ours_bfloat16"]() if low else []
    runs |= {"rewriting": naive, "loss_landscapes": package(model, images, labels, steps)}
    seconds = measure.alternate(runs, rounds, warmup=0)
    results: dict[str, Any] = {
        "milliseconds_a_point": {
            name: round(1000 * float(np.median(times)) / len(points), 3) for name, times in seconds.items()
        },
        "points": steps * steps,
        "way": tasks["ours"].way,
        "off_by_at_most": max(abs(a / b - 1) for a, b in zip(found, expected, strict=True)),
    }
    if low:
        errors = sorted(abs(a / b - 1) for a, b in zip(lower, found, strict=True))
        results["bfloat16_error"] = {"median": float(np.median(errors)), "largest": errors[-1]}
    for name in tasks:
        for other in ("rewriting", "loss_landscapes"):
            quotient = measure.ratio(seconds[other], seconds[name])
            results[f"{name}_times_faster_than_{other}"] = quotient
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    with torch.no_grad():
        forward = measure.peak_bytes(lambda: F.cross_entropy(model(images), labels))

    def whole() -> None:
        sw.probe.landscape(model, (images, labels), "cross_entropy", steps=2)

    results["memory"] = {
        "model_bytes": size,
        "forward_bytes": forward,
        "data_bytes": images.nbytes,
        "allowed_bytes": 3 * size + forward,
        "peak_bytes": measure.peak_bytes(whole),
    }
    return results


def digits_mlp() -> tuple[nn.Module, Tensor, Tensor]:
    digits = load_images("digits")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return model.eval(), digits.train_images[:512].float() / 16, digits.train_labels[:512]


def resnet20() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = sw.models.create("resnet20", "residual", num_classes=10)
    images, labels = torch.randn(512, 3, 32, 32), torch.randint(10, (512,))
    with torch.no_grad():
        for part in images.split(128):
            model(part)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                # The package divides by the norm of every bias.
                module.bias.normal_(std=0.1)
    return model.eval(), images, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sys.path.append(str(PEERS))
    results: dict[str, Any] = {
        "digits_mlp": compare(*digits_mlp(), steps=9, rounds=4 * options.rounds, low=False),
        "resnet20_cifar_512_images": compare(*resnet20(), steps=2, rounds=options.rounds, low=True),
    }
    # Low precision pays only where the processor has units for it.
    facts = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    results["bfloat16_in_hardware"] = "amx_bf16" in facts or "avx512_bf16" in facts
    measure.record("landscape", results)


if __name__ == "__main__":
    main()
