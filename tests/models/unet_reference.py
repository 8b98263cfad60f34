"""A U-Net of torch.nn alone, with the names of milesial/Pytorch-UNet: what ours is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DoubleConv(nn.Module):
    def __init__(self, channels: int, out: int, middle: int, valid: bool) -> None:
        super().__init__()
        padding, normed = (0 if valid else 1), not valid

        def one(a: int, b: int) -> list[nn.Module]:
            norm: list[nn.Module] = [nn.BatchNorm2d(b)] if normed else [nn.Identity()]
            return [nn.Conv2d(a, b, 3, padding=padding, bias=not normed), *norm, nn.ReLU(inplace=True)]

        self.double_conv = nn.Sequential(*one(channels, middle), *one(middle, out))

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class Down(nn.Module):
    def __init__(self, channels: int, out: int, valid: bool) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(channels, out, out, valid))

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool_conv(x)


class Up(nn.Module):
    def __init__(self, channels: int, out: int, bilinear: bool, valid: bool) -> None:
        super().__init__()
        self.up = (
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            if bilinear
            else nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        )
        self.conv = DoubleConv(channels, out, channels // 2 if bilinear else out, valid)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        below = self.up(below)
        rows, columns = skip.shape[2] - below.shape[2], skip.shape[3] - below.shape[3]
        if self.conv.double_conv[0].padding == (0, 0):
            top, left = rows // 2, columns // 2
            skip = skip[:, :, top : top + below.shape[2], left : left + below.shape[3]]
        else:
            below = F.pad(below, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.conv(torch.cat([skip, below], 1))


class Head(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ReferenceUNet(nn.Module):
    """Four levels; `valid` is the form of 2015, without padding and norms and with biases."""

    def __init__(self, channels: int, classes: int, width: int = 64, bilinear: bool = False, valid: bool = False):
        super().__init__()
        w, factor = [width * 2**level for level in range(5)], 2 if bilinear else 1
        self.inc = DoubleConv(channels, w[0], w[0], valid)
        self.down1 = Down(w[0], w[1], valid)
        self.down2 = Down(w[1], w[2], valid)
        self.down3 = Down(w[2], w[3], valid)
        self.down4 = Down(w[3], w[4] // factor, valid)
        self.up1 = Up(w[4], w[3] // factor, bilinear, valid)
        self.up2 = Up(w[3], w[2] // factor, bilinear, valid)
        self.up3 = Up(w[2], w[1] // factor, bilinear, valid)
        self.up4 = Up(w[1], w[0], bilinear, valid)
        self.outc = Head(w[0], classes)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x4 = self.down3(x3)
        x = self.up1(self.down4(x4), x4)
        return self.outc(self.up4(self.up3(self.up2(x, x3), x2), x1))
