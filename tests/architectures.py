"""Published architectures: Hugging Face's own code, built from its configurations with small widths and random weights.

An expected count is the number of residual sums and of feature concatenations in that code, layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

transformers: Any = pytest.importorskip("transformers", reason="needs the package 'transformers'")
transformers.logging.set_verbosity_error()

TEXT: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**TEXT, "num_key_value_heads": 1}
GPT: dict[str, Any] = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}
VISION: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
TWO_TOWERS: dict[str, Any] = {
    "vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "d_model": 16,
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
}  # fmt: skip
T5: dict[str, Any] = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [2, 2, 2, 2], "num_attention_heads": [1, 2, 2, 4]}
SPEECH: dict[str, Any] = {
    **TEXT, "conv_dim": (8, 8), "conv_kernel": (4, 4), "conv_stride": (2, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
SWIN: dict[str, Any] = {
    "image_size": 64, "patch_size": 2, "embed_dim": 8, "num_heads": [1, 2, 4, 8], "window_size": 4,
    "depths": [2, 2, 6, 2],
}  # fmt: skip


def tokens(n: int = 6) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(5, 5 + n)[None]}


def image(size: int = 64) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(1, 3, size, size)}


def tokens_and_image() -> dict[str, torch.Tensor]:
    return {**tokens(), **image(32)}


def two_texts() -> dict[str, torch.Tensor]:
    return {**tokens(), "decoder_input_ids": torch.arange(5, 9)[None]}


def waveform() -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(1, 200)}


ADD = ("add", "identity")
SCALED = ("scaled add", "identity")
SEVERAL = ("multi-branch", "identity")
PROJECTED = ("add", "projection")
CONCAT = ("concat", "identity")

# Name of the model: its configuration, its inputs, and its skips by kind and shortcut.
ARCHITECTURES: dict[str, tuple[dict[str, Any], Callable[[], dict[str, torch.Tensor]], dict[tuple[str, str], int]]] = {
    # Images
    "ResNet": (
        {"embedding_size": 8, "hidden_sizes": [16, 32, 64, 128], "depths": [3, 4, 6, 3]}, image,
        {ADD: 12, PROJECTED: 4},
    ),
    "ConvNext": ({"hidden_sizes": [8, 16, 24, 32], "depths": [3, 3, 9, 3]}, image, {SCALED: 18}),
    # One more in each block: global response normalisation adds its input back.
    "ConvNextV2": ({"hidden_sizes": [8, 16, 24, 32], "depths": [3, 3, 9, 3]}, image, {ADD: 36}),
    "Swin": (SWIN, image, {ADD: 24}),
    "Swinv2": (SWIN, image, {ADD: 24}),
    "MobileNetV1": ({"depth_multiplier": 0.25}, image, {}),
    "MobileNetV2": ({"depth_multiplier": 0.25, "image_size": 64}, image, {ADD: 10}),
    "RegNet": (
        {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 2, 1], "groups_width": 4}, image,
        {ADD: 2, PROJECTED: 4},
    ),
    "Bit": (
        {"embedding_size": 8, "hidden_sizes": [32, 64, 128, 256], "depths": [3, 4, 6, 3], "num_groups": 4}, image,
        {ADD: 12, PROJECTED: 4},
    ),
    "EfficientNet": (
        {"width_coefficient": 0.25, "depth_coefficient": 1.0, "image_size": 64, "hidden_dim": 320}, image, {ADD: 9},
    ),
    # 3 inverted residuals, 2 + 4 + 3 transformer layers, and one concatenation in each of the 3 MobileViT blocks.
    "MobileViT": (
        {
            "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 16, 24, 64], "num_attention_heads": 2,
            "image_size": 64,
        },
        image, {ADD: 3 + 2 * 9, CONCAT: 3},
    ),
    "PoolFormer": (
        {
            "hidden_sizes": [8, 16], "depths": [1, 1], "num_encoder_blocks": 2, "patch_sizes": [7, 3],
            "strides": [4, 2], "padding": [2, 1],
        },
        image, {SCALED: 4},
    ),
    # Two a block, and one for the feed-forward part of each of the two subsampling layers.
    "Levit": (
        {
            "image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 2, 2], "depths": [2, 2, 2],
            "key_dim": [8, 8, 8],
        },
        image, {ADD: 14},
    ),
    "Cvt": ({"embed_dim": [8, 16, 32], "num_heads": [1, 1, 2], "depth": [1, 2, 3]}, image, {ADD: 12}),
    "Pvt": ({"image_size": 64, **STAGES}, image, {ADD: 16}),
    "Segformer": (STAGES, image, {ADD: 16}),
    "Hiera": (
        {"image_size": [64, 64], "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}, image,
        {ADD: 5, PROJECTED: 3},
    ),
    "ViT": (VISION, lambda: image(32), {ADD: 4}),
    "DeiT": (VISION, lambda: image(32), {ADD: 4}),
    "Beit": ({**VISION, "use_shared_relative_position_bias": True}, lambda: image(32), {SCALED: 4}),
    "Dinov2": ({key: VISION[key] for key in VISION if key != "intermediate_size"}, lambda: image(32), {SCALED: 4}),
    "VideoMAE": (
        {**VISION, "num_frames": 2}, lambda: {"pixel_values": torch.randn(1, 2, 3, 32, 32)}, {ADD: 4},
    ),
    "Timesformer": (
        {**VISION, "num_frames": 2}, lambda: {"pixel_values": torch.randn(1, 2, 3, 32, 32)}, {ADD: 6},
    ),
    # Text, read both ways
    "Bert": (TEXT, tokens, {ADD: 4}),
    "Albert": ({**TEXT, "embedding_size": 8}, tokens, {ADD: 4}),
    "Roberta": (TEXT, tokens, {ADD: 4}),
    "DebertaV2": (
        {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 8}, tokens,
        {ADD: 4},
    ),
    "Electra": ({**TEXT, "embedding_size": 8}, tokens, {ADD: 4}),
    "DistilBert": ({"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}, tokens, {ADD: 4}),
    "RoFormer": (TEXT, tokens, {ADD: 4}),
    "Longformer": ({**TEXT, "attention_window": 4}, lambda: tokens(8), {ADD: 4}),
    "FNet": ({"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}, tokens, {ADD: 4}),
    # A bottleneck around attention, three small feed-forward parts and a last one: 6 a layer, one of them projected.
    "MobileBert": ({**TEXT, "intra_bottleneck_size": 8, "embedding_size": 8}, tokens, {ADD: 10, PROJECTED: 2}),
    "XLNet": ({"vocab_size": 50, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}, tokens, {ADD: 4}),
    # Two a layer, and one from the full-length hidden states to the decoder.
    "Funnel": (
        {
            "vocab_size": 50, "block_sizes": [1, 1], "num_decoder_layers": 1, "d_model": 16, "n_head": 2, "d_head": 8,
            "d_inner": 32,
        },
        lambda: tokens(8), {ADD: 7},
    ),
    # Text, generated
    "GPT2": (GPT, tokens, {ADD: 4}),
    "GPTNeo": (
        {
            "vocab_size": 50, "hidden_size": 16, "num_layers": 2, "num_heads": 2,
            "attention_types": [[["global", "local"], 1]], "bos_token_id": 1, "eos_token_id": 2,
        },
        tokens, {ADD: 4},
    ),
    "GPTJ": ({**GPT, "rotary_dim": 4}, tokens, {SEVERAL: 2}),
    "CodeGen": ({**GPT, "n_head": 4, "rotary_dim": 4}, tokens, {SEVERAL: 2}),
    "GPTNeoX": (TEXT, tokens, {SEVERAL: 2}),
    "Phi": (TEXT, tokens, {SEVERAL: 2}),
    "Cohere": (GROUPED, tokens, {SEVERAL: 2}),
    "Llama": (GROUPED, tokens, {ADD: 4}),
    "Mistral": (GROUPED, tokens, {ADD: 4}),
    "Mixtral": ({**GROUPED, "num_local_experts": 4}, tokens, {ADD: 4}),
    "Qwen2": (GROUPED, tokens, {ADD: 4}),
    "Qwen3": ({**GROUPED, "head_dim": 8}, tokens, {ADD: 4}),
    "Gemma": ({**GROUPED, "head_dim": 8}, tokens, {ADD: 4}),
    "Gemma2": ({**GROUPED, "head_dim": 8}, tokens, {ADD: 4}),
    "Phi3": (TEXT, tokens, {ADD: 4}),
    "Olmo2": (TEXT, tokens, {ADD: 4}),
    "Granite": ({**TEXT, "residual_multiplier": 0.2}, tokens, {SCALED: 4}),
    "GptOss": ({**GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}, tokens, {ADD: 4}),
    "Bloom": ({"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 2}, tokens, {ADD: 4}),
    "Falcon": (
        {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "parallel_attn": True},
        tokens, {SEVERAL: 2},
    ),
    "OPT": (
        {
            "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32,
            "word_embed_proj_dim": 16,
        },
        tokens, {ADD: 4},
    ),
    "Mpt": ({"vocab_size": 50, "d_model": 16, "n_layers": 2, "n_heads": 2}, tokens, {ADD: 4}),
    # The block's own and, inside its mixer, the term that the literature calls D.
    "Mamba": (
        {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}, tokens,
        {ADD: 2, ("scaled add", "scaled"): 2},
    ),
    "Rwkv": (
        {
            "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16,
            "intermediate_size": 32,
        },
        tokens, {ADD: 4},
    ),
    "RecurrentGemma": ({**GROUPED, "num_hidden_layers": 3, "head_dim": 8, "lru_width": 16}, tokens, {ADD: 6}),
    # From one text to another: 2 a layer of the encoder, 3 a layer of the decoder
    "T5": (T5, two_texts, {ADD: 10}),
    "LongT5": ({**T5, "local_radius": 3}, two_texts, {ADD: 10}),
    "Bart": (TWO_TOWERS, tokens, {ADD: 10}),
    "Pegasus": (TWO_TOWERS, two_texts, {ADD: 10}),
    # Sound
    "Whisper": (
        {**TWO_TOWERS, "max_source_positions": 20, "num_mel_bins": 8},
        lambda: {"input_features": torch.randn(1, 8, 40), "decoder_input_ids": torch.arange(5, 9)[None]}, {ADD: 10},
    ),
    # One more where a convolution is added as the position.
    "Wav2Vec2": (SPEECH, waveform, {ADD: 5}),
    # Half a feed-forward part before and after attention and convolution.
    "Wav2Vec2Conformer": ({**SPEECH, "conv_depthwise_kernel_size": 3}, waveform, {ADD: 4, SCALED: 4}),
    # Text and images
    "CLIP": (
        {
            "text_config": {key: TEXT[key] for key in list(TEXT)[:5]} | {"bos_token_id": 1, "eos_token_id": 2},
            "vision_config": VISION, "projection_dim": 8,
        },
        tokens_and_image, {ADD: 8},
    ),
    "LayoutLMv3": (
        {
            **TEXT, "coordinate_size": 3, "shape_size": 2, "has_relative_attention_bias": True,
            "has_spatial_attention_bias": True, "input_size": 32, "patch_size": 8,
        },
        lambda: {**tokens_and_image(), "bbox": torch.randint(0, 10, (1, 6, 4))}, {ADD: 4},
    ),
    "Perceiver": (
        {
            "d_model": 16, "d_latents": 16, "num_latents": 4, "num_self_attends_per_block": 2, "num_blocks": 1,
            "num_self_attention_heads": 2, "num_cross_attention_heads": 2,
        },
        lambda: {"inputs": torch.randn(1, 6, 16)}, {ADD: 6},
    ),
}  # fmt: skip


def built(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model of an architecture in evaluation mode, and inputs for it: the same ones each time."""
    config, inputs, _ = ARCHITECTURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**config)).eval()
        return model, inputs()
