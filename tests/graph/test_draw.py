"""Drawings: that they show what the graph says, and that nothing in them covers anything else."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import graph_nets as nets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import skipway as sw
from skipway.errors import SkipwayError
from skipway.graph import SkipGraph, trace
from skipway.graph.draw import draw
from skipway.graph.draw_rows import plan
from skipway.graph.draw_scene import Scene, Words, text_width
from skipway.graph.draw_style import COLOURS, DASHES


class CrossAttending(nn.Module):
    """An encoder and a decoder of `depth` layers each: the decoder's layers all read what the encoder ends with."""

    def __init__(self, depth: int = 3):
        super().__init__()
        self.encoder = nn.ModuleList([Mixing() for _ in range(depth)])
        self.decoder = nn.ModuleList([Mixing() for _ in range(depth)])

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        for layer in self.encoder:
            source = layer(source, source)
        for layer in self.decoder:
            target = layer(target, source)
        return target


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.query, self.key = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        query, key = self.query(self.norm(x)), self.key(y)
        return x + nn.functional.scaled_dot_product_attention(query, key, key)


class Towers(nn.Module):
    """Two towers of different depth on different inputs, joined at the end, and a second output on the way."""

    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nets.Basic(3, 8, 1), nets.Basic(8, 8, 1))
        self.right = nn.Sequential(nets.Basic(3, 8, 2))
        self.aside = nn.Linear(8, 2)
        self.head = nn.Linear(16, 4)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        left, right = self.left(a).mean((2, 3)), self.right(b).mean((2, 3))
        return {"answer": self.head(torch.cat([left, right], 1)), "aside": self.aside(left)}


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def image(side: int = 32) -> Tensor:
    return torch.zeros(1, 3, side, side)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "resnet110": lambda: (sw.models.create("resnet110"), (image(),)),
    "resnet50": lambda: (nets.resnet50(), (image(64),)),
    "plain20": lambda: (sw.models.create("resnet20", skip="none"), (image(),)),
    "highway": lambda: (sw.models.create("resnet20", skip="highway"), (image(),)),
    "rezero": lambda: (sw.models.create("resnet20", skip="rezero"), (image(),)),
    "densenet121": lambda: (nets.densenet((6, 12, 24, 16)), (image(64),)),
    "mobilenet": lambda: (nets.mobilenet_v2(), (image(64),)),
    "unet": lambda: (nets.UNet(), (image(64),)),
    "transformer": lambda: (_transformer(), (torch.zeros(1, 5, 8),)),
    "cross": lambda: (CrossAttending(), (torch.zeros(1, 5, 8), torch.zeros(1, 3, 8))),
    "towers": lambda: (Towers(), (image(), image())),
    "one layer": lambda: (nn.Linear(3, 4), (torch.zeros(2, 3),)),
    "no layer": lambda: (Doubling(), (torch.zeros(2, 3),)),
    "no operation": lambda: (nn.Identity(), (torch.zeros(2, 3),)),
}


def _transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)


@cache
def graph_of(name: str) -> SkipGraph:
    model, inputs = NETWORKS[name]()
    return trace(model.eval(), *inputs)


def words(scene: Scene) -> list[str]:
    return [item.text for item in scene.items if isinstance(item, Words)]


Rectangle = tuple[float, float, float, float]


def rectangles(scene: Scene) -> tuple[list[Rectangle], list[Rectangle]]:
    """Where the words stand, and where the boxes with a white ground and an edge do."""
    texts, boxes = [], []
    for item in scene.items:
        if isinstance(item, Words):
            width = text_width(item.text, item.size, item.bold)
            left = item.x - {"start": 0.0, "middle": width / 2, "end": width}[item.anchor]
            texts.append((left, item.y - 0.75 * item.size, left + width, item.y + 0.2 * item.size))
        elif item.fill == "#ffffff" and item.stroke != "none":
            xs, ys = zip(*[point for _, points in item.steps for point in points], strict=True)
            boxes.append((min(xs), min(ys), max(xs), max(ys)))
    return texts, boxes


def overlap(a: Rectangle, b: Rectangle) -> bool:
    return all(a[i] < b[i + 2] - 0.5 and b[i] < a[i + 2] - 0.5 for i in (0, 1))


def inside(a: Rectangle, b: Rectangle) -> bool:
    return all(a[i] >= b[i] - 0.5 and a[i + 2] <= b[i + 2] + 0.5 for i in (0, 1))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("fold", [True, False])
def test_nothing_covers_anything_else(name: str, fold: bool) -> None:
    texts, boxes = rectangles(draw(graph_of(name), fold=fold).scene)
    for i, text in enumerate(texts):
        assert not [other for other in texts[i + 1 :] if overlap(text, other)]
        assert not [box for box in boxes if overlap(text, box) and not inside(text, box)]
    for i, box in enumerate(boxes):
        # The two rings of a sign lie one in the other.
        assert not [other for other in boxes[i + 1 :] if overlap(box, other) and not inside(other, box)]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_text_is_valid_svg_that_stays_inside_its_frame(name: str) -> None:
    root = ElementTree.fromstring(draw(graph_of(name)).svg())
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        assert left < float(text.attrib["x"]) < left + width
        assert top < float(text.attrib["y"]) < top + height


@pytest.mark.parametrize("name", NETWORKS)
def test_every_operation_with_weights_stands_in_a_row(name: str) -> None:
    graph = graph_of(name)
    made = plan(graph)
    from skipway.graph.operations import weight_layers

    for operation in graph.trace.operations:
        if weight_layers(operation, graph.trace):
            assert operation.results[0] in made.row_of


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("resnet110", [18, 17, 17]),
        ("resnet50", [2, 3, 5, 2]),
        ("densenet121", [6, 12, 24, 16]),
        ("transformer", [12]),
        ("cross", [3, 3]),
        ("unet", []),
    ],
)
def test_repetitions_are_counted(name: str, times: list[int]) -> None:
    groups = [group for column in plan(graph_of(name)).columns for group in column.groups]
    assert [len(group.periods) for group in groups if len(group.periods) > 1] == times


def test_a_folded_drawing_says_how_often_and_of_which_modules() -> None:
    shown = words(draw(graph_of("resnet110")).scene)
    assert {"× 18", "× 17"} <= set(shown)
    assert any("layer2.1…17" in text for text in shown)
    whole = words(draw(graph_of("resnet110"), fold=False).scene)
    assert not any(text.startswith("× ") for text in whole)
    assert sum("conv 3×3, 32" in text for text in whole) > 8 * sum("conv 3×3, 32" in text for text in shown)


def test_a_folded_dense_block_counts_its_edges() -> None:
    shown = " ".join(words(draw(graph_of("densenet121")).scene))
    for skips in (21, 78, 300, 136):
        assert f"{skips} skips" in shown


@pytest.mark.parametrize("name", NETWORKS)
def test_kinds_and_shortcuts_have_their_look_and_a_line_in_the_legend(name: str) -> None:
    graph = graph_of(name)
    drawing = draw(graph)
    shown = words(drawing.scene)
    seen = [skip for column in plan(graph).columns for row in column.rows for skip in (*row.skips, *row.arcs)]
    for skip in seen:
        assert f"{skip.kind} skip" in shown
        assert f"{skip.shortcut} shortcut" in shown
        assert COLOURS[skip.kind] in drawing.svg()
    without = words(draw(graph, legend=False).scene)
    assert not any(text.endswith(" shortcut") for text in without)


def test_looks_differ_without_colour_too() -> None:
    assert len(set(DASHES.values())) == len(DASHES)
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_a_projection_is_written_on_its_arc() -> None:
    shown = words(draw(graph_of("resnet50")).scene)
    model, _ = NETWORKS["resnet50"]()
    channels = [m.out_channels for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" in n]
    assert channels
    for c in channels:
        assert any(text.startswith(f"conv 1×1, {c}") for text in shown)


def test_shapes_stand_where_they_change() -> None:
    graph = graph_of("unet")
    shown = words(draw(graph).scene)
    for skip in graph.skips:
        assert " × ".join(map(str, skip.shape)) in shown


def test_long_skips_run_outside_everything_that_they_pass() -> None:
    graph = graph_of("unet")
    column = plan(graph).columns[0]
    assert sum(len(row.arcs) for row in column.rows) == sum(skip.long for skip in graph.skips) > 0
    scene = draw(graph, legend=False).scene
    boxes = rectangles(scene)[1]
    leftmost = min(box[0] for box in boxes)
    arcs = [
        item
        for item in scene.items
        if not isinstance(item, Words) and item.stroke == COLOURS["concat"] and len(item.steps) > 4
    ]
    lanes = [min(x for _, points in item.steps for x, _ in points) for item in arcs if item.fill == "none"]
    assert len(lanes) == sum(skip.long for skip in graph.skips)
    assert max(lanes) < leftmost
    assert len(set(lanes)) == len(lanes)


def test_encoder_and_decoder_stand_beside_each_other() -> None:
    made = plan(graph_of("cross"))
    assert [column.source for column in made.columns] == ["target", "source"]
    # All decoder layers are folded into one, and read the encoder's end once.
    (feed,) = made.feeds
    assert feed[0] is made.columns[1].rows[-1]
    assert feed[1] in made.columns[0].rows


def test_further_outputs_are_named() -> None:
    shown = words(draw(graph_of("towers")).scene)
    assert "answer" in shown
    assert any(text.startswith("a  1 × 3") for text in shown)
    assert any(text.startswith("b  1 × 3") for text in shown)


def test_the_same_graph_gives_the_same_picture() -> None:
    assert draw(graph_of("towers")).svg() == draw(graph_of("towers")).svg()


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf", ".PNG"])
def test_it_is_saved(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"map{suffix}"
    draw(graph_of("unet"), path)
    if suffix.lower() == ".png":
        picture: Any = np.asarray(Image.open(path).convert("RGB"))
        left, top, right, bottom = draw(graph_of("unet")).scene.bounds()
        assert picture.shape[1] == pytest.approx(2 * (right - left + 32), abs=2)
        assert picture.shape[0] == pytest.approx(2 * (bottom - top + 32), abs=2)
        orange = (np.abs(picture.astype(int) - [0xD5, 0x5E, 0x00]).sum(2) < 12).sum()
        assert orange > 1000
        assert (picture[:10] == 255).all()
    else:
        start = {".svg": b"<svg ", ".pdf": b"%PDF"}[suffix]
        assert path.read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("map.jpg", r"no picture format '\.jpg'; did you mean '\.png'\? allowed: \.svg, \.png, \.pdf"),
        ("map", r"no picture format ''; allowed"),
        ("missing/map.svg", r"there is no folder '.*missing' to write map\.svg to: make it first"),
    ],
)
def test_a_path_that_cannot_be_written(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(SkipwayError, match=message):
        draw(graph_of("one layer"), tmp_path / name)


def test_a_session_shows_one_line() -> None:
    assert len(repr(sw.trace(nn.Linear(2, 2), torch.ones(1, 2)).draw())) < 100


def test_a_notebook_shows_it() -> None:
    assert draw(graph_of("one layer"))._repr_svg_().startswith("<svg ")
