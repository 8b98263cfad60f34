"""What a finding is, and the registry of the rules that make them."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from skipway.errors import choose
from skipway.graph.ir import Site

if TYPE_CHECKING:
    from skipway.graph.rules.case import Case

SEVERITIES = ("error", "warning", "advice")


@dataclass(frozen=True)
class Finding:
    """One thing that the doctor found, where it stands, what to do about it, and who says so.

    `rule` names the rule, `severity` is "error" (the model does not do what its author means), "warning" (it will
    likely train or run worse) or "advice" (a choice that the literature has improved upon). `site` is where it stands
    and `also` where else the same is found.

    >>> finding = Finding("one-rule", "advice", Site("layer1.0", "add"), "It adds.", "Let it be.", "Someone 2015")
    >>> print(finding)
    advice: one-rule, at layer1.0:add:0
      It adds.
      Remedy: Let it be.
      Source: Someone 2015
    """

    rule: str
    severity: str
    site: Site
    sentence: str
    remedy: str
    source: str
    also: tuple[Site, ...] = ()

    def __str__(self) -> str:
        again = f" and {len(self.also)} more" if self.also else ""
        lines = [f"{self.severity}: {self.rule}, at {self.site}{again}"]
        for text in (self.sentence, f"Remedy: {self.remedy}", f"Source: {self.source}"):
            lines += textwrap.wrap(
                text, 100, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
        return "\n".join(lines)


class Found(NamedTuple):
    """What a rule yields: a site, a sentence about it, and a severity where it is not the rule's usual one."""

    site: Site
    sentence: str
    severity: str = ""
    also: tuple[Site, ...] = ()


Check = Callable[["Case"], Iterator[Found]]


@dataclass(frozen=True)
class Rule:
    """One rule: its name, usual severity, remedy and source, and the function that looks for what it names."""

    name: str
    severity: str
    remedy: str
    source: str
    check: Check

    @property
    def description(self) -> str:
        """What the rule detects and when it stays silent, in a paragraph."""
        return " ".join((inspect.getdoc(self.check) or "").split())

    def finding(self, found: Found) -> Finding:
        """What was found, as a finding of this rule."""
        severity = found.severity or self.severity
        return Finding(self.name, severity, found.site, found.sentence, self.remedy, self.source, found.also)


RULES: dict[str, Rule] = {}


def rule(name: str, severity: str, *, remedy: str, source: str) -> Callable[[Check], Check]:
    """Register a function that yields what it finds in a case; its docstring says what it detects and when not."""
    choose("severity", severity, SEVERITIES)

    def register(check: Check) -> Check:
        RULES[name] = Rule(name, severity, remedy, source, check)
        return check

    return register


def folded(findings: Iterable[Finding]) -> list[Finding]:
    """The findings, most severe first, with those that differ in numbers of blocks and layers alone as one.

    What two traces of one model both show is shown once.
    """
    groups: dict[tuple[str, str, str], dict[Site, Finding]] = {}
    for finding in findings:
        pattern = re.sub(r"\d+", "#", f"{finding.site.module}:{finding.site.operation.rstrip('_')}")
        group = groups.setdefault((finding.rule, finding.severity, pattern), {})
        known = [one for one in group.values() if _same_place(one.site, finding.site)]
        if not any(one.sentence == finding.sentence or _same_operation(one.site, finding.site) for one in known):
            group[finding.site] = finding
    merged = []
    for group in groups.values():
        first, *rest = group.values()
        also: list[Site] = []
        for site in (*first.also, *(site for one in rest for site in (one.site, *one.also))):
            if not any(_same_operation(site, other) for other in (first.site, *also)):
                also.append(site)
        merged.append(
            Finding(first.rule, first.severity, first.site, first.sentence, first.remedy, first.source, tuple(also))
        )
    return sorted(merged, key=lambda finding: SEVERITIES.index(finding.severity))


def _same_place(one: Site, other: Site) -> bool:
    return one.module == other.module and one.call == other.call


def _same_operation(one: Site, other: Site) -> bool:
    # A sum may be in place in one mode and not in the other.
    names = one.operation.rstrip("_") == other.operation.rstrip("_")
    return _same_place(one, other) and names and one.ordinal == other.ordinal
