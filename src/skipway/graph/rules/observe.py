"""Measurements for the rules that need data: how large the signals are, and which gradient arrives where."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.graph.ir import Site, Trace, Value
from skipway.graph.record import Recorder
from skipway.graph.state import Inventory, Keeper, unchanged
from skipway.graph.tracing import named_inputs, recording, tensors_named

# A gate closer than this to 0 or 1 passes less than a thousandth of the gradient on to what computes it.
SATURATION = 1e-3


@dataclass(frozen=True)
class Response:
    """One signal: its root mean square, whether all of it is finite, and the share of it within 0.001 of 0 or 1."""

    rms: float
    finite: bool
    saturated: float


@dataclass(frozen=True)
class Responses:
    """The measured values of a trace: an input is known by its name, any other by the operation that made it."""

    measured: dict[tuple[Site | str, int], Response]

    def of(self, trace: Trace, value: int) -> Response | None:
        """The response of a value of the trace, where it was measured."""
        return self.measured.get(_key(trace, trace.values[value]))


@dataclass(frozen=True)
class Gradients:
    """What one backward pass brought: by parameter the root mean square of its gradient (None: no gradient arrived).

    `constant` says that the loss weighs every element of a matrix of outputs alike. `updates` says for each module
    that counts its batches how often the step counted. `failure` is why the backward pass failed.
    """

    parameters: dict[str, float | None]
    constant: bool = False
    updates: dict[str, int] | None = None
    failure: str = ""


def responses(model: nn.Module, args: Any, kwargs: Any, trace: Trace, values: Iterable[int]) -> Responses:
    """Run the model once more as it was traced, and measure these values of the trace as they are made."""
    inputs = list(named_inputs(model, args, kwargs))
    inventory = Inventory.of(model)
    wanted = {_key(trace, trace.values[value]) for value in values}
    measured: dict[tuple[Site | str, int], Response] = {
        (name, 0): _measure(tensor) for name, tensor in inputs if (name, 0) in wanted and tensor.is_floating_point()
    }
    tensors = [tensor for _, tensor in inputs]
    keeper = Keeper([*inventory.tensors, *tensors])
    observer = _Observer(inventory, keeper, wanted)
    for name, tensor in inputs:
        observer.add_input(tensor, name)
    with unchanged(inventory, tensors):
        try:
            with recording(observer):
                model(*args, **kwargs)
        finally:
            keeper.restore()
    return Responses(measured | observer.measured)


class _Observer(Recorder):
    """A recorder that also measures what the wanted operations make."""

    def __init__(self, inventory: Inventory, keeper: Keeper, wanted: set[tuple[Site | str, int]]):
        super().__init__(inventory, keeper)
        self.measured: dict[tuple[Site | str, int], Response] = {}
        self._wanted = wanted

    def _record(self, name: str, inplace: bool, args: Any, kwargs: Any, results: list[Tensor]) -> None:
        super()._record(name, inplace, args, kwargs, results)
        site = self.operations[-1].site
        for output, tensor in enumerate(results):
            if (site, output) in self._wanted and tensor.is_floating_point():
                with torch._C.DisableTorchFunction():
                    self.measured[site, output] = _measure(tensor)


def _key(trace: Trace, value: Value) -> tuple[Site | str, int]:
    operation = trace.operation_of(value.index)
    return (value.name, 0) if operation is None else (operation.site, value.output)


@torch.no_grad()
def _measure(tensor: Tensor) -> Response:
    if tensor.numel() == 0:
        return Response(0.0, True, 0.0)
    wide = tensor.detach().double()
    rms = float(wide.square().mean().sqrt())
    edge = torch.minimum(wide.abs(), (1 - wide).abs())
    return Response(rms, bool(torch.isfinite(wide).all()), float((edge < SATURATION).double().mean()))


def carries_data(model: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether the inputs are numbers that vary: zeros or ones stand for a shape, and a meta tensor holds nothing."""
    tensors = [tensor for _, tensor in named_inputs(model, args, kwargs)]
    held = (*tensors, *model.parameters())
    if not tensors or any(tensor.device.type == "meta" for tensor in held):
        return False
    floats = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel() > 1]
    return not floats or any(bool((tensor != tensor.flatten()[0]).any()) for tensor in floats)


def gradients(model: nn.Module, args: Any, kwargs: Any, loss: Callable[[Any], Any]) -> Gradients:
    """Run the model and its loss forward and back once, leaving the model, its gradients and its buffers as they were.

    Raises SkipwayError where the loss fails or is not one number.
    """
    tensors = [tensor for _, tensor in named_inputs(model, args, kwargs)]
    inventory = Inventory.of(model)
    if any(tensor.device.type == "meta" for tensor in (*inventory.tensors, *tensors)):
        raise SkipwayError(
            "a loss needs numbers, and the meta device holds none: leave loss= out, or build the model on the CPU"
        )
    keeper = Keeper([*inventory.tensors, *tensors])
    for tensor in (*model.buffers(), *tensors):
        keeper.keep(tensor)
    parameters = dict(model.named_parameters())
    leaves = [tensor for tensor in (*parameters.values(), *tensors) if tensor.is_leaf]
    before = [tensor.grad for tensor in leaves]
    counters = {name: int(buffer) for name, buffer in model.named_buffers() if name.endswith("num_batches_tracked")}
    with unchanged(inventory, tensors), torch.enable_grad():
        try:
            for leaf in leaves:
                leaf.grad = None
            output = model(*args, **kwargs)
            value = _loss_of(output, loss)
            if not value.requires_grad:
                raise SkipwayError("the loss does not depend on any parameter that requires a gradient")
            constant = _weighs_alike(output, value)
            try:
                value.backward()
            except RuntimeError as error:
                return Gradients({}, constant, failure=str(error).split("\n")[0])
            arrived = {
                name: None if parameter.grad is None else _rms(parameter.grad)
                for name, parameter in parameters.items()
                if parameter.requires_grad
            }
            buffers = dict(model.named_buffers())
            updates = {name.rpartition(".")[0]: int(buffers[name]) - n for name, n in counters.items()}
            return Gradients(arrived, constant, updates)
        finally:
            for leaf, gradient in zip(leaves, before, strict=True):
                leaf.grad = gradient
            keeper.restore()


def _loss_of(output: Any, loss: Callable[[Any], Any]) -> Tensor:
    try:
        value = loss(output)
    except Exception as error:
        raise SkipwayError(
            f"the loss fails on the model's output: {type(error).__name__}: {error}; loss= takes a function of that "
            "output alone, such as lambda logits: F.cross_entropy(logits, labels)"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise SkipwayError(f"loss= must return one number as a tensor, and returned {given}: take its mean")
    return value


def _weighs_alike(output: Any, value: Tensor) -> bool:
    """Whether the gradient is one and the same number at every element of every matrix of outputs."""
    leaves = [
        tensor for _, tensor in tensors_named("", output)
        if tensor.requires_grad and tensor.ndim > 1 and tensor.shape[-1] > 1
    ]  # fmt: skip
    if not leaves or any(leaf is value for leaf in leaves):
        return False
    found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
    given = [gradient for gradient in found if gradient is not None]
    return bool(given) and all(
        bool(gradient.any()) and bool((gradient == gradient.flatten()[0]).all()) for gradient in given
    )


def _rms(tensor: Tensor) -> float:
    dense = tensor.to_dense() if tensor.is_sparse else tensor
    return float(dense.detach().double().square().mean().sqrt()) if dense.numel() else math.nan
