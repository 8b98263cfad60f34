import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.models import create
from skipway.study import train
from skipway.study.training.building import build_network
from skipway.study.training.distributed import _units, check_strategy

ROOT = Path(__file__).parents[3]
MLP: dict[str, Any] = {"model": "tests.study.nets:perceptron", "data": "digits", "epochs": 3, "clip": 0.5}
GPT: dict[str, Any] = {
    "model": "gpt-2x16", "skip": "rezero", "options": {"dropout": 0.0}, "steps": 12, "every": 4, "length": 16,
    "clip": 0.5, "learning_rate": 0.01,
}  # fmt: skip
RESNET: dict[str, Any] = {"model": "resnet8", "data": "digits", "options": {"width": 4}, "epochs": 1, "limit": 200}
# A network of somebody else's, whose skips were cut.
CUT: dict[str, Any] = {
    "model": "tests.study.outside_nets:residual", "skip": "none", "data": "digits", "epochs": 1, "limit": 100,
    "learning_rate": 0.01,
}  # fmt: skip
# What two processes do, one after another, for it takes seconds to start them.
SCRIPT = """
import os, sys, json
from pathlib import Path
from skipway.study import train
from skipway.study.training.loop import Loop

folder = Path(sys.argv[1])
for name, options in json.loads(sys.argv[2]).items():
    train(**options, folder=folder / name, batch_size=8, quiet=True)
    step = Loop.training_step
    def interrupted(self, *arguments):
        if self.global_step == 6:
            raise KeyboardInterrupt
        return step(self, *arguments)
    if name == "gpt-fsdp":
        Loop.training_step = interrupted
        try:
            train(**options, folder=folder / "interrupted", batch_size=8, quiet=True)
        except KeyboardInterrupt as stopped:
            assert "1 of 3 rounds are kept" in str(stopped), stopped
        finally:
            Loop.training_step = step
        train(**options, folder=folder / "interrupted", batch_size=8, quiet=True)
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question: " * 60)
    gpt = {**GPT, "data": str(text)}
    cases = {
        "mlp-ddp": {**MLP, "strategy": "ddp"}, "mlp-fsdp": {**MLP, "strategy": "fsdp"},
        "gpt-ddp": {**gpt, "strategy": "ddp"}, "gpt-fsdp": {**gpt, "strategy": "fsdp"},
        "resnet-ddp": {**RESNET, "strategy": "ddp"}, "resnet-fsdp": {**RESNET, "strategy": "fsdp"},
        "cut-ddp": {**CUT, "strategy": "ddp"}, "cut-fsdp": {**CUT, "strategy": "fsdp"},
        "bf16-fsdp": {**gpt, "precision": "bf16", "strategy": "fsdp"},
    }  # fmt: skip
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = _torchrun(str(script), str(tmp_path), json.dumps(cases))
    assert done.returncode == 0, done.stderr
    whole = {"mlp": train(**MLP, folder=tmp_path / "mlp", batch_size=16, quiet=True)}
    whole["gpt"] = train(**gpt, folder=tmp_path / "gpt", batch_size=16, quiet=True)
    whole["resnet"] = train(**RESNET, folder=tmp_path / "resnet", batch_size=16, quiet=True)
    whole["cut"] = train(**CUT, folder=tmp_path / "cut", batch_size=16, quiet=True)
    for name in [name for name in cases if not name.startswith("bf16")] + ["interrupted"]:
        record = json.loads((tmp_path / name / "record.json").read_text())
        assert record["processes"] == 2
        expected = whole["gpt" if name == "interrupted" else name.partition("-")[0]]
        for curve in ("loss", "validation_loss"):
            assert record["curves"][curve] == pytest.approx(expected.curves[curve], abs=1e-5)
        for which in ("best", "last"):
            kept, alone = (torch.load(place / f"{which}.pt") for place in (tmp_path / name, expected.folder))
            assert kept.keys() == alone.keys()
            for key in alone:
                torch.testing.assert_close(kept[key], alone[key], atol=1e-4, rtol=0)
    halved = json.loads((tmp_path / "bf16-fsdp" / "record.json").read_text())["curves"]["loss"]
    assert halved == pytest.approx(whole["gpt"].curves["loss"], abs=0.02)
    assert halved != whole["gpt"].curves["loss"]


@pytest.mark.slow
def test_what_two_processes_began_one_ends(tmp_path: Path):
    """A checkpoint under fsdp is one file and whole."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from skipway.study import train; from skipway.study.training.loop import Loop\n"
        "step = Loop.training_step\n"
        "def stop(self, *arguments):\n"
        "    if self.global_step == 120: raise KeyboardInterrupt\n"
        "    return step(self, *arguments)\n"
        "Loop.training_step = stop\n"
        "try: train('tests.study.nets:perceptron', epochs=3, batch_size=8, accumulate=1, strategy='fsdp', "
        "folder=sys.argv[1], quiet=True)\n"
        "except KeyboardInterrupt: pass\n"
    )
    done = _torchrun(str(script), str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    declared = json.loads((run / "run.json").read_text())
    # One process sees in two batches what two saw in one each.
    declared["training"]["recipe"]["accumulate"] = 2
    (run / "run.json").write_text(json.dumps(declared))
    ended = train("tests.study.nets:perceptron", epochs=3, batch_size=8, accumulate=2, folder=run, quiet=True)
    alone = train("tests.study.nets:perceptron", epochs=3, batch_size=16, folder=tmp_path / "alone", quiet=True)
    for curve in ("loss", "validation_loss"):
        assert ended.curves[curve] == pytest.approx(alone.curves[curve], abs=1e-5)


def _torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


class Tied(nn.Module):
    """Blocks in a list: one is whole, one is used by another hand, two share a weight, and one never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(5)])
        self.blocks[3].weight = self.blocks[2].weight  # pyright: ignore[reportArgumentType]
        self.norms = nn.ModuleList([nn.LayerNorm(4)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.blocks[0](x))
        x = nn.functional.linear(self.blocks[1](x), self.blocks[1].weight)  # pyright: ignore[reportArgumentType]
        return self.blocks[3](self.blocks[2](x))


def test_only_blocks_that_keep_to_themselves_are_gathered_by_themselves():
    network = Tied()
    assert _units(network, lambda: network(torch.randn(2, 4))) == [network.blocks[0]]
    gpt = create("gpt-2x16", vocabulary=10, length=8).eval()
    found = _units(gpt, lambda: gpt(torch.zeros(1, 8, dtype=torch.int64)))
    assert len(found) >= 2
    inside = sum(parameter.numel() for unit in found for parameter in unit.parameters())
    assert inside > 0.8 * sum(parameter.numel() for parameter in gpt.parameters() if parameter.ndim) - 10 * 16 - 8 * 16


def test_a_module_that_draws_when_it_is_imported_changes_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else processes that imported it before would have other networks than those that had not."""
    (tmp_path / "drawing_nets.py").write_text(
        "import torch\nbefore = torch.nn.Linear(3, 3)\n"
        "def factory(num_classes):\n    return torch.nn.Linear(2, num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    built = []
    for _ in range(2):
        torch.manual_seed(7)
        built.append(build_network("drawing_nets:factory", "classification", {"num_classes": 4}))
    torch.manual_seed(7)
    expected = nn.Linear(2, 4)
    for network in built:
        assert torch.equal(network.get_parameter("weight"), expected.weight)


@pytest.mark.parametrize(
    ("skip", "processes", "compiled", "sentence"),
    [
        ("residual", 1, False, "divides a network among several processes, and this is a single one: start it with"),
        ("stochastic-depth", 2, False, "use strategy ddp, or the skip 'stochastic-depth-row'"),
        ("residual", 2, True, "a compiled network is not divided"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    monkeypatch: pytest.MonkeyPatch, skip: str, processes: int, compiled: bool, sentence: str
):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(SkipwayError, match=sentence):
        check_strategy("fsdp", create("resnet8", skip=skip), compiled)


def test_what_can_be_divided_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for skip in ("residual", "stochastic-depth-row", "rezero"):
        check_strategy("fsdp", create("resnet8", skip=skip), False)
    with pytest.raises(SkipwayError, match="did you mean 'fsdp'"):
        check_strategy("fsdb", create("resnet8"), False)
