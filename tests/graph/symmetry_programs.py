"""Tensor programs drawn at random: cuts, joins, reshapes, products and sums in orders that no network has."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = 400


class Programs(nn.Module):
    """The program of one seed on vectors of 3 numbers; its parameters are made in its first run."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.made = nn.ParameterDict()
        self.run: list[str] = []

    def parameter(self, *shape: int) -> Tensor:
        name = f"p{self.count}"
        self.count += 1
        if name not in self.made:
            self.made[name] = nn.Parameter(torch.ones(shape, dtype=torch.float64))
        return self.made[name]

    def forward(self, x: Tensor) -> Tensor:
        draw = random.Random(self.seed)
        self.count, self.run = 0, []
        x = x @ self.parameter(3, draw.choice([4, 6, 8]))
        seen = [x]
        for _ in range(draw.randint(2, 9)):
            step = draw.choice(STEPS)
            made = step(self, x, seen, draw)
            if made is not None and 0 < made[0].numel() <= LARGEST:
                x = made
                self.run.append(f"{step.__name__} {tuple(x.shape[1:])}")
            seen.append(x)
        x = x.flatten(1)
        return x @ self.parameter(x.shape[1], 2)


Step = Callable[[Programs, Tensor, list[Tensor], random.Random], Tensor | None]


def axis_of(x: Tensor, draw: random.Random) -> int:
    return draw.randrange(1, x.dim())


def linear(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    return x @ net.parameter(x.shape[-1], draw.choice([2, 4, 6]))


def linear_along(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    axis = axis_of(x, draw)
    return F.linear(x.movedim(axis, -1), net.parameter(x.shape[axis], x.shape[axis])).movedim(-1, axis)


def centred_linear(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    weight = net.parameter(4, x.shape[-1])
    return F.linear(x, weight - weight.mean(draw.choice([0, 1]), keepdim=True))


def split(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    axis = axis_of(x, draw)
    parts = [n for n in range(2, x.shape[axis]) if x.shape[axis] % n == 0]
    return x.unflatten(axis, (draw.choice(parts), -1)) if parts and x.dim() < 5 else None


def flatten(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    if x.dim() < 3:
        return None
    axis = draw.randrange(1, x.dim() - 1)
    return x.flatten(axis, axis + 1)


def transpose(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    return x.transpose(axis_of(x, draw), axis_of(x, draw))


def softmax(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    return x.softmax(axis_of(x, draw))


def layer_norm(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    return F.layer_norm(x, x.shape[-1:])


def group_norm(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    groups = [g for g in (2, 3) if x.shape[1] % g == 0]
    if not groups or x.dim() < 3:
        return None
    return F.group_norm(x, groups[0], net.parameter(x.shape[1]), net.parameter(x.shape[1]))


def total(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    return x.sum(axis_of(x, draw), keepdim=draw.random() < 0.4) if x.dim() > 2 else None


def scale(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    return x * net.parameter(*[n if draw.random() < 0.6 else 1 for n in x.shape[1:]])


def add(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    return x + draw.choice([one for one in seen if one.shape == x.shape])


def join(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    axis = axis_of(x, draw)
    others = [one for one in seen if one.dim() == x.dim()]
    fits = [one for one in others if one.select(axis, 0).shape == x.select(axis, 0).shape]
    return torch.cat([x, draw.choice(fits)], axis) if fits else None


def halves(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    axis = axis_of(x, draw)
    if x.shape[axis] % 2:
        return None
    one, other = x.chunk(2, axis)
    return one.tanh() * other if draw.random() < 0.5 else torch.cat([other, one.tanh()], axis)


def expand(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    axis = draw.randrange(1, x.dim() + 1)
    return x.unsqueeze(axis).expand(*x.shape[:axis], 2, *x.shape[axis:]) if x.dim() < 5 else None


def repeat(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    axis = axis_of(x, draw)
    return x.repeat_interleave(2, axis) if draw.random() < 0.5 else torch.cat([x, x], axis)


def product(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    if x.dim() < 3:
        return None
    other = x @ net.parameter(x.shape[-1], x.shape[-1]) if draw.random() < 0.7 else x
    return x @ other.mT if draw.random() < 0.5 else x.mT @ other


def attention(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    if x.dim() < 3:
        return None
    q, k, v = (x @ net.parameter(x.shape[-1], x.shape[-1]) for _ in range(3))
    return F.scaled_dot_product_attention(q, k, v)


def outer(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    return x[:, :, None] * (x @ net.parameter(x.shape[1], 3))[:, None] if x.dim() == 2 else None


def bend(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    return x.tanh() if draw.random() < 0.5 else x.relu()


def pad(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    return F.pad(x, (draw.randint(0, 2), draw.randint(0, 2)))


def crop(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    axis = axis_of(x, draw)
    return x.narrow(axis, draw.randint(0, 1), x.shape[axis] - 1) if x.shape[axis] > 2 else None


def pick(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    return x.select(axis_of(x, draw), 0) if x.dim() > 2 else None


def stack(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    other = draw.choice([one for one in seen if one.shape == x.shape])
    return torch.stack([x, other], draw.randrange(1, x.dim() + 1)) if x.dim() < 4 else None


def go_back(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    return draw.choice(seen)


def in_order(net: Programs, x: Tensor, seen: list[Tensor], draw: random.Random) -> Tensor | None:
    return x * torch.arange(1, x.shape[-1] + 1, dtype=x.dtype) if draw.random() < 0.3 else x.flip(axis_of(x, draw))


STEPS: list[Step] = [
    linear,
    linear,
    linear_along,
    centred_linear,
    split,
    split,
    flatten,
    transpose,
    softmax,
    layer_norm,
]
STEPS += [group_norm, total, scale, scale, add, add, add, join, halves, expand, repeat, product, product, attention]
STEPS += [outer, bend, bend, pad, crop, pick, stack, go_back, in_order]
