"""The pages of the connections: each made from its docstring, its value, its traced block and what was measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from docs.making import measured
from docs.making.equations import Described, read
from torch import nn

import skipway as sw

_PAPERS = Path(__file__).parents[1] / "papers.json"
# The headings of the index: the first field of these that a connection sets is what it is about.
_GROUPS = {
    "nothing": "Plain and residual",
    "merge": "By concatenation",
    "gate": "Gates",
    "reweight": "Gates",
    "shortcut": "What the shortcut does",
    "scale": "Scales",
    "shortcut_scale": "Scales",
    "drop": "Branches left out",
    "placement": "Where norms and activations stand",
}
_ORDER = tuple(dict.fromkeys(_GROUPS.values()))
_FIELDS = {
    "shortcut": "what carries x past the branch",
    "scale": "what the branch is multiplied by",
    "shortcut_scale": "what the shortcut is multiplied by",
    "reweight": "weighs the channels of the branch",
    "gate": "weighs branch against shortcut",
    "drop": "leaves branches out in training",
    "merge": "how the two meet",
    "placement": "where norms and activations stand",
}


def described(name: str) -> Described:
    """What the docstring of a connection says."""
    return read(sw.connect.describe(name))


def fields(name: str) -> dict[str, Any]:
    """What a connection sets that `Residual()` leaves open."""
    value = sw.connect.resolve(name)
    if not isinstance(value, sw.Residual):
        return {}
    plain = sw.Residual()
    chosen = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {field: one for field, one in chosen.items() if one != getattr(plain, field)}


def group(name: str) -> str:
    """The heading that a connection stands under."""
    if isinstance(sw.connect.resolve(name), sw.Dense):
        return _GROUPS["merge"]
    chosen = fields(name)
    return next((title for field, title in _GROUPS.items() if field in chosen), _GROUPS["nothing"])


def grouped() -> dict[str, list[str]]:
    """All connections under their headings."""
    found: dict[str, list[str]] = {title: [] for title in _ORDER}
    for name in sw.connect.names():
        found[group(name)].append(name)
    return found


def related(name: str) -> list[str]:
    """Those under the same heading, and what all are measured against."""
    others = [one for one in grouped()[group(name)] if one != name]
    return others + [one for one in ("residual", "none") if one != name and one not in others]


def usage(name: str) -> str:
    """Three lines that use a connection, in a network that takes it."""
    if name == "dense":
        build = 'model = sw.models.create("densenet-bc-40-12", num_classes=10)'
    elif name in ("concat", "attention-gate", "residual-path"):
        build = f'model = sw.models.create("unet", skip="{name}", width=8, levels=3)'
    else:
        build = f'model = sw.models.create("resnet20", skip="{name}", num_classes=10)'
    return f"import torch, skipway as sw\n{build}\nmodel(torch.randn(2, 3, 32, 32)).shape"


def own_branch(name: str) -> str:
    """The same connection around a branch of one's own."""
    if name == "dense":
        return (
            "branches = [torch.nn.Conv2d(16 + 8 * k, 8, 3, padding=1) for k in range(3)]\n"
            'stack = sw.Stack(branches, skip="dense", channels=16, branch_channels=8)\n'
            "stack(torch.randn(2, 16, 8, 8)).shape"
        )
    return (
        "branch = torch.nn.Conv2d(16, 16, 3, padding=1)\n"
        f'block = sw.Skip(branch, skip="{name}", channels=16)\n'
        "block(torch.randn(2, 16, 8, 8)).shape"
    )


def drawing(name: str) -> str:
    """A small block under a connection, as it is traced, as the text of an SVG file."""

    def branch(c: int, out: int, stride: int = 1) -> nn.Sequential:
        first = nn.Conv2d(c, out, 3, stride=stride, padding=1, bias=False)
        return nn.Sequential(first, nn.BatchNorm2d(out), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1, bias=False))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "dense":
            block: nn.Module = sw.Stack([branch(8 + 4 * k, 4) for k in range(3)], "dense", 8, branch_channels=4)
        elif isinstance(fields(name).get("shortcut"), (sw.ZeroPad, type(sw.connect.Projection()))):
            # These do what they are for where the shape changes.
            block = sw.Skip(branch(8, 16, 2), name, channels=8, out_channels=16, stride=2)
        else:
            block = sw.Skip(branch(8, 8), name, channels=8)
        return sw.trace(block.eval(), torch.zeros(1, 8, 16, 16)).draw().svg()


def page(name: str, results: Mapping[str, Any]) -> str:
    """The Markdown of a connection's page."""
    said = described(name)
    lines = [f"# {name}", "", f'<p class="equation">{said.html}</p>', ""]
    if said.words:
        lines += [said.words, ""]
    lines += ["## Source", "", *_sources(said), ""]
    lines += ["## Drawing", "", f"A block of two convolutions{_where(name)}, as `skipway trace` sees it:", ""]
    lines += ['<div class="drawing" markdown="0">', drawing(name), "</div>", ""]
    lines += ["## Use", "", "```python", usage(name), "```", ""]
    lines += ["Around a branch of your own:", "", "```python", own_branch(name), "```", ""]
    lines += ["## What it sets", "", *_settings(name), ""]
    lines += ["## Measured", "", *measured.connection(name, results), ""]
    links = ", ".join(f"[{one}]({one}.md)" for one in related(name))
    lines += ["## Related", "", f"{links}. [All connections](index.md).", ""]
    return "\n".join(lines)


def index(results: Mapping[str, Any]) -> str:
    """The Markdown of the page that lists all connections."""
    lines = [
        "# Connections",
        "",
        "A connection says how a branch F and what goes past it meet. `skip=` takes each of these names, in every "
        "family that can have it, or a value such as `sw.Residual(scale=sw.LayerScale(), drop=0.2)`, whose fields "
        "combine freely.",
        "",
    ]
    for title, names in grouped().items():
        lines += [f"## {title}", "", "| name | equation | |", "| --- | --- | --- |"]
        for name in names:
            said = described(name)
            lines.append(f"| [{name}]({name}.md) | {said.html} | {said.words} |")
        lines.append("")
    return "\n".join([*lines, *measured.overview(results), ""])


def _where(name: str) -> str:
    if name == "dense":
        return ", three of them in a stack"
    changes = isinstance(fields(name).get("shortcut"), (sw.ZeroPad, type(sw.connect.Projection())))
    return " that doubles the channels and halves the map" if changes else ""


def _sources(said: Described) -> list[str]:
    papers = json.loads(_PAPERS.read_text(encoding="utf-8"))
    if not said.sources:
        return ["No paper of its own."]
    lines = []
    for identifier, short in said.sources:
        note = f" ({place})" if (place := _place(short)) else ""
        lines.append(f"- {papers[identifier]}{note}. [arXiv:{identifier}](https://arxiv.org/abs/{identifier})")
    return lines


def _place(short: str) -> str:
    """What a docstring adds to authors and year, such as a figure."""
    if short.startswith("After "):
        return "after it"
    _, _, place = short.partition("fig. ")
    return f"figure {place}" if place else ""


def _settings(name: str) -> list[str]:
    chosen = fields(name)
    value = sw.connect.resolve(name)
    if not chosen:
        return [f"It is `{value!r}`." if not isinstance(value, sw.Residual) else "It is `sw.Residual()`, all open."]
    lines = ["| field of `sw.Residual` | value | |", "| --- | --- | --- |"]
    lines += [f"| `{field}` | `{one!r}` | {_FIELDS[field]} |" for field, one in chosen.items()]
    return lines
