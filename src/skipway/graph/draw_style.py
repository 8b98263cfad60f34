"""How skips look: colours and signs by how they merge, line styles by what their shortcut does."""

from __future__ import annotations

from skipway.graph.draw_scene import Number, Point, Scene, Shape, Words, box, circle, line, text_width

INK = "#222222"
GREY = "#6b6b6b"
PALE = "#e4ebf2"
PANEL = "#f6f6f3"
PANEL_EDGE = "#c9c9c2"
BLOCK = "#ffffff"
BLOCK_EDGE = "#555555"
# Okabe and Ito (2008): colours that all kinds of colour vision tell apart.
COLOURS = {
    "add": "#0072B2",
    "concat": "#D55E00",
    "gate": "#009E73",
    "scaled add": "#B3579A",
    "multi-branch": "#A67C00",
}
DASHES: dict[str, tuple[Number, ...]] = {
    "identity": (),
    "projection": (8, 4),
    "padding": (2, 3),
    "pool": (9, 3, 2, 3),
    "upsample": (9, 3, 2, 3, 2, 3),
    "scaled": (14, 4),
    "norm": (5, 3),
    "activation": (4, 2, 1, 2),
}
RADIUS = 8.0


def colour(kind: str) -> str:
    """The colour of a kind of merge; grey for a join that is no skip."""
    return COLOURS.get(kind, GREY)


def sign_radius(kind: str) -> Number:
    """How far a sign reaches from its middle."""
    return RADIUS + 3 if kind == "scaled add" else RADIUS


def sign(kind: str, at: Point, stroke: str) -> list[Shape]:
    """The sign of a merge: plus, plus in a ring, bars or a cross in a circle."""
    x, y = at
    shapes = [circle(x, y, RADIUS, fill="#ffffff", stroke=stroke, thickness=1.6)]
    arm = 4.5
    style = {"stroke": stroke, "thickness": 1.8}
    if kind == "concat":
        shapes += [line([(x + dx, y - arm), (x + dx, y + arm)], **style) for dx in (-2.2, 2.2)]
    elif kind == "gate":
        a = arm * 0.75
        shapes += [line([(x - a, y - a), (x + a, y + a)], **style), line([(x - a, y + a), (x + a, y - a)], **style)]
    else:
        shapes += [line([(x - arm, y), (x + arm, y)], **style), line([(x, y - arm), (x, y + arm)], **style)]
        if kind == "scaled add":
            shapes.insert(0, circle(x, y, sign_radius(kind), fill="#ffffff", stroke=stroke, thickness=1.2))
        if kind == "multi-branch":
            shapes.append(line([(x - arm, y - arm), (x, y)], stroke=stroke, thickness=1.2))
            shapes.append(line([(x + arm, y - arm), (x, y)], stroke=stroke, thickness=1.2))
    return shapes


def legend(kinds: list[str], shortcuts: list[str], folded: bool, feeds: bool, width: Number) -> Scene:
    """What the signs, colours and line styles in use mean, in lines no wider than `width`."""
    scene = Scene()
    x = y = 0.0
    size = 10.0

    def place(sample: Number, text: str) -> tuple[Number, Number]:
        nonlocal x, y
        needed = sample + 6 + text_width(text, size) + 20
        if x and x + needed > width:
            x, y = 0.0, y + 24
        at = x
        scene.add(Words(at + sample + 6, y + 3.5, text, size, INK))
        x += needed
        return at, y

    at, down = place(30, "stream")
    scene.add(box(at, down - 5, 30, 10, 5, fill=PALE))
    for kind in kinds:
        at, down = place(42, f"{kind} skip")
        scene.add(line([(at, down), (at + 30, down)], stroke=colour(kind), thickness=2))
        scene.add(*sign(kind, (at + 32, down), colour(kind)))
    for shortcut in shortcuts:
        at, down = place(44, f"{shortcut} shortcut")
        scene.add(line([(at, down), (at + 44, down)], stroke=INK, thickness=2, dash=DASHES.get(shortcut, ())))
    if feeds:
        at, down = place(34, "read from elsewhere")
        scene.add(line([(at, down), (at + 34, down)], stroke=GREY, thickness=1.2))
    if folded:
        at, down = place(24, "n repetitions, drawn once")
        scene.add(box(at, down - 8, 24, 16, 3, fill=PANEL, stroke=PANEL_EDGE, thickness=1))
        scene.add(Words(at + 12, down + 3.5, "× n", 9, INK, "middle", True))
    return scene
