"""Attention between tokens, its masks, and the cache of keys and values that generation keeps.

Vaswani et al. 2017 (arXiv:1706.03762). Parameter names are those of `torch.nn.MultiheadAttention`. In every mask here
True hides: a query does not see that key.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.models.positions import Rotation, rotate

Pair = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head attention: softmax(Q K^T / sqrt(d)) V in every head, the heads joined and projected.

    Queries come from x `[n, t, c]`, keys and values from `source` `[n, s, c]`, or from x itself. `mask`, `padding` and
    `causal` are as `join_masks` takes them; a query that sees nothing gets zeros. `rotation` turns queries and keys of
    self-attention (`positions.Rotation`). With a `cache`, x attends to all that the cache has seen before it too, and
    the projections of a `source` are made once. Raises SkipwayError for shapes that do not fit.

    >>> attention = Attention(8, heads=2)
    >>> attention(torch.ones(1, 5, 8), causal=True).shape
    torch.Size([1, 5, 8])
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise SkipwayError(f"the width must be a multiple of the number of heads: {channels} is none of {heads}")
        self.channels, self.heads, self.dropout = channels, heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        x: Float[Tensor, "n t c"],
        source: Float[Tensor, "n s c"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        padding: Bool[Tensor, "n r"] | None = None,
        causal: bool = False,
        cache: Cache | None = None,
        rotation: Rotation | None = None,
    ) -> Float[Tensor, "n t c"]:
        if source is None:
            queries, keys, values = self._heads(F.linear(x, self.in_proj_weight, self.in_proj_bias), 3)
            if rotation is not None:
                queries, keys = rotate(queries, rotation), rotate(keys, rotation)
            if cache is not None:
                keys, values = cache.extend(self, keys, values)
        else:
            # Split at once, so that the gradients of both parts are written into one.
            of_query, of_source = self.in_proj_weight.split([self.channels, 2 * self.channels])
            query_bias, source_bias = self.in_proj_bias.split([self.channels, 2 * self.channels])
            (queries,) = self._heads(F.linear(x, of_query, query_bias), 1)

            def project() -> Pair:
                keys, values = self._heads(F.linear(source, of_source, source_bias), 2)
                return keys, values

            keys, values = project() if cache is None else cache.once(self, project)
        mask, causal = join_masks(queries.size(2), keys.size(2), mask, padding, causal, x.device)
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=None if mask is None else ~mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal,
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def initialize(self, draw: Callable[[Tensor], object], gain: float = 1.0) -> None:
        """Draw all matrices anew and set the biases to 0; those of values and output, `gain` times as wide."""
        with torch.no_grad():
            for matrix in (self.in_proj_weight, self.out_proj.weight):
                draw(matrix)
            self.in_proj_weight[2 * self.channels :] *= gain
            self.out_proj.weight *= gain
            for bias in (self.in_proj_bias, self.out_proj.bias):
                bias.zero_()

    def _heads(self, projected: Tensor, parts: int) -> list[Tensor]:
        """Tensors of shape [n, heads, t, c / heads] from what one product made of several parts."""
        return [
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (projected.chunk(parts, dim=-1) if parts > 1 else (projected,))
        ]

    def extra_repr(self) -> str:
        return f"{self.channels}, heads={self.heads}, dropout={self.dropout:g}"


def join_masks(
    queries: int,
    keys: int,
    mask: Bool[Tensor, "..."] | None = None,
    padding: Bool[Tensor, "n s"] | None = None,
    causal: bool = False,
    device: torch.device | None = None,
) -> tuple[Bool[Tensor, "..."] | None, bool]:
    """One mask from several, and whether a causal one is left to the attention itself.

    `mask` hides keys from queries: `[t, s]`, `[n, t, s]` or `[n, heads, t, s]`; `padding` `[n, s]` hides keys from all;
    `causal` hides from a query the keys behind it, the last query standing at the last key. Raises SkipwayError for a
    mask that is not boolean, or of another shape.

    >>> join_masks(2, 3, padding=torch.tensor([[True, False, False]]), causal=True)[0].int().tolist()
    [[[[1, 0, 1], [1, 0, 0]]]]
    """
    joined: Tensor | None = None
    for given, name, shape in ((mask, "mask", (queries, keys)), (padding, "padding", (keys,))):
        if given is None:
            continue
        if given.dtype != torch.bool:
            raise SkipwayError(f"a {name} is boolean, True where a token is hidden, not {given.dtype}: compare first")
        last = tuple(given.shape[-len(shape) :])
        if last not in (shape, (1, keys)) or given.ndim > 4:
            raise SkipwayError(
                f"the {name} is {tuple(given.shape)}, where {queries} tokens look at {keys}: its last axes must be "
                f"{' x '.join(map(str, shape))}"
            )
        if name == "padding":
            given = given[:, None, None, :]
        elif given.ndim == 3:
            given = given[:, None]
        joined = given if joined is None else joined | given
    if not causal or queries == 1:
        return joined, False
    if joined is None and queries == keys:
        return None, True
    later = torch.ones(queries, keys, dtype=torch.bool, device=device).triu(keys - queries + 1)
    return later if joined is None else joined | later, False


class Cache:
    """The keys and values of all tokens that a model has read, so that each new one is read alone.

    A model given one reads tokens that follow those it read with it before. Of no use in training: what it holds has
    no gradient.

    >>> cache = Cache()
    >>> cache.length
    0
    """

    def __init__(self) -> None:
        self.length = 0
        self.padding: Tensor | None = None
        self._seen: dict[nn.Module, Pair] = {}
        self._fixed: dict[nn.Module, Pair] = {}

    def extend(self, module: nn.Module, keys: Tensor, values: Tensor) -> Pair:
        """All keys and values of a module so far, with those of new tokens at the end."""
        if torch.is_grad_enabled() and keys.requires_grad:
            raise SkipwayError("a cache holds no gradients: read with it under torch.no_grad()")
        end = self.length + keys.size(2)
        held = self._seen.get(module)
        if held is None or held[0].size(2) < end:
            # Room for as much again, so that a token seldom costs a copy of all before it.
            room = [*keys.shape[:2], max(2 * end, 32), keys.size(3)]
            larger = keys.new_empty(room), values.new_empty(room)
            if held is not None:
                for new, old in zip(larger, held, strict=True):
                    new[:, :, : self.length] = old[:, :, : self.length]
            held = self._seen[module] = larger
        for store, new in zip(held, (keys, values), strict=True):
            store[:, :, self.length : end] = new
        return held[0][:, :, :end], held[1][:, :, :end]

    def once(self, module: nn.Module, make: Callable[[], Pair]) -> Pair:
        """Keys and values that do not change from token to token, made at the first."""
        if module not in self._fixed:
            self._fixed[module] = make()
        return self._fixed[module]

    def pad(self, n: int, t: int, padding: Tensor | None) -> Tensor | None:
        """Which of all tokens, new ones included, are padding; None if none was ever said to be."""
        if padding is None and self.padding is None:
            return None
        given = padding if padding is not None else self.padding
        assert given is not None
        before = given.new_zeros(n, self.length) if self.padding is None else self.padding
        after = given.new_zeros(n, t) if padding is None else padding
        self.padding = torch.cat((before, after), dim=1)
        return self.padding

    def advance(self, t: int) -> None:
        """Count t tokens as read, once every module has taken them in."""
        self.length += t

    def reorder(self, rows: Tensor) -> None:
        """Go on with these rows of the batch, in this order; a row may come more than once."""
        for held in (self._seen, self._fixed):
            for module, pair in held.items():
                held[module] = pair[0][rows], pair[1][rows]
        if self.padding is not None:
            self.padding = self.padding[rows]
