"""`construction`: a deeper net made of a trained shallow one by layers that are the identity, and trained on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.progress import progress
from skipway.probe.result import Policy, Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

NETS = ("shallow", "built", "plain", "residual")


@dataclass(frozen=True, eq=False)
class Construction(Result):
    """Training losses of four nets, (nets, seeds, points) at `steps`, behind the shallow one's own training.

    `nets`: "shallow", trained on; "built", the deeper net made of it by identity layers, trained on; "plain", as deep,
    from scratch without skips; "residual", as deep, from scratch with them. The last two get the shallow net's steps
    too. `errors` (nets, seeds) are the shares of test samples told wrong at the end. `equality` (seeds,) is the largest
    difference between the outputs of the built net and the shallow one, over the largest output, before training on.
    """

    depth: int
    deeper: int
    width: int
    seeds: tuple[int, ...]
    nets: tuple[str, ...]
    steps: np.ndarray
    losses: np.ndarray
    errors: np.ndarray
    equality: np.ndarray

    @property
    def what(self) -> str:
        """What was measured."""
        ends = np.median(self.losses[:, :, -1], 1)
        told = ", ".join(f"{name} {value:.3g}" for name, value in zip(self.nets, ends, strict=True))
        return (
            f"{self.deeper} hidden layers made of {self.depth} by identity layers (outputs equal to "
            f"{self.equality.max():.1g}) and trained on; training loss at the end: {told}"
        )

    def table(self) -> pandas.DataFrame:
        """One row a net and seed: the training loss before and after the last phase, and the test error."""
        import pandas

        rows = [(net, seed) for net in self.nets for seed in self.seeds]
        frame = pandas.DataFrame(rows, columns=["net", "seed"])
        frame["loss, first"] = self.losses[:, :, 0].ravel()
        frame["loss, last"] = self.losses[:, :, -1].ravel()
        frame["test error"] = self.errors.ravel()
        return frame

    def plot(self, axes: Any = None) -> Any:
        """Two panels: training loss by step, median and range over seeds; test error of each net, a dot a seed."""
        with canvas(axes, self.caption, columns=2, size=(10.0, 4.4)) as drawn:
            for number, name in enumerate(self.nets):
                values = np.maximum(self.losses[number], 1e-12)
                style = "--" if name == "plain" else "-"
                drawn[0].semilogy(self.steps, np.median(values, 0), style, color=f"C{number}", label=name)
                drawn[0].fill_between(self.steps, values.min(0), values.max(0), color=f"C{number}", alpha=0.15)
                drawn[1].plot(np.full(len(self.seeds), number), 100 * self.errors[number], "o", color=f"C{number}")
            drawn[0].set(xlabel="step", ylabel="training loss")
            drawn[0].legend(frameon=False, fontsize=8)
            drawn[1].set_xticks(range(len(self.nets)), self.nets)
            drawn[1].set(ylabel="test error, %", xlim=(-0.5, len(self.nets) - 0.5))
        return drawn

    def interactive(self) -> plotly.graph_objects.Figure:
        """The training losses as a plotly figure."""
        import plotly.graph_objects as go

        lines = [go.Scatter(x=self.steps, y=np.median(row, 0), name=name, mode="lines")
                 for name, row in zip(self.nets, self.losses, strict=True)]  # fmt: skip
        return plotly_figure(
            lines, self.caption, title="A deeper net by construction", xaxis_title="step",
            yaxis={"type": "log", "title": "training loss"},
        )  # fmt: skip


def deepened(model: nn.Sequential, layers: int) -> nn.Sequential:
    """A copy of a net, with so many more hidden layers before its last one that are the identity: it computes the same.

    Each is a linear map with the identity matrix and a bias of zero, and a ReLU, which leaves what a ReLU gave as it
    is: so the output is the same to the last bit. The net is a sequence that ends in a ReLU and a linear layer.
    (He et al. 2015, arXiv:1512.03385: the construction that shows a deeper net need not be worse.)

    Raises SkipwayError where the last linear layer does not read a ReLU's output.

    >>> net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    >>> x = torch.randn(7, 3)
    >>> bool((deepened(net, 4)(x) == net(x)).all())
    True
    """
    if layers < 1:
        raise SkipwayError(f"layers={layers}: at least 1 identity layer")
    parts = list(copy.deepcopy(model))
    last = parts[-1] if parts else None
    if len(parts) < 2 or not isinstance(last, nn.Linear) or not isinstance(parts[-2], nn.ReLU):
        raise SkipwayError(
            "identity layers go between a ReLU and the linear layer that ends the net, as in Sequential(Linear, ReLU, "
            "Linear): a ReLU passes on what a ReLU gave, and nothing else"
        )
    added: list[nn.Module] = []
    for _ in range(layers):
        # Copied, not made anew: initialising would draw from the global generator.
        layer = copy.deepcopy(last)
        layer.out_features = last.in_features
        layer.weight = nn.Parameter(torch.eye(last.in_features).to(last.weight))
        layer.bias = nn.Parameter(torch.zeros(last.in_features).to(last.weight))
        added += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1], *added, last)


class Chain(nn.Module):
    """`depth` hidden layers (linear, BatchNorm, ReLU) behind a first one, each under a skip or none; a classifier."""

    def __init__(self, inputs: int, width: int, depth: int, classes: int, skip: bool):
        super().__init__()
        self.layers = nn.ModuleList([_hidden(inputs if k == 0 else width, width) for k in range(depth + 1)])
        self.head = nn.Linear(width, classes)
        self.skip = skip

    def forward(self, x: Float[Tensor, "n inputs"]) -> Float[Tensor, "n classes"]:
        for number, layer in enumerate(self.layers):
            value = layer(x)
            x = x + value if self.skip and number else value
        return self.head(x)


def _hidden(inputs: int, width: int) -> nn.Sequential:
    linear = nn.Linear(inputs, width, bias=False)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    return nn.Sequential(linear, nn.BatchNorm1d(width), nn.ReLU())


def construction(
    features: Float[Tensor, "n inputs"], labels: Int64[Tensor, " n"], *, depth: int = 2, deeper: int = 12,
    width: int = 32, seeds: Sequence[int] = (0, 1, 2), steps: int = 200, rate: float = 0.002, batch_size: int = 64,
) -> Construction:  # fmt: skip
    """Make a net of `deeper` hidden layers out of a trained one of `depth`, and compare it with ones from scratch.

    The construction of He et al. 2015 (arXiv:1512.03385): a deeper net must be no worse, as the layers more may be
    the identity. A shallow net is trained for `steps`; the deeper one is built from it by `deepened`, its outputs are
    checked to be the same, and both are trained on for `steps`. Nets as deep, plain and with a skip past every hidden
    layer, are trained from He's initialisation for as many steps in all. Adam, constant `rate`; a fifth of the
    samples is kept out.

    Raises SkipwayError where `deeper` is not above `depth`, or features and labels do not fit.

    >>> x = torch.randn(80, 4)
    >>> found = construction(x, (x[:, 0] > 0).long(), depth=1, deeper=3, width=8, seeds=(0,), steps=10)
    >>> float(found.equality[0]), found.losses.shape
    (0.0, (4, 1, 11))
    """
    if not 1 <= depth < deeper:
        raise SkipwayError(
            f"depth={depth}, deeper={deeper}: the deeper net has more hidden layers than the shallow one"
        )
    if len(features) != len(labels) or len(features) < 10 or features.ndim != 2:
        raise SkipwayError(
            f"features are a matrix with a row a sample, labels as many class numbers, 10 at least; they are of shapes "
            f"{tuple(features.shape)} and {tuple(labels.shape)}"
        )
    if not seeds or steps < 1 or batch_size < 1:
        raise SkipwayError("seeds, steps and batch_size are at least 1")
    classes = int(labels.max()) + 1
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).to(labels.device)
    cut = len(labels) // 5
    test, train = (features[order[:cut]], labels[order[:cut]]), (features[order[cut:]], labels[order[cut:]])
    marks = np.unique(np.linspace(0, steps, min(steps + 1, 51)).round().astype(int))
    losses = np.full((len(NETS), len(seeds), len(marks)), np.nan)
    errors, equality = np.full((len(NETS), len(seeds)), np.nan), np.full(len(seeds), np.nan)
    with progress("construction", len(seeds) * len(NETS)) as advance:
        for number, seed in enumerate(seeds):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                shallow = _sequential(Chain(features.shape[1], width, depth, classes, False)).to(features)
                scratch = [
                    Chain(features.shape[1], width, deeper, classes, skip).to(features) for skip in (False, True)
                ]
            _train(shallow, train, steps, rate, batch_size, seed, marks)
            built = deepened(shallow, deeper - depth)
            with torch.no_grad():
                one, other = shallow(features), built(features)
                equality[number] = float((one - other).abs().max() / one.abs().max())
            for net in scratch:
                _train(net, train, steps, rate, batch_size, seed, marks)
            for place, net in enumerate((shallow, built, *scratch)):
                losses[place, number] = _train(net, train, steps, rate, batch_size, seed + 1000, marks)
                with torch.no_grad():
                    errors[place, number] = float((net(test[0]).argmax(1) != test[1]).double().mean())
                advance(1)
    policy = Policy("chains of ReLU layers", "eval", "frozen", len(train[1]), int(seeds[0]),
                    str(features.dtype).removeprefix("torch."))  # fmt: skip
    return Construction(policy, depth, deeper, width, tuple(map(int, seeds)), NETS, marks, losses, errors, equality)


def _sequential(chain: Chain) -> nn.Sequential:
    return nn.Sequential(*[part for layer in chain.layers for part in layer.children()], chain.head)


def _train(
    net: nn.Module, data: tuple[Tensor, Tensor], steps: int, rate: float, batch_size: int, seed: int, marks: np.ndarray
) -> np.ndarray:
    """The mean loss over all training samples at the marked steps; 0 is before the first."""
    x, y = data
    optimizer = torch.optim.Adam(net.parameters(), rate)
    generator = torch.Generator().manual_seed(seed)
    found = []
    with torch.enable_grad():
        for step in range(steps + 1):
            if step in marks:
                net.eval()
                with torch.no_grad():
                    found.append(float(F.cross_entropy(net(x), y)))
            if step == steps:
                break
            index = torch.randint(len(y), (batch_size,), generator=generator).to(y.device)
            net.train()
            optimizer.zero_grad()
            F.cross_entropy(net(x[index]), y[index]).backward()
            optimizer.step()
    net.eval()
    return np.array(found)
