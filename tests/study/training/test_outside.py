"""Models from outside, trained on real digits and a text, loaded again, and asked for predictions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.study.outside_nets import GPT2, NETS, RESNET, VIT

from skipway.graph import trace
from skipway.study import Study, Trained, predict, train

BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def _digits(folder: Path, model: str, **changes: Any) -> Trained:
    chosen = {"limit": 120, "batch_size": 16, "epochs": 2, "quiet": True, **changes}
    return train(model, "digits", folder=folder, **chosen)


def _digit(folder: Path) -> Path:
    path = folder / "one.png"
    image = np.zeros((8, 8), dtype=np.uint8)
    image[:, 3:5] = 16
    Image.fromarray(image).save(path)
    return path


@pytest.mark.parametrize(("model", "options"), [("hf:ViTConfig", VIT), ("hf:ResNetConfig", RESNET)])
def test_images_of_a_twin_of_hugging_face(tmp_path: Path, model: str, options: dict[str, Any]):
    transformers = pytest.importorskip("transformers")
    trained = _digits(tmp_path, model, options=options, skip="none", optimizer="adamw", learning_rate=0.01)
    assert trained.last["loss"] < trained.curves["loss"][0]
    network: Any = trained.network()
    assert not trace(network, torch.ones(1, 1, 8, 8)).skips
    (told,) = predict(tmp_path, [_digit(tmp_path)])
    assert told.answer in set("0123456789")
    # The weights are those of the library's own model, which takes them as they are.
    own = getattr(transformers, type(network).__name__)(network.config)
    own.load_state_dict(torch.load(tmp_path / "best.pt"))


def test_a_text_is_gone_on_with_by_gpt2(tmp_path: Path, shared_data: Path):
    pytest.importorskip("transformers")
    text = tmp_path / "text.txt"
    text.write_text((shared_data / "text" / "shakespeare.txt").read_text()[:4000])
    chosen: dict[str, Any] = {"length": 16, "steps": 30, "every": 15, "batch_size": 8, "quiet": True}
    trained = train("hf:GPT2Config", text, options=GPT2, skip="rezero", folder=tmp_path / "run", **chosen)
    assert trained.last["validation_loss"] < trained.curves["loss"][0]
    names = [name for name, _ in trained.network().named_parameters()]
    assert "transformer.h.0.attn.c_attn.weight" in names
    assert sum(name.endswith("scale.scale") for name in names) == 4
    (told,) = predict(tmp_path / "run", ["First"], length=4, temperature=0.0)
    assert told.answer.startswith("First")
    assert len(told.answer) == 9


def test_hidden_characters_are_told_by_bert(tmp_path: Path):
    pytest.importorskip("transformers")
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, " * 60)
    trained = train(
        "hf:BertConfig", text, options=BERT, length=16, steps=5, batch_size=4, quiet=True, folder=tmp_path / "run"
    )
    assert trained.kind == "hidden language"
    (told,) = predict(tmp_path / "run", ["to b_"])
    assert len(told.answer) == 5


@pytest.mark.parametrize(("name", "skip", "skips"), [("plain", "residual", 2), ("residual", "none", 0)])
def test_a_network_of_the_users_own_and_its_twin(tmp_path: Path, name: str, skip: str, skips: int):
    twin = _digits(tmp_path / "twin", f"{NETS}:{name}", skip=skip)
    other = _digits(tmp_path / "other", f"{NETS}:{'residual' if skips else 'plain'}")
    # As if the other had been written: the twin's first weights are its own, and so is all that follows.
    assert twin.curves["loss"] == pytest.approx(other.curves["loss"], rel=1e-4)
    assert len(trace(twin.network(), torch.ones(1, 1, 8, 8)).skips) == skips
    assert predict(tmp_path / "twin", [_digit(tmp_path)])


def test_a_skip_with_values_is_kept_and_read_again(tmp_path: Path):
    from skipway.connect import Residual

    trained = _digits(tmp_path, f"{NETS}:residual", skip=Residual(drop=0.3), epochs=1)
    assert "drop" in json.loads((tmp_path / "run.json").read_text())["training"]["skip"]
    assert len(trace(trained.network(), torch.ones(1, 1, 8, 8)).skips) == 2


@pytest.mark.parametrize(
    ("model", "options", "values"),
    [("hf:ViTConfig", VIT, {}), (f"{NETS}:plain", {"width": 4}, {"depth": [2, 3]}), (f"{NETS}:residual", {}, {})],
)
def test_a_study_compares_twins(tmp_path: Path, model: str, options: dict[str, Any], values: dict[str, Any]):
    if model.startswith("hf:"):
        pytest.importorskip("transformers")
    chosen = {name: value for name, value in options.items() if name != "width"}
    study = Study(
        model=model, skip=["none", "residual"], options=chosen, data="digits", limit=60, epochs=1, seeds=[0],
        optimizer="adamw", **values, **({"width": 4} if "width" in options else {}),
    )  # fmt: skip
    results = study.run(tmp_path, quiet=True)
    assert len(results.records) == 2 * len(values.get("depth", [0]))
    plain, residual = results.records[:2]
    assert (plain.plain, residual.plain) == (True, False)
    assert plain.measures["parameters"] == residual.measures["parameters"]
    assert plain.curves["loss"] != residual.curves["loss"]
    assert plain.first_gradients
    assert len(list(results.table()["skip"].unique())) == 2


def test_a_network_that_was_rewritten_is_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    source = (
        "from torch import nn\n"
        "def net(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))\n"
    )
    (tmp_path / "rewritten.py").write_text(source)
    study = Study(model="rewritten:net", skip="none", data="digits", limit=40, epochs=1, seeds=[0])
    (first,) = study.run(tmp_path / "runs", quiet=True).records
    (again,) = study.run(tmp_path / "runs", quiet=True).records
    assert again.id == first.id
    (tmp_path / "rewritten.py").write_text(source + "# longer by a remark\n")
    monkeypatch.delitem(sys.modules, "rewritten")
    (other,) = study.run(tmp_path / "runs", quiet=True).records
    assert other.id != first.id
