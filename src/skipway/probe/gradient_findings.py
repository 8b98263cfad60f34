"""When a gradient counts as vanishing or exploding, said in sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Half the spacing of float32 numbers around 1: a step smaller than this share of a weight is lost in rounding.
LOST = 2.0**-24
# Without a learning rate, that of 0.1 is assumed: more than most networks are trained with.
ASSUMED_RATE = 0.1
# A step as long as the weights themselves replaces them.
REPLACED = 1.0
# How many times the gradient may shrink or grow from the last weight layer to the first.
SPREAD = 1e4


def findings(
    parameters: Sequence[str], layers: np.ndarray, norms: np.ndarray, weights: np.ndarray, updates: np.ndarray
) -> tuple[str, ...]:
    """What is wrong with the gradients of the weight layers, worst first; nothing is said of other parameters.

    Vanishing: a step (of the rate given, or of 0.1) changes a weight by less than 2^-24 of itself, so that float32
    loses it, or the first layer's gradient is 10^4 times smaller than the last's. Exploding: a step is longer than the
    weight, the first layer's gradient is 10^4 times the last's, or a gradient is no number.
    """
    told = []
    chosen = [index for index in range(len(parameters)) if layers[index] >= 0]
    broken = [parameters[index] for index in chosen if np.isinf(norms[index])]
    if broken:
        told.append(f"exploding: the gradient of {_some(broken)} is not finite")
    known = [index for index in chosen if np.isfinite(norms[index]) and weights[index] > 0]
    steps = np.array([
        updates[index] if np.isfinite(updates[index]) else ASSUMED_RATE * norms[index] / weights[index]
        for index in known
    ])  # fmt: skip
    given = any(np.isfinite(updates[index]) for index in known)
    rate = "" if given else f" at a learning rate of {ASSUMED_RATE}"
    lost = [parameters[index] for index, step in zip(known, steps, strict=True) if step < LOST]
    if lost:
        told.append(
            f"vanishing: a step{rate} moves {_some(lost)} by less than 2^-24 of its norm, which float32 rounds away"
        )
    replaced = [parameters[index] for index, step in zip(known, steps, strict=True) if step > REPLACED]
    if replaced:
        told.append(f"exploding: a step{rate} is longer than {_some(replaced)} itself")
    if len(known) > 2 and norms[known[-1]] > 0:
        ratio = norms[known[0]] / norms[known[-1]]
        if ratio < 1 / SPREAD:
            told.append(
                f"vanishing: the gradient of {parameters[known[0]]} is {ratio:.1e} of that of {parameters[known[-1]]}"
            )
        elif ratio > SPREAD:
            told.append(
                f"exploding: the gradient of {parameters[known[0]]} is {ratio:.1e} of that of {parameters[known[-1]]}"
            )
    return tuple(told)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"
