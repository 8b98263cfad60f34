"""Which skips an edit means: skips themselves, numbers, patterns of sites, kinds, or a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Any, SupportsIndex, TypeAlias

from torch import nn

from skipway.errors import SkipwayError
from skipway.graph.skipgraph import SkipGraph
from skipway.graph.skips import KINDS, Skip

Which: TypeAlias = (
    "Skip | SupportsIndex | str | Callable[[Skip], bool] | SkipGraph | Iterable[Skip | SupportsIndex | str]"
)


def select(model: nn.Module, which: Any, graph: SkipGraph | None) -> tuple[Skip, ...]:
    """The skips meant by `which`, each once, in the order in which they merge.

    A skip or several; or, with the `graph` they are to be chosen from: a number, a slice, a pattern for the site or for
    the module that merges ("layer3.*"), a kind ("concat"), a function of a skip, or several of these. A graph alone
    means all its skips. Raises SkipwayError where nothing is meant, or the graph is missing.
    """
    if not isinstance(model, nn.Module):
        raise SkipwayError(f"an edit takes a torch.nn.Module, not {type(model).__name__}")
    if isinstance(which, SkipGraph):
        which, graph = which.skips, which
    found = _meant(which, graph)
    if not found:
        raise SkipwayError(f"no skip is meant by {which!r}: give at least one")
    traces = [skip.trace for skip in found]
    if any(trace is not traces[0] and trace != traces[0] for trace in traces):
        raise SkipwayError("these skips come from different graphs: trace the model once and choose among its skips")
    unique = {(skip.merge, skip.carried): skip for skip in found}
    return tuple(unique[key] for key in sorted(unique))


def _meant(which: Any, graph: SkipGraph | None) -> list[Skip]:
    if isinstance(which, Skip):
        return [which]
    if isinstance(which, (Integral, slice, str)) or callable(which):
        if graph is None:
            raise SkipwayError(f"to choose skips by {_told(which)}, give the graph too: graph=skipway.trace(model, x)")
        return _chosen(which, graph)
    if isinstance(which, Iterable):
        return [skip for part in which for skip in _meant(part, graph)]
    raise SkipwayError(
        f"skips are chosen by a skip, a number, a pattern like 'layer3.*', a kind, a function or a list of these, not "
        f"by {type(which).__name__}"
    )


def _chosen(which: Any, graph: SkipGraph) -> list[Skip]:
    skips = list(graph.skips)
    if isinstance(which, bool):
        raise SkipwayError("skips are chosen by number, and True and False are none")
    if isinstance(which, Integral):
        which = int(which)
        if not -len(skips) <= which < len(skips):
            raise SkipwayError(f"there is no skip {which}: the graph has {len(skips)}, numbered from 0")
        return [skips[which]]
    if isinstance(which, slice):
        return skips[which]
    if isinstance(which, str):
        if which in KINDS:
            return [skip for skip in skips if skip.kind == which]
        found = [skip for skip in skips if fnmatchcase(str(skip.site), which) or fnmatchcase(skip.site.module, which)]
        if not found:
            some = ", ".join(str(skip.site) for skip in skips[:3]) or "it has none"
            raise SkipwayError(f"no skip's site or kind matches {which!r}; sites read like {some}; kinds are "
                               f"{', '.join(KINDS)}")  # fmt: skip
        return found
    return [skip for skip in skips if which(skip)]


def _told(which: Any) -> str:
    return f"the function {getattr(which, '__name__', 'given')}" if callable(which) else repr(which)
