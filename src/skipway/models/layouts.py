"""The ways in which published files name their weights, and how each becomes the names used here."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """A published way to name weights, known by `mark`: a name that only such files hold.

    `renames` are patterns with what takes their place, applied in turn to every name; `convert`, behind them, changes
    what renaming cannot (transposed or joined tensors). `padding` says where a zero-padding shortcut puts its new
    channels in networks that were trained so.
    """

    name: str
    mark: str
    renames: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    convert: Callable[[State], State] | None = None
    padding: str | None = None

    def translate(self, state: State) -> State:
        """The same weights under the names used here."""
        renamed = {}
        for name, value in state.items():
            for pattern, replacement in self.renames:
                name = re.sub(pattern, replacement, name)
            renamed[name] = value
        return renamed if self.convert is None else self.convert(renamed)


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
)
