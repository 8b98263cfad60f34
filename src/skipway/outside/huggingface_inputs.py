"""Inputs that suit a model of transformers, told from its configuration."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from skipway.graph.inputs import Example, made

_TOKENS = 16
_SAMPLES = 16000


def huggingface_examples(model: nn.Module, device: str) -> list[Example]:
    """What a model of transformers may be run on, the likeliest first."""
    config: Any = model.config
    takes = inspect.signature(model.forward).parameters
    main: Any = getattr(model, "main_input_name", "input_ids")
    names = [main] if isinstance(main, str) else list(main)
    makers = {
        "input_ids": _ids, "decoder_input_ids": _ids, "pixel_values": _pixels, "pixel_values_videos": _video,
        "input_values": _waves, "input_features": _features, "inputs": _arrays, "bbox": _boxes,
    }  # fmt: skip
    first = {name: makers[name](config, device) for name in names if name in makers and name in takes}
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        first["decoder_input_ids"] = _ids(config, device)
    several = {
        name: make(config, device) for name, make in makers.items()
        if name in takes and name not in first and name in ("input_ids", "pixel_values", "input_features", "bbox")
    }  # fmt: skip
    candidates: list[dict[str, Any]] = []
    both = _part(config, "text_config") is not None and (
        _part(config, "vision_config") or _part(config, "audio_config")
    )
    if several and both is not None and both is not False:
        candidates.append({**first, **several})
    candidates.append(first)
    if several:
        candidates.append({**first, **several})
    if device == "meta":
        # Without a mask, transformers looks at values to make one, which the meta device has none of.
        candidates += [{**one, **_masks(one, takes)} for one in candidates if _masks(one, takes)]
    dummy = getattr(model, "dummy_inputs", None)
    if isinstance(dummy, dict) and set(dummy) <= set(takes):
        candidates.append(
            {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in dummy.items()}
        )
    return [((), one) for one in candidates if one]


def _part(config: Any, name: str) -> Any:
    return getattr(config, name, None)


def _look_up(config: Any, *names: str) -> Any:
    """The first of some fields that a configuration has, itself or in the parts that it is made of."""
    parts = (
        "text_config",
        "vision_config",
        "audio_config",
        "encoder",
        "decoder",
        "text_encoder",
        "audio_encoder",
        "backbone_config",
    )
    for one in (config, *(_part(config, part) for part in parts)):
        for name in names:
            value = getattr(one, name, None)
            if value is not None:
                return value
    return None


def _ids(config: Any, device: str) -> torch.Tensor:
    size = _look_up(config, "vocab_size", "src_vocab_size", "text_vocab_size") or 100
    return made((1, _TOKENS), device, torch.int64, int(size))


def _masks(example: dict[str, Any], takes: Any) -> dict[str, Any]:
    """Masks that let every token see every other, in the form that is used as it is."""
    masks = {}
    for name, mask in (("input_ids", "attention_mask"), ("decoder_input_ids", "decoder_attention_mask")):
        if name in example and mask in takes:
            masks[mask] = torch.ones((1, 1, _TOKENS, _TOKENS), dtype=torch.bool, device="meta")
    return masks


def _boxes(config: Any, device: str) -> torch.Tensor:
    return torch.zeros((1, _TOKENS, 4), dtype=torch.int64, device=device)


def _arrays(config: Any, device: str) -> torch.Tensor:
    return made((1, _TOKENS, _look_up(config, "d_model", "hidden_size") or 16), device)


def _pixels(config: Any, device: str) -> torch.Tensor:
    size = _look_up(config, "image_size", "input_size") or 224
    sides = (
        tuple(size.values())
        if isinstance(size, dict)
        else tuple(size)
        if isinstance(size, (tuple, list))
        else (size, size)
    )
    channels = _look_up(config, "num_channels", "in_channels", "in_chans") or 3
    frames = getattr(config, "num_frames", None)
    return made((1, *([frames] if frames else []), channels, *sides[-2:]), device)


def _video(config: Any, device: str) -> torch.Tensor:
    size = _look_up(config, "crop_size", "image_size") or 224
    frames = _look_up(config, "frames_per_clip", "num_frames") or 16
    return made((1, frames, _look_up(config, "in_chans", "num_channels") or 3, size, size), device)


def _waves(config: Any, device: str) -> torch.Tensor:
    if getattr(config, "num_mel_bins", None) and getattr(config, "max_length", None):
        return made((1, config.max_length, config.num_mel_bins), device)
    if getattr(config, "audio_channels", None) or hasattr(config, "n_codebooks"):
        return made((1, getattr(config, "audio_channels", 1), _SAMPLES), device)
    return made((1, _SAMPLES), device)


def _features(config: Any, device: str) -> torch.Tensor:
    if config.model_type.startswith("clap"):
        return made((1, 1, 1001, 64), device)
    if getattr(config, "max_source_positions", None) and getattr(config, "num_mel_bins", None):
        return made((1, config.num_mel_bins, 2 * config.max_source_positions), device)
    size = (
        _look_up(
            config,
            "feature_projection_input_dim",
            "input_feat_per_channel",
            "num_mel_bins",
            "input_dim",
            "feature_size",
        )
        or 80
    )
    return made((1, 200, size), device)
