"""Whether a model can be folded, and whether what came out computes the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from skipway.edit.folding.structure import filled, template
from skipway.errors import SkipwayError
from skipway.graph.state import Inventory, unchanged


def check_model(model: object) -> None:
    """Raise SkipwayError for what is no module, is not in evaluation mode, or has no shape yet."""
    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise SkipwayError(f"fold takes a torch.nn.Module, and this is {given}")
    for name, module in model.named_modules():
        if module.training:
            raise SkipwayError(
                f"{name or type(model).__name__} is in training mode; a fold is for inference: call model.eval() first"
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise SkipwayError(
                f"{name} has no shape yet: run the model once on an input, so that its lazy modules are built"
            )
        if tensor.is_meta:
            raise SkipwayError(
                f"{name} is on the meta device and has no content to fold: load the model's weights first"
            )


def tolerance(dtype: torch.dtype | None, wanted: list[Tensor]) -> float:
    """How far results may be off, relative to their norm, for the least exact floating-point type in play."""
    types = {dtype, *(tensor.dtype for tensor in wanted if tensor.is_floating_point())} - {None}
    return max((_TOLERANCE.get(kind, 0.1) for kind in types), default=0.0)


_TOLERANCE: dict[torch.dtype | None, float] = {torch.float64: 1e-9, torch.float32: 1e-3}


def difference(found: Any, wanted: list[Tensor]) -> float:
    """The largest relative difference of corresponding tensors; infinite where shapes or types differ."""
    return max((_difference(one, other) for one, other in zip(found, wanted, strict=True)), default=0.0)


def _difference(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    if not wanted.is_floating_point():
        # Rounding may turn what is nearly equal round in an argmax or a sort, here and there.
        return float((found != wanted).double().mean()) if wanted.numel() else 0.0
    one, other = found.double(), wanted.double()
    finite = other.isfinite()
    if not bool((one.isfinite() == finite).all()):
        return float("inf")
    one, other = one[finite], other[finite]
    return float((one - other).norm() / other.norm().clamp_min(torch.finfo(wanted.dtype).tiny))


def perturbed(model: nn.Module, given: Any, tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]] | None:
    """Other inputs of the same form, and what the model makes of them; None where it does not take them.

    Floats are shaken, all else keeps its values in another order: what was wrongly taken for constant shows.
    """
    slots: list[Tensor] = []
    form = template(given, slots)
    generator = torch.Generator().manual_seed(0)
    changed = [_shaken(tensor, generator) for tensor in tensors]
    places = {id(tensor): other for tensor, other in zip(tensors, changed, strict=True)}
    args, kwargs = filled(form, [places[id(tensor)].clone() for tensor in slots])
    with unchanged(Inventory.of(model), tensors), torch.no_grad():
        try:
            output = model(*args, **kwargs)
        except Exception:
            return None
    wanted: list[Tensor] = []
    template(output, wanted)
    return changed, wanted


def _shaken(tensor: Tensor, generator: torch.Generator) -> Tensor:
    tensor = tensor.detach()
    if not tensor.is_floating_point():
        return tensor.flip(tuple(range(tensor.ndim))) if tensor.ndim else tensor.clone()
    noise = torch.randn(tensor.shape, generator=generator).to(tensor)
    spread = tensor.float().std(correction=0).clamp_min(1e-2).to(tensor.dtype) if tensor.numel() else 1.0
    return tensor + noise * spread
