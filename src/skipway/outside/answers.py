"""What a model from outside is asked and answers in a training: one tensor of logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

# What transformers calls the logits, and what torchvision's networks for masks do.
_LOGITS = ("logits", "out")
# The inputs of a task by position, as an encoder with a decoder of transformers names them.
_PAIRS = ("input_ids", "decoder_input_ids", "attention_mask", "decoder_attention_mask")


def answering(model: nn.Module, task: str) -> nn.Module:
    """The same model, which gives its logits alone wherever it is called with its inputs by position.

    Called by name, as its own library does, it answers as ever: with an object that holds them. It is the same module,
    of the same class and with the same parameter names. Where masks are to be told, logits of half the resolution or
    less are brought to that of the image, as `transformers` does before it compares them.

    >>> import torch
    >>> answering(torch.nn.Linear(2, 3), "classification")(torch.ones(1, 2)).shape
    torch.Size([1, 3])
    """
    if task == "translation" and getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        model.register_forward_pre_hook(_by_name, with_kwargs=True)
    model.register_forward_hook(_masks if task == "segmentation" else _logits, with_kwargs=True)
    return model


def _by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if len(args) != len(_PAIRS):
        return args, kwargs
    source, target, hidden, ends = args
    # transformers marks what is to be seen, and the tasks what is padding.
    named = dict(zip(_PAIRS[1:], (target, ~hidden, ~ends), strict=True))
    return (source,), {**named, **kwargs}


def _logits(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Any:
    if not args or isinstance(answer, Tensor):
        return answer
    for name in _LOGITS:
        found = answer.get(name) if isinstance(answer, Mapping) else getattr(answer, name, None)
        if isinstance(found, Tensor):
            return found
    return answer


def _masks(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> Any:
    logits = _logits(model, args, kwargs, answer)
    if not args or not isinstance(logits, Tensor) or logits.ndim != 4 or isinstance(answer, Tensor):
        return logits
    size = args[0].shape[2:]
    if logits.shape[2] * 2 > size[0]:
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
