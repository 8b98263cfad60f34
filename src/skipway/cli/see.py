"""`skipway trace` and `skipway doctor`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipway.cli.options import ModelOptions, parse_options
from skipway.errors import choose

if TYPE_CHECKING:
    from skipway.graph import SkipGraph

SPEC = (
    "One of 'skipway models' (resnet56), torchvision:NAME, timm:NAME, hf:CONFIG-CLASS or hf:HUB-NAME, "
    "package.module:factory, or a .pt2 file."
)
_INPUT = (
    "An input's shape, as in 1x3x224x224, with a name and a type where they are needed: ids=1x128:int64. "
    "Several inputs: give the option several times."
)
_LEVELS = ("error", "warning", "advice", "never")

Spec = Annotated[str, typer.Argument(metavar="SPEC", help=SPEC)]
Inputs = Annotated[list[str] | None, typer.Option("--input", metavar="SHAPE", help=_INPUT, show_default="made to suit")]
SkipName = Annotated[
    str | None, typer.Option(metavar="NAME", help="The skip that one of our own families is built with.")
]
Weights = Annotated[bool, typer.Option("--weights", help="Download the published weights too.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def trace(
    spec: Spec,
    input: Inputs = None,
    skip: SkipName = None,
    option: ModelOptions = None,
    weights: Weights = False,
    training: Annotated[bool, typer.Option("--train", help="Trace it as it runs in training.")] = False,
    paths: Annotated[bool, typer.Option("--paths", help="Count the paths through the network, by length.")] = False,
    symmetry: Annotated[bool, typer.Option("--symmetry", help="Count the symmetries of its parameters.")] = False,
    draw: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it into an .svg, .png or .pdf file.")] = None,
    as_json: Json = False,
) -> None:
    """Find the skip connections of any network."""
    from skipway.cli.specs import Wish, run_on
    from skipway.graph import trace as trace_model
    from skipway.graph.draw import check_path

    if draw is not None:
        check_path(draw)
    graph = run_on(spec, Wish(input or (), skip, weights, training, options=parse_options(option)), trace_model)
    content: dict[str, Any] = json.loads(graph.to_json()) if as_json else {}
    if not as_json:
        print(graph)
    if paths:
        _show_paths(graph, content, as_json)
    if symmetry:
        _show_symmetry(graph, content, as_json)
    if as_json:
        print(json.dumps(content, indent=2))
    if draw is not None:
        graph.draw(draw)
        print(f"skipway: drawn in {draw}", file=sys.stderr)


def _show_paths(graph: SkipGraph, content: dict[str, Any], as_json: bool) -> None:
    counted = graph.paths()
    if as_json:
        content["paths"] = {"total": counted.total, "mean": counted.mean, "by_length": dict(counted)}
        return
    print(f"\n{counted.total:,} paths; weight layers on a path: mean {counted.mean:.4g}")
    if counted:
        print(f"{'length':>8}  {'paths':>24}  {'share':>8}")
    for length, share in counted.distribution().items():
        if share >= 5e-5:
            print(f"{length:>8}  {counted[length]:>24,}  {100 * share:7.2f}%")


def _show_symmetry(graph: SkipGraph, content: dict[str, Any], as_json: bool) -> None:
    found = graph.symmetry()
    if as_json:
        content["symmetry"] = {
            "log10_order": found.log10_order,
            "rescalings": found.rescalings,
            "classes": [
                {
                    "kind": one.kind,
                    "size": one.size,
                    "count": one.count,
                    "members": [list(member) for member in one.members],
                    "skips": [str(site) for site in one.skips],
                }
                for one in found.classes
            ],
            "pinned": [
                {"size": one.size, "site": None if one.site is None else str(one.site), "why": one.why}
                for one in found.pinned
            ],
        }
        return
    print(
        f"\n10^{found.log10_order:.1f} permutations in {len(found.classes)} classes; {found.rescalings:,} free scales"
    )
    for one in found.classes:
        tied = f", tied by {len(one.skips)} skips" if one.skips else ""
        sets = f"{one.count} x " if one.count > 1 else ""
        print(f"  {sets}{one.size} {one.kind} in {len(one.members)} tensors{tied}: {one.members[0][0]} ...")


def doctor(
    spec: Spec,
    input: Inputs = None,
    skip: SkipName = None,
    option: ModelOptions = None,
    weights: Weights = False,
    fail_on: Annotated[
        str,
        typer.Option(
            metavar="LEVEL", help="Exit with 1 where a finding is at least an error, a warning or advice; or never."
        ),
    ] = "error",
    as_json: Json = False,
) -> None:
    """Say what is wrong, risky or improvable in the skip connections of any network.

    For continuous integration: the exit code is 1 where a finding is at or above --fail-on, and 2 where the model could
    not be examined.
    """
    from skipway.cli.specs import Wish, run_on
    from skipway.graph import trace as trace_model
    from skipway.graph.doctor import doctor as look_over

    choose("level for --fail-on", fail_on, _LEVELS)
    wish = Wish(input or (), skip, weights, values=True, options=parse_options(option))
    findings = run_on(spec, wish, look_over, check=trace_model)
    if as_json:
        print(json.dumps([_plain(finding) for finding in findings], indent=2))
    elif not findings:
        print("Nothing found.")
    else:
        print("\n\n".join(str(finding) for finding in findings))
        counts = {level: sum(finding.severity == level for finding in findings) for level in _LEVELS[:3]}
        print(
            "\n"
            + ", ".join(
                f"{count} {level}{'s' if count > 1 and level != 'advice' else ''}"
                for level, count in counts.items()
                if count
            )
        )
    levels = _LEVELS[: _LEVELS.index(fail_on) + 1] if fail_on != "never" else ()
    if any(finding.severity in levels for finding in findings):
        raise typer.Exit(1)


def _plain(finding: Any) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "site": str(finding.site),
        "also": [str(site) for site in finding.also],
        "sentence": finding.sentence,
        "remedy": finding.remedy,
        "source": finding.source,
    }
