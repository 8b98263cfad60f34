"""Whole networks equal networks written out in the test with torch's functions, from the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import skipway as sw
from skipway.models import ResNet, ResNetPlan, cifar_resnet

Placement = Literal["original", "norm-after-sum", "relu-before-sum", "relu-pre-activation", "pre-activation"]


@dataclass(frozen=True)
class Written:
    """A ResNet as its papers write it. Norms take the statistics of the batch."""

    weights: dict[str, Tensor]
    blocks: tuple[int, ...]
    placement: Placement = "original"
    shortcut: Literal["none", "append", "split", "projection", "everywhere", "pooled"] = "append"
    bottleneck: bool = False
    imagenet: bool = False
    first_strides: bool = False

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.batch_norm(x, None, None, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], training=True)

    def past(self, x: Tensor, read: Tensor, here: str, out_channels: int, stride: int) -> Tensor | int:
        """The shortcut: of the raw x where it has no weights, of what the branch reads where it has."""
        if self.shortcut == "none":
            return 0
        same = stride == 1 and x.shape[1] == out_channels
        if same and self.shortcut != "everywhere":
            return x
        if self.shortcut in ("append", "split"):
            new = out_channels - x.shape[1]
            before = new // 2 if self.shortcut == "split" else 0
            return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, new - before))
        pools = self.shortcut == "pooled" and stride > 1
        y = F.avg_pool2d(read, stride, ceil_mode=True, count_include_pad=False) if pools else read
        y = self.conv(y, f"{here}.downsample.{int(pools)}", 1 if pools else stride)
        return y if self.placement == "pre-activation" else self.norm(y, f"{here}.downsample.{1 + int(pools)}")

    def block(self, x: Tensor, here: str, stride: int) -> Tensor:
        convolutions = 3 if self.bottleneck else 2
        last = f"{here}.conv{convolutions}"
        out_channels = self.weights[f"{last}.weight"].shape[0]
        first = 1 if self.bottleneck and not self.first_strides else 0
        strides = [stride if k == first else 1 for k in range(convolutions)]
        read = x
        offset = 1
        if self.placement == "pre-activation":
            read, offset = torch.relu(self.norm(x, f"{here}.bn1")), 2
        elif self.placement == "relu-pre-activation":
            read = torch.relu(x)
        y = read
        for k in range(convolutions - 1):
            y = self.conv(y, f"{here}.conv{k + 1}", strides[k])
            y = torch.relu(self.norm(y, f"{here}.bn{k + offset}"))
        y = self.conv(y, last, strides[-1])
        past = self.past(x, read, here, out_channels, stride)
        final = f"{here}.bn{convolutions}"
        match self.placement:
            case "original":
                return torch.relu(self.norm(y, final) + past)
            case "norm-after-sum":
                return torch.relu(self.norm(y + past, f"{here}.connection.norm_after"))
            case "relu-before-sum":
                return torch.relu(self.norm(y, final)) + past
            case "relu-pre-activation":
                return self.norm(y, final) + past
            case "pre-activation":
                return y + past

    def __call__(self, x: Tensor) -> Tensor:
        x = self.conv(x, "conv1", 2 if self.imagenet else 1)
        if self.placement != "pre-activation":
            x = self.norm(x, "bn1")
        if self.placement not in ("pre-activation", "relu-pre-activation"):
            x = torch.relu(x)
        if self.imagenet:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage, count in enumerate(self.blocks, 1):
            for k in range(count):
                x = self.block(x, f"layer{stage}.{k}", 2 if stage > 1 and k == 0 else 1)
        if self.placement == "pre-activation":
            x = self.norm(x, "bn")
        if self.placement in ("pre-activation", "relu-pre-activation"):
            x = torch.relu(x)
        return F.linear(x.mean((2, 3)), self.weights["fc.weight"], self.weights["fc.bias"])


def check(model: ResNet, written: Callable[[dict[str, Tensor]], Written], size: int) -> None:
    """Outputs, and gradients by the images and by every parameter, in double precision."""
    model = model.double()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if "weight" in name else 0.0, std=0.3)
    weights: dict[str, Tensor] = dict(model.named_parameters())
    x = torch.randn(4, 3, size, size + 1, dtype=torch.float64, requires_grad=True)
    ours, theirs = model(x), written(weights)(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    back = torch.randn_like(ours)
    found, expected = (torch.autograd.grad(y, [x, *weights.values()], back) for y in (ours, theirs))
    for name, ours_by, theirs_by in zip(["images", *weights], found, expected, strict=True):
        torch.testing.assert_close(ours_by, theirs_by, rtol=1e-7, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


SHORTCUTS = {
    "none": "none",
    "residual": "append",
    "zero-pad-split": "split",
    "projection": "projection",
    "projection-everywhere": "everywhere",
    "pooled-projection": "pooled",
}


@pytest.mark.parametrize(("skip", "shortcut"), SHORTCUTS.items())
@pytest.mark.parametrize("size", [8, 9, 11])
def test_cifar_resnet_with_each_shortcut(skip: str, shortcut: str, size: int) -> None:
    check(cifar_resnet(14, skip, width=4), lambda w: Written(w, (2, 2, 2), shortcut=shortcut), size)  # type: ignore[arg-type]


@pytest.mark.parametrize("skips", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize(
    "placement", ["original", "norm-after-sum", "relu-before-sum", "relu-pre-activation", "pre-activation"]
)
def test_the_five_placements_of_he_2016(placement: Placement, skips: bool) -> None:
    skip = sw.Residual(placement=placement) if skips else sw.Plain(placement)
    shortcut = "append" if skips else "none"
    check(cifar_resnet(14, skip, width=4), lambda w: Written(w, (2, 2, 2), placement, shortcut), 8)


@pytest.mark.parametrize("preactivation", [False, True])
def test_cifar_resnet_of_bottlenecks(preactivation: bool) -> None:
    """He's own pre-activation nets stride on the first 1x1 and project the activated stream, without a norm."""
    model = cifar_resnet(20, width=4, block="bottleneck", preactivation=preactivation)
    placement = "pre-activation" if preactivation else "original"
    check(model, lambda w: Written(w, (2, 2, 2), placement, "projection", True, False, preactivation), 9)


@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_imagenet_resnet(bottleneck: bool, preactivation: bool) -> None:
    placement: Placement = "pre-activation" if preactivation else "original"
    block = "bottleneck" if bottleneck else "basic"
    model = ResNet(ResNetPlan((1, 2, 1), 4, block, placement=placement), num_classes=5)
    check(model, lambda w: Written(w, (1, 2, 1), placement, "projection", bottleneck, True), 33)


def test_evaluation_takes_the_running_statistics() -> None:
    model = cifar_resnet(8, width=4)
    for _ in range(5):
        model(torch.randn(8, 3, 8, 8) + 1)
    model.eval()
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(torch.cat([model(one[None]) for one in x]), model(x), rtol=1e-4, atol=1e-5)


def test_single_precision_agrees_to_1e_5() -> None:
    model = cifar_resnet(14, width=4)
    weights: dict[str, Tensor] = dict(model.named_parameters())
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    ours, theirs = model(x), Written(weights, (2, 2, 2))(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    back = torch.randn_like(ours)
    found, expected = (torch.autograd.grad(y, [x, *weights.values()], back) for y in (ours, theirs))
    for ours_by, theirs_by in zip(found, expected, strict=True):
        assert (ours_by - theirs_by).abs().max() <= 1e-5 * max(1, float(theirs_by.abs().max()))
