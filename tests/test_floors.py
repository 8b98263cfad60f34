"""Who may import whom: a package imports only from floors below its own, and so do the parts of `study`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "skipway"
# From the lowest floor to the highest; those of one floor do not know each other.
FLOORS: list[set[str]] = [
    {"errors"}, {"storing", "torchrun", "engines", "connect"}, {"models", "graph"}, {"outside", "edit"}, {"probe"},
    {"report"}, {"study"}, {"cli"}, {"__main__"},
]  # fmt: skip
PARTS: list[set[str]] = [
    {"records"}, {"tasks"}, {"training"}, {"probing"}, {"declaring"}, {"answering"}, {"pages"}, {"running"},
]  # fmt: skip
# `Study.run` is the verb of what is declared, and hands on to the floor that knows how.
VERBS = {("declaring/declaration.py", "running")}


def _imports(path: Path) -> Iterator[str]:
    """What a file imports of skipway, in functions, too; what only the type checker reads is no import."""
    kept: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while kept:
        node = kept.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        kept += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from ([node.module] if node.module != "skipway" else [f"skipway.{one.name}" for one in node.names])
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names)


def _wrong(root: Path, package: str, floors: list[set[str]]) -> Iterator[tuple[str, str]]:
    floor = {name: number for number, names in enumerate(floors) for name in names}
    for path in sorted(root.rglob("*.py")):
        own = path.relative_to(root).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in _imports(path):
            if not name.startswith(f"{package}."):
                continue
            other = name.removeprefix(f"{package}.").split(".")[0]
            if other != own and other in floor and floor[other] >= floor[own]:
                yield path.relative_to(root).as_posix(), other


@pytest.mark.parametrize(("root", "floors"), [(ROOT, FLOORS), (ROOT / "study", PARTS)], ids=["skipway", "study"])
def test_every_package_has_its_floor(root: Path, floors: list[set[str]]):
    found = {path.name.removesuffix(".py") for path in root.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert found - {"__init__", "__pycache__"} == set().union(*floors)


def test_packages_import_only_from_below():
    assert list(_wrong(ROOT, "skipway", FLOORS)) == []


def test_the_parts_of_a_study_import_only_from_below():
    assert set(_wrong(ROOT / "study", "skipway.study", PARTS)) == VERBS
