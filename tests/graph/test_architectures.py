"""The skips of published architectures, counted against what their source says.

Every model is Hugging Face's own code, built from its configuration with small widths and random weights. An expected
count is the number of residual sums and of feature concatenations in that code, layer by layer.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tests.architectures import ADD, ARCHITECTURES, PROJECTED, STAGES, built, image, transformers

from skipway.graph import trace

pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_skips_are_those_of_the_source(name: str):
    model, inputs = built(name)
    graph = trace(model, **inputs)
    assert Counter((skip.kind, skip.shortcut) for skip in graph.skips) == ARCHITECTURES[name][2]
    assert graph.trace.notes == ()


@pytest.mark.parametrize("name", ["Llama", "Bert", "T5", "GPT2", "ViT"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_both_ways_to_attend_have_the_same_skips(name: str, mode: str):
    config, inputs, expected = ARCHITECTURES[name]
    model_class, config_class = getattr(transformers, f"{name}Model"), getattr(transformers, f"{name}Config")
    model = model_class._from_config(config_class(**config), attn_implementation="eager")
    getattr(model, mode)()
    graph = trace(model, **inputs())
    assert Counter((skip.kind, skip.shortcut) for skip in graph.skips) == expected


def test_a_detector():
    """DETR: a ResNet-50, 2 skips a layer of its encoder and 3 a layer of its decoder.

    The first of the decoder adds a tensor of zeros, which carries nothing: it is no skip.
    """
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32, 64, 128], depths=[3, 4, 6, 3], out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=16,
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, num_queries=5,
    )  # fmt: skip
    graph = trace(transformers.DetrModel(config).eval(), **image())
    assert Counter((skip.kind, skip.shortcut) for skip in graph.skips) == {PROJECTED: 4, ADD: 12 + 4 + 6 - 1}


def test_a_segmenter_has_long_skips_from_every_stage_to_its_head():
    config = transformers.SegformerConfig(**STAGES, decoder_hidden_size=16)
    graph = trace(transformers.SegformerForSemanticSegmentation(config).eval(), **image())
    assert [skip.kind for skip in graph.skips if skip.long] == ["concat"] * 3
    assert [skip.kind for skip in graph.skips if not skip.long] == ["add"] * 16


@pytest.mark.slow
def test_a_model_of_seventy_billion_parameters_is_traced_without_its_memory():
    config = transformers.LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).eval()
        graph = trace(model, input_ids=torch.zeros(1, 16, dtype=torch.long))
    assert sum(parameter.numel() for parameter in model.parameters()) > 65e9
    assert [skip.kind for skip in graph.skips] == ["add"] * 160
    assert graph.paths("block").total == 2**160
