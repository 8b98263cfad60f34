"""Pictures on a page: plotly figures of probes, and the drawings of networks."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Plot:
    """A plotly figure in a panel with its title and its caption; panels in a row stand side by side.

    `told` is what those hear who do not see it. `picture` draws the same with matplotlib, for pages that do not move,
    and returns its axes.
    """

    title: str
    figure: Any
    caption: str = ""
    told: str = ""
    picture: Callable[[], Any] | None = None

    def html(self) -> str:
        content = json.loads(self.figure.to_json())
        content["layout"].pop("template", None)
        # The caption that a figure bears under its axes stands under the panel.
        notes = content["layout"].get("annotations", [])
        content["layout"]["annotations"] = [
            note for note in notes if note.get("yref") != "paper" or note.get("y", 0) >= 0
        ]
        for trace in content["data"]:
            _shorten(trace)
        told = " ".join(part for part in (f"{self.title}.", self.told) if part)
        return (
            f"<figure class='panel' data-name='{escape(self.title, quote=True)}'><h3>{escape(self.title)}</h3>"
            f"<div class='plotly' role='img' aria-label='{escape(told, quote=True)}'>{script(content)}</div>"
            f"<figcaption>{escape(self.caption)}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Drawing:
    """The SVG of a network in a frame that scrolls, folded away until it is asked for."""

    title: str
    svg: str
    caption: str = ""

    def html(self) -> str:
        title = escape(self.title, quote=True)
        return (
            f"<details class='drawing' data-name='{title}'><summary>{escape(self.title)}</summary>"
            f"<figure><div class='frame' role='region' tabindex='0' aria-label='{title}'>{self.svg}</div>"
            f"<figcaption>{escape(self.caption)}</figcaption></figure></details>"
        )


def script(content: Any) -> str:
    """Data as an element that a page's script reads, and that no text in it can end."""
    # Inside a script element only "</" and "<!--" mean anything to a browser; both begin with "<".
    data = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f"<script type='application/json'>{data}</script>"


def _shorten(value: Any) -> None:
    """Hold plotly's arrays in single precision: half the page's size, and more digits than a screen shows."""
    for key, part in value.items() if isinstance(value, dict) else ():
        if isinstance(part, dict) and part.get("dtype") == "f8" and "bdata" in part:
            numbers = np.frombuffer(base64.b64decode(part["bdata"]), dtype="<f8").astype("<f4")
            value[key] = {**part, "dtype": "f4", "bdata": base64.b64encode(numbers.tobytes()).decode()}
        else:
            _shorten(part)
