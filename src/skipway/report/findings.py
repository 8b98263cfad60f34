"""What a probe's numbers say, in one clause: the answer that a page of measurements begins with."""

from __future__ import annotations

import numpy as np

from skipway.probe import (
    Curvature,
    Gradients,
    Landscape,
    Lesions,
    PathGradients,
    Responses,
    Result,
    Shattering,
    contour_roughness,
)


def finding(result: Result) -> str:
    """One clause for a result, without its network's name; empty for kinds that no single number sums up."""
    if isinstance(result, Gradients):
        return _gradients(result)
    if isinstance(result, Lesions):
        return _lesions(result)
    if isinstance(result, Landscape):
        return f"its loss surface has a contour roughness of {contour_roughness(result.loss):.3f} (0 is convex)"
    if isinstance(result, PathGradients):
        low, high = result.effective()
        return f"95 % of the gradient comes along paths past {low} to {high} of {int(result.lengths[-1])} branches"
    if isinstance(result, Responses) and len(result.skips):
        return f"a branch changes the stream by {100 * float(np.median(result.ratios)):.0f} % of it (median)"
    if isinstance(result, Shattering):
        return f"gradients at different inputs correlate by {result.correlation:.2f}"
    if isinstance(result, Curvature):
        return _curvature(result)
    return ""


def _curvature(result: Curvature) -> str:
    if not result.top.shape[1] or not np.isfinite(result.top[0, 0]):
        return ""
    largest = float(result.top[0, 0])
    told = f"the loss bends up by {largest:.3g} along its sharpest direction"
    if result.bottom.shape[1] and np.isfinite(result.bottom[0, 0]) and largest > 0:
        smallest = float(result.bottom[0, 0])
        share = -100 * smallest / largest
        told += (
            f" and down by at most {-smallest:.3g}, {share:.1f} % of that" if smallest < 0 else " and down along none"
        )
    missed = not (result.top_converged[0].all() and result.bottom_converged[0].all())
    return f"{told} (not all eigenvalues converged)" if missed else told


def _gradients(result: Gradients) -> str:
    layers = result.norms[result.layers >= 0]
    layers = layers[np.isfinite(layers) & (layers > 0)]
    if not len(layers):
        return "no gradient arrives at any layer"
    told = f"the gradient's norm varies by a factor of {layers.max() / layers.min():.1f} over the layers"
    parts = result.through_shortcut**2, result.through_branch**2
    known = np.isfinite(parts[0]) & np.isfinite(parts[1])
    if known.any():
        share = np.median(result.through_shortcut[known] / np.sqrt(parts[0][known] + parts[1][known]))
        told += f", and {100 * share:.0f} % of its norm at a skip comes through the shortcut (median)"
    return told


def _lesions(result: Lesions) -> str:
    what = "branch" if result.of == "skips" else "layer"
    if not len(result.parts):
        return ""
    if result.base_error == result.base_error:
        middle, worst = 100 * float(np.median(result.errors)), 100 * float(result.errors.max())
        return (
            f"deleting one {what} takes the error from {100 * result.base_error:.1f} % to {middle:.1f} % (median), "
            f"{worst:.1f} % at worst"
        )
    return f"deleting one {what} takes the loss from {result.base_loss:.3g} to {float(np.median(result.losses)):.3g}"
