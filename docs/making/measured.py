"""What was measured, as Markdown: from the records in `benchmarks/results`, which these pages link to."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from skipway.study.answering.differences import chance

RECORD = "../results/connections.json"
# Network, measure, its name, whether less is better, and whether it is told in per cent.
_NETWORKS = (
    ("resnet20", "test_error", "ResNet-20, test error", True),
    ("resnet56", "test_error", "ResNet-56, test error", True),
    ("gpt-8x32", "validation_loss", "GPT, nats a character", True),
    ("unet", "validation_dice_0", "U-Net, Dice of membranes", False),
)
_VERDICTS = {
    "better": "better",
    "worse": "worse",
    "unclear": "not clearly different",
    "too few seeds": "not enough seeds to say",
    "diverged": "diverged, which it did not",
}


# Other records that say something of a connection.
_ALSO = {
    "dense": ("densenet.json", "what sharing the buffer of a dense block saves"),
    "stochastic-depth": ("stochastic_depth.json", "the time and the memory that branches left out save"),
    "pre-activation": ("depth_1001.json", "1001 layers with it and without skips"),
    "squeeze-excite": ("training_cifar.json", "what a small SE-ResNet learns of CIFAR-10 in minutes"),
    "highway": ("training_cifar.json", "what a small highway network learns of CIFAR-10 in minutes"),
    "concat": ("training_unet.json", "a longer training of U-Nets, of three seeds"),
    "attention-gate": ("training_unet.json", "a longer training of U-Nets, of three seeds"),
    "post-norm": ("training_translation.json", "what a small Transformer learns to translate"),
    "pre-norm": ("training_gpt.json", "what a small GPT learns in minutes"),
}


def networks(results: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """What was measured of each network, by its model and connection."""
    studies = (study for study in results.values() if "networks" in study)
    return {(network["model"], network["skip"]): network for study in studies for network in study["networks"]}


def shown(measure: str, values: Sequence[float | None]) -> str:
    """The mean over seeds, with the lowest and the highest.

    >>> shown("test_error", [0.02, 0.03, 0.04]), shown("validation_loss", [2.5])
    ('3.0 % (2.0 to 4.0)', '2.500')
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return "diverged"
    scale, digits, unit = (100, 1, " %") if measure.endswith("error") else (1, 3, "")
    told = [f"{scale * value:.{digits}f}" for value in (sum(known) / len(known), min(known), max(known))]
    spread = f" ({told[1]} to {told[2]})" if len(known) > 1 and told[1] != told[2] else ""
    return f"{told[0]}{unit}{spread}"


def difference(measure: str, against: Mapping[str, Any] | None) -> str:
    """A comparison with a baseline in words, with the interval of the difference."""
    if against is None:
        return ""
    words = _VERDICTS[against["verdict"]]
    if against["low"] is None or against["verdict"] in ("diverged", "too few seeds"):
        return words
    scale, digits, unit = (100, 1, " points") if measure.endswith("error") else (1, 3, "")
    low, high = (f"{scale * against[end]:+.{digits}f}".replace("-", "−") for end in ("low", "high"))
    return f"{words} ({low} to {high}{unit})"


def connection(name: str, results: Mapping[str, Any]) -> list[str]:
    """The section of one connection."""
    known = networks(results)
    rows = [row for row in _NETWORKS if (row[0], name) in known]
    if not rows:
        return ["Not measured in these networks."]
    title = name if name in ("residual", "none") else f"**{name}**"
    others = [one for one in ("residual", "none") if one != name]
    lines = [f"| | {title} | {' | '.join(others)} | {' | '.join(f'against {one}' for one in others)} |"]
    lines.append("| --- |" + " --- |" * (1 + 2 * len(others)))
    for model, measure, label, _ in rows:
        this = known[model, name]
        values = [shown(measure, this["measures"][measure])]
        values += [shown(measure, known[model, one]["measures"][measure]) for one in others]
        values += [difference(measure, this["against"].get(one)) for one in others]
        lines.append(f"| {label} | {' | '.join(values)} |")
    lines += ["", strip(name, rows, known), "", *_costs(name, rows, known, results["step_over_residual"]), ""]
    if name in _ALSO:
        record, asked = _ALSO[name]
        lines += [f"Also recorded: [{asked}](../results/{record}).", ""]
    return [*lines, *_conditions(rows, results, {len(known[row[0], name]["seeds"]) for row in rows})]


def _costs(
    name: str, rows: Sequence[tuple[str, str, str, bool]], known: Mapping[Any, Any], steps: Mapping[str, float]
) -> list[str]:
    lines = ["| | parameters | multiply-adds | held for the backward pass | gradient, first layer over last |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for model, *_ in rows:
        this, base = known[model, name], known[model, "residual"]
        ratio = this["first_gradient_over_last"]
        lines.append(
            f"| {model} | {_beside(this['parameters'], base['parameters'])} "
            f"| {_beside(this['multiply_adds'], base['multiply_adds'])} | {_beside(this['memory'], base['memory'])} "
            f"| {'' if ratio is None else f'{ratio:.3g}'} |"
        )
    if name in steps and name != "residual":
        # The same network measured twice differs by five per cent.
        taken = f"{steps[name]:.1f} times" if abs(steps[name] - 1) > 0.1 else "about"
        lines += ["", f"A training step of ResNet-56 takes {taken} as long as with `residual`."]
    return lines


def _beside(value: float | None, base: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:,.0f}" if value < 1e6 else f"{value / 1e6:,.2f} M"
    change = "" if not base or value == base else f" ({100 * (value / base - 1):+.1f} %)".replace("-", "−")
    return "" if value is None else f"{text}{change}"


def _conditions(rows: Sequence[tuple[str, str, str, bool]], results: Mapping[str, Any], seeds: set[int]) -> list[str]:
    names = {row[0] for row in rows}
    said = []
    if names & {"resnet20", "resnet56"}:
        one = results["resnet20"]["settings"]
        said.append(
            f"ResNets of width {one['width']} on 1,438 digits of 8 x 8 pixels, {one['epochs']} epochs, 359 digits held "
            "out"
        )
    if "gpt-8x32" in names:
        one = results["gpt"]["settings"]
        said.append(
            f"a GPT of 8 layers of width 32 on a megabyte of plays, {one['steps']} steps of {one['batch_size']} "
            f"windows of {one['length']} characters, learning rate {one['learning_rate']:g}"
        )
    if "unet" in names:
        one = results["unet"]["settings"]
        said.append(
            f"a U-Net of {one['options']['levels']} levels and width {one['width']}, this connection as its long "
            f"skips, on 24 images of cell membranes, {one['steps']} steps of {one['batch_size']} pieces of "
            f"{one['crop']} x {one['crop']}, 6 images held out"
        )
    text = "; ".join(said)
    number = str(max(seeds)) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    return [
        f"Measured on {text}. Everything but the connection is alike. Means over {number} seeds, lowest and highest in "
        "brackets; differences are seed by seed with their 95 % bootstrap interval, and below zero is less. "
        f"{max(seeds)} seeds are few: where there is no difference, all of them still fall on one side in "
        f"{100 * chance(max(seeds)):.0f} % of the cases, and so many comparisons are not corrected for. These are "
        "minutes of training of small networks: they show what happens early, not who wins in the end. "
        f"[The record]({RECORD}), made by `python benchmarks/connections.py DATA`.",
        "",
        "Gradients are those of the loss by the weights of a layer before the first step; memory is what a training "
        "step holds for its backward pass; percentages are against `residual`.",
    ]


def strip(name: str, rows: Sequence[tuple[str, str, str, bool]], known: Mapping[Any, Any]) -> str:
    """Every seed of a connection and of what it is measured against, as dots on one line a network."""
    width, left, height = 440, 140, 20
    names = list(dict.fromkeys((name, "residual", "none")))
    parts: list[str] = []
    y = 4
    for model, measure, label, _ in rows:
        points = {one: [v for v in known[model, one]["measures"][measure] if v is not None] for one in names}
        everything = [value for values in points.values() for value in values]
        if not everything:
            continue
        logarithmic = measure.endswith("error")
        place = list(_axis(everything, logarithmic, left + 8, width - 12))
        low, high = place[0], place[1]
        parts.append(f'<text x="0" y="{y + 12}" class="label">{html.escape(label)}</text>')
        y += 20
        for one in names:
            kind = {"residual": "residual", "none": "none"}.get(one, "this")
            middle = y + height / 2
            parts.append(f'<text x="{left - 8}" y="{middle + 4}" text-anchor="end">{one}</text>')
            parts.append(f'<line x1="{left}" x2="{width}" y1="{middle}" y2="{middle}" class="rule"/>')
            for value in points[one]:
                x = _at(value, low, high, logarithmic, left + 8, width - 12)
                parts.append(f'<circle cx="{x:.1f}" cy="{middle}" r="4.5" class="{kind}"/>')
            if not points[one]:
                parts.append(f'<text x="{left + 8}" y="{middle + 4}">diverged</text>')
            y += height
        ends = [shown(measure, [low]), shown(measure, [high])]
        parts.append(f'<text x="{left + 8}" y="{y + 11}" class="tick" text-anchor="middle">{ends[0]}</text>')
        parts.append(f'<text x="{width - 12}" y="{y + 11}" class="tick" text-anchor="middle">{ends[1]}</text>')
        y += 26
    title = f"Each seed of {', '.join(names)}"
    return (
        f'<svg class="strip" viewBox="0 0 {width + 10} {y}" role="img" aria-label="{html.escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def _axis(values: Sequence[float], logarithmic: bool, left: float, right: float) -> Iterator[float]:
    low, high = min(values), max(values)
    if logarithmic:
        low = max(low, 1e-3)
    yield low
    yield high if high > low else low + (low or 1.0) * 0.1


def _at(value: float, low: float, high: float, logarithmic: bool, left: float, right: float) -> float:
    if logarithmic:
        value, low, high = (math.log(max(one, low)) for one in (value, low, high))
    return left + (right - left) * (value - low) / (high - low)


def overview(results: Mapping[str, Any]) -> list[str]:
    """The tables of all connections that were measured alike."""
    known = networks(results)
    picture = "![Every connection in four small networks](../results/connections.png)"
    lines = ["## All of them, measured alike", "", picture, ""]
    for model, _, label, _ in _NETWORKS:
        lines += [f"### {label}", "", *table(model, known), ""]
    return [*lines, *_conditions(_NETWORKS, results, {len(one["seeds"]) for one in known.values()})]


def table(model: str, known: Mapping[tuple[str, str], Any], where: str = "") -> list[str]:
    """Every connection in one network, the best first, against the published one and against none."""
    measure, less = next((measure, less) for name, measure, _, less in _NETWORKS if name == model)
    rows = [(skip, one) for (name, skip), one in known.items() if name == model]
    rows.sort(key=lambda row: _order(row[1]["measures"][measure], less))
    lines = ["| connection | measured | against residual | against none |", "| --- | --- | --- | --- |"]
    for skip, one in rows:
        against = [difference(measure, one["against"].get(baseline)) for baseline in ("residual", "none")]
        lines.append(
            f"| [{skip}]({where}{skip}.md) | {shown(measure, one['measures'][measure])} | {' | '.join(against)} |"
        )
    return lines


def verdicts(model: str, known: Mapping[tuple[str, str], Any]) -> str:
    """What three seeds say of every connection against `residual`, in a sentence or two."""
    found: dict[str, list[str]] = {}
    for (name, skip), one in known.items():
        if name == model and "residual" in one["against"]:
            found.setdefault(one["against"]["residual"]["verdict"], []).append(skip)
    parts = []
    for verdict, words in (("better", "better than"), ("worse", "worse than"), ("diverged", "diverged, unlike")):
        if names := found.get(verdict):
            links = ", ".join(f"[{one}](../connections/{one}.md)" for one in names)
            parts.append(f"{len(names)} {words} `residual`: {links}.")
    if left := found.get("unclear"):
        parts.append(f"{len(left)} are not clearly different from `residual`: {', '.join(left)}.")
    if few := found.get("too few seeds"):
        parts.append(f"Of {len(few)} there are not enough seeds to say: {', '.join(few)}.")
    return " ".join(parts)


def _order(values: Sequence[float | None], less: bool) -> float:
    known = [value for value in values if value is not None]
    return math.inf if not known else (1 if less else -1) * sum(known) / len(known)
