"""Where a model comes from: how it is built, and what it can be run on."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from skipway.errors import SkipwayError
from skipway.graph.inputs import Example


@dataclass(frozen=True)
class Source:
    """A model that is not built yet: `build` makes it on the current device, `examples` inputs that should suit it.

    `shapes_suffice` says that it may be built without memory, on the meta device, where only its structure is asked
    for; what a user's own code or a file builds is always built for real.
    """

    label: str
    build: Callable[[], nn.Module]
    examples: Callable[[nn.Module, str], list[Example]]
    shapes_suffice: bool = True
    guessed: bool = False


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
