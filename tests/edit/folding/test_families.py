"""Every family folds to the same function: to 1e-5 in float64, and with fused calls in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.edit.folding.folding_nets import IMAGES, settle, transformer
from torch import Tensor, nn

import skipway as sw
from skipway.edit.folding import Folded, fold
from skipway.edit.folding.structure import template

SKIPS = [name for name in sw.connect.names() if name not in ("concat", "attention-gate", "residual-path", "dense")]
TYPES = [torch.float64, torch.float32]


def tensors(result: Any) -> list[Tensor]:
    found: list[Tensor] = []
    template(result, found)
    return [tensor for tensor in found if tensor.is_floating_point()]


def assert_folds(model: nn.Module, *inputs: Any, **kwargs: Any) -> Folded:
    """Same container, shapes, types, values on inputs that the fold has not seen; the model is left untouched."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold(model, *inputs, **kwargs)
    fresh = [tensor + 0.3 * torch.randn_like(tensor) if tensor.is_floating_point() else tensor for tensor in inputs]
    with torch.no_grad():
        wanted, found = model(*fresh, **kwargs), folded(*fresh, **kwargs)
    assert type(found) is type(wanted)
    for one, other in zip(tensors(found), tensors(wanted), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        limit = 1e-10 if other.dtype == torch.float64 else 1e-4
        assert (one - other).norm() <= limit * other.norm()
    assert not [entry for entry in folded.report.left if entry.detail == "undone"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    return folded


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("skip", SKIPS)
def test_residual_nets(skip: str, dtype: torch.dtype):
    torch.manual_seed(0)
    plan = sw.models.ResNetPlan((2, 1), 8, stem="cifar", shortcut="zero-pad")
    bottleneck = sw.models.ResNetPlan((1, 2), 8, block="bottleneck", placement="pre-activation")
    for made in (plan, bottleneck):
        side = 8 if made is plan else 32
        assert_folds(settle(sw.models.ResNet(made, skip, 4)).to(dtype), torch.randn(2, 3, side, side, dtype=dtype))


@pytest.mark.parametrize(("name", "side"), [("resnet20", 16), ("resnet56", 16), ("resnet18", 64), ("resnet50", 64)])
def test_named_nets(name: str, side: int):
    torch.manual_seed(0)
    model = settle(sw.models.create(name, num_classes=10)).double()
    folded = assert_folds(model, torch.randn(2, 3, side, side, dtype=torch.float64))
    assert "affine" not in folded.source
    assert not folded.report.left


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", IMAGES)
def test_image_nets(name: str, dtype: torch.dtype):
    torch.manual_seed(0)
    model = settle(IMAGES[name]()).to(dtype)
    for n in (1, 3):
        assert_folds(model, torch.randn(n, 3, 16, 16, dtype=dtype))
    assert_folds(model, torch.randn(2, 3, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_transformer(dtype: torch.dtype):
    torch.manual_seed(0)
    assert_folds(settle(transformer()).to(dtype), torch.randn(2, 5, 8, dtype=dtype))


class Volume(nn.Module):
    def __init__(self, dims: int):
        super().__init__()
        conv, up, norm = (getattr(nn, f"{name}{dims}d") for name in ("Conv", "ConvTranspose", "BatchNorm"))
        self.body = nn.Sequential(
            conv(3, 4, 3, padding=1, groups=1), norm(4), nn.ReLU(), norm(4), conv(4, 8, 1), norm(8), nn.SiLU(),
            up(8, 4, 2, 2, groups=2), norm(4), nn.Hardtanh(-1, 2), conv(4, 4, 3, padding="same", groups=4), norm(4),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * 0.5 - 1


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_any_number_of_spatial_axes_and_grouped_and_transposed_convolutions(dims: int):
    torch.manual_seed(0)
    for dtype in TYPES:
        folded = assert_folds(settle(Volume(dims)).to(dtype), torch.randn(2, 3, *(6,) * dims, dtype=dtype))
        assert not folded.report.left


def _hugging_face() -> dict[str, Any]:
    import transformers as hf

    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    ids, images = torch.randint(50, (2, 7)), torch.randn(2, 3, 32, 32)
    return {
        "bert": (hf.BertModel(hf.BertConfig(vocab_size=50, **small)), ids),
        "gpt2": (hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)), ids),
        "llama": (hf.LlamaModel(hf.LlamaConfig(vocab_size=50, **small)), ids),
        "vit": (hf.ViTModel(hf.ViTConfig(image_size=32, patch_size=8, **small)), images),
        "convnext": (hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 8, 12, 12], depths=[1, 1, 2, 1])), images),
        "resnet": (
            hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 12, 12], depths=[1, 1, 1, 1])), images
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit", "convnext", "resnet"])
def test_hugging_face_models(name: str):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, inputs = _hugging_face()[name]
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.2, 1.2)
    settle(model)
    assert_folds(model, inputs)
    assert_folds(model.double(), inputs.double() if inputs.is_floating_point() else inputs)
