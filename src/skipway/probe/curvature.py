"""`curvature`: eigenvalues, trace and spectral density of the loss's Hessian, of a whole model or of parts of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from skipway.errors import SkipwayError, choose
from skipway.probe import lanczos
from skipway.probe.batches import Batches, read_batches
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.hessian import Hessian, block_patterns, in_pieces, in_precision, matching, method_of
from skipway.probe.journal import Journal
from skipway.probe.plane import fingerprint
from skipway.probe.progress import progress
from skipway.probe.quiet import quiet
from skipway.probe.result import Result

if TYPE_CHECKING:
    import pandas

_PARTS = ("eigenvalues", "trace", "density")
# Densities are drawn on a logarithmic axis; below this there is nothing to see.
_FLOOR = 1e-7


@dataclass(frozen=True, eq=False)
class Curvature(Result):
    """The spectrum of the Hessian of the mean loss, for each group of parameters.

    `groups` are names, `parameters` (groups,) their sizes. `top` (groups, k) are the largest eigenvalues from the
    largest down, `bottom` the smallest from the smallest up; NaN beyond a group's size. `top_residuals` are
    |H x - lambda x|: some eigenvalue lies that near; `top_converged` says whether that is within `tolerance` of the
    largest size. `trace` (groups,) with its standard error. `nodes` and `weights` (groups, runs, steps) are the
    quadrature of the spectral density, `width` (groups,) the standard deviation of its smoothing kernel. `products` are
    Hessian-vector products, `method` how they were computed. What was not asked for is NaN, or has no columns.
    """

    groups: tuple[str, ...]
    parameters: np.ndarray
    top: np.ndarray
    bottom: np.ndarray
    top_residuals: np.ndarray
    bottom_residuals: np.ndarray
    top_converged: np.ndarray
    bottom_converged: np.ndarray
    tolerance: float
    trace: np.ndarray
    trace_error: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray
    width: np.ndarray
    products: np.ndarray
    method: str

    @property
    def what(self) -> str:
        of = self.groups[0] if len(self.groups) == 1 else f"{len(self.groups)} groups of parameters"
        asked = [~np.isnan(part) for part in (self.top, self.bottom)]
        missed = sum(int((there & ~passed).sum()) for there, passed in
                     zip(asked, (self.top_converged, self.bottom_converged), strict=True))  # fmt: skip
        note = f", {missed} eigenvalues not converged" if missed else ""
        return f"Hessian of the loss of {of} ({self.method}{note})"

    def density(self, group: int = 0, points: int = 1000) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues t on a grid and the spectral density there: mean over runs of sum_k w_k N(t; node_k, width^2)."""
        if not self.weights.size:
            raise SkipwayError("no spectral density was measured; ask for it with measure=('density',)")
        nodes, weights, width = self.nodes[group].ravel(), self.weights[group].ravel(), self.width[group]
        at = np.linspace(nodes.min() - 4 * width, nodes.max() + 4 * width, points)
        kernel = np.exp(-0.5 * ((at[:, None] - nodes) / width) ** 2) / (width * np.sqrt(2 * np.pi))
        return at, kernel @ weights / len(self.nodes[group])

    def table(self) -> pandas.DataFrame:
        """One row a group: its size, eigenvalues with residuals, trace."""
        import pandas as pd

        columns: dict[str, Any] = {"group": list(self.groups), "parameters": self.parameters}
        for end in ("top", "bottom"):
            values, residuals = getattr(self, end), getattr(self, f"{end}_residuals")
            for number in range(values.shape[1]):
                columns[f"{end} {number + 1}"] = values[:, number]
                columns[f"{end} {number + 1} residual"] = residuals[:, number]
        if self.top.shape[1] and self.bottom.shape[1]:
            columns["|bottom / top|"] = np.abs(self.bottom[:, 0] / self.top[:, 0])
        columns |= {"trace": self.trace, "trace error": self.trace_error, "products": self.products}
        return pd.DataFrame(columns)

    def plot(self, axes: Any = None) -> Any:
        """Draw the spectral density on a logarithmic axis with the extreme eigenvalues; groups as bars without it."""
        with canvas(axes, self.caption) as axes:
            if self.weights.size:
                for number, group in enumerate(self.groups):
                    at, density = self.density(number)
                    (line,) = axes.semilogy(at, density + _FLOOR, label=group, linewidth=1)
                    ends = np.concatenate([self.top[number], self.bottom[number]])
                    axes.plot(ends, np.full(len(ends), 2 * _FLOOR), "|", color=line.get_color(), markersize=10)
                axes.set_xlabel("eigenvalue (marks: extreme ones)")
                axes.set_ylabel("spectral density")
                axes.legend(fontsize=8)
            else:
                self._bars(axes)
        return axes

    def _bars(self, axes: Any) -> None:
        places = np.arange(len(self.groups))
        for number in range(self.top.shape[1]):
            axes.bar(places - 0.2, self.top[:, number], 0.38, color="tab:red", alpha=0.35,
                     yerr=self.top_residuals[:, number], label="largest" if number == 0 else None)  # fmt: skip
        for number in range(self.bottom.shape[1]):
            axes.bar(places + 0.2, self.bottom[:, number], 0.38, color="tab:blue", alpha=0.35,
                     yerr=self.bottom_residuals[:, number], label="smallest" if number == 0 else None)  # fmt: skip
        axes.axhline(0, color="0.4", linewidth=0.8)
        axes.set_xticks(places, self.groups, rotation=90 if len(self.groups) > 3 else 0, fontsize=8)
        axes.set_ylabel("eigenvalue")
        if self.top.size or self.bottom.size:
            axes.legend(fontsize=8)

    def interactive(self) -> Any:
        """The spectral density of each group, or its eigenvalues as bars, as a plotly figure."""
        import plotly.graph_objects as go

        if self.weights.size:
            lines = [
                go.Scatter(x=at, y=density + _FLOOR, name=group)
                for group, (at, density) in ((g, self.density(i)) for i, g in enumerate(self.groups))
            ]
            return plotly_figure(
                lines, self.caption, xaxis_title="eigenvalue", yaxis={"type": "log", "title": "spectral density"}
            )
        bars = [
            go.Bar(x=list(self.groups), y=values[:, number], name=f"{name} {number + 1}")
            for name, values in (("top", self.top), ("bottom", self.bottom))
            for number in range(values.shape[1])
        ]
        return plotly_figure(bars, self.caption, yaxis_title="eigenvalue", barmode="group")


def curvature(
    model: nn.Module,
    data: Any,
    loss: Any = None,
    *,
    top: int = 5,
    bottom: int = 1,
    groups: str | Sequence[str] | None = None,
    measure: str | Sequence[str] = _PARTS,
    tolerance: float = 1e-2,
    products: int = 60,
    trace_products: int = 12,
    runs: int = 1,
    steps: int = 20,
    seed: int = 0,
    mode: Literal["eval", "train"] = "eval",
    samples: int | None = None,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    folder: str | Path | None = None,
) -> Curvature:
    """Measure the Hessian of the mean loss of `model` over `data`, for all its parameters or for groups of them.

    Eigenvalues: the `top` largest and the `bottom` smallest, by one Lanczos run with full re-orthogonalisation, until
    their residuals are within `tolerance` of the largest, or `products` Hessian-vector products are spent. Density:
    stochastic Lanczos quadrature, `runs` random vectors of `steps` products each, of which the first are those that
    find the eigenvalues; its kernel is Gaussian, of width range / ((steps - 1) sqrt(8 ln 3)) (Papyan 2019). Trace:
    Hutch++ with `trace_products` products. `measure` chooses among "eigenvalues", "trace" and "density".

    A product takes about three gradients; the defaults spend some thirty, for a ResNet-20 on 256 images a minute or so
    on two cores. One random vector tells the density of a large model, whose error falls as 1 / sqrt(runs *
    parameters); for a small one, take more `runs` and `steps`.

    `groups` are patterns of parameter names, each measured by itself, as "layer3.*"; "blocks" for each block of the
    model; None for all trained parameters. In evaluation mode batches are weighted by their samples and may be cut to
    `batch_size` where memory is short; in training mode (`mode="train"`) BatchNorm couples the samples of each batch,
    which then stay together. `dtype=torch.float64` measures on a copy in that precision. With `folder`, each group is
    kept as it is measured, and the same call goes on where a run was stopped, to the same bits. The model is left as it
    was.

    Raises SkipwayError where no parameter fits a pattern, the loss cannot be differentiated, or the folder holds
    another measurement.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> found = curvature(net, (x, torch.zeros(2, 1)), "mse", top=1)
    >>> round(float(found.top[0, 0]), 4), round(float(found.bottom[0, 0]), 4)
    (4.0, 1.0)
    """
    chosen = (measure,) if isinstance(measure, str) else tuple(measure)
    for part in chosen:
        choose("measurement", part, _PARTS)
    choose("mode", mode, ("eval", "train"))
    if top < 0 or bottom < 0 or ("eigenvalues" in chosen and top + bottom == 0):
        raise SkipwayError(f"top={top}, bottom={bottom}: how many eigenvalues to find, at least one in all")
    if mode == "train" and batch_size is not None:
        raise SkipwayError("in training mode the samples of a batch belong together; batch_size is for mode='eval'")
    if min(trace_products, steps) < 3 or runs < 1:
        raise SkipwayError("trace_products and steps are at least 3, runs at least 1")
    batches = in_pieces(read_batches(model, data, loss, samples), batch_size)
    policy = batches.policy(model, mode, None, seed, dtype)
    with quiet(model, training=mode == "train", seed=seed):
        measured, batches = in_precision(model, batches, dtype)
        if groups is None:
            patterns: tuple[str, ...] = ()
        elif groups == "blocks":
            patterns = block_patterns(model)
        else:
            patterns = (groups,) if isinstance(groups, str) else tuple(groups)
        named = [(pattern, matching(measured, pattern)) for pattern in patterns] or [
            ("all parameters", matching(measured, None))
        ]
        settings = _Settings(chosen, top, bottom, tolerance, products, trace_products, runs, steps)
        journal = None
        if folder is not None:
            told = _manifest(settings, measured, batches, named, vars(policy))
            journal = Journal(folder, told, settings.columns)
        kept, there = journal.read(len(named)) if journal is not None else (None, [False] * len(named))
        found: list[np.ndarray] = []
        with contextlib.ExitStack() as stack:
            if journal is not None:
                stack.callback(journal.close)
            advance = stack.enter_context(progress("curvature", settings.most * len(named)))
            for number, (_, names) in enumerate(named):
                done = 0
                if kept is not None and there[number]:
                    values = kept[number]
                else:
                    group = _Group(Hessian(measured, batches, names), seed, number, lambda: advance(1))
                    values = group.measure(settings)
                    done = group.told
                    if journal is not None:
                        journal.add(number, values.tolist())
                found.append(values)
                advance(settings.most - done)
    parts = settings.split(np.stack(found))
    differences = parts.pop("differences")[:, 0]
    return Curvature(
        policy=policy,
        groups=tuple(name for name, _ in named),
        tolerance=tolerance,
        method="; ".join(dict.fromkeys(method_of(None if step != step else step) for step in differences.tolist())),
        **parts,
    )


@dataclass(frozen=True)
class _Settings:
    """What is measured of each group, and how its numbers lie in a row."""

    chosen: tuple[str, ...]
    top: int
    bottom: int
    tolerance: float
    products: int
    trace_products: int
    runs: int
    steps: int

    @property
    def most(self) -> int:
        """The products that a group takes at most."""
        ends, density = "eigenvalues" in self.chosen, "density" in self.chosen
        found = max(self.products, self.steps * density) * ends
        return found + self.trace_products * ("trace" in self.chosen) + (self.runs - ends) * self.steps * density

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], type]]:
        ends = "eigenvalues" in self.chosen
        top, bottom = (self.top * ends,), (self.bottom * ends,)
        nodes = (self.runs, self.steps) if "density" in self.chosen else (0, 0)
        return {
            "parameters": ((), np.int64), "top": (top, np.float64), "bottom": (bottom, np.float64),
            "top_residuals": (top, np.float64), "bottom_residuals": (bottom, np.float64),
            "top_converged": (top, np.bool_), "bottom_converged": (bottom, np.bool_), "trace": ((), np.float64),
            "trace_error": ((), np.float64), "nodes": (nodes, np.float64), "weights": (nodes, np.float64),
            "width": ((), np.float64), "products": ((), np.int64), "differences": ((1,), np.float64),
        }  # fmt: skip

    @property
    def columns(self) -> int:
        return sum(math.prod(shape) for shape, _ in self.shapes.values())

    def join(self, found: dict[str, Any]) -> np.ndarray:
        """A group's numbers in a row."""
        return np.concatenate([np.asarray(found[name], dtype=np.float64).ravel() for name in self.shapes])

    def split(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The numbers of all groups, (groups, ...) each."""
        found, start = {}, 0
        for name, (shape, kind) in self.shapes.items():
            size = math.prod(shape)
            found[name] = rows[:, start : start + size].reshape(len(rows), *shape).astype(kind)
            start += size
        return found


def _manifest(
    settings: _Settings, model: nn.Module, batches: Batches, named: Sequence[tuple[str, tuple[str, ...]]],
    policy: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    return {
        "what": "curvature",
        "policy": policy,
        "loss_name": batches.loss.name,
        **vars(settings),
        "groups": [[name, list(names)] for name, names in named],
        "weights": fingerprint([{**dict(model.named_parameters()), **dict(model.named_buffers())}]),
        "data": fingerprint([[batch.args, batch.kwargs, batch.targets] for batch in batches]),
    }


class _Group:
    """The measurements of one group of parameters."""

    def __init__(self, hessian: Hessian, seed: int, number: int, advance: Any):
        self._hessian = hessian
        self._seed = seed
        self._number = number
        self._advance = advance
        self.told = 0
        self._like = torch.zeros(hessian.size, device=hessian.device, dtype=hessian.dtype)

    def measure(self, asked: _Settings) -> np.ndarray:
        hessian, unknown = self._hessian, np.float64(np.nan)
        found: dict[str, Any] = {"trace": unknown, "trace_error": unknown, "width": unknown}
        found |= {name: np.zeros(0) for name in ("nodes", "weights")}
        for name, (shape, kind) in asked.shapes.items():
            if name.startswith(("top", "bottom")):
                found[name] = np.full(shape, False if kind is np.bool_ else np.nan)
        drawn: list[tuple[np.ndarray, np.ndarray]] = []
        if "eigenvalues" in asked.chosen:
            ends = lanczos.extreme_eigenvalues(
                self._product, self._like, asked.top, asked.bottom, asked.tolerance, asked.products,
                self._generator(0), asked.steps if "density" in asked.chosen else 0,
            )  # fmt: skip
            drawn.append((ends.nodes, ends.weights))
            for name in ("top", "bottom", "top_residuals", "bottom_residuals", "top_converged", "bottom_converged"):
                values = getattr(ends, name)
                found[name][: len(values)] = values
        if "trace" in asked.chosen:
            found["trace"], found["trace_error"] = lanczos.trace(
                self._product, self._like, asked.trace_products, self._generator(1)
            )
        if "density" in asked.chosen:
            found |= self._density(asked, drawn)
        found |= {"parameters": hessian.size, "products": hessian.products}
        found["differences"] = np.nan if hessian.differences is None else hessian.differences
        return asked.join(found)

    def _density(self, asked: _Settings, drawn: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
        """The quadratures of all runs, of which some may be drawn already."""
        generator = self._generator(2)
        while len(drawn) < asked.runs:
            drawn.append(lanczos.quadrature(self._product, self._like, asked.steps, generator))
        # Where the space is spanned earlier there are fewer nodes; those added weigh nothing.
        nodes = np.stack([np.pad(nodes, (0, asked.steps - len(nodes)), mode="edge") for nodes, _ in drawn])
        weights = np.stack([np.pad(weights, (0, asked.steps - len(weights))) for _, weights in drawn])
        width = (nodes.max() - nodes.min()) / ((asked.steps - 1) * np.sqrt(8 * np.log(3)))
        return {"nodes": nodes, "weights": weights, "width": width or max(abs(nodes.max()), 1.0) * 1e-3}

    def _product(self, v: torch.Tensor) -> torch.Tensor:
        self.told += 1
        self._advance()
        return self._hessian.product(v)

    def _generator(self, what: int) -> torch.Generator:
        state = np.random.SeedSequence((self._seed, self._number, what)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state))
