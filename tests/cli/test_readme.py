"""What the README shows runs as it stands."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from skipway.study.declaring.files import read_study

README = Path(__file__).parents[2] / "README.md"
SMALLER = {"[20, 56]": "[8]", "[0, 1, 2]": "[0], epochs=1, limit=40, width=4", '"runs/mine"': '"runs/mine", quiet=True'}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    _, building, families, seeing, changing, measuring, comparing = _blocks("python")
    names: dict = {"branch": nn.Conv2d(64, 64, 3, padding=1), "branches": [nn.Conv2d(64, 64, 1) for _ in range(3)]}
    exec(building, names)
    assert names["block"](torch.zeros(1, 64, 4, 4)).shape == names["stack"](torch.zeros(1, 64, 4, 4)).shape
    assert names["plain"](torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    with torch.device("meta"):
        exec(families, names)
    names.update(model=names["net"].eval(), images=torch.randn(2, 3, 16, 16))
    exec(seeing, names)
    assert (tmp_path / "map.svg").is_file()
    assert names["graph"].paths().total == 2**27
    exec(changing, names)
    assert torch.allclose(names["fast"](names["images"]), names["model"](names["images"]), atol=1e-4)
    names.update(batch=(names["images"], torch.tensor([0, 1])), loss="cross_entropy")
    exec(measuring.replace("steps=51", "steps=3"), names)
    for long, short in SMALLER.items():
        assert long in comparing
        comparing = comparing.replace(long, short)
    exec(comparing, names)
    assert "Not enough seeds to say" in capsys.readouterr().out
    assert (tmp_path / "report.html").is_file()


def test_the_declaration_is_a_study(tmp_path: Path):
    (declared,) = _blocks("toml")
    (tmp_path / "mine.toml").write_text(declared)
    study = read_study(tmp_path / "mine.toml")
    assert len(study.trials()) == 3 * 4 * 6
    assert list(study.question.measure or ()) == ["test_error", "seconds"]


def test_the_first_two_commands_are_those_of_the_makefile():
    makefile = README.with_name("Makefile").read_text()
    commands = [line.split("#")[0].strip() for line in _blocks("")[0].splitlines()]
    assert commands == ["make demo", "make test"]
    assert all(re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE) for command in commands)


def test_pictures_and_pages_are_there():
    linked = re.findall(r"\]\((?!http)(.*?)\)", README.read_text())
    assert len(linked) >= 3
    assert [name for name in linked if not (README.parent / name).is_file()] == []
