"""The workbench for skip connections in PyTorch: build, see, change, measure and compare them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipway import connect as connect
    from skipway import edit as edit
    from skipway import graph as graph
    from skipway import models as models
    from skipway import probe as probe
    from skipway import study as study
    from skipway.connect import AttentionGate as AttentionGate
    from skipway.connect import Connection as Connection
    from skipway.connect import Constant as Constant
    from skipway.connect import Dense as Dense
    from skipway.connect import Gate as Gate
    from skipway.connect import Highway as Highway
    from skipway.connect import Identity as Identity
    from skipway.connect import LayerScale as LayerScale
    from skipway.connect import Placement as Placement
    from skipway.connect import Plain as Plain
    from skipway.connect import PooledGate as PooledGate
    from skipway.connect import Projection as Projection
    from skipway.connect import Residual as Residual
    from skipway.connect import ResidualPath as ResidualPath
    from skipway.connect import ReZero as ReZero
    from skipway.connect import Scale as Scale
    from skipway.connect import ShortcutGate as ShortcutGate
    from skipway.connect import Site as Site
    from skipway.connect import Skip as Skip
    from skipway.connect import SkipInit as SkipInit
    from skipway.connect import SqueezeExcite as SqueezeExcite
    from skipway.connect import Stack as Stack
    from skipway.connect import StochasticDepth as StochasticDepth
    from skipway.connect import ZeroPad as ZeroPad
    from skipway.errors import SkipwayError as SkipwayError
    from skipway.graph import SkipGraph as SkipGraph
    from skipway.graph import doctor as doctor
    from skipway.graph import trace as trace
    from skipway.study import Study as Study

__version__ = "0.1.0"

_PACKAGES = ("connect", "edit", "graph", "models", "probe", "study")
_CONNECT = (
    "AttentionGate",
    "Connection",
    "Constant",
    "Dense",
    "Gate",
    "Highway",
    "Identity",
    "LayerScale",
    "Placement",
    "Plain",
    "PooledGate",
    "Projection",
    "ReZero",
    "Residual",
    "ResidualPath",
    "Scale",
    "ShortcutGate",
    "Site",
    "Skip",
    "SkipInit",
    "SqueezeExcite",
    "Stack",
    "StochasticDepth",
    "ZeroPad",
)
_HOME = {
    "SkipwayError": "skipway.errors",
    "Study": "skipway.study",
    **dict.fromkeys(("SkipGraph", "doctor", "trace"), "skipway.graph"),
    **dict.fromkeys(_CONNECT, "skipway.connect"),
}

__all__ = ["__version__", *_PACKAGES, *_HOME]  # noqa: PLE0604 (the names of a dictionary are strings too)


def __getattr__(name: str) -> Any:
    # Lazy, so that `skipway --help` answers without paying for torch.
    if name in _PACKAGES:
        return importlib.import_module(f"skipway.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'skipway' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
