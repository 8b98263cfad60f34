"""Putting the wrappers of a list of changes on a model, and taking them off."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from skipway.edit import fused
from skipway.edit.merges import Dropping
from skipway.edit.places import Place, calls_of, turn
from skipway.edit.windows import Decision, HostState, Patch, RunState, Target, Turns, Window
from skipway.edit.wrappers import Host, Run, Watch, Wrapper, unwrap, wrap
from skipway.errors import SkipwayError
from skipway.graph.ir import Call, Trace


class Wiring:
    """Collects what changes ask for, layer by layer, and sets it on the model.

    A layer is the changes that were planned on one trace; what is planned on a trace of the edited model is a later
    layer. Moving modules (`move`) ends an epoch: what comes later sees the modules in their new places.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root, self.run = root, RunState()
        self.wrappers: list[Wrapper] = []
        self._hosts: dict[str, HostState] = {}
        self._inner: list[Wrapper] = []
        self._moves: list[Callable[[], list[Wrapper]]] = []
        self._watches: dict[tuple[str, str], Watch] = {}
        self._hosting: list[Host] = []
        self._windows: dict[tuple[int, str, int, str, int], Window] = {}

    def module(self, path: str) -> nn.Module:
        return self.root.get_submodule(path)

    def host(self, path: str, calls: int) -> HostState:
        """The state of a host, which gets its wrapper with this."""
        state = self._hosts.get(path)
        if state is None:
            state = self._hosts[path] = HostState(path, calls, self.run)
            self._hosting.append(Host(self.module(path), state))
            if calls > 1:
                self.run.hosts.append(state)
        return state

    def meet(self, layer: int, place: Place, patch: Patch) -> None:
        """Let a patch replace the operation at a place."""
        state = self.host(place.host, place.calls)
        module, number = ("", 0) if place.after is None else (place.after.module, place.after.number)
        key = (layer, place.host, place.call, module, number)
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = Window(layer)
            state.opening.setdefault((place.call, module, number), []).append(window)
            if place.after is not None:
                self._watch(state, place.after.module)
            if place.before is not None:
                closing = (place.call, place.before.module, place.before.number)
                state.closing.setdefault(closing, []).append(window)
                self._watch(state, place.before.module)
        target = window.targets.get((place.operation, place.step))
        if target is None:
            window.add(Target(place, patch))
            state.wanted[place.call] = state.wanted.get(place.call, 0) + 1
        elif isinstance(target.patch, Dropping) and isinstance(patch, Dropping):
            target.patch.dropped |= patch.dropped
        else:
            raise SkipwayError(f"two edits would replace {place}: undo one of them")

    def decide(self, trace: Trace, scope: Call, unneeded: set[int], decision: Decision) -> None:
        """Ask at the start of a call whether a way is left out in it, which makes some operations unneeded."""
        state = self.host(scope.module, calls_of(trace, scope.module))
        producers = [trace.values[value].producer if value >= 0 else None for value in scope.returned]
        state.unread |= {place for place, producer in enumerate(producers) if producer in unneeded}
        state.decisions.setdefault(scope.ordinal, []).append(decision)

    def turns(self, trace: Trace, calls: list[Call]) -> Turns | None:
        """What tells these calls of a module from its others; None where it has no others."""
        path = calls[0].module
        if calls_of(trace, path) == len(calls):
            return None
        parents = {call.parent for call in calls}
        parent = trace.calls[min(index or 0 for index in parents)]
        state = self.host(parent.module, calls_of(trace, parent.module))
        self._watch(state, path)
        around = [(trace.calls[call.parent or 0], call) for call in calls]
        numbers = {(outer.ordinal, turn(trace, outer, call).number) for outer, call in around}
        return Turns(state, path, numbers)

    def add(self, wrapper: Wrapper) -> None:
        """Set a wrapper inside of those that watch."""
        self._inner.append(wrapper)

    def move(self, exchange: Callable[[], list[Wrapper]]) -> None:
        """Exchange what modules run, once all wrappers so far are set; then begin anew around it."""
        self._moves.append(exchange)
        self.set()

    def set(self) -> None:
        """Set what was collected: hosts innermost, then what changes their calls, what is moved, and what watches."""
        for wrapper in (*self._hosting, *self._inner):
            self._wrap(wrapper)
        for exchange in self._moves:
            self.wrappers += exchange()
        for watch in self._watches.values():
            self._wrap(watch)
        self._hosts, self._windows, self._watches = {}, {}, {}
        self._hosting, self._inner, self._moves = [], [], []

    def finish(self) -> list[Wrapper]:
        """Set all, and number the calls of modules that run several times; gives the wrappers."""
        self.set()
        if self.run.hosts:
            self._wrap(Run(self.root, self.run))
        fused.avoid(self.root, (wrapper.module for wrapper in self.wrappers))
        return self.wrappers

    def _watch(self, state: HostState, path: str) -> None:
        if (state.path, path) not in self._watches:
            self._watches[state.path, path] = Watch(self.module(path), state, path)

    def _wrap(self, wrapper: Wrapper) -> None:
        wrap(wrapper)
        self.wrappers.append(wrapper)


def unwire(root: nn.Module, wrappers: list[Wrapper]) -> None:
    """Take wrappers off the modules of a model."""
    fused.allow(root)
    gone = {id(wrapper) for wrapper in wrappers}
    for module in root.modules():
        unwrap(module, gone)
