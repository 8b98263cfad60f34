"""What a report takes from beside the records: probes, and the networks themselves."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
import pytest
import torch
from tests.study.make import make_record
from tests.study.pages.test_comparison import keep

import skipway as sw
from skipway import probe
from skipway.probe import Gradients, Landscape
from skipway.report import Drawing, Folded, Plot
from skipway.study import Results, Study
from skipway.study.declaring.files import builtin_names, read_study
from skipway.study.pages.declared import toml
from skipway.study.pages.networks import networks_section
from skipway.study.pages.probes import probes_sections
from skipway.study.records.writing import write_json


@pytest.fixture(scope="module")
def measured() -> tuple[Gradients, Landscape]:
    torch.manual_seed(0)
    net = sw.models.create("resnet8", width=2, num_classes=10, in_channels=1)
    batch = (torch.randn(4, 1, 8, 8), torch.arange(4))
    return probe.gradients(net, batch, "cross_entropy"), probe.landscape(net, batch, "cross_entropy", steps=3)


def _probed(folder: Path, count: int, measured: tuple[Gradients, Landscape]) -> Results:
    skips = [f"kind-{number}" for number in range(count)]
    records = [make_record(8, skip, 0, labels={"skip": skip}) for skip in skips]
    results = keep(folder, records, depth=8, skip=["residual"], seeds=[0], probes=["landscape", "gradients"])
    for record in records:
        for result in measured:
            result.save(folder / "probes" / record.id / f"{type(result).__name__.lower()}.npz")
    return results


def test_probes_stand_side_by_side_on_one_scale(tmp_path: Path, measured: tuple[Gradients, Landscape]):
    results = _probed(tmp_path, 2, measured)
    folder = tmp_path / "probes" / results.records[0].id
    write_json(folder / "paths.json", {"probe": "paths", "refused": "it has no skips: all along one path"})
    (folder / "lesions.npz").write_bytes(b"cut short")
    landscape, gradients, missing = probes_sections(results, tmp_path / "report.html")
    assert [section.title for section in (landscape, gradients)] == ["Loss landscape", "Gradients"]
    assert missing.text == (
        "lesions of kind-0: the file cannot be read. paths of kind-0: it has no skips: all along one path."
    )
    surfaces = [item for item in landscape.content if isinstance(item, Plot)]
    assert [item.title for item in surfaces] == ["kind-0", "kind-1"]
    assert {trace.type for item in surfaces for trace in item.figure.data} == {"surface"}
    assert len({(trace.cmin, trace.cmax) for item in surfaces for trace in item.figure.data}) == 1
    # Gradients of a few networks share their axes.
    assert len([item for item in gradients.content if isinstance(item, Plot)]) == 1
    numbers = gradients.content[-1]
    assert isinstance(numbers, Folded)
    assert [one.link for one in numbers.content] == [f"probes/8-kind-{n}-0/gradients.npz" for n in (0, 1)]


def test_many_surfaces_are_shown_from_above(tmp_path: Path, measured: tuple[Gradients, Landscape]):
    landscape, gradients = probes_sections(_probed(tmp_path, 9, measured), tmp_path / "report.html")
    plots = [item for item in landscape.content if isinstance(item, Plot)]
    assert len(plots) == 9
    assert {type(trace) for item in plots for trace in item.figure.data} == {go.Contour}
    assert len([item for item in gradients.content if isinstance(item, Plot)]) == 9


def test_networks_are_traced_without_memory_and_counted(tmp_path: Path):
    records = [
        make_record(8, skip, seed, labels={"skip": skip}, options={"width": 2})
        for seed in (0, 1)
        for skip in ("none", "residual")
    ]
    (section,) = networks_section(keep(tmp_path, records, depth=[8], skip=["none", "residual"], seeds=[0, 1]))
    table, *drawings = section.content
    rows = [[cell.text for cell in row] for row in table.cells()]  # pyright: ignore[reportAttributeAccessIssue]
    net = sw.models.create("resnet8", width=2, num_classes=10, in_channels=1)
    symmetry = sw.trace(net, torch.zeros(2, 1, 8, 8)).symmetry()
    assert [row[:6] for row in rows] == [
        ["resnet8, plain", "0", "1", "8", "8", "8"],
        ["resnet8, residual", "3", "8", "2", "5", "8"],
    ]
    assert rows[1][6] == (f"{symmetry.order:,}" if symmetry.log10_order < 6 else f"10^{symmetry.log10_order:.1f}")
    assert [type(item) for item in drawings] == [Drawing, Drawing]
    assert "<svg" in drawings[1].svg  # pyright: ignore[reportAttributeAccessIssue]


def test_of_many_networks_some_are_shown_and_what_cannot_be_built_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("skipway.study.pages.networks._DRAWN", 2)
    depths = [8, 14, 20]
    records = [make_record(depth, "residual", 0, labels={"depth": str(depth)}) for depth in depths]
    records[1] = make_record(14, "residual", 0, labels={"depth": "14"}, task="segmentation")
    (section,) = networks_section(keep(tmp_path, records, depth=depths, skip="residual", seeds=[0]))
    assert "Of 3 networks, the first 2 are shown." in section.text
    assert "resnet14, residual cannot be drawn here: resnet14 is for images in classes" in section.text
    assert [item.title for item in section.content if isinstance(item, Drawing)] == ["resnet8, residual"]


def test_a_declaration_is_written_as_it_is_read(tmp_path: Path):
    tomllib = pytest.importorskip("tomllib")
    values = {
        "name": "a \"quoted\"\nname", "depth": [8, 14], "probes": ["gradients", {"name": "landscape", "steps": 21}],
        "learning_rate": 1e-05, "question": {"compare": "skip", "reach": 0.1}, "options": {"norm": ["batch", "group"]},
    }  # fmt: skip
    assert tomllib.loads(toml(values)) == values


@pytest.mark.parametrize("name", builtin_names())
def test_every_built_in_study_is_read_back_from_its_declaration(name: str, tmp_path: Path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    study = read_study(name, {"data": str(tmp_path)} if name == "long-skips" else {})
    again = Study(**study.declaration())
    assert again.declaration() == study.declaration()
    assert [trial.title for trial in again.trials()] == [trial.title for trial in study.trials()]
