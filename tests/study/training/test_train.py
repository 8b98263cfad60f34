import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from skipway import connect
from skipway.errors import SkipwayError
from skipway.models import create
from skipway.study import Trained, load_images, train
from skipway.study.tasks.classification import Classification
from skipway.study.training.building import read_skip, written_skip
from skipway.study.training.loop import Loop
from skipway.study.training.recipe import Recipe, height, make_optimizer, make_schedule
from skipway.study.training.train import best_of

NETS = "tests.study.nets"
DIGITS: dict[str, Any] = {"limit": 120, "batch_size": 16, "quiet": True}


def _digits(folder: Path, model: str = f"{NETS}:perceptron", **changes: Any) -> Trained:
    return train(model, "digits", folder=folder, **{**DIGITS, "epochs": 3, **changes})


def test_a_training_improves_and_keeps_everything(tmp_path: Path):
    trained = _digits(tmp_path, epochs=8)
    assert trained.kind == "classification"
    assert trained.last["loss"] < 0.7 * trained.curves["loss"][0]
    assert trained.best["validation_error"] == min(trained.curves["validation_error"]) < 0.5
    for name in ("run.json", "record.json", "history.csv", "curve.png", "best.pt", "last.pt", "last.ckpt"):
        assert (tmp_path / name).stat().st_size > 0
    header, *rows = (tmp_path / "history.csv").read_text().splitlines()
    assert header == "round,loss,learning_rate,validation_error,validation_loss"
    assert [float(value) for value in rows[-1].split(",")] == [8.0, *trained.last.values()]
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["parameters"] == trained.parameters == 64 * 16 + 16 + 16 * 10 + 10
    assert record["training"]["recipe"]["batch_size"] == 16
    table = trained.table()
    assert list(table.index) == list(range(1, 9))
    assert list(table.columns) == list(trained.curves)


def test_the_best_weights_are_those_of_the_best_round(tmp_path: Path):
    trained = _digits(tmp_path, epochs=4)
    images = load_images("digits", samples=120)
    task = Classification(images)
    for network, expected in ((trained.network(), trained.best), (trained.network("last"), trained.last)):
        assert not network.training
        with torch.no_grad():
            wrong = (network(task.normalise(images.test_images)).argmax(1) != images.test_labels).sum()
        assert int(wrong) / len(images.test_labels) == expected["validation_error"]


def test_our_families_train_by_name_and_their_weights_load_by_name(tmp_path: Path):
    trained = _digits(tmp_path, "resnet8", epochs=1, skip="rezero", options={"width": 4})
    again = create(
        "resnet8", skip="rezero", num_classes=10, in_channels=1, width=4, weights=tmp_path / "best.pt"
    ).state_dict()
    for name, value in trained.network().state_dict().items():
        assert torch.equal(value, again[name])


def test_the_same_call_again_goes_on_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = _digits(tmp_path / "whole", f"{NETS}:Noisy", optimizer="adamw", learning_rate=0.01)
    step = Loop.training_step

    def interrupted(self: Loop, *arguments: Any) -> Any:
        if self.global_step == 18:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt, match="2 of 3 rounds are kept in"):
            _digits(tmp_path / "cut", f"{NETS}:Noisy", optimizer="adamw", learning_rate=0.01)
    cut = _digits(tmp_path / "cut", f"{NETS}:Noisy", optimizer="adamw", learning_rate=0.01)
    assert cut.curves == whole.curves
    for name in ("best.pt", "last.pt"):
        kept, expected = (torch.load(tmp_path / place / name) for place in ("cut", "whole"))
        assert all(torch.equal(kept[key], expected[key]) for key in expected)


def test_what_is_finished_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = _digits(tmp_path)
    monkeypatch.setattr(Loop, "training_step", lambda *_: pytest.fail("trained again"))
    assert _digits(tmp_path) == first


def test_steps_end_where_they_are_told_to(tmp_path: Path):
    trained = _digits(tmp_path, epochs=None, steps=20, every=8)
    assert len(trained.curves["loss"]) == 3
    assert json.loads((tmp_path / "record.json").read_text())["steps"] == 20
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 20
    assert trained.curves["learning_rate"][-1] == pytest.approx(0.1 / 25 / 1e4)


def test_batches_that_are_accumulated_are_one_batch(tmp_path: Path):
    whole = _digits(tmp_path / "whole", batch_size=32)
    parts = _digits(tmp_path / "parts", batch_size=16, accumulate=2)
    for name in ("loss", "validation_loss"):
        assert parts.curves[name] == pytest.approx(whole.curves[name], abs=1e-6)
    kept, expected = (torch.load(tmp_path / place / "last.pt") for place in ("parts", "whole"))
    for name in expected:
        torch.testing.assert_close(kept[name], expected[name], atol=1e-6, rtol=0)


@pytest.mark.slow
def test_processes_that_make_batches_change_no_number(tmp_path: Path):
    alone = _digits(tmp_path / "alone", f"{NETS}:Noisy", epochs=2)
    helped = _digits(tmp_path / "helped", f"{NETS}:Noisy", epochs=2, workers=2)
    assert helped.curves == alone.curves


def test_training_leaves_the_callers_state_as_it_was(tmp_path: Path):
    before = torch.random.get_rng_state(), str(np.random.get_state()), torch.get_num_threads()
    _digits(tmp_path, augment="standard", epochs=1)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]
    assert torch.get_num_threads() == before[2]


def test_bf16_trains(tmp_path: Path):
    trained = _digits(tmp_path, "resnet8", epochs=2, options={"width": 4}, precision="bf16")
    assert all(np.isfinite(trained.curves["loss"]))
    assert all(value.dtype != torch.bfloat16 for value in torch.load(tmp_path / "last.pt").values())


# What torch's compiler says of its own parts.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("resnet8", {"options": {"width": 4}}),
        ("tests.study.outside_nets:plain", {"skip": "residual"}),
        ("tests.study.outside_nets:residual", {"skip": "rezero"}),
    ],
)
def test_a_compiled_network_learns_the_same(tmp_path: Path, model: str, changes: dict[str, Any]):
    kept, compiled = (
        _digits(tmp_path / str(flag), model, epochs=2, limit=64, compile=flag, learning_rate=0.01, **changes)
        for flag in (False, True)
    )
    assert compiled.curves["loss"] == pytest.approx(kept.curves["loss"], abs=1e-3)
    expected, weights = kept.network("last").state_dict(), compiled.network("last").state_dict()
    assert list(weights) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, atol=1e-2, rtol=1e-2)


# What torch's compiler says of its own parts.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.usefixtures("no_shape_checks")
def test_a_branch_that_is_drawn_to_run_or_not_is_compiled_quietly(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    chosen: dict[str, Any] = {"options": {"width": 4}, "skip": "stochastic-depth", "epochs": 1, "limit": 32}
    trained = _digits(tmp_path, "resnet8", compile=True, **chosen)
    assert np.isfinite(trained.last["loss"])
    assert "Graph break" not in capfd.readouterr().err


def test_a_loss_that_is_not_finite_ends_with_a_sentence(tmp_path: Path):
    with pytest.raises(SkipwayError, match=r"stopped being finite in round 1, step 1: lower the learning rate \(0.1\)"):
        _digits(tmp_path, f"{NETS}:exploding")


@pytest.mark.parametrize(
    ("model", "changes", "sentence"),
    [
        ("resnet9", {}, "9 is not"),
        ("gpt-nano", {}, r"gpt-nano is for a text \(language\), and the data are images in classes"),
        (f"{NETS}:nothing", {}, "tests.study.nets has no 'nothing'"),
        (f"{NETS}:not_a_network", {}, "returns a int; it has to return a torch.nn.Module"),
        (f"{NETS}:fails", {}, "fails: RuntimeError: on purpose"),
        (f"{NETS}:Bigrams", {}, r"needs arguments \(vocabulary\): give --option vocabulary="),
        (f"{NETS}:wrong_classes", {}, "gives 2 x 7 for 2 x 1 x 8 x 8 images; the 10 classes of digits need"),
        (f"{NETS}:segmenter", {}, "does not fit: the network gives 2 x 10 x 8 x 8"),
        (f"{NETS}:perceptron", {"options": {"widht": 3}}, "no argument of .* 'widht'"),
        ("resnet8", {"options": {"widht": 3}}, "did you mean 'width'"),
        ("resnet8", {"skip": "rezro"}, "did you mean 'rezero'"),
        ("resnet8", {"epochs": 1, "steps": 1}, "epochs and steps say the same thing twice"),
        ("resnet8", {"epochs": 0}, "epochs takes whole numbers from 1, not 0"),
        ("resnet8", {"optimizer": "adam"}, "did you mean 'adamw'"),
        ("resnet8", {"schedule": "cosin"}, "did you mean 'cosine'"),
        ("resnet8", {"precision": "16"}, "no precision '16'"),
        ("resnet8", {"augment": "strong"}, "no augmentation 'strong'"),
        ("resnet8", {"learning_rate": -1.0}, "learning_rate is -1.0; it must be above 0"),
        ("resnet8", {"crop": 4}, "crop is not for classification"),
        ("resnet8", {"accumulate": 200}, "120 training examples do not divide among 200 batches"),
        (
            "resnet8",
            {"options": {"block": nn.ReLU}},
            "option block is a type; a training keeps numbers, words and lists",
        ),
        ("resnet8", {"logger": "tensorbord"}, "did you mean 'tensorboard'"),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_slips_are_one_sentence(tmp_path: Path, model: str, changes: dict[str, Any], sentence: str):
    with pytest.raises(SkipwayError, match=sentence):
        _digits(tmp_path, model, **changes)
    assert not (tmp_path / "record.json").exists()


def test_a_folder_belongs_to_one_training(tmp_path: Path):
    _digits(tmp_path, epochs=1)
    with pytest.raises(SkipwayError, match=r"holds a training with epochs 1, not 2; choose another folder"):
        _digits(tmp_path, epochs=2)
    with pytest.raises(SkipwayError, match=r"holds a training with learning rate 0.1, not 0.2"):
        _digits(tmp_path, epochs=1, learning_rate=0.2)


def test_the_same_data_may_be_called_by_another_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "text.txt").write_text("so many words, and so few letters " * 20)
    (tmp_path / "other.txt").write_text("others, with as many letters as those " * 20)
    asked: dict[str, Any] = {"steps": 2, "length": 16, "batch_size": 4, "quiet": True, "folder": tmp_path / "run"}
    first = train("gpt-1x8", data=tmp_path / "text.txt", **asked)
    monkeypatch.chdir(tmp_path)
    assert train("gpt-1x8", data="text.txt", **asked).curves == first.curves
    with pytest.raises(SkipwayError, match=r'holds a training with data .*, not "other.txt"'):
        train("gpt-1x8", data="other.txt", **asked)


def test_skips_are_written_so_that_they_can_be_read_again():
    for skip in (None, "rezero", ["concat", "none"], *(connect.resolve(name) for name in connect.names())):
        written = json.loads(json.dumps(written_skip(skip)))
        assert read_skip(written) == skip
    with pytest.raises(SkipwayError, match="no connection 'Residul'; did you mean 'Residual'"):
        read_skip("Residul(drop=0.5)")
    with pytest.raises(SkipwayError, match="no skip"):
        read_skip("__import__('os').getcwd()")


def test_schedules_are_those_of_their_formulas():
    cosine = Recipe(schedule="cosine", warm_up=10)
    assert [height(cosine, step, 110) for step in (0, 9, 10, 60, 110)] == pytest.approx([0.1, 1, 1, 0.5, 0])
    root = Recipe(schedule="inverse-root", warm_up=100)
    assert [height(root, step, 1000) for step in (0, 99, 399)] == pytest.approx([0.01, 1, 0.5])
    network = nn.Linear(2, 2)
    schedule = make_schedule(make_optimizer(network, cosine), cosine, 110)
    assert schedule.get_last_lr() == pytest.approx([0.01])


def test_adamw_decays_matrices_alone():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    decayed, others = make_optimizer(network, Recipe(optimizer="adamw", weight_decay=0.3)).param_groups
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(4, 3)]
    assert decayed["weight_decay"] == 0.3
    assert len(others["params"]) == 3
    assert others["weight_decay"] == 0


def test_the_best_round_is_the_first_of_the_best():
    assert best_of([0.5, float("nan"), 0.25, 0.25], "lowest") == 3
    assert best_of([0.5, float("nan"), 0.75, 0.75], "highest") == 3
