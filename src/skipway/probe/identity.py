"""`identity`: how well a stack of layers learns to pass on what it is given, with and without skips."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect import Kind, Stack, resolve
from skipway.errors import SkipwayError
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.progress import progress
from skipway.probe.result import Policy, Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

Branch = Callable[[int], nn.Module]
# Errors below this, down to none at all, are drawn here: the axis is logarithmic.
_FLOOR = 1e-8


@dataclass(frozen=True, eq=False)
class Identity(Result):
    """How well stacks learned the identity: `skips` by `depths` by seeds in every array.

    `errors` is the mean square of y - x over that of x, on `test` samples that were not trained on; 1 is what an output
    of zero has. `starts` is that of the
    first training batch, before any step. `distances` is the relative distance of the whole stack's
    Jacobian at a test sample from the identity matrix, |J - I| / |I|, and `moved` how far the stack's weights went from
    where they started, over their norm there; `norms` is their norm at the end over that at the start. `curves`
    (..., points) is the training error at each of `steps`.
    """

    skips: tuple[str, ...]
    depths: np.ndarray
    width: int
    weight_decay: float
    seeds: tuple[int, ...]
    starts: np.ndarray
    errors: np.ndarray
    distances: np.ndarray
    moved: np.ndarray
    norms: np.ndarray
    steps: np.ndarray
    curves: np.ndarray

    @property
    def what(self) -> str:
        """What was measured."""
        deepest = np.median(self.errors[:, -1], 1)
        told = ", ".join(f"{name} {value:.2g}" for name, value in zip(self.skips, deepest, strict=True))
        return (
            f"Error of stacks of {self.width} units trained for the identity, weight decay {self.weight_decay:g}, "
            f"{int(self.steps[-1])} steps, {len(self.seeds)} seeds; {int(self.depths[-1])} layers: {told}"
        )

    def table(self) -> pandas.DataFrame:
        """One row a skip, depth and seed."""
        import pandas

        rows = [(skip, int(depth), seed) for skip in self.skips for depth in self.depths for seed in self.seeds]
        frame = pandas.DataFrame(rows, columns=["skip", "depth", "seed"])
        for name in ("starts", "errors", "distances", "moved", "norms"):
            frame[name] = getattr(self, name).ravel()
        return frame.rename(columns={"starts": "error at start", "errors": "error", "distances": "|J - I| / |I|",
                                     "norms": "norm, end / start"})  # fmt: skip

    def plot(self, axes: Any = None) -> Any:
        """Three panels by depth or step: error of the identity, distance of the Jacobian, training of the deepest."""
        with canvas(axes, self.caption, columns=3, size=(13.0, 4.4)) as drawn:
            for number, name in enumerate(self.skips):
                colour = f"C{number}"
                for panel, values in ((drawn[0], self.errors), (drawn[1], self.distances)):
                    shown = np.maximum(values[number], _FLOOR)
                    panel.plot(self.depths, np.median(shown, 1), "o-", markersize=4, color=colour, label=name)
                    panel.fill_between(self.depths, shown.min(1), shown.max(1), color=colour, alpha=0.2)
                curves = np.maximum(self.curves[number, -1], _FLOOR)
                drawn[2].plot(self.steps, np.median(curves, 0), color=colour, label=name)
            drawn[0].axhline(1, color="0.5", linestyle=":", linewidth=1)
            drawn[0].set(xlabel="layers", ylabel="|y - x|² / |x|² (dotted: y = 0)", yscale="log", xscale="log")
            drawn[1].set(xlabel="layers", ylabel="|J - I| / |I|", yscale="log", xscale="log")
            drawn[2].set(xlabel="step", ylabel="training error", yscale="log", title=f"{int(self.depths[-1])} layers")
            for panel in drawn[:2]:
                panel.set_xticks(self.depths, [str(int(depth)) for depth in self.depths])
                panel.minorticks_off()
            drawn[0].legend(frameon=False, fontsize=8)
        return drawn

    def interactive(self) -> plotly.graph_objects.Figure:
        """The error by depth as a plotly figure."""
        import plotly.graph_objects as go

        lines = [go.Scatter(x=self.depths, y=np.maximum(np.median(row, 1), _FLOOR), name=name, mode="lines+markers")
                 for name, row in zip(self.skips, self.errors, strict=True)]  # fmt: skip
        return plotly_figure(
            lines, self.caption, title="Learning the identity", xaxis_title="layers",
            yaxis={"type": "log", "title": "|y - x|² / |x|²"},
        )  # fmt: skip


def identity(
    features: Float[Tensor, "n width"], *, skips: Sequence[str | Kind] = ("none", "residual"),
    depths: Sequence[int] = (1, 2, 4, 8), seeds: Sequence[int] = (0, 1, 2), branch: Branch | None = None,
    weight_decay: float = 1e-4, steps: int = 300, rate: float = 0.003, batch_size: int = 64,
) -> Identity:  # fmt: skip
    """Train stacks of layers to give back their input, with each kind of skip, at each depth, from each seed.

    He et al. 2015 (arXiv:1512.03385): if the identity is optimal, driving a branch to zero is easier than fitting an
    identity by a stack of nonlinear layers. `features` are the samples, real or random, a fifth of which is held out;
    they are brought to mean 0 and deviation 1 overall. A layer is `branch(width)`, by default two linear maps with
    BatchNorm and a ReLU between (without a norm, sums of branches grow with depth until nothing learns); `skips` are
    names or values of `skipway.connect`. The loss is the mean square of y - x over that of x, Adam with `rate`
    (falling to zero as a cosine) and decoupled `weight_decay`.

    Raises SkipwayError for features that are no matrix of numbers, unknown skips, and what the skips themselves raise.

    >>> found = identity(torch.randn(50, 4), depths=(1, 3), seeds=(0,), steps=20)
    >>> found.errors.shape, found.skips
    ((2, 2, 1), ('none', 'residual'))
    """
    if features.ndim != 2 or len(features) < 10 or not features.is_floating_point():
        raise SkipwayError(
            f"features are a matrix of floating-point numbers, a row a sample, 10 rows at least; these are of shape "
            f"{tuple(features.shape)} and {features.dtype}"
        )
    if not depths or min(depths) < 1 or not seeds or not skips or steps < 1 or batch_size < 1 or weight_decay < 0:
        raise SkipwayError("depths, seeds, skips, steps and batch_size are at least 1 (of each one at least); "
                           "weight_decay is not negative")  # fmt: skip
    kinds = [resolve(skip) for skip in skips]
    names = tuple(skip if isinstance(skip, str) else str(skip) for skip in skips)
    width, depths = features.shape[1], sorted(depths)
    samples = (features.detach() - features.mean()) / features.std().clamp_min(1e-12)
    shuffled = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).to(samples.device)
    test, train = samples[shuffled].split([len(samples) // 5, len(samples) - len(samples) // 5])
    marks = np.unique(np.linspace(1, steps, min(steps, 60)).round().astype(int))
    shape = (len(kinds), len(depths), len(seeds))
    found = {name: np.full(shape, np.nan) for name in ("starts", "errors", "distances", "moved", "norms")}
    curves = np.full((*shape, len(marks)), np.nan)
    with progress("identity", math.prod(shape)) as advance:
        for place in np.ndindex(*shape):
            kind, depth, seed = kinds[place[0]], depths[place[1]], seeds[place[2]]
            stack = _stack(kind, depth, width, seed, branch).to(samples)
            told, curve = _learn(stack, train, test, steps, rate, weight_decay, batch_size, seed, marks)
            for name, value in told.items():
                found[name][place] = value
            curves[place] = curve
            advance(1)
    dtype = str(features.dtype).removeprefix("torch.")
    policy = Policy("stacks", "eval", "frozen", len(test), int(seeds[0]), dtype)
    return Identity(
        policy, names, np.array(depths), width, float(weight_decay), tuple(map(int, seeds)), steps=marks, curves=curves,
        **found,
    )  # fmt: skip


def rectifiers(width: int) -> nn.Module:
    """Linear, BatchNorm, ReLU, linear, BatchNorm, as wide as its input: the branch of He et al. 2015, without maps."""
    layers: list[nn.Module] = []
    for _ in range(2):
        linear = nn.Linear(width, width, bias=False)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _stack(kind: Kind, depth: int, width: int, seed: int, branch: Branch | None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Stack([(branch or rectifiers)(width) for _ in range(depth)], skip=kind, channels=width, dims=0)


def _learn(
    stack: nn.Module, train: Tensor, test: Tensor, steps: int, rate: float, weight_decay: float, batch_size: int,
    seed: int, marks: np.ndarray,
) -> tuple[dict[str, float], np.ndarray]:  # fmt: skip
    start = _vector(stack)
    optimizer = torch.optim.AdamW(stack.parameters(), rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    curve = []
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        # Dropping skips draw in training.
        torch.manual_seed(seed)
        stack.train()
        for step in range(1, steps + 1):
            x = train[torch.randint(len(train), (batch_size,), generator=generator).to(train.device)]
            optimizer.zero_grad()
            loss = (stack(x) - x).square().mean() / x.square().mean()
            if step in marks:
                curve.append(float(loss.detach()))
            loss.backward()
            optimizer.step()
            schedule.step()
    stack.eval()
    end = _vector(stack)
    size = float(start.norm().clamp_min(1e-30))
    told = {
        "starts": curve[0], "errors": _error(stack, test), "distances": _jacobian_distance(stack, test[0]),
        "moved": float((end - start).norm()) / size, "norms": float(end.norm()) / size,
    }  # fmt: skip
    return told, np.array(curve)


def _error(stack: nn.Module, x: Tensor) -> float:
    training = stack.training
    with torch.no_grad():
        value = float((stack.eval()(x) - x).square().mean() / x.square().mean())
    stack.train(training)
    return value


def _jacobian_distance(stack: nn.Module, x: Tensor) -> float:
    jacobian = torch.autograd.functional.jacobian(lambda row: stack(row[None])[0], x)
    assert isinstance(jacobian, Tensor)
    eye = torch.eye(len(x), dtype=x.dtype, device=x.device)
    return float((jacobian - eye).norm() / eye.norm())


def _vector(stack: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in stack.parameters()]).clone()
