"""See: trace any network into its skip graph, and say what it means."""

from skipway.graph.doctor import doctor
from skipway.graph.rules import RULES, Finding
from skipway.graph.skipgraph import SkipGraph
from skipway.graph.skips import Skip
from skipway.graph.tracing import trace

__all__ = ["RULES", "Finding", "Skip", "SkipGraph", "doctor", "trace"]
