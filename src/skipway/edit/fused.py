"""torch's encoder layers, which in evaluation run a fused kernel and none of their own code: not where it is edited."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

_KEPT = "_skipway_fused"


def avoid(root: nn.Module, edited: Iterable[nn.Module]) -> None:
    """Let the encoders and encoder layers of a model that hold an edited module run layer by layer."""
    touched = {id(module) for module in edited}
    for module in root.modules():
        if isinstance(module, nn.TransformerEncoder) and _holds(module, touched):
            _set(module, "use_nested_tensor", False)
            for layer in module.layers:
                _set(layer, "activation_relu_or_gelu", 0)
        elif isinstance(module, nn.TransformerEncoderLayer) and _holds(module, touched):
            _set(module, "activation_relu_or_gelu", 0)


def allow(root: nn.Module) -> None:
    """Undo `avoid`."""
    for module in root.modules():
        for name, value in module.__dict__.pop(_KEPT, {}).items():
            setattr(module, name, value)


def _holds(module: nn.Module, touched: set[int]) -> bool:
    return any(id(inside) in touched for inside in module.modules())


def _set(module: nn.Module, name: str, value: Any) -> None:
    if hasattr(module, name):
        kept = module.__dict__.setdefault(_KEPT, {})
        kept.setdefault(name, getattr(module, name))
        setattr(module, name, value)
