"""GPT: a Transformer's causal stack alone, which writes on from what it has read.

Radford et al. 2018 and 2019 (GPT-2). Layers are named as `torch.nn.TransformerEncoderLayer` names them; published
GPT-2 weights load by their layout.
"""

from __future__ import annotations

import math
from functools import partial

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skipway.connect import Kind
from skipway.models.attention import Cache
from skipway.models.checks import check_sizes
from skipway.models.positions import PositionKind, Positions, counted
from skipway.models.transformer import embed
from skipway.models.transformer_layers import Encoder, LayerPlan


class GPT(nn.Module):
    """A decoder-only Transformer: tokens to the scores of the next token, at every place.

    Tokens `[n, t]`, whole numbers below `vocabulary`, to logits `[n, t, vocabulary]`; no place sees those behind it.
    `padding` `[n, t]` is True where a token is none: it has no influence and no position. `length` is the longest
    sequence that learned positions tell. `tied` shares one matrix between embedding and output. Raises SkipwayError
    for tokens out of the vocabulary, sequences that are too long, and connections that look at several tokens.

    >>> import torch
    >>> model = GPT(LayerPlan(8, heads=2, placement="pre-norm"), layers=1, vocabulary=11, length=16)
    >>> model(torch.zeros(2, 5, dtype=torch.int64)).shape
    torch.Size([2, 5, 11])
    """

    def __init__(
        self,
        plan: LayerPlan,
        layers: int,
        vocabulary: int,
        length: int,
        skip: str | Kind = "residual",
        positions: PositionKind = "learned",
        tied: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(vocabulary=vocabulary, length=length)
        self.plan, self.vocabulary, self.length = plan, vocabulary, length
        self.embedding = nn.Embedding(vocabulary, plan.width)
        self.positions = Positions(positions, plan.width, plan.heads, length)
        self.stack = Encoder(plan, layers, skip)
        self.head = None if tied else nn.Linear(plan.width, vocabulary, bias=False)
        self._initialize(layers)

    def _initialize(self, layers: int) -> None:
        self.stack.initialize(partial(nn.init.normal_, std=0.02))
        # What each branch adds is drawn narrower, so that the stream does not grow with depth (GPT-2, section 2.3).
        for name, parameter in self.stack.named_parameters():
            if name.endswith(("out_proj.weight", "linear2.weight")):
                parameter.data /= math.sqrt(2 * layers)
        for module in (self.embedding, self.head):
            if module is not None:
                nn.init.normal_(module.weight, std=0.02)

    @property
    def depth(self) -> int:
        """Weight layers on the longest path: the branches' linear maps, and the output."""
        return 4 * len(self.stack.layers) + 1

    def forward(
        self,
        tokens: Int[Tensor, "n t"],
        padding: Bool[Tensor, "n t"] | None = None,
        cache: Cache | None = None,
        last: bool = False,
    ) -> Float[Tensor, "n t v"] | Float[Tensor, "n v"]:
        """Logits at every place, or at the `last`; with a `cache`, of tokens that follow those it has seen."""
        start = 0 if cache is None else cache.length
        self.positions.check(start + tokens.shape[-1])
        x = embed(self.embedding, tokens)
        n, t = tokens.shape
        padding = padding if cache is None else cache.pad(n, t, padding)
        places = counted(t, start, padding, tokens.device)
        x = F.dropout(self.positions(x, places), self.plan.dropout, self.training)
        x = self.stack(x, padding=padding, causal=True, cache=cache, rotation=self.positions.rotation(places))
        if cache is not None:
            cache.advance(t)
        return F.linear(x[:, -1] if last else x, self.embedding.weight if self.head is None else self.head.weight)
