"""Folded inference against eager torch, torch.compile, ONNX Runtime and torch.fx's own fusion: same inputs, in turn.

With `--threads 1` it is processor time that is measured, which leaves out what other processes take; else wall time.
Cases recorded before on this machine, with as many threads, stay in the record.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import measure
import peers
import skipway as sw

CASES = ("resnet50", "repvgg_a0", "densenet121")


class RepVGGBlock(nn.Module):
    """3x3, 1x1 and identity, each with its norm, summed (Ding et al. 2021, arXiv:2101.03697)."""

    def __init__(self, c: int, out: int, stride: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Conv2d(c, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out))
        self.point = nn.Sequential(nn.Conv2d(c, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.identity = nn.BatchNorm2d(c) if c == out and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.point(x)
        return torch.relu(y if self.identity is None else y + self.identity(x))


def repvgg_a0() -> nn.Module:
    """The training-time form of RepVGG-A0."""
    layers: list[nn.Module] = [RepVGGBlock(3, 48, 2)]
    c = 48
    for width, depth in ((48, 2), (96, 4), (192, 14), (1280, 1)):
        for index in range(depth):
            layers.append(RepVGGBlock(c, width, 1 if index else 2))
            c = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 1000))


def build(case: str, models: Any) -> nn.Module:
    """A net with norms whose statistics are not those of the start."""
    torch.manual_seed(0)
    model = repvgg_a0() if case == "repvgg_a0" else getattr(models, case)()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def onnx_session(model: nn.Module, images: Tensor) -> Callable[[], Any]:
    """The model in ONNX Runtime, with as many threads as torch has."""
    peers.peer("onnx")
    runtime = peers.peer("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(model, (images,), path, dynamo=False, opset_version=17)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    array, name = images.numpy(), session.get_inputs()[0].name
    return lambda: session.run(None, {name: array})[0]


def contenders(
    model: nn.Module, images: Tensor, compiled: bool
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """What is measured, and the seconds that it took to prepare each."""
    from torch.fx.experimental.optimization import fuse

    last = images.contiguous(memory_format=torch.channels_last)
    runs: dict[str, Callable[[], Any]] = {}
    seconds: dict[str, float] = {}

    def add(name: str, prepare: Callable[[], Callable[[], Any]]) -> None:
        start = time.perf_counter()
        runs[name] = prepare()
        runs[name]()
        seconds[name] = round(time.perf_counter() - start, 2)

    def calling(module: Any, x: Tensor) -> Callable[[], Any]:
        return lambda: module(x)

    def copied() -> nn.Module:
        return copy.deepcopy(model).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    add("eager", lambda: calling(model, images))
    add("eager channels_last", lambda: calling(copied(), last))
    add("torch.fx fuse", lambda: calling(fuse(copy.deepcopy(model)), images))
    add("torch.fx fuse channels_last",
        lambda: calling(fuse(copied()).to(memory_format=torch.channels_last), last))  # fmt: skip  # pyright: ignore[reportCallIssue]
    if compiled:
        torch.compiler.reset()
        add("torch.compile channels_last", lambda: calling(torch.compile(copied(), dynamic=False), last))
    if images.dtype == torch.float32:
        add("onnxruntime", lambda: onnx_session(model, images))
    add("skipway", lambda: calling(sw.edit.fold(model, images), images))
    return runs, seconds


def compare(model: nn.Module, images: Tensor, rounds: int, compiled: bool) -> dict[str, Any]:
    with torch.inference_mode():
        runs, prepared = contenders(model, images, compiled)
        wanted = model(images).float()
        found = {name: torch.as_tensor(run()).float() for name, run in runs.items()}
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        seconds = measure.alternate(runs, rounds, pause=0.1, clock=clock)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "shape": list(images.shape),
        "milliseconds": {name: round(median * 1000, 1) for name, median in medians.items()},
        "least_milliseconds": {name: round(min(times) * 1000, 1) for name, times in seconds.items()},
        "speedup_over_eager": {
            name: round(1 / measure.ratio(times, seconds["eager"])["median"], 3) for name, times in seconds.items()
        },
        "ours_over_theirs": {
            name: measure.ratio(seconds["skipway"], times) for name, times in seconds.items() if name != "skipway"
        },
        "seconds_to_prepare": prepared,
        "relative_difference_from_eager": {
            name: float(f"{(result - wanted).norm() / wanted.norm():.1e}") for name, result in found.items()
        },
    }


def recorded(name: str) -> dict[str, Any]:
    """What earlier runs on this machine have found."""
    path = measure.RESULTS / f"{name}.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    here = (measure.processor(), torch.__version__, torch.get_num_threads())
    return found["results"] if tuple(found["machine"][key] for key in ("processor", "torch", "threads")) == here else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cases", nargs="*", default=CASES, choices=CASES)
    parser.add_argument("--batches", nargs="*", type=int, default=(1, 8))
    parser.add_argument("--dtypes", nargs="*", default=("float32", "bfloat16"), choices=("float32", "bfloat16"))
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(chosen.threads)
    measure.keep_memory()
    models = peers.torchvision()
    name = "fold" if chosen.threads > 1 else "fold_one_thread"
    results = recorded(name)
    for case in chosen.cases:
        for dtype in chosen.dtypes:
            model = build(case, models).to(getattr(torch, dtype))
            for batch in chosen.batches:
                images = torch.randn(batch, 3, 224, 224).to(getattr(torch, dtype))
                rounds = chosen.rounds if batch == 1 else max(5, chosen.rounds // 2)
                compiled = not chosen.no_compile
                results[f"{case} {dtype} batch {batch}"] = compare(model, images, rounds, compiled)
                # Written after each case: on a busy machine the whole takes long.
                measure.record(name, results)


if __name__ == "__main__":
    main()
