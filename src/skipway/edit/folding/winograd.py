"""3x3 convolutions by Winograd's algorithm: a quarter of the products, for some sums before and behind them.

A tile of 4x4 outputs is a polynomial product, found from its values at six points along each axis (Lavin and Gray 2015,
arXiv:1509.09308, F(4x4, 3x3)): Y = A' [(G g G') * (B' d B)] A for a tile d of 6x6 inputs and a kernel g.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from skipway.edit.folding.backend import pack_convolution

TILE, KERNEL = 4, 3
WINDOW = TILE + KERNEL - 1
PRODUCTS = WINDOW * WINDOW
# Five points and infinity. Of the simple fractions these round least: 1.1e-6 of the outputs' norm for 128 channels in
# float32, where 0, 1, -1, 2, -2 give 2.2e-6 and direct convolution 0.2e-6.
_POINTS = (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2))


@functools.cache
def transforms() -> tuple[Tensor, Tensor, Tensor]:
    """The matrices A' (4 x 6), G (6 x 3) and B' (6 x 6) of one axis, in float64."""
    back, kernel, window = [], [], []
    for point in _POINTS:
        others = [other for other in _POINTS if other != point]
        norm = math.prod(point - other for other in others)
        back.append([point**power for power in range(TILE)])
        kernel.append([point**power / norm for power in range(KERNEL)])
        window.append([*_polynomial(others), Fraction(0)])
    back.append([Fraction(power == TILE - 1) for power in range(TILE)])
    kernel.append([Fraction(power == KERNEL - 1) for power in range(KERNEL)])
    window.append(_polynomial(list(_POINTS)))
    a, g, b = (torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64)
               for rows in (back, kernel, window))  # fmt: skip
    return a.T.contiguous(), g, b


def _polynomial(roots: list[Fraction]) -> list[Fraction]:
    """The coefficients of the product of (x - root), the constant one first."""
    found = [Fraction(1)]
    for root in roots:
        found = [low - root * high for low, high in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)]
    return found


def transformed_weight(weight: Tensor) -> Tensor:
    """G g G' for every pair of channels, as the weight of a 1x1 convolution in 36 groups; rounded once."""
    _, g, _ = transforms()
    values = torch.einsum("ak,bl,ockl->aboc", g, g, weight.double())
    return values.reshape(PRODUCTS * weight.shape[0], weight.shape[1], 1, 1).to(weight.dtype)


def transformed_bias(bias: Tensor) -> Tensor:
    """What has to be added to the products so that each output gets `bias`."""
    a, _, _ = transforms()
    ones = torch.linalg.pinv(a).sum(1)
    return torch.einsum("a,b,o->abo", ones, ones, bias.double()).reshape(-1).to(bias.dtype)


class Winograd:
    """A 3x3 convolution with stride 1 of images of one shape, on weights and biases that were transformed.

    Along the width one matrix product makes the six values of all tiles of a row, borders included; along the height
    one product makes them for each row of tiles. Pixels go by row of tiles, image and column of tiles, so that every
    product reads and writes memory in steps of one length, and nothing is moved in between.
    """

    def __init__(self, shape: tuple[int, ...], padding: tuple[int, ...], dtype: torch.dtype, fused: bool) -> None:
        self.n, self.c, self.h, self.w = shape
        self.fused = fused
        self.__name__ = "winograd"
        self.out_h, self.out_w = (side + 2 * pad - KERNEL + 1 for side, pad in zip(shape[2:], padding, strict=True))
        self.down, self.across = -(-self.out_h // TILE), -(-self.out_w // TILE)
        a, _, b = transforms()
        columns = torch.zeros(self.across, WINDOW, self.w, dtype=torch.float64)
        for tile in range(self.across):
            first, last = self._inside(tile, padding[1], self.w)
            start = tile * TILE - padding[1]
            columns[tile, :, first:last] = b[:, first - start : last - start]
        self._columns = columns.flatten(0, 1).to(dtype).expand(self.h * self.n, -1, -1)
        self._rows = []
        for tile in range(self.down):
            first, last = self._inside(tile, padding[0], self.h)
            start = tile * TILE - padding[0]
            part = b[:, first - start : last - start].to(dtype).contiguous()
            self._rows.append((first, last, part.expand(self.n * self.across, -1, -1)))
        self._back = torch.kron(a, a).to(dtype).expand(self.down * self.n * self.across, -1, -1)

    @staticmethod
    def _inside(tile: int, padding: int, size: int) -> tuple[int, int]:
        """The part of a tile's window that does not lie in the border."""
        start = tile * TILE - padding
        first = min(max(start, 0), size)
        return first, max(first, min(start + WINDOW, size))

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        n, down, across = self.n, self.down, self.across
        rows = torch.bmm(self._columns, x.permute(2, 0, 3, 1).reshape(self.h * n, self.w, self.c))
        rows = rows.view(self.h, n * across, WINDOW * self.c).transpose(0, 1)
        values = x.new_empty(down, n * across, WINDOW, WINDOW * self.c)
        for place, (first, last, matrix) in enumerate(self._rows):
            torch.bmm(matrix, rows[:, first:last], out=values[place])
        return self._joined(torch.bmm(self._back, self._products(values, weight, bias)))

    def packed(self, weight: Tensor) -> Tensor:
        """A transformed weight as oneDNN's call reads it."""
        rows = self.down * self.n
        return pack_convolution(weight, [0, 0], [1, 1], [1, 1], PRODUCTS, [1, PRODUCTS * self.c, rows, self.across])

    def _products(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The products over channels at each of the 36 points, by tile."""
        tiles = self.down * self.n * self.across
        if self.fused:
            image = values.view(1, tiles // self.across, self.across, PRODUCTS * self.c).permute(0, 3, 1, 2)
            ones, none = [1, 1], [0, 0]
            convolution: Any = torch.ops.mkldnn._convolution_pointwise.default
            found = convolution(image, weight, bias, none, ones, ones, PRODUCTS, "none", [], "")
            return found.permute(0, 2, 3, 1).reshape(tiles, PRODUCTS, -1)
        factors = weight.view(PRODUCTS, -1, self.c).transpose(1, 2)
        by_point = values.view(tiles, PRODUCTS, self.c).transpose(0, 1)
        if bias is None:
            return torch.bmm(by_point, factors).transpose(0, 1)
        return torch.baddbmm(bias.view(PRODUCTS, 1, -1), by_point, factors).transpose(0, 1)

    def _joined(self, tiles: Tensor) -> Tensor:
        """Tiles of 4x4 as images with channels last, what juts out over the border left away."""
        n, c = self.n, tiles.shape[-1]
        out = tiles.new_empty(n, self.out_h, self.out_w, c)
        for row, rows, high in self._whole_and_rest(self.out_h):
            for column, columns, wide in self._whole_and_rest(self.out_w):
                size = (n, rows, high, columns, wide, c)
                tile = TILE * TILE * c
                source = (self.across * tile, n * self.across * tile, TILE * c, tile, c, 1)
                start = (row * n * self.across + column) * tile
                line = self.out_w * c
                target = (self.out_h * line, TILE * line, line, TILE * c, c, 1)
                part = out.as_strided(size, target, TILE * (row * line + column * c))
                part.copy_(tiles.as_strided(size, source, start))
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def _whole_and_rest(size: int) -> list[tuple[int, int, int]]:
        """Runs of tiles that are cut alike: the first, how many, and how much of each is wanted."""
        whole, rest = divmod(size, TILE)
        return [run for run in ((0, whole, TILE), (whole, 1, rest)) if run[1] and run[2]]
