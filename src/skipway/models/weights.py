"""Trained weights: read from a file, a URL or the Hugging Face Hub, renamed where a layout is known, and loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skipway.connect.shortcuts import ZeroPadding
from skipway.errors import SkipwayError
from skipway.models.layouts import LAYOUTS, Layout, State

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")


def load_weights(model: nn.Module, source: str | Path) -> None:
    """Load trained weights into a model, strictly: every name and every shape must agree.

    `source` is a file (.pt, .pth, .th, .bin, .safetensors), a URL, or a Hub name (`owner/name`, or
    `hf:owner/name/file`). `module.` prefixes are stripped and known layouts renamed. Raises SkipwayError when the file
    cannot be read or does not fit, with the first names that differ and what the file seems to hold; the model is then
    as it was.

    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "linear.pt"); torch.save(nn.Linear(2, 3).state_dict(), path)
    >>> load_weights(nn.Linear(2, 3), path)
    """
    state = _without_prefixes(read_state(source), model)
    # A name that the model has itself is no mark of another's layout.
    own = model.state_dict().keys()
    layout = next((layout for layout in LAYOUTS if layout.mark in state and layout.mark not in own), None)
    if layout is not None:
        state = layout.translate(state, own)
        _check_padding(model, layout, source)
    _check_fit(model, state, source)
    # A copy of the dictionary without metadata makes BatchNorm supply the counters that old files lack.
    model.load_state_dict(dict(state), strict=True)


def read_state(source: str | Path) -> State:
    """The tensors by name that a file, a URL or a Hub repository holds, out of their wrappers."""
    path = _locate(source)
    held = _read(path)
    for wrapper in _WRAPPERS:
        inner = held.get(wrapper)
        if isinstance(inner, Mapping):
            held = inner
            break
    state = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    if not state:
        kinds = ", ".join(f"{name}: {type(value).__name__}" for name, value in list(held.items())[:3])
        raise SkipwayError(f"{path} holds no weights by name (it holds {kinds or 'nothing'})")
    return state


def _without_prefixes(state: State, model: nn.Module) -> State:
    own = model.state_dict().keys()
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state) and own.isdisjoint(state):
            state = {name[len(prefix) :]: value for name, value in state.items()}
    return state


def _locate(source: str | Path) -> Path:
    text = str(source)
    if text.startswith(("http://", "https://")):
        return _download(text)
    path = Path(text).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise SkipwayError(f"{path} is a folder: give the weight file in it")
    known_file = path.suffix in (*_TORCH_SUFFIXES, ".safetensors")
    if text.startswith("hf:") or (re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not known_file):
        return _from_hub(text.removeprefix("hf:"))
    raise SkipwayError(f"no weight file {path}: give a file, a URL, or a Hugging Face Hub name such as hf:owner/name")


def _download(url: str) -> Path:
    from hashlib import sha256
    from http.client import HTTPException
    from urllib.error import HTTPError

    from torch.hub import download_url_to_file, get_dir

    name = url.split("?")[0].rsplit("/", 1)[-1]
    if not re.search(r"-[0-9a-f]{8,}\.\w+$", name):
        # A name without the hash of its content, such as model.pt, may stand for many files.
        name = f"{sha256(url.encode()).hexdigest()[:12]}-{name}"
    target = Path(get_dir()) / "checkpoints" / name
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(url, str(target), progress=True)
        except (OSError, ValueError, HTTPException) as error:
            if isinstance(error, HTTPError):
                error.close()
            raise SkipwayError(f"could not download {url}: {error}") from None
    return target


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    owner, repository, *file = name.split("/", 2) if name.count("/") >= 1 else ("", name)
    if not owner:
        raise SkipwayError(f"a Hub name is owner/name or owner/name/file, not {name!r}")
    problem: Exception | None = None
    for candidate in file or _HUB_FILES:
        try:
            return Path(hf_hub_download(f"{owner}/{repository}", candidate))
        except (OSError, ValueError) as error:
            problem = error
    reason = (str(problem).splitlines() or ["no such file"])[0]
    raise SkipwayError(f"could not get {' or '.join(file or _HUB_FILES)} from the Hub's {owner}/{repository}: {reason}")


def _read(path: Path) -> Mapping[str, Any]:
    import pickle

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Every refusal speaks of weights_only; only what names a class or a function is code.
        if re.search("unsupported (global|class)", str(error).lower()):
            raise SkipwayError(
                f"{path} holds program code beside weights, which is not run: open it where you trust it and save its "
                "state_dict()"
            ) from None
        raise SkipwayError(f"{path} cannot be read as weights: it is damaged, or no PyTorch file") from None
    except Exception as error:
        # Every library below names a broken file its own way; the user needs one sentence.
        raise SkipwayError(
            f"{path} cannot be read as weights ({type(error).__name__}): it is damaged, unreadable, or neither a "
            "PyTorch nor a safetensors file"
        ) from None
    if not isinstance(held, Mapping):
        raise SkipwayError(f"{path} holds {type(held).__name__}, not weights by name: save the model's state_dict()")
    return held


def _check_padding(model: nn.Module, layout: Layout, source: str | Path) -> None:
    if layout.padding is None:
        return
    for module in model.modules():
        if isinstance(module, ZeroPadding) and module.before + module.after > 0:
            split = module.before > 0
            if split != (layout.padding == "split"):
                raise SkipwayError(
                    f"{source} has the layout of {layout.name}, trained with the new channels of its shortcuts "
                    f"{'on both sides' if layout.padding == 'split' else 'appended'}: build the model with "
                    f"skip='{'zero-pad' if layout.padding == 'append' else 'zero-pad-split'}'"
                )


def _check_fit(model: nn.Module, state: State, source: str | Path) -> None:
    expected = model.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    problems = []
    if missing:
        problems.append(f"{len(missing)} names are missing, the first {_first(missing)}")
    if unexpected:
        problems.append(f"{len(unexpected)} are unexpected, the first {_first(unexpected)}")
    reshaped = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if reshaped:
        name = reshaped[0]
        problems.append(
            f"{len(reshaped)} have another shape, the first {name}: {list(state[name].shape)} in the file, "
            f"{list(expected[name].shape)} in the model"
        )
    if problems:
        raise SkipwayError(f"{source} does not fit this model: {'; '.join(problems)}. It seems to hold {guess(state)}")


def _first(names: list[str]) -> str:
    return ", ".join(names[:3])


def guess(state: State) -> str:
    """What network the names and shapes of its weights speak of, in a few words."""
    stages: dict[int, set[int]] = {}
    for name in state:
        if match := re.match(r"layer(\d+)\.(\d+)\.", name):
            stages.setdefault(int(match[1]), set()).add(int(match[2]))
    head = next((value for name, value in state.items() if re.search(r"(fc|classifier|head)\.weight$", name)), None)
    classes = f" for {head.shape[0]} classes" if head is not None and head.ndim == 2 else ""
    if stages and "conv1.weight" in state:
        blocks = [len(stages[stage]) for stage in sorted(stages)]
        convolutions = 3 if "layer1.0.conv3.weight" in state else 2
        plan = "-".join(map(str, blocks))
        kind = "an SE-ResNet" if "layer1.0.se.fc1.weight" in state else "a ResNet"
        return f"{kind}-{sum(blocks) * convolutions + 2} (blocks {plan}){classes}"
    last = state.get("classifier.6.weight", state.get("classifier.weight"))
    if "features.0.weight" in state and last is not None:
        layers = sum(value.ndim == 4 for name, value in state.items() if re.fullmatch(r"features\.\d+\.weight", name))
        norms = " with batch norm" if "features.1.running_mean" in state else ""
        return f"a VGG-{layers + 3}{norms} for {len(last)} classes"
    if "outc.conv.weight" in state and any(name.startswith("down1.maxpool_conv.") for name in state):
        levels = sum(bool(re.fullmatch(r"down\d+\.maxpool_conv\.1\.double_conv\.0\.weight", name)) for name in state)
        way = "transposed convolutions" if "up1.up.weight" in state else "interpolation"
        return f"a U-Net of {levels} levels with {way} for {len(state['outc.conv.weight'])} classes"
    texts = (
        ("embedding_norm.", "a BERT"),
        ("stack.layers.0.", "a GPT"),
        ("decoder.layers.0.multihead_attn.", "a Transformer of encoder and decoder"),
    )
    for mark, meaning in texts:
        if any(name.startswith(mark) for name in state):
            return meaning
    marks = (
        ("features.denseblock", "a DenseNet"),
        ("blocks.0.attn", "a Vision Transformer in timm's layout"),
        ("encoder.layers.encoder_layer_0", "a Vision Transformer in torchvision's layout"),
        ("features.0.", "a sequential network"),
    )
    for mark, meaning in marks:
        if any(name.startswith(mark) for name in state):
            return meaning + classes
    return f"{len(state)} tensors, the first {_first(list(state))}"
