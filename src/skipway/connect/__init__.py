"""Build: the connections, and the stages that run branches through them."""

from skipway.connect.attention_gate import AttentionGate
from skipway.connect.connection import Connection, Kind
from skipway.connect.dense import Dense
from skipway.connect.drop import StochasticDepth
from skipway.connect.gates import Gate, Highway, PooledGate, ShortcutGate, SqueezeExcite
from skipway.connect.placement import Placement
from skipway.connect.presets import describe, fill, names, preset, resolve
from skipway.connect.residual import Plain, Residual
from skipway.connect.residual_path import ResidualPath
from skipway.connect.scales import Constant, LayerScale, ReZero, Scale, SkipInit
from skipway.connect.shortcuts import Identity, Part, Projection, ZeroPad
from skipway.connect.site import Site
from skipway.connect.stack import Skip, Stack

__all__ = [
    "AttentionGate",
    "Connection",
    "Constant",
    "Dense",
    "Gate",
    "Highway",
    "Identity",
    "Kind",
    "LayerScale",
    "Part",
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
    "describe",
    "fill",
    "names",
    "preset",
    "resolve",
]
