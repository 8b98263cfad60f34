"""`draw`: a picture of a network's stream, its branches and its skips."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skipway.errors import SkipwayError, choose
from skipway.graph.draw_labels import shape_words
from skipway.graph.draw_layout import lay_out
from skipway.graph.draw_rows import plan
from skipway.graph.draw_scene import Scene

if TYPE_CHECKING:
    from skipway.graph.skipgraph import SkipGraph

_FORMATS = (".svg", ".png", ".pdf")


@dataclass(frozen=True)
class Drawing:
    """A picture that a notebook shows as it is, and that `save` writes to a file."""

    scene: Scene

    def svg(self) -> str:
        """The text of an SVG file."""
        return self.scene.svg()

    def save(self, path: str | Path) -> Path:
        """Write an .svg, .png or .pdf file; raises SkipwayError for another ending or a folder that is not there."""
        path = check_path(path)
        if path.suffix.lower() == ".svg":
            path.write_text(self.svg(), encoding="utf-8")
        else:
            self.scene.save_figure(path)
        return path

    def __repr__(self) -> str:
        return "<Drawing: a notebook shows it; save(path) writes an .svg, .png or .pdf file.>"

    def _repr_svg_(self) -> str:
        return self.svg()


def check_path(path: str | Path) -> Path:
    """A path that a picture can be written to; raises SkipwayError for another format or a folder that is not there."""
    path = Path(path)
    choose("picture format", path.suffix.lower(), _FORMATS)
    if not path.parent.is_dir():
        raise SkipwayError(f"there is no folder {str(path.parent)!r} to write {path.name} to: make it first")
    return path


def draw(graph: SkipGraph, path: str | Path | None = None, *, fold: bool = True, legend: bool = True) -> Drawing:
    """Draw a graph at the level of blocks, and write it to `path` (.svg, .png, .pdf) if one is given.

    Each stream is a straight line from top to bottom, with its branches beside it. A skip is an arc: its colour and its
    sign say how it merges, its line style what its shortcut does; long ones run outside. Blocks that repeat are drawn
    once, with their number (`fold=False` draws them all). Shapes stand where they change.

    Raises SkipwayError for a file that cannot be written.

    >>> import torch, skipway as sw
    >>> from skipway.graph import trace
    >>> picture = draw(trace(sw.models.create("resnet20"), torch.zeros(1, 3, 32, 32)))
    >>> "× 3" in picture.svg()
    True
    """
    trace = graph.trace
    counts = Counter((skip.kind, skip.shortcut) for skip in graph.skips)
    kinds = ", ".join(f"{count} {kind} ({shortcut})" for (kind, shortcut), count in counts.most_common())
    number = len(graph.skips)
    title = f"{trace.model}: {number or 'no'} skip{'' if number == 1 else 's'}"
    given = ", ".join(f"{trace.values[i].name or 'input'} {shape_words(trace.values[i].shape)}" for i in trace.inputs)
    subtitle = "; ".join(part for part in (kinds, f"traced on {given}") if part)
    picture = Drawing(lay_out(plan(graph, fold), title, subtitle, legend))
    if path is not None:
        picture.save(path)
    return picture
