"""Small nets of every family whose symmetries are checked, and what the checks share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.graph import trace
from skipway.graph.symmetry import Symmetry, symmetry


def scrambled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 and evaluation mode with all its parameters and running statistics drawn at random.

    Fresh norms would hide a wrong permutation: all their weights are 1 and all their means 0.
    """
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            fan = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.copy_(noise / fan**0.5 if parameter.dim() > 1 else 1 + 0.3 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
    return model


def outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """The floating-point outputs of a model but for its caches, which only it reads."""
    with torch.no_grad():
        result = model(*inputs)
    if isinstance(result, Mapping):
        result = [part for name, part in result.items() if name not in ("past_key_values", "cache_params")]
    tensors = result if isinstance(result, (list, tuple)) else [result]
    return [tensor for tensor in tensors if isinstance(tensor, Tensor)]


def deviation(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference between outputs, relative to the largest output."""
    assert len(one) == len(other) > 0
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(one, other, strict=True))


def check(model: nn.Module, inputs: tuple[Any, ...], breaks: int = 4, close: float = 1e-10) -> Symmetry:
    """Apply random elements, then put single parameters back: the function must stay, and must then change."""
    found = symmetry(trace(model, *inputs))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = outputs(model, inputs)
    for seed in range(2):
        assert deviation(expected, outputs(found.apply(model, found.sample(seed)), inputs)) < close
    rescaled = found.apply(model, found.sample(2, rescale=0.5))
    assert deviation(expected, outputs(rescaled, inputs)) < close
    permuted = found.apply(model, found.sample(0))
    members = list(dict.fromkeys(name for one in found.classes for name, _ in one.members))
    changed = [name for name in members if not torch.equal(permuted.state_dict()[name], before[name])]
    assert changed
    broken = 0
    for name in changed[:: max(1, len(changed) // breaks)]:
        if matters(model, name, inputs, expected):
            torn = copy.deepcopy(permuted)
            torn.load_state_dict({**torn.state_dict(), name: before[name]})
            assert deviation(expected, outputs(torn, inputs)) > 10 * close, name
            broken += 1
    assert broken
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return found


def matters(model: nn.Module, name: str, inputs: tuple[Any, ...], expected: list[Tensor]) -> bool:
    """Whether a parameter has any say: the bias of keys, for one, moves all logits alike and changes nothing."""
    other = copy.deepcopy(model)
    tensor = other.state_dict()[name]
    other.load_state_dict({**other.state_dict(), name: tensor * (1 + torch.rand_like(tensor))})
    return deviation(expected, outputs(other, inputs)) > 1e-3


class Program(nn.Module):
    """A module whose forward is a function of itself and its inputs."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def unit(n: int, m: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    convolution = nn.Conv2d(n, m, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(convolution, nn.BatchNorm2d(m), nn.ReLU())


def head(n: int, classes: int = 3) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, classes)]


def vgg() -> nn.Module:
    features = [unit(3, 6), nn.MaxPool2d(2), unit(6, 8), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(8 * 16, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 3))


def mobilenet() -> nn.Module:
    """Depth-wise convolutions, with a multiplier of 2 in the second."""
    first = nn.Sequential(unit(8, 24, 1), unit(24, 24, groups=24), nn.Conv2d(24, 8, 1), nn.BatchNorm2d(8))
    return nn.Sequential(unit(3, 8), first, unit(8, 16, groups=8), *head(16))


def resnext() -> nn.Module:
    return nn.Sequential(unit(3, 8), unit(8, 16, 1), unit(16, 24, groups=4), unit(24, 8, 1), *head(8))


def transposed() -> nn.Module:
    ups = [nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), nn.ConvTranspose2d(6, 12, 2, 2, groups=3), nn.ReLU()]
    return nn.Sequential(unit(3, 8), *ups, nn.ConvTranspose2d(12, 12, 2, groups=12), nn.ReLU(), nn.Conv2d(12, 2, 1))


def group_norms() -> nn.Module:
    norms = [nn.GroupNorm(4, 12), nn.GroupNorm(1, 8), nn.InstanceNorm2d(8, affine=True)]
    convolutions = [nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3), nn.Conv2d(8, 8, 3)]
    layers = [part for pair in zip(convolutions, norms, strict=True) for part in (*pair, nn.ReLU())]
    return nn.Sequential(*layers, nn.Conv2d(8, 2, 1))


def densenet() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        for layer in net.layers:
            x = torch.cat([x, layer(x)], 1)
        return net.head(x)

    layers = [
        nn.Sequential(nn.BatchNorm2d(6 + 4 * k), nn.ReLU(), nn.Conv2d(6 + 4 * k, 4, 3, padding=1)) for k in range(3)
    ]
    return Program(run, stem=unit(3, 6), layers=nn.ModuleList(layers), head=nn.Sequential(*head(18)))


def unet() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        a = net.a(x)
        b = net.b(F.max_pool2d(a, 2))
        d = net.d(torch.cat([net.up(net.c(F.max_pool2d(b, 2))), b], 1))
        return net.out(net.e(torch.cat([a, F.interpolate(d, scale_factor=2, mode="bilinear")], 1)))

    ups = {"up": nn.ConvTranspose2d(9, 8, 2, 2), "d": unit(16, 8), "e": unit(14, 6), "out": nn.Conv2d(6, 2, 1)}
    return Program(run, a=unit(3, 6), b=unit(6, 8), c=unit(8, 9), **ups)


def convnext() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = net.norm(net.wide(x).permute(0, 2, 3, 1))
        y = net.scale * net.down(F.gelu(net.up(y)))
        return net.head((x + y.permute(0, 3, 1, 2)).mean([-2, -1]))

    parts = {"wide": nn.Conv2d(8, 8, 7, padding=3, groups=8), "norm": nn.LayerNorm(8), "up": nn.Linear(8, 20)}
    more = {"down": nn.Linear(20, 8), "scale": nn.Parameter(torch.ones(8)), "head": nn.Linear(8, 3)}
    return Program(run, stem=nn.Conv2d(3, 8, 4, 4), **parts, **more)


def vit() -> nn.Module:
    """Class token, positions, fused queries, keys and values, attention written out."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = net.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([net.token.expand(x.shape[0], -1, -1), x], 1) + net.positions
        n, t, c = x.shape
        q, k, v = net.qkv(net.norm1(x)).reshape(n, t, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q * 0.5) @ k.transpose(-2, -1)).softmax(-1)
        x = x + net.out((weights @ v).transpose(1, 2).reshape(n, t, c))
        x = x + net.mlp(net.norm2(x))
        return net.head(x[:, 0])

    mlp = nn.Sequential(nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 16))
    learned = {"token": nn.Parameter(torch.ones(1, 1, 16)), "positions": nn.Parameter(torch.ones(1, 17, 16))}
    norms = {"norm1": nn.LayerNorm(16), "norm2": nn.LayerNorm(16)}
    maps = {"qkv": nn.Linear(16, 48), "out": nn.Linear(16, 16), "mlp": mlp, "head": nn.Linear(16, 3)}
    return Program(run, patches=nn.Conv2d(3, 16, 4, 4), **learned, **norms, **maps)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 20, batch_first=True)
    return nn.Sequential(nn.Embedding(20, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 3))


def translator() -> nn.Module:
    """Encoder and decoder with cross-attention, each with a stream of its own."""

    def run(net: Any, x: Tensor) -> Tensor:
        return net.out(net.body(net.source(x), net.target(x)))

    body = nn.Transformer(16, 4, 1, 1, 20, batch_first=True)
    return Program(run, source=nn.Embedding(20, 16), target=nn.Embedding(20, 16), body=body, out=nn.Linear(16, 3))


def gated_units() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        value, gate = net.first(x).chunk(2, -1)
        return net.last(F.glu(net.second(value * torch.sigmoid(gate))))

    return Program(run, first=nn.Linear(5, 16), second=nn.Linear(8, 12), last=nn.Linear(6, 3))


def pixel_shuffle() -> nn.Module:
    ends = [nn.Conv2d(3, 24, 3), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(6, 5, 3), nn.PReLU(5), nn.PixelUnshuffle(2)]
    return nn.Sequential(*ends, nn.Conv2d(20, 2, 1))


def channel_shuffle() -> nn.Module:
    first = [unit(3, 12), unit(12, 24, 1, groups=3), nn.ChannelShuffle(3), unit(24, 24, groups=24)]
    return nn.Sequential(*first, unit(24, 12, 1, groups=3), nn.Conv2d(12, 2, 1))


def by_hand() -> nn.Module:
    """Standardised weights, a channel shuffle written out, a layer used twice, a weight used transposed."""

    def run(net: Any, x: Tensor) -> Tensor:
        weight = net.a.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)
        x = F.relu(net.b(F.relu(F.conv2d(x, weight, net.a.bias))))
        n, c, h, w = x.shape
        x = x.view(n, 4, 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = F.relu(net.c(x)).mean((2, 3))
        return F.relu(net.d(F.relu(net.d(x)))) @ net.d.weight[:2].t()

    a, b = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3, groups=4)
    return Program(run, a=a, b=b, c=nn.Conv2d(12, 6, 1), d=nn.Linear(6, 6))


IMAGES = ("images", (2, 3, 16, 16))
TOKENS = ("tokens", (2, 5))
VECTORS = ("vectors", (4, 5))
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[str, tuple[int, ...]]]] = {
    "vgg": (vgg, IMAGES),
    "mobilenet": (mobilenet, IMAGES),
    "resnext": (resnext, IMAGES),
    "transposed": (transposed, IMAGES),
    "group norms": (group_norms, IMAGES),
    "densenet": (densenet, IMAGES),
    "unet": (unet, IMAGES),
    "convnext": (convnext, IMAGES),
    "vit": (vit, IMAGES),
    "encoder": (encoder, TOKENS),
    "translator": (translator, TOKENS),
    "gated units": (gated_units, VECTORS),
    "pixel shuffle": (pixel_shuffle, IMAGES),
    "channel shuffle": (channel_shuffle, IMAGES),
    "by hand": (by_hand, IMAGES),
}


def example(kind: str, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == "tokens":
        return torch.randint(0, 20, shape, generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64)
