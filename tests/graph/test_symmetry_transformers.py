"""Symmetries of models that others wrote, built small from Hugging Face configurations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from symmetry_nets import check, example, scrambled

from skipway.graph.symmetry import Symmetry

transformers = pytest.importorskip("transformers", reason="these models come from the package transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 12,
    "vocab_size": 20,
}
ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 4}
BOTH_SIDES = {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 12))
}


def built(name: str, attention: str | None = None, **sizes: Any) -> torch.nn.Module:
    config = getattr(transformers, name.replace("ForCausalLM", "Model").removesuffix("Model") + "Config")
    torch.manual_seed(0)
    return scrambled(getattr(transformers, name)(config(**sizes, attn_implementation=attention)))


def tokens(n: int = 5) -> torch.Tensor:
    return example("tokens", (2, n))


def checked(model: torch.nn.Module, *inputs: Any) -> Symmetry:
    # Some of these models compute their norms and positions in float32 whatever their weights are.
    return check(model, inputs, close=2e-5)


f = math.factorial
HEADS = f(4) * f(4) ** 4 * f(4) ** 4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bert(attention: str) -> None:
    assert checked(built("BertModel", attention, **SIZES), tokens()).order == HEADS * f(12)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gpt2(attention: str) -> None:
    """Weights stored the other way round, queries, keys and values fused."""
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 4, "n_inner": 12, "vocab_size": 20, **ENDS}
    assert checked(built("GPT2Model", attention, **sizes), tokens()).order == HEADS * f(12)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_llama(attention: str) -> None:
    """Rotary positions pin queries and keys inside a head; two query heads share a key head, two such pairs swap."""
    found = checked(built("LlamaForCausalLM", attention, **GROUPED), tokens())
    assert found.order == f(16) * (f(2) * f(2) ** 2 * f(4) ** 2) * f(12)


def test_qwen_with_norms_inside_heads() -> None:
    found = checked(built("Qwen3ForCausalLM", **GROUPED), tokens())
    assert found.order == f(16) * (f(2) * f(2) ** 2 * f(4) ** 2) * f(12)


def test_mistral_with_one_key_head() -> None:
    found = checked(built("MistralForCausalLM", **{**GROUPED, "num_key_value_heads": 1}), tokens())
    assert found.order == f(16) * (f(4) * f(4)) * f(12)


def test_gpt_neox_with_partial_rotary_positions() -> None:
    sizes: dict[str, Any] = {**SIZES, "rotary_pct": 0.5, **ENDS}
    assert checked(built("GPTNeoXModel", **sizes), tokens()).order == (f(4) * f(2) ** 4 * f(4) ** 4) * f(12)


def test_gptj_with_a_parallel_branch() -> None:
    sizes: dict[str, Any] = {
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 4,
        "n_inner": 12,
        "rotary_dim": 2,
        "vocab_size": 20,
        **ENDS,
    }
    assert checked(built("GPTJModel", **sizes), tokens()).order == (f(4) * f(2) ** 4 * f(4) ** 4) * f(12)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_t5(attention: str) -> None:
    """The heads of all layers of a side are tied: they share one table of relative positions."""
    sizes: dict[str, Any] = {
        "d_model": 16,
        "d_kv": 4,
        "d_ff": 12,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 20,
        **ENDS,
    }
    found = checked(built("T5Model", attention, decoder_start_token_id=0, **sizes), tokens(), None, tokens(4))
    inside = f(4) ** 4 * f(4) ** 4
    # The decoder's output pins its stream, and with the shared embedding the encoder's.
    assert found.order == (f(4) * inside**2) * (f(4) * inside**2) * (f(4) * inside) ** 2 * f(12) ** 4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_vit(attention: str) -> None:
    sizes: dict[str, Any] = {name: size for name, size in SIZES.items() if name != "vocab_size"}
    model = built("ViTModel", attention, **sizes, image_size=16, patch_size=8, pooler_output_size=16)
    assert checked(model, example("images", (2, 3, 16, 16))).order == HEADS * f(12)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_whisper(attention: str) -> None:
    sizes: dict[str, Any] = {
        "max_source_positions": 6,
        "max_target_positions": 8,
        "num_mel_bins": 5,
        "vocab_size": 20,
        **ENDS,
    }
    model = built("WhisperModel", attention, d_model=16, decoder_start_token_id=1, **BOTH_SIDES, **sizes)
    found = checked(model, example("vectors", (2, 5, 12)), None, tokens(4))
    assert found.order == f(16) * HEADS**3 * f(12) ** 2


def test_swin() -> None:
    sizes: dict[str, Any] = {
        "image_size": 16,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [2],
        "num_heads": [2],
        "window_size": 2,
    }
    found = checked(built("SwinModel", **sizes), example("images", (2, 3, 16, 16)))
    assert found.order == (f(2) * f(4) ** 2 * f(4) ** 2) ** 2 * f(32) ** 2


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("ConvNextModel", {"hidden_sizes": [6, 8], "depths": [1, 1], "num_stages": 2, "image_size": 16}),
        ("ResNetModel", {"embedding_size": 6, "hidden_sizes": [8, 16], "depths": [2, 1]}),
        ("MobileNetV2Model", {"depth_multiplier": 0.1, "image_size": 16}),
    ],
)
def test_vision(name: str, sizes: dict[str, Any]) -> None:
    assert checked(built(name, **sizes), example("images", (2, 3, 16, 16))).classes


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("BartModel", {"d_model": 16, **BOTH_SIDES, **ENDS, "vocab_size": 20}),
        ("AlbertModel", {**SIZES, "embedding_size": 8, "num_hidden_layers": 2, **ENDS}),
        ("Gemma2ForCausalLM", {**GROUPED, **ENDS}),
        ("DebertaV2Model", {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    ],
)
def test_language(name: str, sizes: dict[str, Any]) -> None:
    assert checked(built(name, **sizes), tokens()).classes
