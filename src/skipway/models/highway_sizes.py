"""The named highway networks: fully connected and convolutional, of 10 to 100 layers and any number between."""

from __future__ import annotations

from skipway.connect import Kind
from skipway.errors import SkipwayError
from skipway.models.family import Family, Input
from skipway.models.highway import HighwayNet, HighwayPlan

_STAGES = 3


def highway(
    layers: int,
    skip: str | Kind = "highway",
    num_classes: int = 10,
    in_channels: int = 1,
    width: int = 50,
    image_size: int = 28,
) -> HighwayNet:
    """A fully connected highway network: a plain layer, layers - 1 highway layers, and the classifier.

    The published ones have 10, 20, 50 and 100 layers of width 50 and were trained on MNIST; the classifier is not
    counted. Images are flattened: `image_size` is how many pixels they have a side. Raises SkipwayError for fewer than
    2 layers.

    >>> highway(50).depth
    51
    """
    if layers < 2:
        raise SkipwayError(f"a highway network has at least 2 layers, a plain one and a highway one, not {layers}")
    return HighwayNet(HighwayPlan((layers - 1,), width, image_size), skip, num_classes, in_channels)


def convolutional_highway(
    layers: int,
    skip: str | Kind = "highway",
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
) -> HighwayNet:
    """A convolutional highway network for small images: three stages, each a plain layer and then highway layers.

    All of `layers` are 3x3 convolutions, spread evenly over stages of `width`, 2 and 4 times as many channels; the
    classifier is not counted. Raises SkipwayError for fewer than 6 layers.

    >>> convolutional_highway(20).plan.layers
    (6, 6, 5)
    """
    if layers < 2 * _STAGES:
        raise SkipwayError(
            f"a convolutional highway network has at least {2 * _STAGES} layers, a plain one and a highway one a "
            f"stage, not {layers}"
        )
    each, more = divmod(layers - _STAGES, _STAGES)
    stages = tuple(each + (stage < more) for stage in range(_STAGES))
    return HighwayNet(HighwayPlan(stages, width), skip, num_classes, in_channels)


DEPTHS = (10, 20, 50, 100)

FAMILIES = (
    Family(
        highway,
        {f"highway-{layers}": {"layers": layers} for layers in DEPTHS},
        lambda model: (Input((model.in_channels, model.plan.image_size, model.plan.image_size)),),
        skip="highway",
        pattern=r"highway-(?P<layers>\d+)",
    ),
    Family(
        convolutional_highway,
        {f"highway-conv-{layers}": {"layers": layers} for layers in DEPTHS},
        lambda model: (Input((model.in_channels, 32, 32)),),
        skip="highway",
        pattern=r"highway-conv-(?P<layers>\d+)",
    ),
)
