"""The additive family: a shortcut carries the stream past the branch, and the two meet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect.attention_gate import AttentionGate, AttentionGating
from skipway.connect.connection import PlacedConnection
from skipway.connect.drop import Dropper, StochasticDepth
from skipway.connect.gates import Gate, SqueezeExcite
from skipway.connect.layers import hands_on
from skipway.connect.placement import Placement
from skipway.connect.scales import Scale
from skipway.connect.shortcuts import Part, Projection
from skipway.connect.site import Site
from skipway.errors import SkipwayError, choose


def _placement(placement: Placement | str | None) -> Placement:
    if placement is None:
        return Placement()
    if isinstance(placement, str):
        return Placement.named(placement)
    if not isinstance(placement, Placement):
        raise SkipwayError(f"placement= takes a name or a Placement(...), not {shown(placement)}")
    return placement


def shown(given: object) -> str:
    """How an error tells what it was given: a class stands out, for its call was forgotten."""
    return f"the class {given.__name__}: call it" if isinstance(given, type) else repr(given)


@dataclass(frozen=True)
class Plain:
    """y = after(reweight(out(F(before(x))))): no skip at all, the counterpart that every skip is measured against.

    `placement` and `reweight` None are what the model family publishes, or nothing around a branch of your own.

    >>> Plain().build(Site(8, 8))
    PlacedConnection()
    """

    placement: Placement | str | None = None
    reweight: SqueezeExcite | None = None

    def __post_init__(self) -> None:
        _placement(self.placement)
        if self.reweight is not None and not isinstance(self.reweight, SqueezeExcite):
            raise SkipwayError(f"reweight= takes a SqueezeExcite or None, not {shown(self.reweight)}")

    def build(self, site: Site) -> PlacedConnection:
        return PlacedConnection(site, _placement(self.placement), site.out_channels, self.reweight)


@dataclass(frozen=True)
class Residual:
    """y = after( merge( b S(x), drop( a reweight(out(F(before(x)))) ) ) ), and y = S(x) + F(x) with nothing chosen.

    Every field is a choice of its own, and they combine freely: `shortcut` S (None: what the model family publishes,
    else identity, projected where the shape changes), `scale` a and `shortcut_scale` b, `reweight` the branch's
    channels, `gate` weighs branch against shortcut, `drop` leaves branches out in training (a number is the final
    rate of linearly growing stochastic depth), `merge` adds or concatenates, `placement` puts norms and activations
    before, behind and after (None: what the family publishes, else nothing).

    Residual learning: He, Zhang, Ren, Sun 2015 (arXiv:1512.03385). Raises SkipwayError for choices that exclude each
    other, and at a site that the choices cannot serve.

    >>> Residual(scale=Scale(0.5), drop=0.2).build(Site(8, 8)).out_channels
    8
    """

    shortcut: Part | None = None
    scale: Scale | None = None
    shortcut_scale: Scale | None = None
    reweight: SqueezeExcite | None = None
    gate: Gate | AttentionGate | None = None
    drop: float | StochasticDepth = 0.0
    merge: Literal["add", "concat"] = "add"
    placement: Placement | str | None = None

    def __post_init__(self) -> None:
        choose("merge", self.merge, ("add", "concat"))
        _placement(self.placement)
        _dropping(self.drop)
        for field, *kinds in (
            ("scale", Scale),
            ("shortcut_scale", Scale),
            ("reweight", SqueezeExcite),
            ("gate", Gate, AttentionGate),
        ):
            part = getattr(self, field)
            if part is not None and not isinstance(part, tuple(kinds)):
                raise SkipwayError(f"{field}= takes a {kinds[0].__name__} or None, not {shown(part)}")
        carries = isinstance(self.shortcut, Part) and not isinstance(
            self.shortcut, (type, Gate, AttentionGate, StochasticDepth)
        )
        if self.shortcut is not None and not carries:
            raise SkipwayError(f"shortcut= takes Identity(), Projection() or ZeroPad(), not {shown(self.shortcut)}")
        if isinstance(self.gate, AttentionGate) and _dropping(self.drop).rate > 0:
            raise SkipwayError("an attention gate reads what the branch put out, which drop= leaves out: drop one")
        if self.merge == "concat" and isinstance(self.gate, Gate):
            raise SkipwayError("a gate weighs branch against shortcut, which merge='concat' keeps apart: drop one")

    def build(self, site: Site) -> ResidualConnection:
        return ResidualConnection(self, site)


def _dropping(drop: float | StochasticDepth) -> StochasticDepth:
    if isinstance(drop, StochasticDepth):
        return drop
    if not isinstance(drop, (int, float)):
        raise SkipwayError(f"drop= takes a rate in [0, 1) or a StochasticDepth(...), not {shown(drop)}")
    return StochasticDepth(drop)


class ResidualConnection(PlacedConnection):
    """A `Residual` at one site."""

    def __init__(self, skip: Residual, site: Site) -> None:
        joins = skip.merge == "concat"
        out_channels = site.in_channels + site.out_channels if joins else site.out_channels
        super().__init__(site, _placement(skip.placement), out_channels, skip.reweight)
        carried = replace(site, out_channels=site.in_channels) if joins else site
        shortcut = Projection() if skip.shortcut is None else skip.shortcut
        self.skip = skip
        self.scale = None if skip.scale is None else skip.scale.build(site)
        self.shortcut_scale = None if skip.shortcut_scale is None else skip.shortcut_scale.build(carried)
        attends = isinstance(skip.gate, AttentionGate)
        read_by_gate = replace(site, in_channels=carried.out_channels, stride=1) if attends else site
        self.gate = None if skip.gate is None else skip.gate.build(read_by_gate)
        dropping = _dropping(skip.drop)
        self.drop: Dropper | None = dropping.build(site) if dropping.rate > 0 else None
        self.register_module("shortcut", shortcut.build(carried))
        carries_bare = isinstance(self._modules["shortcut"], nn.Identity) or not isinstance(shortcut, Projection)
        self._shares_read = bool(self.placement.before) and not carries_bare

    def leaves_out(self) -> bool:
        return self.drop is not None and self.drop.active and self.drop.drops_branch()

    @property
    def adds(self) -> bool:
        """Whether to write to the stream is to add to it and nothing else."""
        if self.scale is not None or self.gate is not None or self.shortcut_scale is not None:
            return False
        if self.skip.merge != "add" or self.placement.out or self.placement.after:
            return False
        if self.drop is not None and self.drop.active:
            return False
        return self.part("reweight") is None and hands_on(self.part("shortcut"))

    def write(
        self, stream: Float[Tensor, "..."], value: Any, read: Float[Tensor, "..."] | None = None, fresh: bool = False
    ) -> Float[Tensor, "..."]:
        value, fresh = self._receive(value, fresh)
        if self.scale is not None:
            value, fresh = self.scale(value, fresh), True
        keep = None if self.drop is None or not self.drop.active else self.drop.keep(value)
        source = stream
        if self._shares_read:
            source = self.read(stream) if read is None else read
        shortcut = self._carry(source)
        self._check(shortcut, value)
        if isinstance(self.gate, AttentionGating):
            shortcut = self.gate(shortcut, value)
        elif self.gate is not None:
            merged = self.gate(source, shortcut, value)
            # What is dropped is the gate's whole step away from the shortcut, so that nothing of it stays.
            merged = merged if keep is None else shortcut + keep * (merged - shortcut)
            return self._finish(merged, fresh=True)
        if keep is not None:
            value, fresh = value * keep, True
        if self.skip.merge == "concat":
            return self._finish(torch.cat((shortcut, value), dim=self.site.channel_axis), fresh=True)
        if fresh and value.dtype == shortcut.dtype:
            value += shortcut
        else:
            value = shortcut + value
        return self._finish(value, fresh=True)

    def _carry(self, source: Tensor) -> Tensor:
        shortcut = self.part("shortcut")
        assert shortcut is not None
        carried = shortcut(source)
        return carried if self.shortcut_scale is None else self.shortcut_scale(carried)

    def without(self, stream: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        self.site.check_stream(stream)
        carried = self._carry(self.read(stream) if self._shares_read else stream)
        if self.skip.merge == "concat":
            shape = list(carried.shape)
            shape[self.site.channel_axis] = self.site.out_channels
            carried = torch.cat((carried, carried.new_zeros(shape)), dim=self.site.channel_axis)
        return self._finish(carried, fresh=False)

    def _check(self, shortcut: Tensor, value: Tensor) -> None:
        # Broadcasting in the sum would hide a mistake: the shapes must agree, but for channels that are concatenated.
        theirs, ours = list(value.shape), list(shortcut.shape)
        if self.skip.merge == "concat" and len(theirs) == len(ours):
            theirs[self.site.channel_axis] = ours[self.site.channel_axis] = 0
        if theirs != ours:
            raise SkipwayError(
                f"the branch put out {tuple(value.shape)} and the shortcut carries {tuple(shortcut.shape)}; this "
                f"connection was built for {self.site.in_channels} -> {self.site.out_channels} channels at stride "
                f"{self.site.stride} with dims={self.site.dims}: give the channels, stride and dims of your branch"
            )

    def extra_repr(self) -> str:
        return repr(self.skip)
