"""Models of torchvision and timm by name."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, get_type_hints

from torch import nn

from skipway.errors import SkipwayError, choose, missing_extra
from skipway.graph.inputs import Example, made
from skipway.outside.sources import Settings, Source, near


def torchvision_source(name: str, settings: Settings, weights: bool) -> Source:
    """`torchvision:NAME`, at the image size that its weights were evaluated at."""
    models = _imported("torchvision.models", "torchvision")
    near("torchvision model", name, models.list_models())
    builder = models.get_model_builder(name)
    takes = inspect.signature(builder).parameters
    home = getattr(builder, "__module__", "")
    options: dict[str, Any] = {"weights": "DEFAULT" if weights else None}
    if not weights:
        # Their own slow initialisation, whose default they warn about, changes nothing that is looked at here.
        options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        options |= {"weights_backbone": None} if "weights_backbone" in takes else {}
    if settings.task is not None:
        _check_use("torchvision", name, settings.task, "segmentation" if ".segmentation." in home else "classification")
        if settings.offered.get("in_channels", 3) != 3:
            raise SkipwayError(
                f"torchvision's {name} takes images of 3 channels, and these have {settings.offered['in_channels']}; "
                "our own families ('skipway models') take any number"
            )
        options["num_classes"] = settings.offered["num_classes"]
        if home.endswith(".vision_transformer") and "image_size" in settings.offered:
            options["image_size"] = settings.offered["image_size"]
    options |= settings.options

    def build() -> nn.Module:
        with _naming(f"torchvision's {name}", builder, settings):
            return models.get_model(name, **options)

    def examples(model: nn.Module, device: str) -> list[Example]:
        side = _crop(models, name)
        if ".video." in home:
            return [((made((1, 3, 16, side or 112, side or 112), device),), {})]
        if ".optical_flow." in home:
            pair = made((1, 3, 128, 128), device)
            return [((pair, pair.clone()), {})]
        if ".detection." in home:
            return [(([made((3, 320, 320), device)],), {})]
        return [((made((1, 3, side or 224, side or 224), device),), {})]

    return Source(f"torchvision's {name}", build, examples)


def _crop(models: ModuleType, name: str) -> int | None:
    try:
        transforms = models.get_model_weights(name).DEFAULT.transforms
    except (ValueError, AttributeError):
        return None
    crop = getattr(transforms, "keywords", {}).get("crop_size")
    crop = max(crop) if isinstance(crop, (tuple, list)) else crop
    return crop if isinstance(crop, int) else None


def timm_source(name: str, settings: Settings, weights: bool) -> Source:
    """`timm:NAME`, at the image size of its pretrained configuration."""
    timm = _imported("timm", "timm")
    near("timm model", name.split(".")[0], timm.list_models())
    options: dict[str, Any] = {}
    if settings.task is not None:
        _check_use("timm", name, settings.task, "classification")
        options = {"num_classes": settings.offered["num_classes"], "in_chans": settings.offered["in_channels"]}
        # Those that take images of any size do not know this argument.
        if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
            options["img_size"] = settings.offered["image_size"]
    options |= settings.options

    def build() -> nn.Module:
        with _naming(f"timm's {name}", getattr(timm, "model_entrypoint", timm.create_model)(name), settings):
            return timm.create_model(name, pretrained=weights, **options)

    def examples(model: nn.Module, device: str) -> list[Example]:
        facts = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
        channels, height, width = facts.get("input_size", (3, 224, 224))
        size = options.get("img_size", (height, width))
        sides = (size, size) if isinstance(size, int) else size
        return [((made((1, options.get("in_chans", channels), *sides), device),), {})]

    return Source(f"timm's {name}", build, examples)


@contextmanager
def _naming(label: str, builder: Any, settings: Settings) -> Iterator[None]:
    """Make one sentence of the complaint about an option that nobody takes, with the nearest of those that are."""
    try:
        yield
    except TypeError as error:
        wrong = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if wrong is None or wrong[1] not in settings.options:
            raise
        made = get_type_hints(builder).get("return")
        taken = [*inspect.signature(builder).parameters, *(inspect.signature(made).parameters if made else ())]
        known = [name for name in dict.fromkeys(taken) if name not in ("kwargs", "weights", "pretrained", "progress")]
        choose(f"option of {label}", wrong[1], known)
        raise


def _check_use(library: str, name: str, task: str, use: str) -> None:
    if task != use:
        raise SkipwayError(f"{library}'s {name} is for {use}, and the data are for {task}")


def _imported(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == package:
            raise missing_extra(package, package, f"{package}:NAME") from None
        raise SkipwayError(f"{package} is installed, but needs {error.name}: pip install {error.name}") from error
    except (ImportError, RuntimeError) as error:
        raise SkipwayError(f"{package} is installed, but does not load beside this torch: {error}") from error
