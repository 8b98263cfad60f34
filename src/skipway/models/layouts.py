"""The ways in which published files name their weights, and how each becomes the names used here."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """A published way to name weights, known by `mark`: a name that only such files hold.

    `renames` are patterns with what takes their place, applied in turn to every name; `convert`, behind them, changes
    what renaming cannot (transposed or joined tensors). `spare` matches the parts of a file that a model for another
    task has no use for. `padding` says where a zero-padding shortcut puts its new channels in networks that were
    trained so.
    """

    name: str
    mark: str
    renames: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    convert: Callable[[State], State] | None = None
    spare: str | None = None
    padding: str | None = None

    def translate(self, state: State, own: Collection[str]) -> State:
        """The same weights under the names used here, without what is spare and not among the model's `own` names."""
        renamed = {}
        for name, value in state.items():
            for pattern, replacement in self.renames:
                name = re.sub(pattern, replacement, name)
            renamed[name] = value
        converted = renamed if self.convert is None else self.convert(renamed)
        if self.spare is None:
            return converted
        return {name: value for name, value in converted.items() if name in own or not re.match(self.spare, name)}


def _gpt2(state: State) -> State:
    """Matrices transposed, masks left out, and the output too where it is the embedding over again."""
    converted = {}
    for name, value in state.items():
        if re.search(r"\.attn\.(bias|masked_bias)$", name):
            continue
        matrix = re.search(r"\.(in_proj_weight|out_proj\.weight|linear[12]\.weight)$", name)
        converted[name] = value.t().contiguous() if matrix else value
    embedding, head = converted.get("embedding.weight"), converted.get("head.weight")
    if embedding is not None and head is not None and embedding.equal(head):
        del converted["head.weight"]
    return converted


_GPT2 = (
    (r"^transformer\.", ""),
    (r"^wte\.", "embedding."),
    (r"^wpe\.", "positions."),
    (r"^ln_f\.", "stack.norm."),
    (r"^lm_head\.", "head."),
    (r"^h\.(\d+)\.ln_([12])\.", r"stack.layers.\1.norm\2."),
    (r"^h\.(\d+)\.attn\.c_attn\.", r"stack.layers.\1.self_attn.in_proj_"),
    (r"^h\.(\d+)\.attn\.c_proj\.", r"stack.layers.\1.self_attn.out_proj."),
    (r"^h\.(\d+)\.mlp\.c_fc\.", r"stack.layers.\1.linear1."),
    (r"^h\.(\d+)\.mlp\.c_proj\.", r"stack.layers.\1.linear2."),
)


def _unbiased(state: State) -> State:
    """Biases of convolutions that batch norms follow taken into the norms' means, which is the same function."""
    converted = dict(state)
    for name, bias in state.items():
        if match := re.fullmatch(r"(.*double_conv\.)([03])\.bias", name):
            mean = f"{match[1]}{int(match[2]) + 1}.running_mean"
            if mean in state:
                converted[mean] = state[mean] - bias
                del converted[name]
    return converted


_DENSENET = (
    (r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),
    (r"^features\.norm_final\.", "features.norm5."),
)


def _bert(state: State) -> State:
    """Queries, keys and values joined; positions' numbers left out, and the output where it is the embedding again."""
    converted = {name: value for name, value in state.items() if not name.endswith("position_ids")}
    for name in state:
        if ".query." in name:
            parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            if all(part in converted for part in parts):
                joined = torch.cat([converted.pop(part) for part in parts])
                converted[name.replace(".query.", ".in_proj_")] = joined
    for again, original in (("head.decoder.weight", "embedding.weight"), ("head.decoder.bias", "head.bias")):
        if again in converted and original in converted and converted[again].equal(converted[original]):
            del converted[again]
    return converted


_BERT = (
    (r"^bert\.", ""),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"^embeddings\.word_embeddings\.", "embedding."),
    (r"^embeddings\.position_embeddings\.", "positions."),
    (r"^embeddings\.token_type_embeddings\.", "segments."),
    (r"^embeddings\.LayerNorm\.", "embedding_norm."),
    (r"^encoder\.layer\.", "stack.layers."),
    (r"\.attention\.self\.", ".self_attn."),
    (r"\.attention\.output\.dense\.", ".self_attn.out_proj."),
    (r"\.attention\.output\.LayerNorm\.", ".norm1."),
    (r"\.intermediate\.dense\.", ".linear1."),
    (r"\.output\.dense\.", ".linear2."),
    (r"\.output\.LayerNorm\.", ".norm2."),
    (r"^pooler\.dense\.", "pooler."),
    (r"^cls\.predictions\.transform\.dense\.", "head.dense."),
    (r"^cls\.predictions\.transform\.LayerNorm\.", "head.norm."),
    (r"^cls\.predictions\.", "head."),
)
_BERT_SPARE = r"pooler\.|classifier\.|head\.(dense|norm|bias)|cls\.seq_relationship\."

_TIMM_VIT = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^norm\.", "encoder.ln."),
    (r"^head\.", "heads.head."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
    (r"\.ls([12])\.gamma$", r".skip\1.scale.scale"),
)

LAYOUTS = (
    Layout(
        "akamaster/pytorch_resnet_cifar10",
        "linear.weight",
        ((r"^linear\.", "fc."), (r"\.shortcut\.", ".downsample.")),
        padding="split",
    ),
    Layout(
        "a-martyn/resnet",
        "convIn.weight",
        (
            (r"^convIn\.", "conv1."),
            (r"^bnIn\.", "bn1."),
            (r"^fcOut\.", "fc."),
            (r"^stack1\.", "layer1."),
            (r"^stack(\d)a\.", r"layer\1.0."),
            (r"^stack(\d)b\.(\d+)\.", lambda m: f"layer{m[1]}.{int(m[2]) + 1}."),
        ),
        padding="append",
    ),
    Layout("Hugging Face GPT-2", "wte.weight", _GPT2, _gpt2),
    Layout("Hugging Face GPT-2", "transformer.wte.weight", _GPT2, _gpt2),
    Layout("milesial/Pytorch-UNet with biases before its norms", "inc.double_conv.0.bias", convert=_unbiased),
    Layout("torchvision's first DenseNets", "features.denseblock1.denselayer1.norm.1.weight", _DENSENET),
    Layout("gpleiss/efficient_densenet_pytorch", "features.norm_final.weight", _DENSENET),
    Layout(
        "torchvision's first Vision Transformers",
        "encoder.layers.encoder_layer_0.mlp.linear_1.weight",
        ((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),
    ),
    Layout("Hugging Face BERT", "embeddings.word_embeddings.weight", _BERT, _bert, _BERT_SPARE),
    Layout("Hugging Face BERT", "bert.embeddings.word_embeddings.weight", _BERT, _bert, _BERT_SPARE),
    Layout("timm's Vision Transformers", "patch_embed.proj.weight", _TIMM_VIT),
)
