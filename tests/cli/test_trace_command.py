"""`skipway trace` and `skipway doctor`: every way to name a model, and every slip in doing so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from skipway.cli.inputs import told
from skipway.graph.inputs import made
from skipway.outside import suggestion

NETS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x, scale=None):
        return x + self.layer(x)

class Dropped(Block):
    def forward(self, x):
        return super().forward(x) if self.training else self.layer(x)

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.block = Block()

    def forward(self, ids):
        return self.block(self.table(ids))

def build():
    return nn.Sequential(Block(), Block(), nn.Linear(8, 2))

def faulty():
    norm = nn.BatchNorm2d(4)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 4, 3), norm)

def sized(depth, width): return nn.Sequential(*[Block(width) for _ in range(depth)])
def broken(): raise RuntimeError("no such luck")
def text(): return "a model"
ready = build()
number = 3
"""


@pytest.fixture
def run(command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "mynets.py").write_text(NETS)
    (tmp_path / "halfway.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "wrong.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("mynets", "halfway", "wrong"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return command


def test_one_of_our_own(run):
    code, out, err = run("trace", "resnet20")
    assert (code, err) == (0, "")
    assert out.startswith("ResNet: 9 skips")
    assert out.count("identity") == 7


def test_the_plain_twin_has_no_skips(run):
    assert run("trace", "resnet20", "--skip", "none")[1].startswith("ResNet: 0 skips")


def test_paths_and_symmetry(run):
    _, out, _ = run("trace", "resnet20", "--paths", "--symmetry")
    # 9 blocks of two weight layers: binomial coefficients.
    assert "512 paths" in out
    assert "126" in out
    assert "permutations in" in out


def test_json_holds_what_the_tables_say(run):
    _, out, _ = run("trace", "resnet20", "--json", "--paths", "--symmetry")
    content = json.loads(out)
    assert len(content["skips"]) == 9
    assert content["paths"]["total"] == 512
    assert content["paths"]["by_length"]["20"] == 1
    assert content["symmetry"]["log10_order"] > 0
    assert content["symmetry"]["classes"][0]["members"]


def test_a_drawing(run, tmp_path: Path):
    code, _, err = run("trace", "resnet20", "--draw", "map.svg")
    assert code == 0
    assert "map.svg" in err
    assert (tmp_path / "map.svg").read_text().startswith("<svg ")


def test_training_mode(run):
    evaluated, trained = (json.loads(run("trace", "mynets:Dropped", "--json", *mode)[1]) for mode in ((), ("--train",)))
    assert [len(content["skips"]) for content in (evaluated, trained)] == [0, 1]


@pytest.mark.parametrize("name", ["build", "ready"])
def test_a_factory_and_a_module_of_the_users_own(run, name: str):
    code, out, err = run("trace", f"mynets:{name}")
    assert code == 0, err
    assert "2 skips" in out
    assert "run on 1x8" in err


def test_a_class_and_token_ids_guessed_from_its_first_layer(run):
    code, out, err = run("trace", "mynets:Words")
    assert code == 0, err
    assert "1 skip," in out
    assert "1x16:int64" in err


def test_inputs_of_the_users_own(run):
    _, out, _ = run("trace", "mynets:Block", "--input", "x=2x5x8", "--json")
    assert json.loads(out)["inputs"][0]["shape"] == [2, 5, 8]
    code, _, err = run("trace", "mynets:Block", "--input", "x=2x5x8:float64")
    assert code == 2
    assert "dtype" in err
    _, out, _ = run("trace", "mynets:Block", "--input", "2x5x8", "--input", "scale=2x5x1", "--json")
    assert [value["shape"] for value in json.loads(out)["inputs"]] == [[2, 5, 8], [2, 5, 1]]


@pytest.mark.parametrize(
    ("arguments", "shape", "skips"),
    [
        (["resnet8", "--option", "width=4", "--option", "in_channels=1"], [1, 1, 32, 32], 3),
        (["mynets:sized", "--option", "depth=3", "--option", "width=6"], [1, 6], 3),
        (["mynets:Block", "--option", "width=6"], [1, 6], 1),
    ],
)
def test_options_of_the_model(run, arguments: list[str], shape: list[int], skips: int):
    code, out, err = run("trace", *arguments, "--json")
    assert code == 0, err
    content = json.loads(out)
    assert content["inputs"][0]["shape"] == shape
    assert len(content["skips"]) == skips
    assert run("doctor", *arguments, "--fail-on", "never")[0] == 0


def test_fields_of_a_configuration(run):
    pytest.importorskip("transformers")
    code, out, err = run("trace", "hf:BertConfig", "--option", "num_hidden_layers=2", "--json")
    assert code == 0, err
    assert len(json.loads(out)["skips"]) == 4
    code, _, err = run("trace", "hf:BertConfig", "--option", "num_hiden_layers=2")
    assert code == 2
    assert "no field of BertConfig 'num_hiden_layers'; did you mean 'num_hidden_layers'?" in err


def test_an_exported_file(run, tmp_path: Path):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).train(False)
    torch.export.save(torch.export.export(layer, (torch.zeros(1, 3, 8),)), tmp_path / "layer.pt2")
    code, out, err = run("trace", "layer.pt2")
    assert code == 0, err
    assert "2 skips" in out


@pytest.mark.parametrize(
    ("spec", "model", "skips"),
    [
        ("hf:BertConfig", "BertModel", 24),
        ("hf:bert", "BertModel", 24),
        ("hf:BertForMaskedLM", "BertForMaskedLM", 24),
        ("hf:ResNetConfig", "ResNetModel", 16),
        ("hf:T5Config", "T5Model", 30),
        # 26 GB as real weights: these two run on the meta device only because their masks are given.
        ("hf:LlamaConfig", "LlamaModel", 64),
        ("hf:GPT2Config", "GPT2Model", 24),
        ("hf:CLIPConfig", "CLIPModel", 48),
    ],
)
def test_hugging_face_configurations_take_no_memory(run, spec: str, model: str, skips: int):
    pytest.importorskip("transformers")
    code, out, err = run("trace", spec, "--json")
    assert code == 0, err
    assert "for real" not in err
    content = json.loads(out)
    assert content["model"] == model
    assert len(content["skips"]) == skips


def test_what_does_not_run_on_the_meta_device_is_built_for_real(run, monkeypatch: pytest.MonkeyPatch):
    from skipway.cli import specs
    from skipway.outside import Source

    class Peeking(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.layer(x) if x.sum().item() > -1e9 else x

    source = Source("a peeking net", Peeking, lambda model, device: [((made((1, 4), device),), {})])
    monkeypatch.setattr(specs, "find", lambda *arguments: source)
    code, out, err = run("trace", "anything")
    assert code == 0, err
    assert "1 skip," in out
    assert "does not run on the meta device: building it for real" in err
    monkeypatch.setattr(specs, "_free_memory", lambda: 10)
    code, _, err = run("trace", "anything")
    assert code == 2
    assert "are free" in err


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_an_absent_library_names_its_extra(run, monkeypatch: pytest.MonkeyPatch, library: str):
    monkeypatch.setitem(sys.modules, library, None)
    code, out, err = run("trace", f"{library}:resnet50")
    assert (code, out) == (2, "")
    assert err == f"skipway: {library}:NAME needs the package '{library}': pip install 'skipway[{library}]'\n"


def test_transformers_absent_names_its_extra(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'skipway[transformers]'" in run("trace", "hf:BertConfig")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet5"], "depth 6n+2, which 5 is not"),
        (["resnet5o"], "no model 'resnet5o'; did you mean 'resnet56'?"),
        (["resnet5o"], "or a .pt2 file"),
        (["tochvision:resnet50"], "did you mean 'torchvision:resnet50'?"),
        (["mynts:build"], "there is no module 'mynts'"),
        (["mynts:build"], "did you mean 'mynets'"),
        (["mynets"], "a function in mynets.py is mynets:its_name"),
        (["mynets.py"], "a function in mynets.py is mynets:its_name"),
        (["mynets.build"], "did you mean 'mynets:build'?"),
        (["./mynets.py:build"], "'./mynets.py:build' names a file; name its module, as in mynets:build"),
        (["resnet8", "--weights"], "published weights are those of torchvision, timm and the Hub, and resnet8 is our"),
        (["mynets:biuld"], "mynets has no 'biuld'; did you mean 'build'?"),
        (["mynets:sized"], "mynets:sized needs arguments (depth, width)"),
        (["mynets:broken"], "mynets:broken() fails: RuntimeError: no such luck"),
        (["mynets:text"], "mynets:text() returns a str; it has to return a torch.nn.Module"),
        (["mynets:number"], "mynets:number is a int"),
        (["halfway:build"], "it needs a_package_that_is_not_there, which is not installed"),
        (["wrong:build"], "importing wrong fails: ZeroDivisionError"),
        (["mynets:"], "lacks what stands after the colon"),
        (["my nets:build"], "names no model"),
        (["weights.pt"], "holds weights, not a model"),
        (["missing.pt2"], "there is no file 'missing.pt2'"),
        (["mynets:build", "--skip", "none"], "--skip is for our own families"),
        (["resnet20", "--skip", "rezro"], "did you mean 'rezero'?"),
        (["mynets:build", "--input", "axb"], "--input 'axb' is no shape"),
        (["mynets:build", "--input", "1x8:int46"], "did you mean 'int64'?"),
        (["mynets:Block", "--input", "y=1x8"], "no input of Block 'y'; allowed: x, scale"),
        (["mynets:build", "--input", "1x7"], "does not run on these inputs"),
        (["mynets:build", "--draw", "map.jpg"], "no picture format '.jpg'"),
        (["mynets:build", "--draw", "no/map.svg"], "there is no folder 'no'"),
        (["mynets:build", "--weights"], "let mynets:build load its own"),
        (["resnet8", "--option", "widht=8"], "no option of resnet8 'widht'; did you mean 'width'?"),
        (["resnet8", "--option", "width"], "--option 'width' lacks its value: write --option width=8"),
        (["mynets:sized", "--option", "dpth=8"], "no argument of mynets:sized 'dpth'; did you mean 'depth'?"),
        (["mynets:Block", "--option", "width=wide"], "mynets:Block(width='wide') fails: TypeError: "),
        (["mynets:sized", "--option", "depth=8"], "needs arguments (width): give --option width=..."),
        (["mynets:ready", "--option", "width=8"], "mynets:ready is a network already"),
        (["model.pt2", "--option", "width=8"], "--option is for models that are built"),
    ],
)
def test_slips_are_one_line_and_exit_code_2(run, no_shape_checks: None, arguments: list[str], message: str):
    code, out, err = run("trace", *arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:BertConfg", "did you mean 'BertConfig'"),
        ("hf:BretModel", "did you mean"),
        ("hf:no-such-user/no-such-model", "transformers has no configuration 'no-such-user/no-such-model'"),
    ],
)
def test_unknown_names_of_hugging_face(run, spec: str, message: str):
    pytest.importorskip("transformers")
    code, _, err = run("trace", spec)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("level", "code"), [("never", 0), ("error", 1), ("warning", 1), ("advice", 1)])
def test_the_doctors_exit_code_for_an_error(run, level: str, code: int):
    got, out, err = run("doctor", "mynets:faulty", "--input", "2x3x16x16", "--fail-on", level)
    assert got == code, err
    assert "error: " in out
    assert "Remedy: " in out


def test_advice_fails_nothing_unless_asked(run):
    assert run("doctor", "resnet20")[0] == 0
    assert run("doctor", "resnet20", "--fail-on", "warning")[0] == 0
    assert run("doctor", "resnet20", "--fail-on", "advice")[0] == 1


def test_findings_as_json(run):
    _, out, _ = run("doctor", "mynets:faulty", "--input", "2x3x16x16", "--json")
    findings = json.loads(out)
    assert findings
    assert set(findings[0]) == {"rule", "severity", "site", "also", "sentence", "remedy", "source"}
    assert findings[0]["severity"] == "error"


def test_a_healthy_model(run):
    code, out, _ = run("doctor", "mynets:build")
    assert code == 0
    assert "error" not in out


def test_an_unknown_level(run):
    code, _, err = run("doctor", "resnet20", "--fail-on", "warn")
    assert code == 2
    assert "did you mean 'warning'?" in err


def test_the_installed_command_speaks_to_a_pipe(tmp_path: Path):
    (tmp_path / "mynets.py").write_text(NETS)
    code = "from skipway.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "trace", "mynets:build", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["skips"]) == 2


def test_suggestions():
    assert suggestion("resnet5", ["resnet50", "vgg16"]) == "; did you mean 'resnet50'?"
    assert suggestion("zzz", ["resnet50"]) == ""
    assert told(((made((1, 3), "meta"),), {"ids": made((1, 4), "cpu", torch.int64, 7)})) == "1x3 ids=1x4:int64"
