"""Models for the doctor's tests: a model written in a line, and architectures of others, small and untrained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class Made(nn.Module):
    """A model from its parts, which become attributes, and its forward function."""

    def __init__(self, run: Callable[..., Any], **parts: Any):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def residual(*layers: nn.Module) -> nn.Module:
    return Made(lambda m, x: x + m.f(x), f=nn.Sequential(*layers))


def images(side: int = 32) -> Inputs:
    return (torch.randn(2, 3, side, side),), {}


def tokens(*names: str) -> Inputs:
    drawn = [torch.randint(5, 50, (2, 9)) for _ in names or ("input_ids",)]
    return ((), dict(zip(names, drawn, strict=True))) if names else (tuple(drawn), {})


_ATTENTION = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
_GPT = {"vocab_size": 50, "n_embd": 32, "n_layer": 4, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1}
PUBLISHED: dict[str, tuple[str, dict[str, Any], Callable[[], Inputs]]] = {
    "ResNet": ("ResNet", {"embedding_size": 8, "hidden_sizes": [16, 32, 48, 64]}, images),
    "ConvNeXt": ("ConvNext", {"hidden_sizes": [8, 16, 24, 32], "depths": [3, 3, 9, 3], "drop_path_rate": 0.1}, images),
    "Swin": (
        "Swin",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [2, 2, 2],
            "num_heads": [1, 2, 4],
            "window_size": 4,
        },
        images,
    ),
    "MobileNetV2": ("MobileNetV2", {"depth_multiplier": 0.35}, images),
    "ViT": ("ViT", {**_ATTENTION, "image_size": 32, "patch_size": 8}, images),
    "BERT": ("Bert", {**_ATTENTION, "vocab_size": 50}, tokens),
    "GPT-2": ("GPT2", _GPT, tokens),
    "GPT-J": ("GPTJ", {**_GPT, "rotary_dim": 4}, tokens),
    "Llama": ("Llama", {**_ATTENTION, "vocab_size": 50, "num_key_value_heads": 2}, tokens),
    "T5": (
        "T5",
        {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        lambda: tokens("input_ids", "decoder_input_ids"),
    ),
    "Conformer": (
        "Wav2Vec2Conformer",
        {
            **_ATTENTION,
            "num_hidden_layers": 2,
            "conv_dim": (16, 16),
            "conv_stride": (5, 2),
            "conv_kernel": (10, 3),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "layerdrop": 0.0,
        },
        lambda: ((torch.randn(2, 800),), {}),
    ),
}


def published(name: str) -> tuple[nn.Module, Inputs]:
    """A small untrained model of a Hugging Face class, and inputs for it."""
    import transformers

    stem, options, inputs = PUBLISHED[name]
    config = getattr(transformers, f"{stem}Config")(**options)
    return getattr(transformers, f"{stem}Model")(config), inputs()
