"""What stands in for `forward` on one module of an edited model; the module itself stays of its own class."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from skipway.edit.meta import Spreading, unrolled
from skipway.edit.windows import HostState, Passage, RunState
from skipway.errors import SkipwayError


class Wrapper:
    """A callable set as `module.forward`, around what stood there: by default it only passes calls on.

    It is an attribute of the instance, so the class, the attributes, the hooks and the names of the parameters are as
    they were, and deep copies and pickles carry it along.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.beneath: Any = None

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """What stood there before."""
        if self.beneath is None:
            return type(self.module).forward(self.module, *args, **kwargs)
        return self.beneath(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)

    # torch.export asks a forward for its code, and Hugging Face for its signature.
    @property
    def __code__(self) -> Any:
        beneath = self.beneath
        return type(self.module).forward.__code__ if beneath is None else beneath.__code__

    @property
    def __signature__(self) -> inspect.Signature:
        beneath = self.beneath
        if beneath is not None:
            return inspect.signature(beneath)
        signature = inspect.signature(type(self.module).forward)
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class Run(Wrapper):
    """On the model itself: one run of it, in which the calls of modules that run several times are numbered."""

    def __init__(self, module: nn.Module, state: RunState) -> None:
        super().__init__(module)
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.state.begin()
        try:
            return self.run(*args, **kwargs)
        finally:
            self.state.end()


class Host(Wrapper):
    """On a module whose own operations are changed, or that holds a way which may be left out: one call of it."""

    def __init__(self, module: nn.Module, state: HostState) -> None:
        super().__init__(module)
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        state = self.state
        if state.calls > 1:
            state.check_run()
        if not (state.decisions and state.decide()) or unrolled():
            return self._watched(args, kwargs)
        with Spreading():
            result = self._watched(args, kwargs)
        flat = (result,) if isinstance(result, Tensor) else tree_flatten(result)[0]
        given = [item for item in flat if isinstance(item, Tensor)]
        if any(item.is_meta and place not in state.unread for place, item in enumerate(given)):
            raise SkipwayError(
                f"{state.path or 'the model'} gives back something that the way left out would have made: trace the "
                "model again on the kind of inputs, and with the kind of outputs, that it is used with"
            )
        return result

    # Here and in `Watch` what `run` does is written out: an edited model pays for each call of these a block.
    def _watched(self, args: Any, kwargs: Any) -> Any:
        state, beneath = self.state, self.beneath
        passage = state.passage = Passage(state.wanted.get(state.number, 0))
        try:
            for window in state.opening.get((state.number, "", 0), ()):
                passage.enter(window)
            if beneath is None:
                result = type(self.module).forward(self.module, *args, **kwargs)
            else:
                result = beneath(*args, **kwargs)
            if passage.unmet:
                state.finish(passage)
        finally:
            state.end(passage)
        return result


class Watch(Wrapper):
    """On a module that a host calls: opens windows when such a call ends and closes them when one begins."""

    def __init__(self, module: nn.Module, state: HostState, path: str) -> None:
        super().__init__(module)
        self.state, self.path = state, path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        state, beneath = self.state, self.beneath
        passage = state.passage
        turn = None
        if passage is not None:
            number = passage.turns.get(self.path, 0)
            passage.turns[self.path] = number + 1
            turn = (state.number, self.path, number)
            if turn in state.closing:
                for window in state.closing[turn]:
                    passage.leave(window)
        if beneath is None:
            result = type(self.module).forward(self.module, *args, **kwargs)
        else:
            result = beneath(*args, **kwargs)
        if passage is not None and turn in state.opening:
            for window in state.opening[turn]:
                passage.enter(window)
        return result


def wrap(wrapper: Wrapper) -> None:
    """Set a wrapper as its module's forward, around what stands there."""
    wrapper.beneath = wrapper.module.__dict__.get("forward")
    wrapper.module.__dict__["forward"] = wrapper


def chain(module: nn.Module) -> Iterator[Wrapper]:
    """The wrappers on a module, outermost first."""
    found = module.__dict__.get("forward")
    while isinstance(found, Wrapper):
        yield found
        found = found.beneath


def unwrap(module: nn.Module, wrappers: set[int]) -> None:
    """Take those of a module's wrappers away whose ids are given."""
    kept = [wrapper for wrapper in chain(module) if id(wrapper) not in wrappers]
    last = list(chain(module))[-1:]
    beneath = last[0].beneath if last else None
    for wrapper in reversed(kept):
        wrapper.beneath = beneath
        beneath = wrapper
    if last:
        if beneath is None:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = beneath
