"""What a name with a colon means: a library's model, or a function of the user's own."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skipway.errors import SkipwayError
from skipway.outside.sources import Settings, Source

FORMS = "torchvision:resnet50, timm:vit_base_patch16_224, hf:BertConfig or package.module:factory"
_LIBRARIES = ("torchvision", "timm", "hf")


def find(spec: str, settings: Settings | None = None, weights: bool = False) -> Source:
    """The source that a name with a colon means, to be built with these settings, with published `weights` if asked.

    Raises SkipwayError for what there is not, with the nearest of what there is.
    """
    settings = Settings() if settings is None else settings
    library, _, name = spec.partition(":")
    if not name or not library:
        raise SkipwayError(f"{spec!r} lacks what stands {'after' if library else 'before'} the colon; write {FORMS}")
    if library in ("torchvision", "timm"):
        from skipway.outside import libraries

        of_library = libraries.torchvision_source if library == "torchvision" else libraries.timm_source
        return of_library(name, settings, weights)
    if library == "hf":
        from skipway.outside.huggingface import huggingface_source

        return huggingface_source(name, settings, weights)
    from skipway.outside.factories import factory_source

    if weights:
        raise SkipwayError(f"published weights are those of torchvision, timm and the Hub; let {spec} load its own")
    if library.endswith(".py") and not Path(library).is_absolute():
        module = ".".join(Path(library).with_suffix("").parts)
        raise SkipwayError(f"{spec!r} names a file; name its module, as in {module}:{name}")
    if not re.fullmatch(r"[A-Za-z_][\w.]*", library) or not re.fullmatch(r"[A-Za-z_][\w.]*", name):
        raise SkipwayError(f"{spec!r} names no model; write {FORMS}")
    meant = difflib.get_close_matches(library, _LIBRARIES, n=1)
    try:
        return factory_source(library, name, settings)
    except SkipwayError as error:
        if meant and importlib.util.find_spec(library.split(".")[0]) is None:
            raise SkipwayError(f"no library or module {library!r}; did you mean '{meant[0]}:{name}'?") from None
        raise error


def hides(spec: str, options: Mapping[str, Any]) -> bool:
    """Whether a name with a colon means a network that sees a text from both sides, and is to tell hidden words of it.

    >>> hides("mynets:build", {})
    False
    """
    library, _, name = spec.partition(":")
    if library != "hf":
        return False
    from skipway.outside.huggingface import sees_both_sides

    return sees_both_sides(name, options)


def fingerprint(spec: str) -> str | None:
    """A hash of the file in which a function of the user's own is written; None where a name means no such function.

    >>> fingerprint("hf:ViTConfig") is None
    True
    """
    library, colon, _ = spec.partition(":")
    if not colon or library in _LIBRARIES:
        return None
    from skipway.outside.factories import written_in

    return written_in(library)
