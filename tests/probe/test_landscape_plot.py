"""Pictures of landscapes: one scale for what is compared, the usual marks, and the caption under each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from probe_nets import images, mlp, points, tiny_resnet

from skipway.errors import SkipwayError
from skipway.probe import Landscape, landscape, side_by_side

SURFACE = landscape(mlp(5, 8, 3), points(), "cross_entropy", steps=(7, 5), test=points(seed=5))
CURVE = landscape(mlp(5, 8, 3), points(), "cross_entropy", steps=7, dims=1, test=points(seed=5))


def scaled(result: Landscape, factor: float) -> Landscape:
    return replace(result, loss=result.loss * factor)


class TestOne:
    @pytest.mark.parametrize("kind", ["contour", "filled", "heat", "surface"])
    @pytest.mark.parametrize("log", [False, True])
    def test_every_kind_is_drawn_with_its_caption(self, kind: str, log: bool):
        axes = SURFACE.plot(kind=kind, log=log)
        axes.figure.canvas.draw()
        assert axes.get_xlabel() == "direction 1"
        assert axes.get_ylabel() == "direction 2"
        assert " ".join(axes.figure.get_supxlabel().split()) == SURFACE.caption
        assert axes.get_xlim()[0] < -0.9 < 0.9 < axes.get_xlim()[1]

    def test_given_axes_are_drawn_into(self):
        _, axes = plt.subplots()
        assert SURFACE.plot(axes) is axes
        assert CURVE.plot(axes) is axes

    def test_the_curve_has_twin_axes(self):
        axes = CURVE.plot()
        blue, dashed = axes.lines[:2]
        np.testing.assert_array_equal(blue.get_ydata(), CURVE.loss)
        assert (blue.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
        twin = next(other for other in axes.figure.axes if other is not axes)
        assert twin.get_ylim() == (0, 100)
        np.testing.assert_allclose(twin.lines[0].get_ydata(), 100 * CURVE.error)

    def test_heights_stand_over_their_coordinates(self):
        axes = SURFACE.plot(kind="heat")
        mesh = axes.collections[0]
        np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(5, 7), SURFACE.loss.T)

    def test_what_diverged_is_drawn_around(self):
        loss = SURFACE.loss.copy()
        loss[0, 0], loss[-1, -1] = np.nan, np.inf
        for kind in ("contour", "filled", "heat", "surface"):
            replace(SURFACE, loss=loss).plot(kind=kind, log=True).figure.canvas.draw()

    def test_a_constant_is_drawn(self):
        for kind in ("contour", "surface"):
            scaled(SURFACE, 0.0).plot(kind=kind)

    def test_refusals(self):
        with pytest.raises(SkipwayError, match="no kind of plot 'contuor'; did you mean 'contour'"):
            SURFACE.plot(kind="contuor")
        with pytest.raises(SkipwayError, match="no values 'loss2'; did you mean 'loss'"):
            SURFACE.plot(values="loss2")
        with pytest.raises(SkipwayError, match="measured without test data"):
            replace(SURFACE, test_loss=None).plot(values="test_loss")
        with pytest.raises(SkipwayError, match="hold no finite number"):
            scaled(SURFACE, np.nan).plot()
        with pytest.raises(SkipwayError, match="draws into 1 axes, and 2 were given"):
            SURFACE.plot(plt.subplots(1, 2)[1])

    @pytest.mark.parametrize("log", [False, True])
    def test_interactive(self, log: bool):
        figure: Any = SURFACE.interactive(log=log)
        assert np.asarray(figure.data[0].z).shape == (5, 7)
        assert figure.layout.annotations[0].text.replace("<br>", " ") == SURFACE.caption
        assert len(CURVE.interactive(log=log).data) == 4

    def test_the_table(self):
        table = SURFACE.table()
        assert list(table) == ["x", "y", "loss", "error", "test_loss", "test_error"]
        row = table.iloc[5 * 3 + 2]
        assert (row["x"], row["y"], row["loss"]) == (SURFACE.x[3], SURFACE.y[2], SURFACE.loss[3, 2])  # pyright: ignore
        assert list(CURVE.table()) == ["x", "loss", "error", "test_loss", "test_error"]


class TestSideBySide:
    @pytest.mark.parametrize("kind", ["contour", "filled", "heat", "surface"])
    def test_one_scale(self, kind: str):
        panels = side_by_side(SURFACE, scaled(SURFACE, 3.0), titles=["a", "b"], kind=kind)
        assert len(panels) == 2
        limits = [panel.collections[0].get_clim() for panel in panels]
        assert limits[0] == limits[1]
        if kind == "surface":
            assert panels[0].get_zlim() == panels[1].get_zlim()
        assert panels[0].get_title().startswith("a\nroughness ")

    def test_contours_are_at_the_same_levels(self):
        panels = side_by_side(SURFACE, scaled(SURFACE, 3.0), levels=[0.5, 1, 2])
        assert [list(panel.collections[0].levels) for panel in panels] == [[0.5, 1, 2]] * 2

    def test_curves(self):
        panels = side_by_side(CURVE, scaled(CURVE, 3.0))
        assert panels[0].get_ylim() == panels[1].get_ylim()

    def test_what_does_not_compare(self):
        frozen, fresh = (
            landscape(tiny_resnet(), images(), "cross_entropy", steps=3, batch_norm=policy)
            for policy in ("frozen", "recalibrated")
        )
        with pytest.raises(SkipwayError, match=r"their BatchNorm policies differ \(frozen, recalibrated\)"):
            side_by_side(frozen, fresh)
        side_by_side(frozen, landscape(mlp(5, 3), points(), "cross_entropy", steps=3))
        with pytest.raises(SkipwayError, match="their numbers of axes differ"):
            side_by_side(SURFACE, CURVE)
        with pytest.raises(SkipwayError, match="1 titles for 2 landscapes"):
            side_by_side(SURFACE, SURFACE, titles=["a"])
        with pytest.raises(SkipwayError, match="draws one landscape or more"):
            side_by_side()
