"""Weights load from every kind of file and place, under every published way to name them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import skipway as sw
from skipway.models import load_weights

State = dict[str, Tensor]


def net() -> nn.Module:
    return sw.models.create("resnet8", width=4)


@pytest.fixture
def trained() -> nn.Module:
    torch.manual_seed(5)
    model = net()
    for _ in range(3):
        model(torch.randn(8, 3, 8, 8))
    return model.eval()


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: value for name, value in state.items()}


def wrapped(key: str, **beside: Any) -> Callable[[State], dict[str, Any]]:
    return lambda state: {key: state, **beside}


WRITTEN: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "data parallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "compiled data parallel": lambda state: prefixed("module.")(prefixed("_orig_mod.")(state)),
    "lightning": lambda state: {
        "state_dict": prefixed("model.")(state),
        "epoch": 3,
        "pytorch-lightning_version": "2.6",
    },
    "with optimizer": wrapped("model_state_dict", optimizer={"lr": 0.1}, epoch=3),
    "model": wrapped("model"),
    "net": wrapped("net", acc=91.2),
    "akamaster's saving": lambda state: {"state_dict": prefixed("module.")(state), "best_prec1": 91.73},
    "with something else beside": lambda state: {**state, "mask_values": [0, 255]},
    "without counters, as old files are": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
}


@pytest.mark.parametrize(
    ("way", "suffix"),
    [*((way, ".pt") for way in WRITTEN), *(("bare", suffix) for suffix in (".pth", ".th", ".bin", ".ckpt", ""))],
)
def test_torch_files(trained: nn.Module, way: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(WRITTEN[way](trained.state_dict()), path)
    model = net()
    load_weights(model, path)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.eval()(x), trained(x))
    assert same(model, trained) or "counters" in way


@pytest.mark.parametrize("way", ["bare", "data parallel", "compiled"])
def test_safetensors(trained: nn.Module, way: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({k: v.clone() for k, v in WRITTEN[way](trained.state_dict()).items()}, path)
    model = net()
    load_weights(model, str(path))
    assert same(model, trained)


def test_the_old_format_of_torch(trained: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=False)
    model = net()
    load_weights(model, path)
    assert same(model, trained)


def test_create_takes_them_at_once(trained: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(trained.state_dict(), path)
    assert same(sw.models.create("resnet8", width=4, weights=path), trained)


def test_weights_of_another_precision_are_converted(trained: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in trained.state_dict().items()}, path)
    model = net()
    load_weights(model, path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model.state_dict(), trained.state_dict(), rtol=1e-3, atol=1e-3)


class Headed(nn.Module):
    """A model of one's own, with names that are marks of published layouts and of wrappers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)


class Wrapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(2, 3))


@pytest.mark.parametrize("make", [Headed, Wrapping, lambda: nn.DataParallel(nn.Linear(2, 3)), lambda: nn.Linear(2, 3)])
def test_names_that_a_model_has_itself_are_left_alone(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    given, model = make(), make()
    torch.save(given.state_dict(), tmp_path / "weights.pt")
    load_weights(model, tmp_path / "weights.pt")
    assert same(model, given)


def test_akamasters_names(trained: nn.Module, tmp_path: Path) -> None:
    """linear for fc, shortcut for downsample; option A on both sides, so that the model must pad so too."""
    model = sw.models.create("resnet8", "projection", width=4)
    state = {k.replace("fc.", "linear.").replace("downsample", "shortcut"): v for k, v in model.state_dict().items()}
    torch.save({"state_dict": prefixed("module.")(state)}, tmp_path / "weights.th")
    other = sw.models.create("resnet8", "projection", width=4)
    load_weights(other, tmp_path / "weights.th")
    assert same(other, model)


@pytest.mark.parametrize(("name", "skip"), [("resnet20", "residual"), ("resnet20", "none")])
def test_a_martyns_names(name: str, skip: str, tmp_path: Path) -> None:
    model = sw.models.create(name, skip, width=4)
    renamed = {}
    for key, value in model.state_dict().items():
        stage, _, rest = key.partition(".")
        first, _, tail = rest.partition(".")
        if stage in ("layer2", "layer3"):
            part = "a" if first == "0" else "b"
            key = f"stack{stage[-1]}{part}." + (tail if part == "a" else f"{int(first) - 1}.{tail}")
        key = key.replace("layer1", "stack1")
        for ours, theirs in (("conv1", "convIn"), ("bn1", "bnIn"), ("fc", "fcOut")):
            key = theirs + key.removeprefix(ours) if key.startswith(f"{ours}.") else key
        renamed[key] = value
    torch.save(renamed, tmp_path / "weights.pt")
    other = sw.models.create(name, skip, width=4)
    load_weights(other, tmp_path / "weights.pt")
    assert same(other, model)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path, list[str]]]:
    """A web server of this machine: its address, its folder, and what was asked of it."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path / "hub"))
    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=web.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{web.server_port}", folder, asked
    web.shutdown()
    web.server_close()
    thread.join()


def test_a_url_is_downloaded_once(trained: nn.Module, server: tuple[str, Path, list[str]]) -> None:
    address, folder, asked = server
    torch.save(trained.state_dict(), folder / "net.pth")
    for _ in range(2):
        model = net()
        load_weights(model, f"{address}/net.pth?download=true")
        assert same(model, trained)
    assert len(asked) == 1


def test_two_urls_of_one_file_name_are_two_files(server: tuple[str, Path, list[str]]) -> None:
    address, folder, _ = server
    for k in range(2):
        (folder / str(k)).mkdir()
        torch.save({"weight": torch.full((3, 2), float(k)), "bias": torch.zeros(3)}, folder / str(k) / "model.pt")
    for k in range(2):
        model = nn.Linear(2, 3)
        load_weights(model, f"{address}/{k}/model.pt")
        assert (model.weight == k).all()


def test_a_name_that_tells_its_content_is_shared_with_torchs_own_store(
    server: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    address, _, asked = server
    store = tmp_path / "hub" / "checkpoints"
    store.mkdir(parents=True)
    torch.save(nn.Linear(2, 3).state_dict(), store / "linear-0123abcd.pth")
    load_weights(nn.Linear(2, 3), f"{address}/linear-0123abcd.pth")
    assert not asked


def test_what_the_server_has_not_is_refused(server: tuple[str, Path, list[str]]) -> None:
    address, _, _ = server
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(sw.SkipwayError, match=r"could not download http://127\.0\.0\.1.*404") as caught:
        load_weights(model, f"{address}/missing.pth")
    assert caught.value.__cause__ is None
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_page_in_the_place_of_weights_is_refused(server: tuple[str, Path, list[str]]) -> None:
    address, folder, _ = server
    (folder / "net.pt").write_text("<html><body>Sign in to download</body></html>")
    with pytest.raises(sw.SkipwayError, match="cannot be read as weights: it is damaged, or no PyTorch file"):
        load_weights(net(), f"{address}/net.pt")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/net.pt", "http://127.0.0.1:port/net.pt"])
def test_a_server_that_is_not_there(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
    with pytest.raises(sw.SkipwayError, match="could not download"):
        load_weights(net(), url)


@pytest.mark.parametrize("name", ["owner/name", "hf:owner/name", "hf:owner/name/folder/weights.pt"])
def test_the_hub_without_a_network_is_refused(name: str) -> None:
    with pytest.raises(sw.SkipwayError, match="could not get .* from the Hub's owner/name: ") as caught:
        load_weights(net(), name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("owner/name", {"model.safetensors"}),
        ("hf:owner/name", {"pytorch_model.bin"}),
        ("hf:owner/name/best/net.pt", {"best/net.pt"}),
    ],
)
def test_the_hub_is_asked_for_the_usual_files(
    trained: nn.Module, name: str, files: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, file: str) -> str:
        assert repository == "owner/name"
        if file not in files:
            raise FileNotFoundError(file)
        path = tmp_path / file.replace("/", "-")
        save = save_file if file.endswith("safetensors") else torch.save
        save({k: v.clone() for k, v in trained.state_dict().items()}, path)
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    model = net()
    load_weights(model, name)
    assert same(model, trained)
