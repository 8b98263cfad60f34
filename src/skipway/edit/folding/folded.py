"""`fold`: the same function as a model, in fewer operations."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skipway.edit.folding.capture import capture
from skipway.edit.folding.check import check_model, difference, perturbed, tolerance
from skipway.edit.folding.code import Code, generate
from skipway.edit.folding.constants import Constants
from skipway.edit.folding.optimize import EFFORTS, Choices, optimize
from skipway.edit.folding.program import Program
from skipway.edit.folding.report import Entry, Log, Report
from skipway.edit.folding.structure import filled, signature
from skipway.errors import SkipwayError, choose


def fold(
    model: nn.Module,
    *inputs: Any,
    memory_format: str = "auto",
    dtype: torch.dtype | None = None,
    keep_zeros: bool = False,
    winograd: bool = True,
    **kwargs: Any,
) -> Folded:
    """The same function as `model` in evaluation mode, with fewer operations, for inference.

    The model is run once on the inputs (here, or at the first call; again for every new shape) and written down as a
    straight-line program. In it norms, scales and shifts go into the convolutions and linear layers beside them,
    branches that are summed become one convolution, branches that put out zero go, and what is left runs fused as far
    as torch offers it here. The program is then compared with the model, on these inputs and on others.

    Args:
        inputs: what the model is called with, and keyword arguments likewise.
        memory_format: "channels_last" or "contiguous", for convolutions of images; "auto" is channels last on the CPU.
        dtype: the floating-point type to compute in, such as `torch.bfloat16`; results keep their own.
        keep_zeros: keep branches that put out zero for these weights (as ReZero's do at the start), so that
            `constants` serves other weights.
        winograd: let 3x3 convolutions with stride 1 run on the CPU by Winograd's algorithm, F(4x4, 3x3), where a
            measurement of both ways, made here, finds it faster. It rounds more: a layer's results are off by about
            1e-6 of their norm in float32 where a direct convolution's are by 3e-7, and an infinite input reaches the
            tile of 4x4 outputs around it. Which layers are run so is in the report, and may differ between processes.

    Raises SkipwayError for a model in training mode, and for what a program cannot repeat: control flow or shapes that
    depend on the content of inputs, random numbers, buffers that are written to.

    RepVGG: arXiv:2101.03697; diverse branch block: arXiv:2103.13425; deployment of BatchNorm: arXiv:1502.03167;
    Winograd's algorithm: arXiv:1509.09308.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> fast = fold(net, torch.zeros(1, 3, 8, 8))
    >>> torch.allclose(fast(torch.ones(1, 3, 8, 8)), net(torch.ones(1, 3, 8, 8)), atol=1e-5)
    True
    """
    check_model(model)
    choose("memory format", memory_format, ("auto", "channels_last", "contiguous"))
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise SkipwayError(f"dtype= takes a floating-point type such as torch.bfloat16, not {dtype!r}")
    folded = Folded(model, Choices(memory_format, dtype, keep_zeros, winograd))
    if inputs or kwargs:
        folded.prepare(*inputs, **kwargs)
    return folded


@dataclass(frozen=True)
class _Prepared:
    """A program ready for one signature: its code, its packed constants, and the form of its result."""

    code: Code
    form: Any
    packed: list[Tensor]
    report: Report

    def pick(self, constants: tuple[Tensor, ...]) -> list[Tensor]:
        return [constants[number] for number, _ in self.code.slots]


class Folded(nn.Module):
    """What `fold` returns: call it as the model. It is for evaluation alone and holds no parameters to train.

    It serves the weights that the model had when it was folded, and raises SkipwayError when they have changed since.
    Copies, pickles and `.to(...)` fold anew when they are first called.

    >>> fast = fold(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval(), torch.zeros(1, 4))
    >>> print(fast.report)
    1: linear joined with 0 before it
    2 operations became 1
    """

    def __init__(self, model: nn.Module, choices: Choices) -> None:
        super().__init__()
        # Held in a tuple, the model is no submodule: moving or loading this must not change the original.
        self._model = (model,)
        self.choices = choices
        self._clear()
        super().train(False)

    def _clear(self) -> None:
        model = self._model[0]
        weights = dict(_weights(model, True))
        self._versions = [(tensor, tensor._version) for tensor in weights.values() if not tensor.is_inference()]
        self._constants = Constants({name: tensor.detach() for name, tensor in weights.items()})
        self._prepared: dict[Any, _Prepared] = {}

    @property
    def report(self) -> Report:
        """What was folded and what was not, for the first form of inputs; raises SkipwayError before there was any."""
        return self._first().report

    @property
    def source(self) -> str:
        """The program for the inputs prepared first, as Python."""
        return self._first().code.source

    def _first(self) -> _Prepared:
        if not self._prepared:
            raise SkipwayError("nothing was folded yet: give fold the model's inputs, or call what it returned once")
        return next(iter(self._prepared.values()))

    def prepare(self, *inputs: Any, **kwargs: Any) -> None:
        """Fold for inputs of this form, unless that was done."""
        tensors: list[Tensor] = []
        key = signature((inputs, kwargs), tensors)
        if key not in self._prepared:
            self._prepared[key] = self._prepare(inputs, kwargs, tensors)

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        tensors: list[Tensor] = []
        key = signature((inputs, kwargs), tensors)
        for tensor, version in self._versions:
            if tensor._version != version:
                raise SkipwayError("the model's weights changed since it was folded: fold it again")
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = self._prepared[key] = self._prepare(inputs, kwargs, tensors)
        return self._call(prepared, prepared.packed, tensors)

    def _call(self, prepared: _Prepared, constants: Any, tensors: list[Tensor]) -> Any:
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            raise SkipwayError(
                "a folded model computes no gradients, and an input requires one: call it under torch.no_grad(), or "
                "use the original model"
            )
        with torch.no_grad():
            if torch.is_autocast_enabled(tensors[0].device.type if tensors else "cpu"):
                with torch.autocast(tensors[0].device.type if tensors else "cpu", enabled=False):
                    return filled(prepared.form, list(prepared.code.run(constants, *tensors)))
            return filled(prepared.form, list(prepared.code.run(constants, *tensors)))

    def constants(self, state: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """What the programs compute with, for the folded weights or for others by the original's names.

        With the norms' parameters and statistics as they are, these are linear in the weights and biases of
        convolutions and linear layers (products of two that were joined excepted): constants of a sum of weights are
        sums of constants, so that points of a landscape need not be folded one by one.

        Raises SkipwayError before anything was folded, for unknown names and shapes, and where a branch was removed
        because it put out zero (see `keep_zeros`).
        """
        self._first()
        if state is not None:
            # Weights that several modules share have several names in a state dict.
            first = {id(tensor): name for name, tensor in reversed(_weights(self._model[0], True))}
            names = {name: first[id(tensor)] for name, tensor in _weights(self._model[0], False)}
            state = {names.get(name, name): tensor for name, tensor in state.items()}
        return self._constants.compute(state)

    def run(self, constants: tuple[Tensor, ...], *inputs: Any, **kwargs: Any) -> Any:
        """The function with these constants in place of its own; nothing is packed.

        >>> fast = fold(nn.Sequential(nn.Linear(2, 1)).eval(), torch.ones(1, 2))
        >>> weights = {"0.weight": torch.ones(1, 2), "0.bias": torch.zeros(1)}
        >>> fast.run(fast.constants(weights), torch.ones(1, 2))
        tensor([[2.]])
        """
        tensors: list[Tensor] = []
        key = signature((inputs, kwargs), tensors)
        if key not in self._prepared:
            self._prepared[key] = self._prepare(inputs, kwargs, tensors)
        prepared = self._prepared[key]
        if len(constants) != len(self._constants.used):
            raise SkipwayError(
                f"these inputs have a form that was not prepared before the {len(constants)} constants were computed: "
                "call prepare(*inputs), then constants() again"
            )
        return self._call(prepared, prepared.pick(constants), tensors)

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> _Prepared:
        model = self._model[0]
        check_model(model)
        if any(torch.is_autocast_enabled(kind) for kind in {"cpu", *(tensor.device.type for tensor in tensors)}):
            raise SkipwayError("fold outside of autocast, and give dtype=torch.bfloat16 for lower precision")
        # Constants that are made in inference mode could not be reckoned with outside of it.
        with torch.inference_mode(False), torch.no_grad():
            program = Program(self._constants, Log())
            form, wanted = capture(model, args, kwargs, tensors, program)
            samples = [(tensors, wanted)]
            if (others := perturbed(model, (args, kwargs), tensors)) is not None:
                samples.append(others)
            prepared = self._best(program, form, samples)
        self._constants.forget()
        return prepared

    def _best(self, program: Program, form: Any, samples: list[Any]) -> _Prepared:
        """The most rewritten form of a program that computes what the model does; raises SkipwayError if none does."""
        limit = tolerance(self.choices.dtype, samples[0][1])
        failures: list[str] = []
        for effort in EFFORTS:
            attempt = program.copied()
            mark = self._constants.mark()
            try:
                code = generate(attempt, optimize(attempt, self.choices, effort))
                used = self._constants.compute()
                packed = [used[number] if packer is None else packer(used[number]) for number, packer in code.slots]
                off = [difference(code.run(packed, *given), wanted) for given, wanted in samples]
                if max(off) <= limit:
                    entries = (
                        *attempt.log.entries,
                        *(Entry("", f"folding {why}", False, "undone") for why in failures),
                    )
                    return _Prepared(code, form, packed, Report(entries, len(program.nodes), code.operations))
                failure = f"its results are off by {max(off):.1g}"
            except (RuntimeError, TypeError, IndexError, NotImplementedError) as error:
                failure = f"{type(error).__name__}: {error}"
            self._constants.reset(mark)
            failures.append(f"{effort} ({failure})")
        if self.choices.dtype is not None:
            raise SkipwayError(
                f"this model does not run in {self.choices.dtype} as it is ({failures[-1]}): leave dtype= out, or fold "
                "model.to(dtype)"
            )
        raise SkipwayError(
            f"a run of this model written down does not give what the model gives ({failures[-1]}): it depends on its "
            "inputs, or on a state of its own, in a way that torch does not show"
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Folded:
        """Move or convert: a copy of the original is, and is folded anew when next called."""
        self._model = (copy.deepcopy(self._model[0])._apply(fn),)
        self._clear()
        return self

    def train(self, mode: bool = True) -> Folded:
        """Stays in evaluation mode; raises SkipwayError for training mode."""
        if mode:
            raise SkipwayError("a folded model cannot be trained: train the original, and fold it again")
        return super().train(False)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the original and the choices; programs are written down anew."""
        gone = ("_prepared", "_constants", "_versions")
        return {key: value for key, value in self.__dict__.items() if key not in gone}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._clear()

    def extra_repr(self) -> str:
        return f"{type(self._model[0]).__name__}, {len(self._prepared)} forms of inputs"


def _weights(model: nn.Module, once: bool) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name, under their first name alone or under all."""
    return [*model.named_parameters(remove_duplicate=once), *model.named_buffers(remove_duplicate=once)]
