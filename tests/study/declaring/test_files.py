from pathlib import Path

import pytest

from skipway.errors import SkipwayError
from skipway.study import Study
from skipway.study.declaring.files import builtin_names, describe_builtin, read_study, read_value, template

NEEDS_DATA = {"long-skips"}


@pytest.mark.parametrize("name", builtin_names())
def test_every_study_of_ours_is_declared_without_a_slip(name: str, tmp_path: Path):
    study = read_study(name, {"data": str(tmp_path)} if name in NEEDS_DATA else None)
    assert study.name == name
    assert len(study.seeds) >= 3
    text, about = describe_builtin(name)
    assert text.endswith("?")
    assert len(about) > 50
    assert study.question.compare is not None
    assert len(study.values(study.question.compare)) >= 2


def test_the_studies_that_people_know_are_there():
    assert set(builtin_names()) == {
        "degradation", "skip-kinds", "long-skips", "norm-placement", "rezero-speed", "stochastic-depth",
        "squeeze-excite", "construction", "identity", "symmetry-breaking", "width-depth",
    }  # fmt: skip


def test_the_template_is_a_study(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(template("mine"))
    study = read_study(path)
    assert study.name == "mine"
    assert len(study.trials()) == 27


def test_toml_and_yaml_declare_the_same(tmp_path: Path):
    toml = 'depth = [8, 14]\nskip = ["none", "Residual(drop=0.5)"]\n[question]\ntext = "Why?"\n'
    (tmp_path / "s.toml").write_text(toml)
    (tmp_path / "s.yaml").write_text('depth: [8, 14]\nskip: [none, "Residual(drop=0.5)"]\nquestion: {text: "Why?"}\n')
    first, second = (read_study(tmp_path / f"s.{ending}") for ending in ("toml", "yaml"))
    assert first == second
    assert isinstance(first, Study)
    assert first.name == "s"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("s.toml", "depth = [8", "s.toml is not TOML: "),
        ("s.yaml", "depth: [8", "s.yaml is not YAML: "),
        ("s.yaml", "- 1", "s.yaml declares no study"),
        ("s.toml", "epoch = 3", r"s.toml: no key of a study 'epoch'; did you mean 'epochs'\?"),
        ("s.toml", 'skip = ["rezro"]', r"s.toml: no skip 'rezro'; did you mean 'rezero'\?"),
        ("s.toml", 'depth = ["8"]', "s.toml: depth takes whole numbers from 1, not '8'"),
    ],
)
def test_slips_in_a_file_name_the_file_the_key_and_the_value(tmp_path: Path, name: str, content: str, sentence: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(SkipwayError, match=sentence):
        read_study(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("degredation", "no study 'degredation'; did you mean 'degradation'"),
        ("nothing.toml", "cannot read 'nothing.toml': No such file"),
        ("study.json", "no study 'study.json'. Name a .toml or .yaml file"),
    ],
)
def test_studies_that_are_not_there(source: str, sentence: str):
    with pytest.raises(SkipwayError, match=sentence):
        read_study(source)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.1", 0.1),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('"a b"', "a b"),
        ("a b", "a b"),
        ("[a, b]", ["a", "b"]),
        ("Residual(drop=0.5)", "Residual(drop=0.5)"),
    ],
)
def test_values_of_the_command_line(text: str, value: object):
    assert read_value(text) == value
