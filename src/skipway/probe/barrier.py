"""`barrier`: the loss on the straight line between two trained nets, before and after their units are matched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from skipway.errors import SkipwayError, choose
from skipway.graph import SkipGraph
from skipway.probe.batches import place_of, read_batches
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.follow import with_trace
from skipway.probe.landscape import Landscape, landscape
from skipway.probe.matching import Matching, match_weights
from skipway.probe.quiet import quiet
from skipway.probe.result import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

_POLICIES = ("recalibrated", "interpolated")


@dataclass(frozen=True, eq=False)
class Barrier(Result):
    """The loss between two nets, at `t` from 0 (the first) to 1 (the second): `loss` (lines, points), and `error`.

    `lines` are "as they are" and, with a `matching`, "matched". `test_loss` and `test_error` are the same on test data,
    or None. `barriers` and `test_barriers` are, for each line, how far the loss rises above the chord at most.
    """

    lines: tuple[str, ...]
    loss_name: str
    t: np.ndarray
    loss: np.ndarray
    error: np.ndarray
    test_loss: np.ndarray | None
    test_error: np.ndarray | None
    matching: Matching | None

    @property
    def barriers(self) -> np.ndarray:
        """max over t of L(t) - ((1 - t) L(0) + t L(1)), for each line."""
        return height(self.t, self.loss)

    @property
    def test_barriers(self) -> np.ndarray | None:
        """The same on test data."""
        return None if self.test_loss is None else height(self.t, self.test_loss)

    @property
    def what(self) -> str:
        """What was measured."""
        told = ", ".join(f"{value:.3g} {line}" for value, line in zip(self.barriers, self.lines, strict=True))
        return f"Loss ({self.loss_name.replace('_', ' ')}) on the line between two nets; barrier {told}"

    def table(self) -> pandas.DataFrame:
        """One row a line: both ends, the highest loss between, the barrier, and the same on test data."""
        import pandas

        columns: dict[str, Any] = {"line": list(self.lines)}
        for name, loss, barriers in (("", self.loss, self.barriers), ("test_", self.test_loss, self.test_barriers)):
            if loss is not None:
                columns |= {f"{name}first": loss[:, 0], f"{name}second": loss[:, -1], f"{name}highest": loss.max(1),
                            f"{name}barrier": barriers}  # fmt: skip
        return pandas.DataFrame(columns)

    def plot(self, axes: Any = None) -> Any:
        """Two panels: loss and error by t; as they are dashed, matched solid, test data in red."""
        with canvas(axes, self.caption, columns=2, size=(10.0, 4.4)) as drawn:
            sets = ((self.loss, self.error, "tab:blue", "train"), (self.test_loss, self.test_error, "tab:red", "test"))
            for loss, error, colour, name in sets:
                if loss is None:
                    continue
                for number, line in enumerate(self.lines):
                    style = "-" if number == len(self.lines) - 1 and len(self.lines) > 1 else "--"
                    label = line if self.test_loss is None else f"{line}, {name}"
                    drawn[0].plot(self.t, loss[number], style, color=colour, label=label)
                    if error is not None:
                        drawn[1].plot(self.t, 100 * error[number], style, color=colour, label=label)
            drawn[0].set(xlabel="t: 0 the first net, 1 the second", ylabel=self.loss_name.replace("_", " "))
            drawn[1].set(xlabel="t: 0 the first net, 1 the second", ylabel="error, %")
            self._mark(drawn[0])
            drawn[0].legend(frameon=False, fontsize=8)
            if np.isnan(self.error).all():
                drawn[1].set_visible(False)
        return drawn

    def _mark(self, axes: Any) -> None:
        chord = (1 - self.t) * self.loss[0, 0] + self.t * self.loss[0, -1]
        axes.plot(self.t, chord, ":", color="0.6", linewidth=1, label="chord")
        for number, value in enumerate(self.barriers):
            at = int(
                (self.loss[number] - (1 - self.t) * self.loss[number, 0] - self.t * self.loss[number, -1]).argmax()
            )
            axes.annotate(f"{value:.2g}", (self.t[at], self.loss[number, at]), xytext=(0, 4),
                          textcoords="offset points", ha="center", fontsize=8)  # fmt: skip

    def interactive(self) -> plotly.graph_objects.Figure:
        """The loss on each line as a plotly figure."""
        import plotly.graph_objects as go

        lines = []
        for loss, name, colour in ((self.loss, "train", "royalblue"), (self.test_loss, "test", "firebrick")):
            for number, line in enumerate(self.lines if loss is not None else ()):
                assert loss is not None
                dash = "solid" if number == len(self.lines) - 1 and number else "dash"
                lines.append(go.Scatter(x=self.t, y=loss[number], name=f"{line}, {name}", mode="lines",
                                        line={"dash": dash, "color": colour}))  # fmt: skip
        return plotly_figure(
            lines, self.caption, title="Between two nets", xaxis_title="t", yaxis_title=self.loss_name.replace("_", " ")
        )


def barrier(
    model: nn.Module, other: nn.Module, data: Any, loss: Any = None, *, test: Any = None, steps: int = 25,
    match: bool = True, batch_norm: str | None = None, calibration: Any = None, starts: int = 5, seed: int = 0,
    samples: int | None = None, graph: SkipGraph | None = None,
) -> Barrier:  # fmt: skip
    """The loss at (1 - t) w_model + t w_other for `steps` points t from 0 to 1, and the same with `other` matched.

        barrier = max over t of L(t) - ((1 - t) L(0) + t L(1))

    Two nets trained from different seeds are divided by a barrier; much of it is that their units are in another order
    (Entezari et al. 2021, arXiv:2110.06296; Ainsworth et al. 2022, arXiv:2209.04836). `match_weights` puts them in
    order with `starts` starts, unless `match` is false. Statistics of BatchNorm that were averaged belong to no net:
    `batch_norm="recalibrated"`, which a model with BatchNorm gets by default, estimates them anew at every point, both
    ends included, on all of `calibration` (by default `data`); "interpolated" averages them. `test` is data to measure
    beside it, `samples` a bound on each. Neither model is touched.

    Raises SkipwayError where the two are not of one architecture.

    >>> import torch
    >>> nets = [nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)) for _ in range(2)]
    >>> found = barrier(*nets, (torch.randn(32, 2), torch.randint(2, (32,))), "cross_entropy", steps=5)
    >>> found.lines, found.loss.shape
    (('as they are', 'matched'), (2, 5))
    """
    if steps < 3:
        raise SkipwayError(f"steps={steps}: a line needs its two ends and a point between, 3 at least")
    batches = read_batches(model, data, loss, samples)
    norms = batches.policy(model).batch_norm != "none"
    policy = choose(
        "BatchNorm policy between nets", batch_norm or ("recalibrated" if norms else "interpolated"), _POLICIES
    )
    if calibration is not None and policy != "recalibrated":
        raise SkipwayError(
            "calibration data is for BatchNorm that is recalibrated: this model has none, or keeps its own"
        )
    # Read once: an iterator, or a loader that shuffles, would give other samples to each line.
    kept = [_again(batch) for batch in batches]
    fresh = None if calibration is None else [_again(batch) for batch in read_batches(model, calibration, loss)]
    kept_test = None if test is None else [_again(batch) for batch in read_batches(model, test, loss, samples)]
    matching = None
    others = [("as they are", other)]
    if match:
        with quiet(model), quiet(other):
            graph = graph or with_trace(model, batches.items[0], None, lambda found: found)
        matching = match_weights(model, other, kept, starts=starts, seed=seed, graph=graph)
        others.append(("matched", matching.applied(other, graph)))
    if place_of(other) != place_of(model):
        raise SkipwayError("the two models are on different devices or of different precision; bring them together")
    found: list[Landscape] = [
        landscape(model, kept, batches.loss, steps=steps, span=(0.0, 1.0), other=part, batch_norm=policy,
                  calibration=fresh if policy == "recalibrated" else None, test=kept_test)
        for _, part in others
    ]  # fmt: skip
    tests = [(one.test_loss, one.test_error) for one in found if one.test_loss is not None]
    return Barrier(
        found[0].policy if not match else _with_seed(found[0].policy, seed), tuple(name for name, _ in others),
        batches.loss.name, found[0].x, np.stack([one.loss for one in found]), np.stack([one.error for one in found]),
        np.stack([one for one, _ in tests]) if tests else None,
        np.stack([one for _, one in tests if one is not None]) if tests else None, matching,
    )  # fmt: skip


def height(t: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """How far each row rises above the straight line between its ends, at most; 0 where it never does."""
    chord = (1 - t) * loss[:, :1] + t * loss[:, -1:]
    return (loss - chord).max(1).clip(min=0.0)


def _again(batch: Any) -> tuple[Any, Any]:
    return (batch.kwargs if batch.kwargs else batch.args), batch.targets


def _with_seed(policy: Any, seed: int) -> Any:
    from dataclasses import replace

    return replace(policy, seed=seed)
