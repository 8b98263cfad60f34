"""The Vision Transformer has torchvision's names and sizes, computes what is written out here, and loads timm's too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import skipway as sw
from skipway import connect
from skipway.models import ViT
from skipway.models.vit_sizes import small_vit

COUNTS = {
    "vit_b_16": 86_567_656,
    "vit_b_32": 88_224_232,
    "vit_l_16": 304_326_632,
    "vit_l_32": 306_535_400,
    "vit_h_14": 632_045_800,
}


def small(skip: Any = "residual", **options: Any) -> ViT:
    return small_vit(2, 16, 2, skip, **{"image_size": 12, "num_classes": 5, **options})


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def published_names(layers: int) -> list[str]:
    """The entries of torchvision's state_dict, in order, from their published pattern."""
    names = ["class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"]
    parts = ("ln_1", "self_attention.in_proj", "self_attention.out_proj", "ln_2", "mlp.0", "mlp.3")
    for layer in range(layers):
        for part in parts:
            joint = "_" if part.endswith("in_proj") else "."
            names += [f"encoder.layers.encoder_layer_{layer}.{part}{joint}{entry}" for entry in ("weight", "bias")]
    return [*names, "encoder.ln.weight", "encoder.ln.bias", "heads.head.weight", "heads.head.bias"]


def written(weights: Mapping[str, Tensor], x: Tensor, heads: int, patch: int) -> Tensor:
    """A Vision Transformer as its paper writes it, patch by patch and head by head."""
    n, _, side, _ = x.shape
    width = weights["class_token"].shape[2]
    cut = x.unfold(2, patch, patch).unfold(3, patch, patch)  # n c i j p p
    cut = cut.permute(0, 2, 3, 1, 4, 5).reshape(n, (side // patch) ** 2, -1)
    tokens = cut @ weights["conv_proj.weight"].flatten(1).T + weights["conv_proj.bias"]
    x = torch.cat([weights["class_token"].expand(n, 1, width), tokens], 1) + weights["encoder.pos_embedding"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    for layer in range(sum("ln_1.weight" in name for name in weights)):
        here = f"encoder.layers.encoder_layer_{layer}"
        y = norm(x, f"{here}.ln_1")
        y = y @ weights[f"{here}.self_attention.in_proj_weight"].T + weights[f"{here}.self_attention.in_proj_bias"]
        queries, keys, values = (part.view(n, -1, heads, width // heads).transpose(1, 2) for part in y.chunk(3, -1))
        chances = (queries @ keys.transpose(2, 3) / math.sqrt(width // heads)).softmax(-1)
        y = (chances @ values).transpose(1, 2).reshape(n, -1, width)
        out = f"{here}.self_attention.out_proj"
        x = x + y @ weights[f"{out}.weight"].T + weights[f"{out}.bias"]
        y = norm(x, f"{here}.ln_2") @ weights[f"{here}.mlp.0.weight"].T + weights[f"{here}.mlp.0.bias"]
        y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
        x = x + y @ weights[f"{here}.mlp.3.weight"].T + weights[f"{here}.mlp.3.bias"]
    return norm(x, "encoder.ln")[:, 0] @ weights["heads.head.weight"].T + weights["heads.head.bias"]


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_counts_and_names(name: str) -> None:
    with torch.device("meta"):
        model: Any = sw.models.create(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]
    names = published_names(len(model.encoder.layers))
    assert sorted(model.state_dict()) == sorted(names)
    assert model.encoder.ln.eps == model.encoder.layers.encoder_layer_0.ln_1.eps == 1e-6


def test_it_computes_what_the_paper_writes_to_the_gradient() -> None:
    model = small().double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    weights = dict(model.named_parameters())
    x = images().double().requires_grad_()
    ours, theirs = model(x), written(weights, x, heads=2, patch=4)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    back = torch.randn_like(ours)
    found, expected = (torch.autograd.grad(y, [x, *weights.values()], back) for y in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_torchvision_s_first_names_load(tmp_path: Path) -> None:
    model, other = small(), small()
    state = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): value
        for name, value in model.state_dict().items()
    }
    torch.save(state, tmp_path / "vit.pth")
    sw.models.load_weights(other, tmp_path / "vit.pth")
    assert other(images()).equal(model(images()))


@pytest.mark.parametrize("scaled", [False, True])
def test_timm_s_names_load(scaled: bool, tmp_path: Path) -> None:
    """The entries of timm's vit_*_patch16, and of those with LayerScale, as timm publishes them."""
    model, other = (small("layerscale" if scaled else "residual") for _ in range(2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    own = model.state_dict()
    state = {
        "cls_token": own["class_token"],
        "pos_embed": own["encoder.pos_embedding"],
        "patch_embed.proj.weight": own["conv_proj.weight"],
        "patch_embed.proj.bias": own["conv_proj.bias"],
    }
    pairs = [("norm", "encoder.ln"), ("head", "heads.head")]
    for k in range(2):
        here = f"encoder.layers.encoder_layer_{k}"
        state[f"blocks.{k}.attn.qkv.weight"] = own[f"{here}.self_attention.in_proj_weight"]
        state[f"blocks.{k}.attn.qkv.bias"] = own[f"{here}.self_attention.in_proj_bias"]
        pairs += [
            (f"blocks.{k}.norm1", f"{here}.ln_1"),
            (f"blocks.{k}.norm2", f"{here}.ln_2"),
            (f"blocks.{k}.attn.proj", f"{here}.self_attention.out_proj"),
            (f"blocks.{k}.mlp.fc1", f"{here}.mlp.0"),
            (f"blocks.{k}.mlp.fc2", f"{here}.mlp.3"),
        ]
        if scaled:
            for j in (1, 2):
                state[f"blocks.{k}.ls{j}.gamma"] = own[f"{here}.skip{j}.scale.scale"]
    for theirs, mine in pairs:
        for entry in ("weight", "bias"):
            state[f"{theirs}.{entry}"] = own[f"{mine}.{entry}"]
    torch.save(state, tmp_path / "timm.pth")
    sw.models.load_weights(other, tmp_path / "timm.pth")
    assert other(images()).equal(model(images()))


@pytest.mark.parametrize("name", connect.names())
def test_every_connection_trains_or_is_refused(name: str) -> None:
    try:
        model = small(name)
    except sw.SkipwayError as refusal:
        if "keep their width" not in str(refusal) and "which tokens (dims=0) do not have" not in str(refusal):
            raise
        return
    x = images().requires_grad_()
    model(x).square().sum().backward()
    assert x.grad is not None
    # The token that is read off has seen nothing of the image while all branches are scaled by 0.
    assert x.grad.any() or name in ("rezero", "skipinit")
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_trace_sees_two_skips_a_layer() -> None:
    model = small().eval()
    graph = sw.trace(model, images())
    # The positions are a parameter added to the stream, which is no skip.
    assert [(skip.kind, skip.shortcut) for skip in graph.skips] == [("add", "identity")] * 4
    assert max(graph.paths()) == model.depth == 10
    assert not sw.trace(small("none").eval(), images()).skips


def test_patches_may_be_of_any_channels_and_size() -> None:
    model = small(in_channels=1, patch=6, image_size=18)
    assert model(torch.zeros(2, 1, 18, 18)).shape == (2, 5)
    assert model.encoder.pos_embedding.shape[1] == 10


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: small(patch=5), "patches of 5 pixels do not divide images of 12 x 12"),
        (
            lambda: small()(torch.zeros(1, 3, 13, 12)),
            r"takes images of shape \[n, 3, 12, 12\], not \[1, 3, 13, 12\]: re",
        ),
        (lambda: small()(torch.zeros(1, 1, 12, 12)), "or build it with in_channels="),
        (lambda: small(num_classes=0), "must be at least 1, not 0, 3, 2"),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_mistakes_get_one_sentence(act: Any, message: str) -> None:
    with pytest.raises(sw.SkipwayError, match=message):
        act()


def test_it_learns() -> None:
    """Which half of an image is bright: attention must find it."""
    model = small(num_classes=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loss = torch.tensor(torch.inf)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        labels = torch.randint(2, (32,), generator=generator)
        x = torch.randn(32, 3, 12, 12, generator=generator)
        x[:, :, :6] += (2.0 * labels - 1)[:, None, None, None]
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
