"""The numbers that prose quotes, taken from the records when the site is built: `{{name}}` in Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from docs.making import measured

from skipway.study.answering.differences import bootstrap

# The records of benchmarks that train networks: what each is called, and what it asks.
TRAINED = {
    "connections.json": ("Every connection, alike", "What each connection does to what small networks learn"),
    "measured.json": ("Trained networks, probed", "Which classic findings four trained networks show"),
    "depth_1001.json": ("1001 layers", "Whether 1001 layers train with skips and without"),
    "stochastic_depth.json": ("Stochastic depth", "The time that branches left out save"),
    "densenet.json": ("DenseNet", "What the shared buffer saves"),
    "training_unet.json": ("U-Net on membranes", "Long skips by concatenation, addition, gate, and none"),
    "training_cifar.json": ("CIFAR-10", "What small networks learn of CIFAR-10 in minutes"),
    "training_gpt.json": ("GPT on plays", "What a small GPT learns in minutes"),
    "training_translation.json": ("Translation", "What a small Transformer learns to translate"),
}


def filled(markdown: str, folder: Path) -> str:
    """Markdown with every `{{name}}` replaced; raises KeyError for a name that is not known."""
    return re.sub(r"\{\{([\w.\-]+)\}\}", lambda found: number(found[1], folder), markdown)


def number(name: str, folder: Path) -> str:
    """A recorded number as text: one of `_NAMED`, MODEL.SKIP.MEASURE of a network, or MODEL.SKIP.vs.SKIP of two.

    verdicts.MODEL counts what differs from `residual`, table.MODEL is the table of a network's connections.
    """
    if name in _NAMED:
        record, tell = _NAMED[name]
        return tell(_record(folder, record))
    kind, _, rest = name.partition(".")
    if kind == "measured":
        return f"{_record(folder, 'measured')['lesions'][rest]['error_percent']:.1f} %"
    known = measured.networks(_record(folder, "connections"))
    if kind == "verdicts":
        return measured.verdicts(rest, known)
    if kind == "table":
        return "\n".join(measured.table(rest, known, "../connections/"))
    skip, _, measure = rest.partition(".")
    one = known[kind, skip]
    if measure.startswith("vs."):
        return measured.difference(next(iter(one["measures"])), one["against"][measure.removeprefix("vs.")])
    return measured.shown(measure, one["measures"][measure])


@cache
def _record(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["results"]


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _deep(skip: str) -> Callable[[Any], str]:
    return lambda r: f"{r['gradient_at_the_first_convolution'][-1]['log10_of_gradient_norm'][skip]:.0f}"


def _deep_runs(results: Any, skip: str) -> list[Any]:
    return [run for run in results["runs"] if run["depth"] == 1001 and run["skip"] == skip]


def _rough(name: str) -> Callable[[Any], str]:
    return lambda r: _thousandths(r["landscape"][name]["roughness"])


def _lesion(name: str) -> Callable[[Any], str]:
    return lambda r: f"{r['lesions'][name]['median_added_same_shape']:.1f}"


def _by_skip(results: Any) -> dict[str, list[float]]:
    """The membranes' Dice of each seed of the longer training of U-Nets."""
    found: dict[str, list[float]] = {}
    for label, one in results.items():
        found.setdefault(label.partition(", seed")[0], []).append(one["best"]["validation_dice_0"])
    return found


def _unet_long(results: Any) -> str:
    return "; ".join(f"{_thousandths(values)} ({skip})" for skip, values in _by_skip(results).items())


def _unet_gain(results: Any) -> str:
    """How much better each long skip is than none, with the interval of the mean over seeds."""
    plain, told = _by_skip(results)["none"], []
    for skip, values in _by_skip(results).items():
        if skip != "none":
            gains = [ours - theirs for ours, theirs in zip(values, plain, strict=True)]
            low, high = bootstrap(gains)
            told.append(f"{sum(gains) / len(gains):.3f} ({skip}; {low:.3f} to {high:.3f})")
    return ", ".join(told)


def _thousandths(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


_DENSE = "bc-100-12 float32"
_NAMED: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "stochastic_depth_time": ("stochastic_depth", lambda r: _percent(r["saved_against_no_drop"])),
    "stochastic_depth_masking": ("stochastic_depth", lambda r: _percent(r["saved_against_masking"])),
    "stochastic_depth_memory": ("stochastic_depth", lambda r: _percent(1 - r["memory_against_no_drop"])),
    "densenet_memory": ("densenet", lambda r: _percent(r[_DENSE]["shared memory over default"])),
    "densenet_time": ("densenet", lambda r: _percent(r[_DENSE]["shared time over default"]["median"])),
    "deep_residual": ("depth_1001", lambda r: _percent(max(one["test_accuracy"] for one in _deep_runs(r, "residual")))),
    "deep_plain_steps": ("depth_1001", lambda r: str(max(len(one["losses"]) for one in _deep_runs(r, "none")))),
    "deep_rates": ("depth_1001", lambda r: str(sum(one["diverged"] for one in _deep_runs(r, "none")))),
    "deep_gradient_none": ("depth_1001", _deep("none")),
    "deep_gradient_residual": ("depth_1001", _deep("residual")),
    "unet_long": ("training_unet", _unet_long),
    "unet_gain": ("training_unet", _unet_gain),
    "lesion_56": ("measured", _lesion("ResNet-56")),
    "lesion_20": ("measured", _lesion("ResNet-20")),
    "lesion_plain": ("measured", lambda r: f"{r['lesions']['plain-56']['median_error_percent']:.0f} %"),
    "rough_plain": ("measured", _rough("plain-56")),
    "rough_residual": ("measured", _rough("ResNet-56")),
}
