"""Networks written for the tests of folding: each structure that folding knows, in the smallest form that has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import skipway as sw
from skipway.connect.scales import Scaling


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Evaluation mode, norms with statistics and parameters far from the identity, scales that are not 0."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)):
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                assert module.running_var is not None
                uniform(module.running_mean, -0.5, 0.5)
                uniform(module.running_var, 0.5, 2.0)
            if module.weight is not None:
                uniform(module.weight, 0.5, 1.5)
                # Scales below zero and at zero occur in trained nets.
                module.weight.data[0] *= -1
                if module.weight.numel() > 3:
                    module.weight.data[1] = 0
            if module.bias is not None:
                uniform(module.bias, -0.5, 0.5)
        if isinstance(module, Scaling) and isinstance(module.scale, Tensor):
            uniform(module.scale, 0.3, 0.8)
    return model.eval()


def small_resnet(**choices: Any) -> nn.Module:
    """A CIFAR ResNet of two blocks."""
    plan = sw.models.ResNetPlan((1, 1), 8, stem="cifar", shortcut="zero-pad")
    return sw.models.ResNet(plan, num_classes=4, **choices)


def conv_norm(c: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


class DenseNet(nn.Module):
    """Two dense blocks with a transition, pre-activation throughout (Huang et al. 2017, arXiv:1608.06993)."""

    def __init__(self, growth: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 8), nn.ReLU(inplace=True))
        self.blocks, c = nn.ModuleList(), 8
        for _ in range(2):
            block = nn.ModuleList()
            for _ in range(layers):
                block.append(
                    nn.Sequential(
                        nn.BatchNorm2d(c), nn.ReLU(inplace=True), nn.Conv2d(c, 4 * growth, 1, bias=False),
                        nn.BatchNorm2d(4 * growth), nn.ReLU(inplace=True),
                        nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
                    )
                )  # fmt: skip
                c += growth
            self.blocks.append(block)
        middle = 8 + layers * growth
        self.transition = nn.Sequential(
            nn.BatchNorm2d(middle), nn.ReLU(inplace=True), nn.Conv2d(middle, middle, 1, bias=False), nn.AvgPool2d(2)
        )
        self.norm, self.fc = nn.BatchNorm2d(c), nn.Linear(c, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for index, block in enumerate(self.blocks):
            features = [x]
            for layer in block:  # pyright: ignore[reportGeneralTypeIssues]
                features.append(layer(torch.cat(features, 1)))
            x = torch.cat(features, 1)
            if index == 0:
                x = self.transition(x)
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.norm(x), inplace=True), 1).flatten(1))


class InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(self, c: int, out: int, stride: int) -> None:
        super().__init__()
        wide = 3 * c
        self.carries = stride == 1 and c == out
        self.body = nn.Sequential(
            conv_norm(c, wide, 1), nn.ReLU6(inplace=True), conv_norm(wide, wide, 3, stride, groups=wide),
            nn.ReLU6(inplace=True), conv_norm(wide, out, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.carries else self.body(x)


def mobilenet() -> nn.Module:
    return nn.Sequential(
        conv_norm(3, 8, 3, 2), nn.ReLU6(), InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2),
        InvertedResidual(12, 12, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 5),
    )  # fmt: skip


class ConvNeXtBlock(nn.Module):
    """A ConvNeXt block as torchvision writes it: tokens inside, LayerScale on channels first (arXiv:2201.03545)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, 7, padding=3, groups=c)
        self.norm, self.up, self.down = nn.LayerNorm(c, eps=1e-6), nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.layer_scale = nn.Parameter(torch.linspace(0.1, 1.0, c).reshape(c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
        return x + self.layer_scale * y


def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), ConvNeXtBlock(8), ConvNeXtBlock(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


class RepVGGBlock(nn.Module):
    """3x3, 1x1 and identity, each with its norm, then the sum (Ding et al. 2021, arXiv:2101.03697)."""

    def __init__(self, c: int, out: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.dense, self.point = conv_norm(c, out, 3, stride, groups), conv_norm(c, out, 1, stride, groups)
        self.identity = nn.BatchNorm2d(c) if c == out and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        kept = 0 if self.identity is None else self.identity(x)
        return F.relu(self.dense(x) + self.point(x) + kept)


def repvgg() -> nn.Module:
    return nn.Sequential(
        RepVGGBlock(3, 8, 2), RepVGGBlock(8, 8), RepVGGBlock(8, 8, groups=2), RepVGGBlock(8, 12, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


class DiverseBranchBlock(nn.Module):
    """3x3, 1x1, 1x1 then 3x3, 1x1 then average, each with norms (Ding et al. 2021, arXiv:2103.13425)."""

    def __init__(self, c: int, out: int) -> None:
        super().__init__()
        self.dense, self.point = conv_norm(c, out, 3), conv_norm(c, out, 1)
        # The border of the inner map is what its norm makes of zero, so that the pair is one convolution exactly.
        self.pair = nn.Sequential(
            nn.Conv2d(c, c, 1, padding=1, bias=False),
            nn.BatchNorm2d(c),
            nn.Conv2d(c, out, 3, bias=False),
            nn.BatchNorm2d(out),
        )
        self.mean = nn.Sequential(
            nn.Conv2d(c, out, 1, padding=1, bias=False), nn.BatchNorm2d(out), nn.AvgPool2d(3, 1), nn.BatchNorm2d(out)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(x) + self.point(x) + self.pair(x) + self.mean(x))


class UNet(nn.Module):
    """Two levels, joined by concatenation; upsampling by a transposed convolution with a norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(conv_norm(3, 4), nn.ReLU(True), conv_norm(4, 4), nn.ReLU(True))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), conv_norm(4, 8), nn.ReLU(True))
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 4, 2, 2), nn.BatchNorm2d(4))
        self.out = nn.Sequential(conv_norm(8, 4), nn.ReLU(True), nn.Conv2d(4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        kept = self.down1(x)
        return self.out(torch.cat([kept, self.up(self.down2(kept))], dim=1))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)


IMAGES: dict[str, Callable[[], nn.Module]] = {
    "densenet": DenseNet,
    "mobilenet": mobilenet,
    "convnext": convnext,
    "repvgg": repvgg,
    "dbb": lambda: nn.Sequential(DiverseBranchBlock(3, 6), DiverseBranchBlock(6, 6)),
    "unet": UNet,
}
