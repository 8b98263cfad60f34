"""The docstring of a connection, taken apart: equations set as HTML, what is said of them, and their sources."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

_GREEK = {"psi": "ψ", "theta": "θ", "phi": "φ"}
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")


@dataclass(frozen=True)
class Described:
    """What a docstring says: its equations, the words about them, and the sources that it names."""

    equations: tuple[str, ...]
    words: str
    sources: tuple[tuple[str, str], ...]

    @property
    def html(self) -> str:
        """The equations as mathematics that a browser shows without help."""
        return ",&emsp;".join(map(set_equation, self.equations))


def read(text: str) -> Described:
    """Take a connection's docstring apart.

    >>> found = read("y = x + a F(x), one learned a from 0. Bachlechner 2020, arXiv:2003.04887.")
    >>> found.equations, found.words, found.sources
    (('y = x + a F(x)',), 'One learned a from 0.', (('2003.04887', 'Bachlechner 2020'),))
    """
    first, _, rest = text.strip().partition(". ")
    pieces = _pieces(first.rstrip("."))
    equations, said = [pieces[0][0]], []
    for piece, mark in pieces[1:]:
        if not said and mark == "," and _is_equation(piece):
            equations.append(piece)
        else:
            said.append(f"{mark} {piece}" if said else piece)
    words = "".join(said)
    sources = []
    for part in rest.rstrip(".").split("; "):
        if found := _ARXIV.search(part):
            sources.append((found[1], part[: found.start()].rstrip(" ,")))
        elif part:
            words = f"{words}. {part}" if words else part
    if words and words[1] != " ":
        words = words[0].upper() + words[1:]
    return Described(tuple(equations), words and f"{words}.", tuple(sources))


def _pieces(text: str) -> list[tuple[str, str]]:
    """The parts between commas and colons outside of brackets, each with the mark before it."""
    pieces, mark, depth, start = [], "", 0, 0
    for place, sign in enumerate(text):
        depth += (sign in "([") - (sign in ")]")
        if depth == 0 and sign in ",:":
            pieces.append((text[start:place].strip(), mark))
            mark, start = sign, place + 1
    return [*pieces, (text[start:].strip(), mark)]


def _is_equation(piece: str) -> bool:
    return bool(re.match(r"[A-Za-z] (= [a-z]+\(|\+ )", piece))


def set_equation(text: str) -> str:
    """One equation as HTML: letters in italics, powers and indices in their places.

    >>> set_equation("y = norm(depth^(1/4) x - F(x))")
    '<i>y</i> = norm(depth<sup>1/4</sup> <i>x</i> − <i>F</i>(<i>x</i>))'
    """
    text = html.escape(text, quote=False).replace("...", "…")
    text = re.sub(r"(?<=[\w)\s])-(?=[\w\s])", "−", re.sub(r"(\d)e-(\d+)", r"\1·10^(-\2)", text))
    text = re.sub(r"\b([A-Za-z])(\d)\b", r"\1_\2", text)
    text = re.sub(r"\b[A-Za-z]+\b", lambda m: _GREEK.get(m[0], m[0]), text)
    text = re.sub(r"(?<![A-Za-z])([A-Za-z])(?![A-Za-z])(?! [a-z]{3,}\b(?!\())(?=_|\b)", r"<i>\1</i>", text)
    text = re.sub(r"_<i>(\w)</i>|_(\w)", lambda m: f"<sub>{m[1] or m[2]}</sub>", text)
    return re.sub(r"\^\(([^()]+)\)", r"<sup>\1</sup>", text)
