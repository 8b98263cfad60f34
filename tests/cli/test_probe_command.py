import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from skipway import models
from skipway.cli.app import app
from skipway.errors import SkipwayError
from skipway.probe import Barrier, Gradients, Identity, Landscape, Lesions, gradients, load

SMALL = ["--samples", "32", "--batch-size", "16"]


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = models.create("resnet8", num_classes=10)
    path = tmp_path_factory.mktemp("weights") / "resnet8.pt"
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["gradients", "responses", "paths", "lesions", "shattering"])
def test_a_probe_prints_its_table_and_its_policy(name: str, tmp_path: Path):
    out, picture = tmp_path / "numbers.npz", tmp_path / "picture.png"
    printed = run("probe", name, "resnet8", *SMALL, "--out", str(out), "--plot", str(picture))
    assert "Measured on ResNet" in printed
    assert load(out).caption in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_numbers_are_those_of_the_library(tmp_path: Path, weights: Path):
    out = tmp_path / "numbers.npz"
    run("probe", "gradients", "resnet8", "--weights", str(weights), *SMALL, "--set", "mode=eval", "--out", str(out))
    from skipway.study import load_images

    images = load_images("digits")
    order = torch.randperm(len(images.test_labels), generator=torch.Generator().manual_seed(0))[:32]
    mean, deviation = images.statistics
    model = models.create("resnet8", num_classes=10)
    models.load_weights(model, weights)
    inputs = ((images.test_images[order].float() - mean) / deviation).expand(-1, 3, -1, -1)
    expected = gradients(model, [(inputs, images.test_labels[order])], "cross_entropy", mode="eval")
    found = load(out)
    assert isinstance(found, Gradients)
    np.testing.assert_allclose(found.norms, expected.norms, rtol=1e-5)


def _logits(probed: str, *words: str) -> np.ndarray:
    """What a network that a command line means makes of the images that it is measured on."""
    from skipway.cli.batches import DataChoice, image_batches, model_for
    from skipway.cli.options import parse_options

    path = Path(words[0]) if words else None
    chosen = DataChoice("digits", samples=4)
    images = chosen.images()
    model = model_for(probed, images, None, path, False, parse_options(words[1:]))
    with torch.no_grad():
        return model(image_batches(model, images, chosen)[0][0]).numpy()


def test_what_a_training_left_is_measured_as_it_was_trained(tmp_path: Path):
    """On one channel and of another width than is published; without the options its weights do not fit."""
    from skipway import study

    trained = study.train("resnet8", "digits", options={"width": 4}, limit=64, epochs=1, folder=tmp_path)
    file = trained.folder / "best.pt"
    run("probe", "lesions", "resnet8", "--option", "width=4", "--weights", str(file), *SMALL)
    model = models.create("resnet8", num_classes=10, in_channels=1, width=4)
    models.load_weights(model, file)
    images = study.load_images("digits")
    order = torch.randperm(len(images.test_labels), generator=torch.Generator().manual_seed(0))[:4]
    mean, deviation = images.statistics
    with torch.no_grad():
        expected = model.eval()((images.test_images[order].float() - mean) / deviation)
    np.testing.assert_allclose(_logits("resnet8", str(file), "width=4"), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(SkipwayError, match=re.escape("[4, 1, 3, 3] in the file, [16, 1, 3, 3] in the model")):
        _logits("resnet8", str(file))


def test_a_model_from_outside_is_built_for_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=7, in_channels=3, width=8):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3)
        self.branch = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        h = self.stem(x)
        return self.head((h + self.branch(h)).mean((2, 3)))
"""
    (tmp_path / "ours_for_a_probe.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "numbers.npz"
    words = ["ours_for_a_probe:Net", "--option", "width=5", *SMALL, "--out", str(out)]
    run("probe", "lesions", *words)
    found = load(out)
    assert isinstance(found, Lesions)
    assert found.parts == (":add:0",)
    run("probe", "lesions", *words, "--skip", "none")
    plain = load(out)
    assert isinstance(plain, Lesions)
    assert plain.of == "layers"
    with pytest.raises(SkipwayError, match="no argument of ours_for_a_probe:Net 'widht'; did you mean 'width'?"):
        run("probe", "lesions", "ours_for_a_probe:Net", "--option", "widht=5")


def test_a_hugging_face_model_is_measured_on_images(tmp_path: Path):
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    options = [word for name, value in {**sizes, "patch_size": 2}.items() for word in ("--option", f"{name}={value}")]
    out = tmp_path / "numbers.npz"
    run("probe", "lesions", "hf:ViTConfig", *options, *SMALL, "--out", str(out))
    found = load(out)
    assert isinstance(found, Lesions)
    assert len(found.parts) == 2
    words = ["report", "hf:ViTConfig", *options, *SMALL, "--probes", "responses", "--out", str(tmp_path / "report")]
    run(*words)
    run(*words, "--option", "num_hidden_layers=2")
    assert len(list((tmp_path / "report" / "numbers").iterdir())) == 2


def test_settings_reach_the_probe(tmp_path: Path):
    out = tmp_path / "numbers.npz"
    run("probe", "landscape", "resnet8", *SMALL, "--set", "steps=3", "--set", "dims=1", "--out", str(out))
    found = load(out)
    assert isinstance(found, Landscape)
    assert found.loss.shape == (3,)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["gradient", "resnet8"], "no probe 'gradient'; did you mean 'gradients'?"),
        (["gradients", "resnet8", "--set", "modes=eval"], "no argument of gradients 'modes'; did you mean 'mode'?"),
        (["gradients", "resnet8", "--set", "mode"], "lacks its value"),
        (["gradients", "resnet8", "--part", "tests"], "no part of the data 'tests'; did you mean 'test'?"),
        (["gradients", "resnet8", "--samples", "0"], "at least 1"),
        (["gradients", "resnet8", "--mean", "0.5"], "--mean and --std go together"),
        (["gradients", "resnet8", "--mean", "half", "--std", "1"], "--mean takes numbers"),
        (["gradients", "resnet8", "--plot", "x.gif"], "--plot writes .png"),
        (["gradients", "resnet8", "--plot", "nowhere/x.png"], "there is no folder 'nowhere'"),
        (["gradients", "resnet8", "--weights", "none.pt"], "none.pt"),
        (["trajectory", "resnet8"], "give two files at least"),
        (["barrier", "resnet8"], "give the other's weights with --other FILE"),
        (["gradients"], "name one, as in 'skipway probe gradients resnet20'"),
        (["identity", "resnet8"], "leave SPEC and --weights out"),
        (["identity", "--option", "width=4"], "leave --option out"),
        (["identity", "--skip", "rezero"], "leave --skip out"),
        (["gradients", "gpt-mini"], "gpt-mini is for a text (language), and the data are images in classes"),
        (["gradients", "resnet8", "--published"], "published weights are those of torchvision"),
        (["gradients", "resnet8", "--option", "widht=4"], "no option of resnet8 'widht'; did you mean 'width'?"),
    ],
)
def test_slips_get_a_sentence(words: list[str], sentence: str):
    with pytest.raises(SkipwayError, match=re.escape(sentence)):
        CliRunner().invoke(app, ["probe", *words], catch_exceptions=False)


def test_a_report_of_two_networks(tmp_path: Path):
    words = ["report", "resnet8", "resnet8", "--skip", "none", "--skip", "residual", *SMALL, "--out", str(tmp_path)]
    words += ["--probes", "gradients,lesions,landscape", "--set", "landscape.steps=3"]
    run(*words)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What do the skips of resnet8 (none) and resnet8 (residual) do?" in page
    assert page.count("class='plotly'") == 1 + 2 + 2
    assert "deleting one branch takes the error from" in page
    numbers = sorted((tmp_path / "numbers").iterdir())
    assert len(numbers) == 6
    assert all(f"numbers/{path.name}" in page for path in numbers)
    assert sum(isinstance(load(path), Lesions) for path in numbers) == 2


def test_a_report_measures_nothing_twice_and_what_is_damaged_again(tmp_path: Path):
    words = ["report", "resnet8", *SMALL, "--probes", "gradients,responses", "--out", str(tmp_path)]
    run(*words)
    first, second = sorted((tmp_path / "numbers").iterdir())
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    kept = second.read_bytes()
    run(*words)
    assert load(first).caption
    assert second.read_bytes() == kept
    assert len(list((tmp_path / "numbers").iterdir())) == 2


def test_a_report_says_which_probe_a_setting_lacks(tmp_path: Path):
    with pytest.raises(SkipwayError, match="does not say of which probe"):
        CliRunner().invoke(app, ["report", "resnet8", "--set", "steps=3"], catch_exceptions=False)
    with pytest.raises(SkipwayError, match="once for each"):
        CliRunner().invoke(
            app, ["report", "resnet8", "resnet8", "--weights", "a.pt", "--out", str(tmp_path)], catch_exceptions=False
        )


def test_two_files_of_weights_are_compared(tmp_path: Path, weights: Path):
    out = tmp_path / "numbers.npz"
    words = ["--weights", str(weights), "--other", str(weights), *SMALL, "--set", "steps=3", "--set", "starts=1"]
    run("probe", "barrier", "resnet8", *words, "--out", str(out))
    found = load(out)
    assert isinstance(found, Barrier)


def test_a_probe_that_builds_its_own_networks(tmp_path: Path):
    out = tmp_path / "numbers.npz"
    settings = ["--set", "depths=(1,)", "--set", "seeds=(0,)", "--set", "steps=5"]
    run("probe", "identity", *SMALL, *settings, "--out", str(out))
    assert isinstance(load(out), Identity)
