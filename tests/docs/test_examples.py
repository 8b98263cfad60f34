"""The pages keep their word: their Python runs and gives what they show, and their commands are commands."""

from __future__ import annotations

import shlex
from pathlib import Path

import matplotlib
import pytest
from tests.docs.blocks import DOCS, blocks, pages, run

from skipway.cli import app as command_line

WITH_PYTHON = [page for page in pages() if any(blocks(page, "python", "pycon"))]


def named(page: Path) -> str:
    return page.relative_to(DOCS).with_suffix("").as_posix()


def commands(page: Path) -> list[str]:
    return [line for _, text in blocks(page, "bash") for line in text.splitlines() if line.startswith("skipway ")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=named)
def test_its_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_shape_checks: None) -> None:
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    from skipway.connect import presets

    monkeypatch.setattr(presets, "_PRESETS", dict(presets._PRESETS))
    run(page)


@pytest.mark.parametrize("line", sorted({line for page in pages() for line in commands(page)}))
def test_its_commands_are_understood(line: str) -> None:
    import typer.main

    command = typer.main.get_command(command_line.app)
    _, *words = shlex.split(line)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]  # pyright: ignore[reportAttributeAccessIssue]
    context = command.make_context("skipway", words, resilient_parsing=True)
    assert not context.args


# What takes minutes as it stands there is run at a size that takes seconds.
SMALLER = {
    "skipway study degradation --out runs/degradation": "--depths 8 --epochs 1 --seeds 0 --width 4",
}
SLOW = ("skipway models", *SMALLER)


@pytest.mark.parametrize(
    "line",
    [pytest.param(line, marks=[pytest.mark.slow] * (line in SLOW)) for line in commands(DOCS / "start.md")],
)
def test_the_commands_of_the_start_run(
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_shape_checks: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", shlex.split(f"{line} {SMALLER.get(line, '')}"))
    with pytest.raises(SystemExit) as left:
        command_line.main()
    assert left.value.code == 0
    assert capsys.readouterr().out
