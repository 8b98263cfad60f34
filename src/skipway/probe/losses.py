"""`Loss`: what is measured on a model's output, by name or by the user's function; and who was told wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from skipway.errors import SkipwayError, choose

LOSSES = ("cross_entropy", "mse", "binary_cross_entropy")
_IGNORED = -100


@dataclass(frozen=True, eq=False)
class Loss:
    """The mean loss of a batch: `loss(output, targets)` is a tensor of one number.

    `function` is the user's; None stands for the loss that the output carries, as models of Hugging Face give it.
    """

    name: str
    function: Callable[[Any, Any], Tensor] | None

    def __call__(self, output: Any, targets: Any) -> Tensor:
        if self.function is None:
            value = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
            if value is None:
                raise SkipwayError(
                    "the model's output carries no loss: give one, as loss='cross_entropy' or a function of (output, "
                    "targets), or put the labels among the inputs"
                )
        else:
            value = self.function(output, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            kind = (
                f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            )
            raise SkipwayError(f"the loss gave {kind}; it must give the mean over the batch, a tensor of one number")
        return value.reshape(())

    def weight(self, targets: Any, samples: int) -> int:
        """How many terms the batch's mean is over: its samples; the targets not ignored, for "cross_entropy"."""
        if self.name == "cross_entropy" and isinstance(targets, Tensor) and not targets.is_floating_point():
            return int((targets != _IGNORED).sum())
        return samples


def find_loss(loss: str | Callable[[Any, Any], Tensor] | None) -> Loss:
    """The loss of that name, of that function, or for None the one that the model's output carries.

    >>> import torch; find_loss("mse")(torch.zeros(2, 3), torch.ones(2, 3))
    tensor(1.)
    """
    if loss is None:
        return Loss("the model's own", None)
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, type):
        raise SkipwayError(f"loss is the class {loss.__name__}: call it, as in {loss.__name__}()")
    if callable(loss):
        return Loss(getattr(loss, "__name__", type(loss).__name__), loss)
    return Loss(choose("loss", loss, LOSSES), _NAMED[str(loss)])


def logits_of(output: Any) -> Tensor | None:
    """The predictions in a model's output: itself, its `.logits`, or the first of a tuple."""
    if isinstance(output, Mapping):
        output = output.get("logits", next(iter(output.values()), None))
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def count_errors(output: Any, targets: Any) -> tuple[int, int] | None:
    """How many targets the output tells wrong, and of how many; None where the targets are not classes.

    >>> import torch; count_errors(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    (1, 2)
    """
    logits = logits_of(output)
    if logits is None or not isinstance(targets, Tensor) or targets.is_floating_point() or logits.ndim < 2:
        return None
    try:
        logits, targets = _classes_second(logits, targets)
    except SkipwayError:
        return None
    # No class has the number of what is ignored, so that it is among those told wrong.
    ignored = int((targets == _IGNORED).sum())
    return int((logits.argmax(1) != targets).sum()) - ignored, targets.numel() - ignored


def scorer(loss: Loss, targets: Any) -> Callable[[Any], tuple[float, tuple[int, int] | None]]:
    """A function of outputs that gives the loss and, as `count_errors`, who is told wrong; for many outputs in turn.

    What the targets alone decide is looked up once. The cross-entropy of a table (samples, classes) is computed with
    the samples along the fast axis, where its logarithms take a fifth of the time; that changes the last digit.

    >>> import torch; scorer(find_loss("cross_entropy"), torch.tensor([0, 1]))(torch.tensor([[99.0, 0.0], [9.0, 0.0]]))
    (4.500061511993408, (1, 2))
    """

    def score(output: Any) -> tuple[float, tuple[int, int] | None]:
        return float(loss(output, targets)), count_errors(output, targets)

    if loss.function not in (_cross_entropy, F.cross_entropy) or not isinstance(targets, Tensor):
        return score
    if targets.ndim != 1 or targets.is_floating_point():
        return score
    row, ignored = targets[None], int((targets == _IGNORED).sum())
    counted = len(targets) - ignored

    def score_table(output: Any) -> tuple[float, tuple[int, int] | None]:
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(targets):
            return score(output)
        value = _of_classes(output.t()[None], row)
        return value.item(), (int((output.argmax(1) != targets).sum()) - ignored, counted)

    return score_table


def _classes_second(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    shape, wanted = tuple(logits.shape), tuple(targets.shape)
    if len(wanted) + 1 == len(shape):
        if (shape[0], *shape[2:]) == wanted:
            return logits, targets
        if shape[:-1] == wanted:
            return logits.flatten(0, -2), targets.flatten()
    raise SkipwayError(
        f"cross-entropy of an output of shape {shape} needs targets of shape {(shape[0], *shape[2:])} with a class "
        f"number in each place; they are of shape {wanted}"
    )


def _predictions(output: Any) -> Tensor:
    logits = logits_of(output)
    if logits is None:
        raise SkipwayError(f"the model's output, a {type(output).__name__}, holds no tensor that a loss could be of")
    return logits


def _cross_entropy(output: Any, targets: Any) -> Tensor:
    logits = _predictions(output)
    if not isinstance(targets, Tensor):
        raise SkipwayError(f"cross-entropy needs a tensor of class numbers; the targets are a {type(targets).__name__}")
    if targets.is_floating_point():
        return F.cross_entropy(logits, targets)
    return _of_classes(*_classes_second(logits, targets))


def _of_classes(logits: Tensor, targets: Tensor) -> Tensor:
    try:
        return F.cross_entropy(logits, targets)
    except IndexError as error:
        classes = logits.shape[1] if logits.ndim > 1 else len(logits)
        wrong = targets[(targets != _IGNORED) & ((targets < 0) | (targets >= classes))]
        raise SkipwayError(
            f"the targets hold the class {int(wrong.flatten()[0])}, and the model tells {classes} classes apart, 0 to "
            f"{classes - 1}: build it for as many as the data have"
        ) from error


def _mse(output: Any, targets: Any) -> Tensor:
    predictions = _same_shape("mse", _predictions(output), targets)
    return F.mse_loss(predictions, targets)


def _binary_cross_entropy(output: Any, targets: Any) -> Tensor:
    predictions = _same_shape("binary cross-entropy", _predictions(output), targets)
    return F.binary_cross_entropy_with_logits(predictions, targets.to(predictions.dtype))


def _same_shape(name: str, predictions: Tensor, targets: Any) -> Tensor:
    if not isinstance(targets, Tensor):
        raise SkipwayError(f"{name} needs a tensor of targets, not a {type(targets).__name__}")
    if predictions.shape != targets.shape:
        if predictions.numel() == targets.numel() and predictions.squeeze().shape == targets.squeeze().shape:
            return predictions.reshape(targets.shape)
        raise SkipwayError(
            f"{name} of an output of shape {tuple(predictions.shape)} needs targets of the same shape, "
            f"not {tuple(targets.shape)}"
        )
    return predictions


_NAMED: dict[str, Callable[[Any, Any], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "mse": _mse,
    "binary_cross_entropy": _binary_cross_entropy,
}
