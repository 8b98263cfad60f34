"""ResNet-50 and ResNet-56 against torchvision's: time and memory, inference and a training step, in turn."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import measure
import peers
import skipway as sw


def training_step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def inference(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            model(images)

    return run


def compare(ours: nn.Module, theirs: nn.Module, side: int, batches: tuple[int, int], rounds: int) -> dict:
    """Time ratio and memory of both nets with the same weights."""
    incompatible = theirs.load_state_dict(rename(ours, theirs), strict=True)
    assert not incompatible.missing_keys
    results = {}
    images = torch.randn(batches[0], 3, side, side)
    with torch.inference_mode():
        difference = (ours.eval()(images) - theirs.eval()(images)).abs().max().item()
    runs = {"ours": inference(ours, images), "theirs": inference(theirs, images)}
    results["inference"] = measure.against(runs, rounds) | {
        "largest_difference": difference,
        "shape": list(images.shape),
    }
    ours, theirs = ours.train(), theirs.train()
    images, labels = torch.randn(batches[1], 3, side, side), torch.randint(10, (batches[1],))
    runs = {"ours": training_step(ours, images, labels), "theirs": training_step(theirs, images, labels)}
    results["training_step"] = measure.against(runs, rounds) | {"shape": list(images.shape)}
    return results


def rename(ours: nn.Module, theirs: nn.Module) -> dict[str, torch.Tensor]:
    """Our weights under their names: the same for torchvision's nets, in the same order for the other."""
    state = ours.state_dict()
    return (
        state
        if state.keys() == theirs.state_dict().keys()
        else dict(zip(theirs.state_dict(), state.values(), strict=True))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    models = peers.torchvision()
    results = {
        "resnet50": compare(sw.models.create("resnet50"), models.resnet50(), 128, (8, 8), rounds),
        "resnet56": compare(
            sw.models.create("resnet56"), peers.CifarResNet(models.resnet.BasicBlock, 9), 32, (64, 64), rounds
        ),
    }
    measure.record("resnet", results)


if __name__ == "__main__":
    main()
