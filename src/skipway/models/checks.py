"""What model families ask of their connections, their sizes and their images."""

from __future__ import annotations

from torch import Tensor

from skipway.connect import Connection, Kind, Placement, Site
from skipway.connect.connection import PlacedConnection
from skipway.errors import SkipwayError


def additive(kind: Kind, site: Site, stages: str) -> PlacedConnection:
    """The connection for a site of `stages` that keep their width; raises SkipwayError for one that changes it."""
    connection: Connection = kind.build(site)
    if not isinstance(connection, PlacedConnection) or connection.out_channels != site.out_channels:
        raise SkipwayError(
            f"{stages} keep their width, which {kind} does not: choose an additive connection, or a family made for it"
        )
    return connection


def placement_of(kind: Kind) -> Placement:
    """Where a connection's norms and activations stand; nowhere, where it leaves that open."""
    placement = getattr(kind, "placement", None) or Placement()
    return Placement.named(placement) if isinstance(placement, str) else placement


def check_sizes(**sizes: int) -> None:
    """Raise SkipwayError where one of several sizes, such as num_classes and in_channels, is below 1."""
    if min(sizes.values()) < 1:
        *others, last = sizes
        values = ", ".join(map(str, sizes.values()))
        raise SkipwayError(f"{', '.join(others)} and {last} must be at least 1, not {values}")


def check_images(x: Tensor, in_channels: int, least: int, model: str, hint: str = "") -> None:
    """Raise SkipwayError for images of other channels, or smaller than what a model that shrinks them so can take."""
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise SkipwayError(
            f"this {model} takes images of shape [n, {in_channels}, h, w], not {list(x.shape)}: build it with "
            "in_channels= as your images have"
        )
    if min(x.shape[2:]) < least:
        raise SkipwayError(
            f"images are {x.shape[2]} x {x.shape[3]}; this {model} shrinks them {least} times: give at least "
            f"{least} x {least} pixels{hint}"
        )
