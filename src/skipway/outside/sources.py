"""Where a model comes from: how it is built, with what, and what it can be run on."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from skipway.errors import SkipwayError
from skipway.graph.inputs import Example


@dataclass(frozen=True)
class Settings:
    """What a model is built with: what the data settle, such as num_classes, and `options` of the user's.

    A model takes of what is `offered` what it knows, under the names that its library uses; options have the last
    word, and one that it does not know is an error. `task` is what the model is trained for, and decides what it tells;
    without one a model is built as it is published. A `skip` is for functions that take one.
    """

    task: str | None = None
    offered: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    skip: Any = None


@dataclass(frozen=True)
class Source:
    """A model that is not built yet: `build` makes it on the current device, `examples` inputs that should suit it.

    `shapes_suffice` says that it may be built without memory, on the meta device, where only its structure is asked
    for; what a user's own code or a file builds is always built for real. `ready` says that `build` gives a network
    that its owner holds too, and `takes_skip` that it is built with the skip of its settings.
    """

    label: str
    build: Callable[[], nn.Module]
    examples: Callable[[nn.Module, str], list[Example]]
    shapes_suffice: bool = True
    guessed: bool = False
    ready: bool = False
    takes_skip: bool = False

    def built(self) -> nn.Module:
        """What `build` makes; whatever goes wrong in it is one sentence."""
        try:
            return self.build()
        except SkipwayError:
            raise
        except Exception as error:
            why = next((line for line in str(error).splitlines() if line.strip()), "")
            raise SkipwayError(f"building {self.label} fails: {type(error).__name__}: {why}") from error


def near(kind: str, name: str, options: Iterable[str]) -> str:
    """Return a name that is one of many options; otherwise raise with the nearest ones, not with the whole list."""
    known = list(options)
    if name in known:
        return name
    raise SkipwayError(f"no {kind} {name!r} among {len(known)}{suggestion(name, known)}")


def suggestion(name: str, options: Iterable[str]) -> str:
    """What to append to an error about an unknown name: the nearest of the known ones.

    >>> suggestion("resnet5", ["resnet50", "vgg16"])
    "; did you mean 'resnet50'?"
    """
    known = {option.lower(): option for option in options}
    longer = sorted((one for one in known if name and one.startswith(name.lower())), key=len)
    similar = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.6)
    found = [known[one] for one in dict.fromkeys([*longer[:3], *similar])][:3]
    if not found:
        return ""
    words = [f"'{one}'" for one in found]
    return f"; did you mean {' or '.join([', '.join(words[:-1]), words[-1]] if len(words) > 1 else words)}?"
