"""Models of transformers, set to what data settle and a user says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from skipway.errors import SkipwayError
from skipway.outside import Settings, find, hides

transformers = pytest.importorskip("transformers")

IMAGES = {"num_classes": 10, "in_channels": 1, "image_size": 8, "image_shape": [1, 8, 8]}
TEXT = {"vocabulary": 30, "length": 16}
VIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "patch_size": 2}
BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
GPT2 = {"hidden_size": 8, "num_hidden_layers": 1, "n_head": 2}


def _built(name: str, task: str, offered: dict[str, Any], options: dict[str, Any]) -> Any:
    return find(f"hf:{name}", Settings(task, offered, options)).built()


def test_images_settle_classes_channels_and_size():
    model = _built("ViTConfig", "classification", IMAGES, VIT)
    assert type(model) is transformers.ViTForImageClassification
    config = model.config
    assert (config.num_labels, config.num_channels, config.image_size, config.hidden_size) == (10, 1, 8, 8)
    assert model(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 10)


def test_what_a_configuration_does_not_know_is_left_out():
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    model = _built("ResNetConfig", "classification", IMAGES, sizes)
    assert model.config.num_channels == 1
    assert not hasattr(model.config, "image_size")
    assert model(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 10)


def test_images_that_are_not_square():
    model = _built("vit", "classification", {**IMAGES, "image_shape": [1, 8, 12]}, VIT)
    assert model(torch.zeros(2, 1, 8, 12)).logits.shape == (2, 10)


def test_a_text_settles_vocabulary_and_length_and_no_token_is_special():
    model = _built("GPT2Config", "language", TEXT, GPT2)
    assert type(model) is transformers.GPT2LMHeadModel
    config = model.config
    assert (config.vocab_size, config.n_positions, config.n_embd, config.use_cache) == (30, 16, 8, False)
    encoder = _built("BertConfig", "hidden language", TEXT, BERT)
    assert type(encoder) is transformers.BertForMaskedLM
    for network in (model, encoder):
        assert next(one.padding_idx for one in network.modules() if isinstance(one, nn.Embedding)) is None


def test_the_user_has_the_last_word_under_either_name_of_a_field():
    for name in ("n_positions", "max_position_embeddings"):
        assert _built("GPT2Config", "language", TEXT, {**GPT2, name: 64}).config.n_positions == 64


def test_pairs_of_lines_settle_their_tokens():
    sizes = {
        "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8,
    }  # fmt: skip
    offered = {"vocabulary": 30, "target_vocabulary": 30, "length": 17, "padding": 0, "start": 1, "end": 2}
    config = _built("BartConfig", "translation", offered, sizes).config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert config.decoder_start_token_id == 1
    assert config.max_position_embeddings == 17


def test_a_folder_keeps_its_own_sizes_and_names_its_own_class(tmp_path: Path):
    config = transformers.BertConfig(**{**BERT, "architectures": ["BertLMHeadModel"], "is_decoder": True})
    config.save_pretrained(tmp_path)
    model = _built(str(tmp_path), "language", TEXT, {"num_hidden_layers": 2})
    assert type(model) is transformers.BertLMHeadModel
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.vocab_size) == (8, 2, 30)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("BertConfig", {}, True),
        ("BertForMaskedLM", {}, True),
        ("bert", {"is_decoder": True}, False),
        ("BertLMHeadModel", {}, False),
        ("DistilBertConfig", {}, True),
        ("GPT2Config", {}, False),
        ("BartConfig", {}, False),
        ("ViTConfig", {}, False),
    ],
)
def test_encoders_are_to_tell_hidden_words(name: str, options: dict[str, Any], expected: bool):
    assert hides(f"hf:{name}", options) is expected


@pytest.mark.parametrize(
    ("name", "task", "options", "sentence"),
    [
        ("ViTConfig", "classification", {"hiden_size": 8}, "no field of ViTConfig 'hiden_size'; did you mean 'hidden_"),
        ("ViTConfig", "classification", {"hidden_size": "big"}, r"ViTConfig\(.*hidden_size='big'\) cannot be built"),
        ("ViTConfig", "classification", {}, "patches of 16 x 16, and these are 8 x 8: give --option patch_size=2"),
        ("GPT2Config", "classification", {}, "no model of GPT2Config for classification, .* such as hf:ViTConfig"),
        ("ViTConfig", "language", {}, "no model of ViTConfig for language, .* such as hf:GPT2Config"),
        ("BertConfig", "hidden language", {"hidden_size": 9}, "building transformers' BertForMaskedLM fails|cannot be"),
    ],
)
def test_slips_are_one_sentence(name: str, task: str, options: dict[str, Any], sentence: str):
    with pytest.raises(SkipwayError, match=sentence) as slip:
        _built(name, task, IMAGES if task == "classification" else TEXT, options)
    assert "\n" not in str(slip.value)
