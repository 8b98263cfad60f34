"""Files that torch.export wrote, as models."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from skipway.errors import SkipwayError
from skipway.graph.inputs import Example
from skipway.outside import Source, suggestion


def exported_source(path: Path) -> Source:
    """A `.pt2` file that torch.export.save wrote, with the example inputs that it keeps."""
    if path.suffix != ".pt2":
        raise SkipwayError(
            f"{path.name} holds weights, not a model: write one with "
            f"torch.export.save(torch.export.export(model, inputs), '{path.stem}.pt2'), "
            f"or name the function that builds it as package.module:function"
        )
    if not path.is_file():
        others = [one.name for one in path.parent.glob("*.pt2")] if path.parent.is_dir() else []
        raise SkipwayError(f"there is no file {str(path)!r}{suggestion(path.name, others) if others else ''}")
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise SkipwayError(f"{path.name} is no file that torch.export.save wrote: {error}") from error

    def examples(model: nn.Module, device: str) -> list[Example]:
        kept = program.example_inputs
        return [] if kept is None else [(tuple(kept[0]), dict(kept[1]))]

    return Source(path.name, program.module, examples, shapes_suffice=False)
