"""The U-Net against milesial/Pytorch-UNet, weight for weight: time and memory, inference and a training step, in turn,
in either memory format; and what checkpointing costs and saves."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable

import torch
from torch import nn

import measure
import peers
import skipway as sw
from resnet import inference, training_step


def compare(ours: nn.Module, theirs: nn.Module, side: int, batches: tuple[int, int], rounds: int) -> dict:
    """Time ratio and memory of both nets with the same weights, in the default and the channels-last format."""
    theirs.load_state_dict(ours.state_dict(), strict=True)
    results: dict = {}
    images = torch.randn(batches[0], 3, side, side)
    with torch.inference_mode():
        difference = (ours.eval()(images) - theirs.eval()(images)).abs().max().item()
    for layout in (torch.contiguous_format, torch.channels_last):
        for net in (ours, theirs):
            net.to(memory_format=layout)
        given = images.to(memory_format=layout)
        named = {"ours": ours.eval(), "theirs": theirs.eval()}
        runs = {name: inference(net, given) for name, net in named.items()}
        about = {"largest_difference": difference, "shape": list(images.shape)}
        results[f"inference, {_named(layout)}"] = report(runs, rounds) | about
    for layout in (torch.contiguous_format, torch.channels_last):
        steps: dict[str, Callable[[], None]] = {}
        given = torch.randn(batches[1], 3, side, side).to(memory_format=layout)
        labels = torch.randint(2, (batches[1], side, side))
        for name, net in (("ours", ours), ("theirs", theirs)):
            net.to(memory_format=layout)
            steps[name] = training_step(net.train(), given, labels)
        results[f"training_step, {_named(layout)}"] = report(steps, rounds) | {"shape": list(given.shape)}
    return results


def report(runs: dict[str, Callable[[], None]], rounds: int) -> dict:
    seconds = measure.alternate(runs, rounds)
    # A first profile does not see the end of blocks that were there before it, and so tells too much.
    memory = {name: (measure.peak_bytes(run), measure.peak_bytes(run))[1] for name, run in runs.items()}
    return {
        "time_ratio": measure.ratio(seconds["ours"], seconds["theirs"]),
        "milliseconds": {name: round(sorted(times)[len(times) // 2] * 1000, 1) for name, times in seconds.items()},
        "memory_ratio": round(memory["ours"] / memory["theirs"], 4),
        "peak_mib": {name: round(held / 2**20, 1) for name, held in memory.items()},
    }


def checkpointed(side: int, batch: int, rounds: int) -> dict:
    """A training step that computes its blocks again, against one that keeps all maps."""
    images, labels = torch.randn(batch, 3, side, side), torch.randint(2, (batch, side, side))
    runs = {
        name: training_step(sw.models.create("unet", num_classes=2, checkpointing=name == "ours"), images, labels)
        for name in ("ours", "theirs")
    }
    return report(runs, rounds) | {"shape": list(images.shape)}


def _named(layout: torch.memory_format) -> str:
    return str(layout).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    measure.keep_memory()
    peers.peer("milesial")
    milesial = importlib.import_module("milesial.unet").UNet
    results = {
        "unet": compare(sw.models.create("unet", num_classes=2), milesial(3, 2), 128, (2, 2), rounds),
        "unet-bilinear": compare(
            sw.models.create("unet-bilinear", num_classes=2), milesial(3, 2, bilinear=True), 128, (2, 2), rounds
        ),
        "checkpointing against keeping": checkpointed(128, 2, rounds),
    }
    measure.record("unet", results)


if __name__ == "__main__":
    main()
