"""`Hessian`: the second derivative of the mean loss, as a product with vectors; it is never written out."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from skipway.errors import SkipwayError
from skipway.graph.state import Inventory
from skipway.probe.batches import Batch, Batches, cut, move, place_of

# The cube root of the rounding error: what balances the two errors of a central difference.
_STEPS = {torch.float64: 6e-6, torch.float32: 5e-3}


class Hessian:
    """H v = d/dw (dL/dw . v), with L the mean loss over all samples and w some of a model's parameters in a row.

    Where an operation has no second derivative, H v is (g(w + h v) - g(w - h v)) / 2h instead, g = dL/dw: `method` says
    which. Attention is computed in its plain form, which has one; the gradient never goes to `.grad`. A model's ReLUs
    have no curvature of their own: at their kinks the two ways differ.
    """

    def __init__(self, model: nn.Module, batches: Batches, names: Sequence[str] | None = None):
        self._model = model
        inventory = Inventory.of(model)
        own = {name: parameter for name, parameter in inventory.parameters if parameter.is_floating_point()}
        self.names = tuple(own if names is None else names)
        self._parameters = [own[name] for name in self.names]
        if not self._parameters:
            raise SkipwayError("there are no parameters to take a second derivative in")
        self._batches = batches
        self._shares = batches.shares()
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self.size = sum(self._sizes)
        self.device, self.dtype = self._parameters[0].device, self._parameters[0].dtype
        self.products = 0
        self.differences: float | None = None
        self._looked = False

    @property
    def method(self) -> str:
        """How products are computed."""
        return method_of(self.differences)

    def product(self, v: Float[Tensor, " parameters"]) -> Float[Tensor, " parameters"]:
        """H v."""
        self.products += 1
        if self.differences is None:
            try:
                return self._sum(lambda batch: self._double_backward(batch, self._split(v)))
            except RuntimeError as error:
                if not _has_no_second_derivative(error):
                    raise
                self.differences = _STEPS.get(self.dtype, 0.2)
        return self._difference(v)

    def gradient(self) -> Float[Tensor, " parameters"]:
        """dL/dw."""
        return self._sum(self._gradient)

    def linear_operator(self) -> Any:
        """The Hessian as scipy's LinearOperator, for its solvers."""
        from scipy.sparse.linalg import LinearOperator

        def apply(v: np.ndarray) -> np.ndarray:
            return self.product(torch.from_numpy(v.ravel()).to(self.device, self.dtype)).cpu().numpy()

        kind = torch.empty(0, dtype=self.dtype).numpy().dtype
        return LinearOperator((self.size, self.size), matvec=apply, dtype=kind)  # pyright: ignore[reportCallIssue]

    def _sum(self, term: Any) -> Tensor:
        total = torch.zeros(self.size, device=self.device, dtype=self.dtype)
        with _differentiable(self._parameters):
            for batch, share in zip(self._batches, self._shares, strict=True):
                parts = term(batch)
                total.add_(torch.cat([part.detach().flatten() for part in parts]), alpha=share)
        return total

    def _gradient(self, batch: Batch, create_graph: bool = False) -> tuple[Tensor, ...]:
        loss = self._batches.loss_of(self._model, batch)
        if not loss.requires_grad:
            raise SkipwayError(
                "the loss does not depend on these parameters by anything that can be differentiated: is it computed "
                "under torch.no_grad(), or through .detach() or argmax?"
            )
        return torch.autograd.grad(
            loss, self._parameters, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )

    def _double_backward(self, batch: Batch, v: Sequence[Tensor]) -> Sequence[Tensor]:
        gradient = self._gradient(batch, create_graph=True)
        if not self._looked:
            _check_differentiable(gradient)
            self._looked = True
        products = [(g * part).sum() for g, part in zip(gradient, v, strict=True) if g.requires_grad]
        # A loss that is linear in all parameters has a constant gradient, and no curvature.
        if not products:
            return [torch.zeros_like(parameter) for parameter in self._parameters]
        return torch.autograd.grad(
            torch.stack(products).sum(), self._parameters, allow_unused=True, materialize_grads=True
        )

    def _difference(self, v: Tensor) -> Tensor:
        assert self.differences is not None
        length = float(v.norm())
        if length == 0:
            return torch.zeros_like(v)
        weights = [parameter.detach().clone() for parameter in self._parameters]
        size = float(torch.stack([weight.norm() for weight in weights]).norm())
        step = self.differences * (1 + size) / length
        gradients = []
        try:
            for sign in (1, -1):
                for parameter, weight, part in zip(self._parameters, weights, self._split(v), strict=True):
                    parameter.data.copy_(weight).add_(part, alpha=sign * step)
                gradients.append(self._sum(self._gradient))
        finally:
            for parameter, weight in zip(self._parameters, weights, strict=True):
                parameter.data.copy_(weight)
        return (gradients[0] - gradients[1]) / (2 * step)

    def _split(self, v: Tensor) -> list[Tensor]:
        parts = v.split(self._sizes)
        return [part.view_as(parameter) for part, parameter in zip(parts, self._parameters, strict=True)]


def method_of(differences: float | None) -> str:
    """How products are computed that take differences of this step, or none."""
    if differences is None:
        return "double backward"
    return f"central differences of the gradient, step {differences:.1g} (1 + |w|) / |v|"


@contextmanager
def _differentiable(parameters: Sequence[Tensor]) -> Iterator[None]:
    flags = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        # Fused attention has no second derivative on any device.
        with torch.enable_grad(), sdpa_kernel([SDPBackend.MATH]):
            yield
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)


def _check_differentiable(gradient: Sequence[Tensor]) -> None:
    """Raise NotImplementedError where a gradient came out of a function that may be differentiated only once.

    torch raises for it in backward(), but grad() leaves it out without a word: its node leads to no parameter.
    """
    seen: set[Any] = set()
    waiting = [part.grad_fn for part in gradient]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "Error" in node.name():
            raise NotImplementedError("a function in the model is marked with once_differentiable")
        waiting += [following for following, _ in node.next_functions]


def _has_no_second_derivative(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, NotImplementedError) or any(
        sign in text for sign in ("is not implemented", "once_differentiable", "does not support double backward",
                                  "twice differentiable", "not differentiable twice")
    )  # fmt: skip


def matching(model: nn.Module, pattern: str | None) -> tuple[str, ...]:
    """The floating-point parameters whose names fit a pattern with * and ?; all that are trained, for None.

    >>> matching(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "1.*")
    ('1.weight', '1.bias')
    """
    named = [(name, parameter) for name, parameter in Inventory.of(model).parameters if parameter.is_floating_point()]
    if pattern is None:
        trained = tuple(name for name, parameter in named if parameter.requires_grad)
        return trained or tuple(name for name, _ in named)
    found = tuple(name for name, _ in named if fnmatch.fnmatchcase(name, pattern))
    if not found:
        listed = ", ".join(name for name, _ in named[:4])
        raise SkipwayError(f"no parameter fits '{pattern}'; they are named {listed}, ...: '*' stands for any text")
    return found


def block_patterns(model: nn.Module) -> tuple[str, ...]:
    """A pattern for each block of a model: the children, made of several layers, of its lists and sequences.

    >>> layer = lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> block_patterns(nn.ModuleList([layer(), layer()]))
    ('0.*', '1.*')
    """
    blocks: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, (nn.Sequential, nn.ModuleList)) or any(
            path.startswith(block[:-1]) for block in blocks
        ):
            continue
        for name, child in module.named_children():
            layers = [
                part for part in child.modules() if part._parameters and any(True for _ in part.parameters(False))
            ]
            # A list of stages is not yet a list of blocks.
            if len(layers) > 1 and not isinstance(child, (nn.Sequential, nn.ModuleList)):
                blocks.append(f"{path}.{name}.*" if path else f"{name}.*")
    if not blocks:
        raise SkipwayError(
            "the model holds no lists of blocks; name groups of parameters by patterns, such as groups=['layer1.*']"
        )
    return tuple(blocks)


def in_pieces(batches: Batches, samples: int | None) -> Batches:
    """The same samples in batches of at most so many, where memory for the graph is short."""
    if samples is None:
        return batches
    items: list[Batch] = []
    for batch in batches:
        for start in range(0, batch.samples, samples):
            items.append(cut(batch, start, min(samples, batch.samples - start)))
    return Batches(tuple(items), batches.loss)


def in_precision(model: nn.Module, batches: Batches, dtype: torch.dtype | None) -> tuple[nn.Module, Batches]:
    """A copy of the model in another precision, and the batches for it; the model itself for None."""
    if dtype is None:
        return model, batches
    device, _ = place_of(model)
    items = tuple(
        Batch(
            move(batch.args, device, dtype),
            move(batch.kwargs, device, dtype),
            move(batch.targets, device, dtype),
            batch.samples,
        )
        for batch in batches
    )
    return copy.deepcopy(model).to(dtype), Batches(items, batches.loss)
