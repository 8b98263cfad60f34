"""Trained networks with and without skips, on real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from real_data import images_of, martyn

from skipway.probe import curvature, landscape, side_by_side


@pytest.mark.slow
def test_the_plain_net_of_56_layers_is_the_rougher_one(shared_data: Path) -> None:
    """Li et al., fig. 1, by numbers and not by impression."""
    found = []
    for kind in ("plainnet", "resnet"):
        batch = images_of(shared_data, "a-martyn", 64)
        found.append(landscape(martyn(shared_data, kind, 56), batch, "cross_entropy", steps=11))
        assert found[-1].way == "folded"
        assert np.isfinite(found[-1].loss).all()
    plain, residual = found
    assert plain.roughness > residual.roughness
    panels = side_by_side(plain, residual, titles=["plain-56", "ResNet-56"])
    assert panels[0].get_xlim() == panels[1].get_xlim()
    assert "roughness" in panels[0].get_title()


@pytest.mark.slow
def test_curvature_of_a_trained_net_is_found(shared_data: Path) -> None:
    model, batch = martyn(shared_data, "resnet", 20), images_of(shared_data, "a-martyn", 32)
    found = curvature(
        model, batch, "cross_entropy", top=1, bottom=1, measure="eigenvalues", tolerance=1e-2, products=60
    )
    assert found.top_converged.all()
    # At a minimum the loss bends up far more than down (Li et al., fig. 7).
    assert abs(found.bottom[0, 0]) < 0.3 * found.top[0, 0]
