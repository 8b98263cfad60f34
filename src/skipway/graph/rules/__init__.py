"""The doctor's rules: importing this package fills the registry."""

from skipway.graph.rules import branches, construction, drops, learning, norms, path, shortcuts, signals
from skipway.graph.rules.registry import RULES, Finding, Found, Rule, folded, rule

__all__ = [
    "RULES",
    "Finding",
    "Found",
    "Rule",
    "branches",
    "construction",
    "drops",
    "folded",
    "learning",
    "norms",
    "path",
    "rule",
    "shortcuts",
    "signals",
]
