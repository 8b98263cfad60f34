"""The numbers that trials are compared by: which end of each is good, and how it is written."""

from __future__ import annotations

from typing import Literal

_HIGHEST = ("accuracy", "dice", "iou", "bleu", "correlation")


def better(measure: str) -> Literal["lowest", "highest"]:
    """Which end of a measure is the good one.

    >>> better("test_error"), better("validation_dice"), better("seconds")
    ('lowest', 'highest', 'lowest')
    """
    return "highest" if any(word in measure for word in _HIGHEST) else "lowest"


def written(measure: str, value: float | int) -> str:
    """A measure as people write it.

    >>> written("test_error", 0.0512), written("parameters", 272474), written("memory", 3 << 20), written("loss", 1.5)
    ('5.1 %', '272,474', '3.0 MiB', '1.5')
    """
    if measure.endswith("error"):
        return f"{100 * value:.1f} %"
    if measure in ("parameters", "multiply_adds", "width"):
        return f"{round(value):,}"
    if measure == "memory":
        return f"{value / 2**20:.1f} MiB"
    if measure.endswith("seconds"):
        return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.3g} ms"
    return f"{value:.4g}"
