"""A weight file that is broken, foreign or does not fit: one clear sentence, and the model stays as it was."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import skipway as sw
from skipway.models import load_weights

State = dict[str, Tensor]

pytestmark = pytest.mark.usefixtures("no_shape_checks")


class Payload:
    """A pickle that would run a command when loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def net(skip: str = "residual", **options: Any) -> nn.Module:
    return sw.models.create("resnet8", skip, width=4, **options)


def state() -> State:
    return net().state_dict()


def without(*names: str) -> State:
    return {name: value for name, value in state().items() if not name.startswith(names)}


def saved(content: Callable[[], Any], **options: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(content(), folder / "weights.pt", **options)
        return folder / "weights.pt"

    return write


def raw(content: bytes, name: str = "weights.pt") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def truncated(part: float) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = saved(state)(folder)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * part)])
        return path

    return write


def code(folder: Path) -> Path:
    path = folder / "weights.pt"
    path.write_bytes(pickle.dumps(Payload(f"touch {folder / 'ran'}"), protocol=2))
    return path


def code_beside_weights(folder: Path) -> Path:
    path = folder / "weights.pt"
    torch.save({"state_dict": state(), "hook": Payload(f"touch {folder / 'ran'}")}, path)
    return path


def renamed(state: State, old: str, new: str) -> State:
    return {name.replace(old, new): value for name, value in state.items()}


UNREADABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (
        lambda folder: folder / "none.pt",
        "no weight file .*none.pt: give a file, a URL, or a Hugging Face Hub name",
    ),
    "missing beside others": (lambda folder: "weights/none.pt", "no weight file weights/none.pt"),
    "folder": (lambda folder: folder, "is a folder: give the weight file in it"),
    "folder named like a Hub repository": (
        lambda folder: "best/run",
        "best/run is a folder: give the weight file in it",
    ),
    "empty": (raw(b""), "cannot be read as weights"),
    "text": (raw(b"the quick brown fox\n"), "cannot be read as weights"),
    "web page": (raw(b"<!DOCTYPE html><html></html>"), "cannot be read as weights: it is damaged, or no PyTorch file"),
    "json": (raw(b'{"accuracy": 91}\n'), "cannot be read as weights: it is damaged, or no PyTorch file"),
    "pointer of git": (raw(b"version https://git-lfs.github.com/spec/v1\n"), "cannot be read as weights"),
    "zeros": (raw(bytes(4096)), "cannot be read as weights"),
    "half a file": (truncated(0.5), "cannot be read as weights"),
    "all but the end": (truncated(0.99), "cannot be read as weights"),
    "broken safetensors": (
        raw(b"\x10\x00\x00\x00\x00\x00\x00\x00{", "weights.safetensors"),
        "cannot be read as weights",
    ),
    "text as safetensors": (raw(b"hello", "weights.safetensors"), "neither a PyTorch nor a safetensors file"),
    "code": (code, "holds program code beside weights, which is not run: .* save its state_dict()"),
    "code beside weights": (code_beside_weights, "holds program code beside weights, which is not run"),
    "whole model": (saved(net), "holds program code beside weights, which is not run"),
    "list of tensors": (
        saved(lambda: list(state().values())),
        "holds list, not weights by name: save the model's state_dict",
    ),
    "one tensor": (saved(lambda: torch.ones(3)), "holds Tensor, not weights by name"),
    "no tensors": (
        saved(lambda: {"epoch": 3, "acc": 91.0}),
        r"holds no weights by name \(it holds epoch: int, acc: float\)",
    ),
    "nothing": (saved(dict), r"holds no weights by name \(it holds nothing\)"),
    "unknown wrapper": (saved(lambda: {"weights_of_epoch_3": state()}), r"it holds weights_of_epoch_3: OrderedDict"),
}

UNFIT: dict[str, tuple[Callable[[], State], str]] = {
    "names missing": (
        lambda: without("fc."),
        "2 names are missing, the first fc.weight, fc.bias. It seems to hold a ResNet-8 ",
    ),
    "names unexpected": (
        lambda: {**state(), "extra.weight": torch.ones(2)},
        "1 are unexpected, the first extra.weight. It seems to hold a ResNet-8 (blocks 1-1-1) for 10 classes",
    ),
    "another depth": (
        lambda: sw.models.create("resnet14", width=4).state_dict(),
        "36 are unexpected, the first layer1.1.conv1.weight, layer1.1.bn1.weight, layer1.1.bn1.bias. "
        "It seems to hold a ResNet-14 (blocks 2-2-2)",
    ),
    "another head": (
        lambda: sw.models.create("resnet8", width=4, num_classes=100).state_dict(),
        "2 have another shape, the first fc.weight: [100, 16] in the file, [10, 16] in the model. "
        "It seems to hold a ResNet-8 (blocks 1-1-1) for 100 classes",
    ),
    "another width": (
        lambda: sw.models.create("resnet8", width=8).state_dict(),
        "the first conv1.weight: [8, 3, 3, 3] in the file, [4, 3, 3, 3]",
    ),
    "a DenseNet": (
        lambda: {
            "features.denseblock1.denselayer1.norm1.weight": torch.ones(2),
            "classifier.weight": torch.ones(1000, 2),
        },
        "It seems to hold a DenseNet for 1000 classes",
    ),
    "a ViT": (
        lambda: {"blocks.0.attn.qkv.weight": torch.ones(2), "head.weight": torch.ones(10, 2)},
        "a Vision Transformer in timm's layout for 10",
    ),
    "something": (lambda: {"w": torch.ones(2), "b": torch.ones(2)}, "It seems to hold 2 tensors, the first w, b"),
    "prefix of some names only": (
        lambda: {**without("fc."), "module.fc.weight": torch.ones(10, 16)},
        "unexpected, the first module.fc.weight",
    ),
}


def refused(model: nn.Module, source: Any) -> str:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(sw.SkipwayError) as caught:
        load_weights(model, source)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "best" / "run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    make, said = UNREADABLE[case]
    assert re.search(said, refused(net(), make(tmp_path)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit(case: str, tmp_path: Path) -> None:
    make, said = UNFIT[case]
    message = refused(net(), saved(make)(tmp_path))
    assert "does not fit this model: " in message
    assert said in message


@pytest.mark.parametrize(
    ("file", "skip", "said"),
    [
        (
            "linear",
            "zero-pad",
            "trained with the new channels of its shortcuts on both sides: build the model with skip='zero-pad-split'",
        ),
        (
            "convIn",
            "zero-pad-split",
            "trained with the new channels of its shortcuts appended: build the model with skip='zero-pad'",
        ),
    ],
)
def test_the_wrong_layout_of_zero_padding(file: str, skip: str, said: str, tmp_path: Path) -> None:
    layout = renamed(state(), "fc.", "linear.") if file == "linear" else {"convIn.weight": state()["conv1.weight"]}
    assert said in refused(net(skip), saved(lambda: layout)(tmp_path))


def test_create_refuses_as_well(tmp_path: Path) -> None:
    path = saved(state)(tmp_path)
    with pytest.raises(sw.SkipwayError, match="does not fit this model: 30 names are missing"):
        sw.models.create("resnet14", width=4, weights=path)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(state)(tmp_path)

    def forbidden(*args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(torch, "load", forbidden)
    assert "cannot be read as weights (PermissionError): it is damaged, unreadable" in refused(net(), path)
