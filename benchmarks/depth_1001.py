"""1001 layers on real digits: the pre-activation network trains where the plain one, of the same branches, does not.

Both at three learning rates with the same batches, and a plain network of 29 layers as the control. Why: the gradient
that reaches the first convolution before any step, in double precision, of both kinds at growing depth; that of the
plain network is beyond single precision. He et al. 2016 (arXiv:1603.05027) trained the 1001-layer network; here it is
of width 4, so that two cores can watch it learn.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import measure
import skipway as sw
from skipway.study import Images, load_images

RATES = (0.1, 0.01, 0.001)
# Model, skip, learning rate.
CONTROL = ("preresnet29", "none", 0.1)
RUNS = [("preresnet1001", skip, rate) for skip in ("residual", "none") for rate in RATES]
DEPTHS = (29, 110, 299, 1001)
CHANCE = math.log(10)


def build(name: str, skip: str) -> nn.Module:
    torch.manual_seed(0)
    return sw.models.create(name, skip, in_channels=1, width=4, block="bottleneck")


def train(model: nn.Module, images: Tensor, labels: Tensor, rate: float, steps: int, batch: int) -> list[float]:
    """The loss at each step of SGD with momentum, the first tenth to warm up; it ends where no number is left."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (0.1 * steps)))
    draws = torch.Generator().manual_seed(0)
    losses: list[float] = []
    for _ in range(steps):
        chosen = torch.randint(len(labels), (batch,), generator=draws)
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        losses.append(round(loss.item(), 5))
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warmup.step()
    return losses


def first_gradients(images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """The norm of the loss's gradient by the first convolution, of untrained networks, as a power of ten."""
    found = []
    for depth in DEPTHS:
        powers = {}
        for skip in ("none", "residual"):
            model = build(f"preresnet{depth}", skip).double()
            F.cross_entropy(model(images.double()), labels).backward()
            gradient = model.get_parameter("conv1.weight").grad
            assert gradient is not None
            powers[skip] = round(math.log10(float(gradient.norm())), 2)
        found.append({"depth": depth, "log10_of_gradient_norm": powers})
    return found


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(60), labels.split(60), strict=True))
    return round(right / len(labels), 4)


def draw(runs: list[dict[str, Any]], steps: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    colours = {"residual": "#0072b2", "none": "#d55e00"}
    dashes = dict(zip(RATES, ("-", "--", ":"), strict=True))
    plain = {"none": "plain", "residual": "residual"}
    for run in runs:
        losses = torch.tensor([loss for loss in run["losses"] if loss is not None])
        if not len(losses):
            continue
        smooth = [float(losses[max(0, k - 9) : k + 1].mean()) for k in range(len(losses))]
        label = f"{plain[run['skip']]}, {run['depth']} layers, rate {run['rate']:g}"
        colour = "#777777" if run["model"] == CONTROL[0] else colours[run["skip"]]
        axes.plot(range(1, len(smooth) + 1), smooth, dashes[run["rate"]], color=colour, label=label)
        if run["diverged"]:
            axes.plot(len(smooth), smooth[-1], "x", color=colour, markersize=9)
    axes.axhline(CHANCE, color="black", linewidth=0.8)
    axes.annotate("chance: ln 10", (steps, CHANCE), xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8)
    axes.set(xlabel="step", ylabel="training loss, mean of 10 steps", ylim=(0, 2.8), xlim=(0, steps))
    axes.set_title("1001 layers on digits: x marks where the loss became no number", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    figure.savefig(measure.RESULTS / "depth_1001.png", dpi=110)


def run(name: str, skip: str, rate: float, data: Images, steps: int, batch: int) -> dict[str, Any]:
    images, test_images = normalized(data)
    model: Any = build(name, skip)
    losses = train(model, images, data.train_labels, rate, steps, batch)
    diverged = not math.isfinite(losses[-1])
    tail = losses[-20:]
    return {
        "model": name,
        "skip": skip,
        "rate": rate,
        "depth": model.depth,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "diverged": diverged,
        "loss_of_the_last_20_steps": None if diverged else round(sum(tail) / len(tail), 4),
        "test_accuracy": None if diverged else accuracy(model, test_images, data.test_labels),
        "losses": [loss if math.isfinite(loss) else None for loss in losses],
    }


def normalized(data: Images) -> tuple[Tensor, Tensor]:
    mean, deviation = data.statistics
    return (data.train_images - mean) / deviation, (data.test_images - mean) / deviation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    data = load_images("digits")
    images, _ = normalized(data)
    runs: list[dict[str, Any]] = []
    for name, skip, rate in (CONTROL, *RUNS):
        runs.append(run(name, skip, rate, data, options.steps, options.batch))
        print({key: value for key, value in runs[-1].items() if key != "losses"}, flush=True)
    results = {
        "data": data.facts(),
        "steps": options.steps,
        "batch": options.batch,
        "width": 4,
        "gradient_at_the_first_convolution": first_gradients(
            images[: options.batch], data.train_labels[: options.batch]
        ),
        "runs": runs,
    }
    measure.record("depth_1001", results)
    draw(runs, options.steps)


if __name__ == "__main__":
    main()
