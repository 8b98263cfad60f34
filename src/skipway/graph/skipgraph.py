"""`SkipGraph`: what `trace` returns; the skips, paths and tables of one model."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipway.graph import table
from skipway.graph.flow import Flow
from skipway.graph.ir import Trace
from skipway.graph.paths import Paths, Unit, count_paths
from skipway.graph.skips import Skip, find_skips

if TYPE_CHECKING:
    from skipway.graph.draw import Drawing
    from skipway.graph.symmetry import Symmetry


class SkipGraph:
    """The graph of one forward pass. It holds no tensor and no model, so it can be kept, copied and pickled.

    `trace` is the record itself (`skipway.graph.ir.Trace`); everything else is worked out from it when first asked for.
    """

    def __init__(self, trace: Trace):
        self.trace = trace

    @cached_property
    def _analysis(self) -> tuple[tuple[Skip, ...], Flow]:
        return find_skips(self.trace)

    @property
    def skips(self) -> tuple[Skip, ...]:
        """Its skip connections, in the order in which they merge."""
        return self._analysis[0]

    @property
    def flow(self) -> Flow:
        """How every operation passes on what it reads, and which values reach which."""
        return self._analysis[1]

    def paths(self, by: Unit = "layer", output: str | int | None = None) -> Paths:
        """The exact number of paths from the inputs to an output, by length.

        Sums and concatenations fork paths; gates and attention do not: a path goes on through what is weighted.
        Arithmetic that meets itself again without work in between (a norm or a rotation written out) is one way.

        Args:
            by: what a length counts: "layer", the weight layers passed, or "block", the branches of skips passed.
            output: an output by name or number; by default the first that is not a single number.

        Raises SkipwayError for an unknown unit or output.

        >>> import torch, skipway as sw
        >>> block = torch.nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, batch_first=True)
        >>> sw.graph.trace(block, torch.zeros(1, 3, 8)).paths()
        Paths({0: 1, 2: 2, 4: 1})
        """
        return count_paths(self.trace, self.flow, self.skips, by, output)

    def symmetry(self) -> Symmetry:
        """The permutations and rescalings of its parameters that leave the function as it is.

        >>> import torch
        >>> from skipway.graph import trace
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> [found.size for found in trace(net, torch.zeros(1, 4)).symmetry().classes]
        [3]
        """
        return self._symmetry

    @cached_property
    def _symmetry(self) -> Symmetry:
        from skipway.graph.symmetry import symmetry

        return symmetry(self)

    def draw(self, path: str | Path | None = None, *, fold: bool = True, legend: bool = True) -> Drawing:
        """A picture of the network at the level of blocks, written to `path` (.svg, .png, .pdf) if one is given.

        `fold=False` draws repeated blocks one by one. Raises SkipwayError for a path that cannot be written to.

        >>> import torch
        >>> from skipway.graph import trace
        >>> trace(torch.nn.Linear(4, 2), torch.zeros(1, 4)).draw().svg()[:5]
        '<svg '
        """
        from skipway.graph.draw import draw

        return draw(self, path, fold=fold, legend=legend)

    def _repr_html_(self) -> str:
        return self.draw().svg()

    def __str__(self) -> str:
        return table.text(self)

    def __repr__(self) -> str:
        return f"<SkipGraph of {self.trace.model}: {len(self.skips)} skips>"

    def to_frame(self) -> Any:
        """The skips as a pandas data frame, one row each."""
        return table.to_frame(self)

    def to_json(self, operations: bool = False) -> str:
        """The skips as JSON, and with `operations` every operation and tensor too."""
        return table.to_json(self, operations)

    def to_networkx(self) -> Any:
        """The operations as a networkx `MultiDiGraph`.

        Nodes are the operations' indices (and "input NAME"), with site, name, module, shape, parameters, weight_layers
        and the indices of the skips that merge there; edges carry the value, the operand's position and its passage.
        """
        return table.to_networkx(self)
