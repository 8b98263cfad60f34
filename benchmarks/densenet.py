"""DenseNets against torchvision's with the same weights and inputs: training steps, memory and inference, in turn."""

from __future__ import annotations

import argparse
import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import measure
import peers
import skipway as sw

CASES: dict[str, tuple[str, tuple[int, ...]]] = {
    "bc-100-12": ("densenet-bc-100-12", (32, 3, 32, 32)),
    "densenet121": ("densenet121", (8, 3, 128, 128)),
}
# What was to be reached: ours over theirs.
WANTED: dict[str, dict[str, float]] = {
    "bc-100-12": {
        "shared time over default": 0.75, "shared memory over default": 0.24,
        "recomputed time over default": 1.0, "recomputed memory over default": 0.12,
        "shared time over memory_efficient": 0.65,
    },
    "densenet121": {
        "shared time over default": 0.78, "shared time over channels_last": 0.88, "shared memory over default": 0.33,
        "recomputed time over default": 1.0, "recomputed memory over default": 0.22,
        "shared time over memory_efficient": 0.65,
    },
    "inference": {"folded over default": 0.62},
}  # fmt: skip


def theirs(models: Any, case: str, efficient: bool = False) -> nn.Module:
    """torchvision's net; for small images with its stem exchanged for a 3x3 convolution, as the paper has it."""
    if case == "densenet121":
        return models.densenet121(memory_efficient=efficient)
    net = models.DenseNet(12, (16, 16, 16), 24, num_classes=10, memory_efficient=efficient)
    stem = OrderedDict(conv0=nn.Conv2d(3, 24, 3, padding=1, bias=False))
    rest = {name: module for name, module in net.features.named_children() if not name.endswith("0")}
    net.features = nn.Sequential(stem | rest)
    return net


def last(module: nn.Module) -> nn.Module:
    return module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def training_step(model: nn.Module, images: Tensor, labels: Tensor, lower: bool) -> Callable[[], Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


def training(models: Any, case: str, lower: bool, rounds: int) -> dict[str, Any]:
    """A training step of each, from the same weights, and what it holds above its start."""
    name, shape = CASES[case]
    ours, published = sw.models.create(name), theirs(models, case)
    published.load_state_dict(ours.state_dict(), strict=True)
    efficient = theirs(models, case, efficient=True)
    efficient.load_state_dict(ours.state_dict(), strict=True)
    recomputed = copy.deepcopy(ours)
    assert isinstance(recomputed, sw.models.DenseNet)
    recomputed.memory = "recomputed"
    nets = {"default": published, "memory_efficient": efficient, "shared": ours, "recomputed": recomputed}
    nets |= {f"{key} channels_last": last(copy.deepcopy(net)) for key, net in nets.items() if key != "recomputed"}
    if lower:
        nets = {key: net for key, net in nets.items() if key not in ("memory_efficient", "shared channels_last")}
    images, classes = torch.randn(shape), 1000 if case == "densenet121" else 10
    labels = torch.randint(classes, (shape[0],))
    reordered = images.contiguous(memory_format=torch.channels_last)
    runs = {
        key.removeprefix("default "): training_step(net.train(), reordered if "last" in key else images, labels, lower)
        for key, net in nets.items()
    }
    difference = _difference(ours, published, images, lower)
    seconds = measure.alternate(runs, rounds)
    memory = {key: measure.peak_bytes(run) for key, run in runs.items()}
    found = {
        "shape": list(shape),
        "largest_difference_of_logits": difference,
        "milliseconds": {key: round(sorted(times)[len(times) // 2] * 1000, 1) for key, times in seconds.items()},
        "peak_mib": {key: round(held / 2**20, 1) for key, held in memory.items()},
    }
    for mine in ("shared", "recomputed"):
        for peer in runs:
            if not peer.startswith(("shared", "recomputed")):
                found[f"{mine} time over {peer}"] = measure.ratio(seconds[mine], seconds[peer])
                found[f"{mine} memory over {peer}"] = round(memory[mine] / memory[peer], 4)
    return found


def _difference(ours: nn.Module, published: nn.Module, images: Tensor, lower: bool) -> float:
    """In training mode, with copies of the nets so that their statistics stay the same."""
    with torch.autocast("cpu", torch.bfloat16, enabled=lower):
        a, b = (copy.deepcopy(net).train()(images) for net in (ours, published))
    return float(f"{(a - b).abs().max().item():.2e}")


def inference(models: Any, shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """DenseNet-121 in evaluation: as it is, and folded."""
    ours, published = sw.models.create("densenet121").eval(), theirs(models, "densenet121").eval()
    published.load_state_dict(ours.state_dict(), strict=True)
    channels_last, images = last(copy.deepcopy(published)), torch.randn(shape)
    reordered = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        folded = sw.edit.fold(ours, images)
        runs: dict[str, Callable[[], Any]] = {
            "default": lambda: published(images),
            "channels_last": lambda: channels_last(reordered),
            "shared": lambda: ours(images),
            "folded": lambda: folded(images),
        }
        wanted = published(images)
        differences = {key: float(f"{(run() - wanted).abs().max().item():.2e}") for key, run in runs.items()}
        seconds = measure.alternate(runs, rounds, pause=0.05)
    return {
        "shape": list(shape),
        "largest_difference_of_logits": differences,
        "milliseconds": {key: round(sorted(times)[len(times) // 2] * 1000, 1) for key, times in seconds.items()},
        **{
            f"{mine} over {peer}": measure.ratio(seconds[mine], seconds[peer])
            for mine in ("shared", "folded")
            for peer in ("default", "channels_last")
        },
    }


def judged(found: dict[str, Any], wanted: dict[str, float]) -> dict[str, Any]:
    """What was wanted beside what was found, and whether it was met."""
    rows = {}
    for key, limit in wanted.items():
        value = found[key]["median"] if isinstance(found[key], dict) else found[key]
        rows[key] = {"wanted": limit, "found": value, "met": bool(value <= limit)}
    return found | {"judged": rows}


def recorded() -> dict[str, Any]:
    """What an earlier run wrote down."""
    path = measure.RESULTS / "densenet.json"
    return json.loads(path.read_text())["results"] if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--cases", nargs="*", default=[*CASES, "inference"], choices=[*CASES, "inference"])
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--update", action="store_true", help="keep what an earlier run recorded of other cases")
    chosen = parser.parse_args()
    measure.keep_memory()
    torch.manual_seed(0)
    models = peers.torchvision()
    results: dict[str, Any] = recorded() if chosen.update else {}
    for case in chosen.cases:
        if case == "inference":
            for n in (1, 8):
                found = inference(models, (n, 3, 224, 224), chosen.rounds)
                results[f"densenet121 inference batch {n}"] = judged(found, WANTED[case])
            measure.record("densenet", results)
            continue
        for dtype in chosen.dtypes:
            found = training(models, case, dtype == "bfloat16", chosen.rounds)
            results[f"{case} {dtype}"] = judged(found, WANTED[case]) if dtype == "float32" else found
            # Written after each case: on a busy machine the whole takes long.
            measure.record("densenet", results)


if __name__ == "__main__":
    main()
