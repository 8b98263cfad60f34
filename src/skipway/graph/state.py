"""Leaving a model, its inputs and every random generator exactly as they were before a forward pass."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn


class Keeper:
    """Keeps the content of tensors that are about to be written to, so that it can be put back.

    Only what is written to is copied, just before it is: a model whose buffers are large and constant costs nothing.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        self._watched = list(tensors)
        self._versions = [_version(tensor) for tensor in self._watched]
        self._by_memory: dict[int, list[int]] = {}
        for index, tensor in enumerate(self._watched):
            self._by_memory.setdefault(_memory(tensor), []).append(index)
        self._kept: dict[int, Tensor] = {}

    def keep(self, tensor: Tensor) -> None:
        """Copy the watched tensors in the memory that `tensor` lies in, unless that was done before."""
        for index in self._by_memory.get(_memory(tensor), ()):
            if index not in self._kept:
                self._kept[index] = self._watched[index].detach().clone()

    def restore(self) -> list[Tensor]:
        """Put all kept content back; returns the tensors that changed without having been kept."""
        lost = []
        with torch.no_grad():
            for index, tensor in enumerate(self._watched):
                if index in self._kept:
                    tensor.detach().copy_(self._kept[index])
                elif _version(tensor) != self._versions[index]:
                    lost.append(tensor)
        return lost


def _memory(tensor: Tensor) -> int:
    """Where a tensor's storage begins; tensors without any (meta, sparse) stand for themselves."""
    try:
        address = tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        address = 0
    return address or -id(tensor)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


@dataclass(frozen=True)
class Inventory:
    """The modules, parameters and buffers of a model, each once and with its first name, gathered in one walk."""

    modules: tuple[tuple[str, nn.Module], ...]
    parameters: tuple[tuple[str, Tensor], ...]
    buffers: tuple[tuple[str, Tensor], ...]

    @classmethod
    def of(cls, model: nn.Module) -> Inventory:
        """What `model` holds."""
        modules = tuple(model.named_modules())
        parameters: dict[int, tuple[str, Tensor]] = {}
        buffers: dict[int, tuple[str, Tensor]] = {}
        for path, module in modules:
            dot = f"{path}." if path else ""
            for held, into in ((module._parameters, parameters), (module._buffers, buffers)):
                for name, tensor in held.items():
                    if tensor is not None:
                        into.setdefault(id(tensor), (dot + name, tensor))
        return cls(modules, tuple(parameters.values()), tuple(buffers.values()))

    @property
    def tensors(self) -> list[Tensor]:
        """Its parameters and buffers."""
        return [tensor for _, tensor in (*self.parameters, *self.buffers)]


@contextmanager
def unchanged(inventory: Inventory, tensors: Iterable[Tensor]) -> Iterator[None]:
    """Put back, on leaving, all that a forward pass may set on a model and on the random generators.

    That is: every attribute, hook, parameter and buffer of every module (which object stands under which name),
    `requires_grad` of the parameters and of `tensors`, and the states of torch's, numpy's and Python's generators. What
    is written *into* tensors is a `Keeper`'s part.
    """
    attributes: list[tuple[dict[Any, Any], dict[Any, Any] | None]] = []
    for _, module in inventory.modules:
        if not isinstance(module, torch.jit.ScriptModule):
            held = vars(module)
            attributes.append((held, held.copy()))
            attributes += [
                (value, value.copy() if value else None) for value in held.values() if isinstance(value, dict)
            ]
    flags = [(tensor, tensor.requires_grad) for tensor in (*inventory.tensors, *tensors)]
    generators = _generator_states({tensor.device for tensor, _ in flags})
    try:
        yield
    finally:
        for now, before in attributes:
            _restore_entries(now, before)
        for tensor, flag in flags:
            if tensor.requires_grad != flag:
                tensor.requires_grad_(flag)
        _restore_generators(generators)


def _restore_entries(now: dict[Any, Any], before: dict[Any, Any] | None) -> None:
    if before is None:
        now.clear()
    elif list(now) != list(before) or not all(map(is_, now.values(), before.values())):
        now.clear()
        now.update(before)


def _generator_states(devices: set[torch.device]) -> dict[str, Any]:
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if "numpy" in sys.modules:
        states["numpy"] = sys.modules["numpy"].random.get_state()
    for device in devices:
        if device.type not in ("cpu", "meta"):
            states[str(device)] = torch.get_device_module(device).get_rng_state(device)
    return states


def _restore_generators(states: dict[str, Any]) -> None:
    for name, state in states.items():
        if name == "torch":
            torch.set_rng_state(state)
        elif name == "python":
            random.setstate(state)
        elif name == "numpy":
            sys.modules["numpy"].random.set_state(state)
        else:
            device = torch.device(name)
            torch.get_device_module(device).set_rng_state(state, device)
