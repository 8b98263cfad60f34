import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skipway.cli.train import parse_options, parse_skip
from skipway.connect import Residual
from skipway.study.training.progress import TrainingProgress

Command = Callable[..., tuple[int, str, str]]
SMALL = ["--limit", "60", "--epochs", "1", "--option", "width=4", "--batch-size", "16"]


def test_train_says_what_came_out_and_predict_uses_it(command: Command, tmp_path: Path):
    run = str(tmp_path / "run")
    arguments = ["train", "resnet8", "--data", "digits", "--skip", "rezero", *SMALL, "--out", run]
    code, out, err = command(*arguments)
    assert code == 0, err
    assert re.search(r"^validation error +0\.\d+ +0\.\d+", out, re.MULTILINE)
    assert run in out
    assert re.search(r"^\[1/1\] loss \d\.\d+, validation error 0\.\d+.* \(best so far\)$", err, re.MULTILINE)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["training"]["skip"] == "rezero"
    digit = np.zeros((8, 8), dtype=np.uint8)
    digit[:, 3:5] = 16
    Image.fromarray(digit).save(tmp_path / "one.png")
    code, out, err = command("predict", run, str(tmp_path / "one.png"))
    assert code == 0, err
    assert re.fullmatch(r".*one\.png: \d \(\d+\.\d%\)\n", out)
    assert err == ""
    for name in ("large.png", "larger.png"):
        Image.fromarray(np.kron(digit, np.ones((2, 2), dtype=np.uint8))).save(tmp_path / name)
    code, out, err = command("predict", run, *(str(tmp_path / n) for n in ("large.png", "larger.png")))
    assert code == 0, err
    assert out.count("\n") == 2
    assert err == "skipway: images of 16 x 16 are brought to 8 x 8, which the network learned from\n"


def test_a_text_is_gone_on_with(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("skipway.study.tasks.language._WRITTEN", 10)
    (tmp_path / "text.txt").write_text("to be or not to be, " * 40)
    run = str(tmp_path / "run")
    small = ["--steps", "5", "--length", "16", "--batch-size", "4"]
    code, out, err = command("train", "gpt-1x16", "--data", str(tmp_path / "text.txt"), *small, "--out", run)
    assert code == 0, err
    assert "--- sample 3" in out
    code, out, err = command("predict", run, "to be", "--length", "7")
    assert code == 0, err
    assert out.startswith("to be")
    assert len(out.rstrip("\n")) == 12


def test_a_network_of_hugging_face_and_its_plain_twin(command: Command, tmp_path: Path):
    pytest.importorskip("transformers")
    sizes = ["hidden_size=8", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=8", "patch_size=4"]
    options = [word for size in sizes for word in ("--option", size)]
    small = ["--limit", "40", "--epochs", "1", "--skip", "none", "--out", str(tmp_path)]
    code, out, err = command("train", "hf:ViTConfig", *options, *small)
    assert code == 0, err
    assert "validation error" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "resnet8", "--data", "digit"], "no data set 'digit'; did you mean 'digits'?"),
        (["train", "resnet8", "--option", "width"], "--option 'width' lacks its value"),
        (["train", "resnet8", "--skip", "Residual(drop=2.0)"], "a drop rate lies in [0, 1), not 2.0"),
        (["train", "resnet8", "--languages", "en"], "--languages takes two endings"),
        (["train", "resnet8", "--skip", "add"], "no skip 'add'; did you mean 'residual'?"),
        (["train", "hf:VitConfig"], "transformers has no 'VitConfig'; did you mean 'ViTConfig'"),
        (["train", "hf:GPT2Config"], "transformers has no model of GPT2Config for classification"),
        (["train", "unet"], "unet is for images with masks (segmentation), and the data are images in classes"),
        (["predict", "/nowhere", "x.png"], "is no folder of 'skipway train'"),
    ],
)
def test_slips_are_one_sentence_on_stderr(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], sentence: str
):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*arguments)
    assert code == 2
    assert out == ""
    (said,) = [line for line in err.splitlines() if line.startswith("skipway: ")]
    assert sentence in said


def test_ctrl_c_says_how_to_go_on(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingProgress, "step", interrupt)
    code, _, err = command("train", "resnet8", *SMALL, "--out", str(tmp_path))
    assert code == 130
    assert re.search(r"^skipway: stopped; 0 of 1 rounds are kept in .* the same again goes on", err, re.MULTILINE)


def test_what_is_typed_becomes_values():
    assert parse_options(["width=8", "up=bilinear", "tied=false", "widths=[1, 2]", "dropout=0.1"]) == {
        "width": 8, "up": "bilinear", "tied": False, "widths": [1, 2], "dropout": 0.1,
    }  # fmt: skip
    assert parse_skip(None) is None
    assert parse_skip("rezero") == "rezero"
    assert parse_skip("concat, none") == ["concat", "none"]
    assert parse_skip("Residual(drop=0.5)") == Residual(drop=0.5)
