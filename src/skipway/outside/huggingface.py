"""Models of Hugging Face's transformers, built from their configurations."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from skipway.errors import SkipwayError, choose, missing_extra
from skipway.outside.huggingface_inputs import huggingface_examples
from skipway.outside.sources import Settings, Source, suggestion

# The tables in which transformers keeps the models of a task.
_TABLES = {
    "classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "segmentation": "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    "language": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "hidden language": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "translation": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}
_EXAMPLES = {
    "classification": "hf:ViTConfig", "segmentation": "hf:SegformerConfig", "language": "hf:GPT2Config",
    "hidden language": "hf:BertConfig", "translation": "hf:BartConfig",
}  # fmt: skip
# What the data settle, and how transformers calls it.
_NAMES = {
    "num_classes": ("num_labels",),
    "in_channels": ("num_channels",),
    "image_size": ("image_size",),
    "vocabulary": ("vocab_size",),
    "target_vocabulary": ("decoder_vocab_size",),
    "length": ("max_position_embeddings",),
    "padding": ("pad_token_id",),
    "start": ("bos_token_id", "decoder_start_token_id"),
    "end": ("eos_token_id",),
}
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_eos_token_id")


def huggingface_source(name: str, settings: Settings, weights: bool) -> Source:
    """`hf:NAME`: a configuration's class (`BertConfig`), a model's class (`BertForMaskedLM`), a type of model (`bert`),
    a folder or a name on the Hub.

    A class or a type is built at its default size but for the options, which are fields of the configuration; of a
    name on the Hub only the configuration is downloaded, unless `weights` are asked for.
    """
    transformers = _transformers()
    config, build_class = _configuration(transformers, name, settings)
    from_hub = build_class is None and bool(getattr(config, "_name_or_path", ""))
    if weights and not from_hub:
        raise SkipwayError(
            f"hf:{name} is a configuration without published weights: ask for none, or name a model on the Hub"
        )
    if hasattr(config, "use_cache"):
        config.use_cache = False
    if settings.task is not None:
        build_class = build_class or _class_for(transformers, config, settings.task, name)
        _check_patches(config, name)
    model_class = build_class or _model_class(transformers, config)

    def build() -> nn.Module:
        if weights:
            return model_class.from_pretrained(name, config=config)
        return model_class(config) if model_class.__name__ != "AutoModel" else model_class.from_config(config)

    return Source(f"transformers' {model_class.__name__}", build, huggingface_examples)


def sees_both_sides(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a name means an encoder that tells hidden words, as BERT does."""
    transformers = _transformers()
    config, model_class = _configuration(transformers, name, Settings(options=options))
    if model_class is not None:
        return model_class.__name__.endswith("ForMaskedLM")
    decodes = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    return not decodes and _in_table(config, "hidden language") is not None


def _transformers() -> Any:
    try:
        transformers = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise SkipwayError(
                f"transformers is installed, but needs {error.name}: pip install {error.name}"
            ) from error
        raise missing_extra("transformers", "transformers", "hf:NAME") from None
    transformers.logging.set_verbosity_error()
    return transformers


def _configuration(transformers: Any, name: str, settings: Settings) -> tuple[Any, Any]:
    """The configuration that a name means, and the model's class where the name is one."""
    types = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES
    found = getattr(transformers, name, None) if name.isidentifier() else None
    base = getattr(transformers, "PreTrainedConfig", None) or transformers.PretrainedConfig
    if inspect.isclass(found) and issubclass(found, base):
        return _made(found, settings), None
    if inspect.isclass(found) and issubclass(found, transformers.PreTrainedModel):
        config_class: Any = getattr(found, "config_class", None)
        return _made(config_class, settings), found
    if name in types:
        return _made(getattr(transformers, types[name]), settings), None
    known = [*types.values(), *types]
    if name.endswith("Config") or (name.isidentifier() and "Model" in name):
        models = [one for one in dir(transformers) if "Model" in one or "For" in one] if "Model" in name else known
        raise SkipwayError(f"transformers has no {name!r}{suggestion(name, models)}")
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
        why = "HF_HUB_OFFLINE forbids to look on the Hub" if offline else str(error).strip().split("\n")[0]
        meant = suggestion(name, known)
        where = f"{meant} Nor is there one" if meant else ", nor is there one"
        raise SkipwayError(f"transformers has no configuration {name!r}{where} on this machine: {why}") from error
    try:
        for field, value in _fields(config, settings).items():
            setattr(config, field, value)
    except (TypeError, ValueError) as error:
        raise SkipwayError(f"the configuration {name!r} cannot be set so: {_first_line(error)}") from error
    return config, None


def _made(config_class: Any, settings: Settings) -> Any:
    try:
        config = config_class()
    except Exception as error:
        raise SkipwayError(f"{config_class.__name__}() cannot be built at a default size: {error}") from error
    if not (fields := _fields(config, settings)):
        return config
    try:
        return config_class(**fields)
    except Exception as error:
        told = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        raise SkipwayError(f"{config_class.__name__}({told}) cannot be built: {_first_line(error)}") from error


def _fields(config: Any, settings: Settings) -> dict[str, Any]:
    """The fields of a configuration that the data and the user settle, those of them that it has."""
    standard: dict[str, str] = getattr(config, "attribute_map", {})
    known = {*config.to_dict(), *standard, "num_labels"} - {"transformers_version", "architectures"}
    for option in settings.options:
        choose(f"field of {type(config).__name__}", option, sorted(known))
    fields: dict[str, Any] = {}
    if "vocabulary" in settings.offered:
        # Those of another vocabulary would be read for words of this one, and the padding never learned.
        fields = {token: None for token in _TOKENS if token in known}
    for name, value in settings.offered.items():
        if name == "image_size":
            height, width = settings.offered.get("image_shape", (0, value, value))[1:]
            value = value if height == width else [height, width]
        fields |= {field: value for field in _NAMES.get(name, ()) if field in known}
    # A field has two names where a model has its own for it; the user's is the one that counts.
    chosen = {standard.get(option, option) for option in settings.options}
    fields = {field: value for field, value in fields.items() if standard.get(field, field) not in chosen}
    return fields | dict(settings.options)


def _check_patches(config: Any, name: str) -> None:
    patch, size = getattr(config, "patch_size", None), getattr(config, "image_size", None)
    if isinstance(patch, int) and isinstance(size, int) and patch > size:
        raise SkipwayError(
            f"hf:{name} cuts images into patches of {patch} x {patch}, and these are {size} x {size}: give "
            f"--option patch_size={max(1, size // 4)}, or larger images (--image-size {8 * patch})"
        )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def _class_for(transformers: Any, config: Any, task: str, name: str) -> Any:
    """The class of a task for a configuration: the one that it names itself, or the one of its type."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    of_task = {one for value in getattr(auto, _TABLES[task]).values() for one in _several(value)}
    for architecture in getattr(config, "architectures", None) or ():
        if architecture in of_task and hasattr(transformers, architecture):
            return getattr(transformers, architecture)
    found = _in_table(config, task)
    if found is None:
        raise SkipwayError(
            f"transformers has no model of {type(config).__name__} for {task}, which the data are for; name another "
            f"than hf:{name}, such as {_EXAMPLES[task]}"
        )
    return getattr(transformers, found)


def _in_table(config: Any, task: str) -> str | None:
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    found = getattr(auto, _TABLES[task]).get(config.model_type)
    return None if found is None else _several(found)[0]


def _several(found: Any) -> tuple[str, ...]:
    return (found,) if isinstance(found, str) else tuple(found)


def _model_class(transformers: Any, config: Any) -> Any:
    for name in getattr(config, "architectures", None) or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    for table in (
        "MODEL_MAPPING_NAMES",
        *sorted(t for t in vars(auto) if t.startswith("MODEL_FOR_") and t.endswith("_NAMES")),
    ):
        found = getattr(auto, table, {}).get(config.model_type)
        if found is not None:
            return getattr(transformers, found if isinstance(found, str) else found[0])
    owners = [one for one in dir(transformers) if one.startswith(type(config).__name__.removesuffix("Config"))]
    for one in sorted(owners, key=lambda one: (not one.endswith("Model"), one)):
        owner = getattr(transformers, one, None)
        if (
            inspect.isclass(owner)
            and issubclass(owner, nn.Module)
            and getattr(owner, "config_class", None) is type(config)
        ):
            return owner
    raise SkipwayError(
        f"transformers has no model for {type(config).__name__} alone: name the model's class, as in hf:BertModel"
    )
