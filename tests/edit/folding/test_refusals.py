"""What a fold cannot repeat is refused in a sentence; what can be repeated exactly is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.edit.folding import fold
from skipway.edit.folding.check import check_model
from skipway.errors import SkipwayError


class Function(nn.Module):
    """A function of one image, beside a convolution, a buffer and a parameter that it may use."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.scale = nn.Parameter(torch.tensor([0.5]))
        self.register_buffer("count", torch.zeros(1))
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def _counts(self: Any, x: Tensor) -> Tensor:
    self.count.add_(1)
    return x + self.count


def _writes_in_part(self: Any, x: Tensor) -> Tensor:
    whole = torch.zeros(2, *x.shape)
    first = whole[0]
    first.copy_(x)
    return whole + 1


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "item": (lambda self, x: x * x.mean().item(), "depends on the values of its inputs"),
    "branch": (lambda self, x: x if x.sum() > 0 else -x, "depends on the values of its inputs"),
    "tolist": (lambda self, x: x * x.flatten().tolist()[0], "depends on the values of its inputs"),
    "float": (lambda self, x: x * float(x.max()), "depends on the values of its inputs"),
    "numpy": (lambda self, x: x + torch.from_numpy(x.detach().numpy() * 2), "depends on the values of its inputs"),
    "mask": (lambda self, x: x[x > 0], "depends on the values of its inputs"),
    "nonzero": (lambda self, x: torch.nonzero(x), "depends on the values of its inputs"),
    "where": (lambda self, x: torch.where(x > 0), "depends on the values of its inputs"),
    "unique": (lambda self, x: torch.unique(x), "depends on the values of its inputs"),
    "dropout": (lambda self, x: F.dropout(x, 0.5, training=True), "random numbers"),
    "noise": (lambda self, x: x + torch.randn_like(x), "random numbers"),
    "constant noise": (lambda self, x: x + torch.randn(3, 1, 1), "random numbers"),
    "buffer": (_counts, "writes to count"),
    "parameter": (lambda self, x: x * self.scale.data.mul_(2), "writes to scale"),
    "statistics": (lambda self, x: F.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True),
                   "writes to norm.running_mean"),
    "parts": (_writes_in_part, "torch.cat or torch.stack"),
    "vmap": (lambda self, x: torch.vmap(lambda image: image * 2)(x), "torch.func"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_frozen_is_refused(name: str):
    function, why = REFUSED[name]
    with pytest.raises(SkipwayError, match=why):
        fold(Function(function), torch.randn(2, 3, 4, 4))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_training_mode_and_other_things_are_refused():
    with pytest.raises(SkipwayError, match=r"0 is in training mode.*model.eval\(\)"):
        model = nn.Sequential(nn.BatchNorm2d(3)).eval()
        model[0].train()
        fold(model)
    with pytest.raises(SkipwayError, match=r"takes a torch.nn.Module"):
        check_model(torch.relu)
    with pytest.raises(SkipwayError, match="did you mean 'channels_last'"):
        fold(nn.Identity().eval(), memory_format="channel_last")
    with pytest.raises(SkipwayError, match="floating-point type"):
        fold(nn.Identity().eval(), dtype=torch.int8)
    with pytest.raises(SkipwayError, match="has no shape yet"):
        fold(nn.Sequential(nn.LazyLinear(3)).eval())
    with pytest.raises(SkipwayError, match="on the meta device"):
        fold(nn.Linear(3, 3, device="meta").eval())
    with pytest.raises(SkipwayError, match="does not run on these inputs"):
        fold(nn.Linear(3, 3).eval(), torch.randn(2, 4))
    with pytest.raises(SkipwayError, match="compiled by torch.jit"):
        fold(torch.jit.script(nn.Linear(3, 3).eval()), torch.randn(2, 3))
    with pytest.raises(SkipwayError, match="takes tensors, numbers"):
        fold(nn.Identity().eval(), object())


def _shifted(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y[:, :, 1:] += y[:, :, :-1].clone()
    z = y[:, :1]
    z *= 2
    return F.relu(y, inplace=True) + z


def _filled(self: Any, x: Tensor) -> Tensor:
    padded = x.new_zeros(x.shape[0], 3, 8, 8)
    padded[:, :, 2:6, 2:6] = x
    return self.norm(self.conv(padded)).mul_(2)


def _kept(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = self.norm(self.conv(x))
    before = y.clone()
    y.relu_()
    return before, y


def _overlapping(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    whole = y.view(-1)
    whole[::2] = 0
    return self.norm(y)


def _learned(self: Any, x: Tensor) -> Tensor:
    weight = self.conv.weight - self.conv.weight.mean((1, 2, 3), keepdim=True)
    weight = weight.clone()
    weight[0] = 0
    return F.conv2d(x, weight / weight.std(), self.conv.bias) * self.scale.item()


EXACT: dict[str, Callable[[Any, Tensor], Any]] = {
    "views that are written to": _shifted,
    "constants that are written to": _filled,
    "kept before it is overwritten": _kept,
    "overlapping views": _overlapping,
    "weights computed from weights": _learned,
    "the input overwritten": lambda self, x: F.relu(x, inplace=True) + x[:, :1],
    "a view of the input": lambda self, x: x[:, :1].mul_(2) + x,
    "unpacking": lambda self, x: [part * 2 for part in x],
    "splitting": lambda self, x: torch.cat(x.chunk(3, 1)[::-1], 1),
    "several outputs": lambda self, x: {"max": x.flatten(1).max(1), "same": x, "n": 3, "none": None},
    "a constant output": lambda self, x: (x + 1, torch.arange(3)),
    "where with three": lambda self, x: torch.where(x > 0, x, 0.1 * x),
    "statistics of the batch": lambda self, x: F.batch_norm(x, None, None, training=True),
    "norm of the weights by name": lambda self, x: torch.linalg.norm(x, dim=1) * torch.norm(self.conv.weight),
    "a function called as linear": lambda self, x: F.linear(x, x[0, 0]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_aliases_and_overwriting_are_exact(name: str, dtype: torch.dtype):
    torch.manual_seed(0)
    model = Function(EXACT[name]).to(dtype)
    torch.nn.init.uniform_(model.norm.bias)
    x, other = torch.randn(2, 3, 4, 4, dtype=dtype), torch.randn(2, 3, 4, 4, dtype=dtype)
    folded = fold(model, x.clone())
    with torch.no_grad():
        given = other.clone()
        found = folded(given)
        assert torch.equal(given, other), "a folded model leaves its inputs alone"
        torch.testing.assert_close(found, model(other.clone()), rtol=1e-5, atol=1e-5)
