"""Image classifiers as their authors write them, of torch.nn alone, under the published names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))).sigmoid()


class Bottleneck(nn.Module):
    """He 2015, with the stride on the 3x3; grouped as in Xie 2016, squeezed as in Hu 2017."""

    def __init__(self, channels: int, out: int, inner: int, stride: int, groups: int, squeeze: int | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out)
        self.se = SqueezeExcitation(out, out // squeeze) if squeeze else None
        self.downsample = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y = y if self.se is None else self.se(y)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Wide(nn.Module):
    """Zagoruyko 2016: where the shape changes the shortcut projects what the first norm and ReLU put out."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(out), nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.downsample = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        read = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(read))))
        return y + (x if self.downsample is None else self.downsample(read))


class ReferenceResNet(nn.Module):
    """Bottlenecks behind either stem."""

    def __init__(
        self,
        blocks: Sequence[int],
        width: int = 64,
        inner: int | None = None,
        groups: int = 1,
        squeeze: int | None = None,
        imagenet: bool = True,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.imagenet = imagenet
        self.conv1 = nn.Conv2d(3, width, *((7, 2, 3) if imagenet else (3, 1, 1)), bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = len(blocks)
        channels, inner = width, width if inner is None else inner
        for stage, count in enumerate(blocks):
            made = []
            for k in range(count):
                out, stride = 4 * width * 2**stage, 2 if stage and not k else 1
                made.append(Bottleneck(channels, out, inner * 2**stage, stride, groups, squeeze))
                channels = out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, 1) if self.imagenet else x
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


class ReferenceWideResNet(nn.Module):
    """WRN-(6n+4)-widening."""

    def __init__(self, n: int, widening: int, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        channels = width
        for stage in range(3):
            made = []
            for k in range(n):
                out = width * widening * 2**stage
                made.append(Wide(channels, out, 2 if stage and not k else 1))
                channels = out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
        self.bn, self.fc = nn.BatchNorm2d(channels), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in range(3):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


class ReferenceVGG(nn.Module):
    """Configurations A, B, D and E of Simonyan 2014 as one sequence, initialised as torchvision's."""

    def __init__(
        self, plan: Sequence[int | str], norm: bool, hidden: int = 4096, classes: int = 10, pooled: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for item in plan:
            if item == "M":
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers.append(nn.Conv2d(channels, int(item), 3, padding=1))
            layers += [nn.BatchNorm2d(int(item))] if norm else []
            layers.append(nn.ReLU(inplace=True))
            channels = int(item)
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1 if pooled else 7)
        self.classifier: nn.Module = (
            nn.Linear(channels, classes)
            if pooled
            else nn.Sequential(
                nn.Linear(channels * 49, hidden),
                nn.ReLU(True),
                nn.Dropout(),
                nn.Linear(hidden, hidden),
                nn.ReLU(True),
                nn.Dropout(),
                nn.Linear(hidden, classes),
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def stir(model: nn.Module) -> None:
    """Give norms and biases values of their own, so that none of them can be mistaken for another or left out."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=0.5, std=0.3)


def assert_same(ours: nn.Module, theirs: nn.Module, x: Tensor, tolerance: float = 1e-5) -> None:
    """The same weights give the same outputs, and the same gradients by the inputs and by every parameter."""
    stir(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    found: list[list[Tensor]] = []
    for model in (ours, theirs):
        given = x.clone().requires_grad_()
        torch.manual_seed(5)
        y = model(given)
        back = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        found.append([y, *torch.autograd.grad(y, [given, *model.parameters()], back)])
    names: list[Any] = ["logits", "images", *(name for name, _ in ours.named_parameters())]
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for name, mine, other in zip(names, *found, strict=True):
        assert (mine - other).abs().max() <= tolerance * max(1.0, float(other.detach().abs().max())), name
