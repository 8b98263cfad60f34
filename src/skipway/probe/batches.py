"""`read_batches`: the data a probe measures on, in any of the forms that people hold it in, and the loss on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.probe.losses import Loss, find_loss
from skipway.probe.result import Policy

_LABELS = ("labels", "label", "targets", "target")
_FORMS = (
    "a batch (inputs, targets), a dictionary of tensors with its labels, or a list or DataLoader of these; inputs are "
    "a tensor, a tuple of positional or a dictionary of keyword arguments"
)


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch on the model's device: what the model is called with, the targets, and the number of samples."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Any
    samples: int

    def run(self, model: Callable[..., Any]) -> Any:
        """The model's output."""
        return model(*self.args, **self.kwargs)


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches that a probe measures on, read once and kept, and their loss.

    Every pass over them sees the same samples in the same order, however the data was shuffled or augmented.
    """

    items: tuple[Batch, ...]
    loss: Loss

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def samples(self) -> int:
        """The number of samples in all batches."""
        return sum(batch.samples for batch in self.items)

    def shares(self) -> list[float]:
        """Each batch's share of the mean over all samples; they sum to 1, and a ragged last batch counts for less."""
        weights = [self.loss.weight(batch.targets, batch.samples) for batch in self.items]
        total = sum(weights)
        if total == 0:
            raise SkipwayError("there is nothing to measure on: every target is ignored (-100)")
        return [weight / total for weight in weights]

    def loss_of(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """The mean loss of one batch, a tensor of one number."""
        return self.loss(batch.run(model), batch.targets)

    def mean_loss(self, model: Callable[..., Any]) -> float:
        """The mean loss over all samples, without gradients; batches are added up in double precision."""
        with torch.no_grad():
            return sum(
                share * float(self.loss_of(model, batch)) for batch, share in zip(self, self.shares(), strict=True)
            )

    def policy(
        self, model: nn.Module, mode: Literal["eval", "train"] = "eval", batch_norm: str | None = None,
        seed: int | None = None, dtype: torch.dtype | None = None,
    ) -> Policy:  # fmt: skip
        """The policy of a measurement of `model` on these; `batch_norm` and `dtype` by default as the mode has them."""
        if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            batch_norm = "none"
        elif batch_norm is None:
            batch_norm = "frozen" if mode == "eval" else "batch"
        dtype = dtype or place_of(model)[1]
        return Policy(type(model).__name__, mode, batch_norm, self.samples, seed, str(dtype).removeprefix("torch."))


def read_batches(
    model: nn.Module, data: Any, loss: str | Callable[[Any, Any], Tensor] | None = None, samples: int | None = None
) -> Batches:
    """Read `data` once, bring it to the model's device and precision, and keep it.

    `data` is a batch `(inputs, targets)`, a dictionary as Hugging Face's collators make it, or a list, DataLoader or
    iterator of these. `loss` is a function (output, targets) -> mean, "cross_entropy", "mse", "binary_cross_entropy",
    or None for the loss that the output carries. With a loss, the labels of a dictionary are its targets and not given
    to the model. `samples` takes no more than that many, from the front.

    Raises SkipwayError where there are no batches or they are none of these.

    >>> batches = read_batches(nn.Linear(2, 3), (torch.zeros(5, 2), torch.zeros(5, dtype=torch.long)), "cross_entropy")
    >>> batches.samples, round(batches.mean_loss(nn.Linear(2, 3).requires_grad_(False)), 1) > 0
    (5, True)
    """
    if not isinstance(model, nn.Module):
        raise SkipwayError(f"a probe takes a torch.nn.Module, and this is a {type(model).__name__}")
    if samples is not None and samples < 1:
        raise SkipwayError(f"samples={samples}: at least 1 is needed; None takes all")
    found = find_loss(loss)
    device, dtype = place_of(model)
    items: list[Batch] = []
    left = samples
    for given in [data] if _is_batch(data) else _iterate(data):
        batch = _read(given, found, device, dtype)
        if left is not None:
            batch = front(batch, left)
            left -= batch.samples
        if batch.samples:
            items.append(batch)
        if left == 0:
            break
    if not items:
        raise SkipwayError(
            "there is no data to measure on: the batches are empty (an iterator may have been read before)"
        )
    return Batches(tuple(items), found)


def place_of(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and the floating-point precision of a model's first parameter (or buffer) that has one."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()


def _is_batch(data: Any) -> bool:
    if isinstance(data, Mapping):
        return True
    if isinstance(data, tuple):
        # A tuple of two batches would be read as inputs and targets: two pairs in a tuple are batches.
        return not all(isinstance(part, (tuple, list)) and len(part) == 2 and _is_batch(part) for part in data)
    return isinstance(data, list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)


def _iterate(data: Any) -> Iterable[Any]:
    if isinstance(data, Tensor) or not isinstance(data, Iterable) or isinstance(data, str):
        raise SkipwayError(f"data is a {type(data).__name__}; it must be {_FORMS}")
    return data


def _read(given: Any, loss: Loss, device: torch.device, dtype: torch.dtype) -> Batch:
    targets: Any = None
    if isinstance(given, Mapping):
        inputs: Any = dict(given)
        name = next((name for name in _LABELS if name in inputs), None)
        if loss.function is not None:
            if name is None:
                raise SkipwayError(
                    f"a batch is a dictionary of {', '.join(map(str, inputs))}; with a loss of its own it needs the "
                    f"targets under one of: {', '.join(_LABELS)}"
                )
            targets = inputs.pop(name)
        elif name is not None:
            targets = inputs[name]
    elif isinstance(given, (tuple, list)) and len(given) == 2:
        inputs, targets = given
    else:
        raise SkipwayError(f"a batch is {_describe(given)}; data must be {_FORMS}")
    inputs, targets = (move(part, device, dtype) for part in (inputs, targets))
    if isinstance(inputs, dict):
        args, kwargs = (), inputs
    elif isinstance(inputs, (tuple, list)):
        args, kwargs = tuple(inputs), {}
    elif isinstance(inputs, Tensor):
        args, kwargs = (inputs,), {}
    else:
        raise SkipwayError(f"the inputs of a batch are {_describe(inputs)}; data must be {_FORMS}")
    tensors = [part for part in (*args, *kwargs.values()) if isinstance(part, Tensor) and part.ndim]
    if not tensors:
        raise SkipwayError(f"the inputs of a batch hold no tensor with samples in it; data must be {_FORMS}")
    count = tensors[0].shape[0]
    if isinstance(targets, Tensor) and targets.ndim and targets.shape[0] != count:
        raise SkipwayError(f"a batch has inputs of {count} samples and targets of {targets.shape[0]}; they must agree")
    return Batch(args, kwargs, targets, count)


def move(item: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Tensors in nested containers on another device, and in another precision if they are of floating point."""
    if isinstance(item, Tensor):
        return item.to(device, dtype if item.is_floating_point() else None)
    if isinstance(item, Mapping):
        return {key: move(part, device, dtype) for key, part in item.items()}
    if isinstance(item, (tuple, list)):
        parts = [move(part, device, dtype) for part in item]
        return tuple(parts) if isinstance(item, tuple) else parts
    return item


def front(batch: Batch, samples: int) -> Batch:
    """The first samples of a batch, or the batch itself where it has no more."""
    return batch if batch.samples <= samples else cut(batch, 0, samples)


def cut(batch: Batch, start: int, samples: int) -> Batch:
    """So many samples of a batch, from one on."""
    stop = start + samples

    def part(item: Any) -> Any:
        if isinstance(item, Tensor):
            return item[start:stop] if item.ndim and item.shape[0] == batch.samples else item
        if isinstance(item, dict):
            return {key: part(value) for key, value in item.items()}
        return type(item)(part(value) for value in item) if isinstance(item, (tuple, list)) else item

    return Batch(part(batch.args), part(batch.kwargs), part(batch.targets), samples)


def _describe(item: Any) -> str:
    if isinstance(item, Tensor):
        return f"a tensor of shape {tuple(item.shape)} alone"
    if isinstance(item, (tuple, list)):
        return f"a {type(item).__name__} of {len(item)}"
    return f"a {type(item).__name__}"
