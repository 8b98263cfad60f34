"""BERT: a Transformer's encoder alone, every token seeing all others, which fills in what was hidden or tells classes.

Devlin et al. 2018 (arXiv:1810.04805). Layers are named as `torch.nn.TransformerEncoderLayer` names them; published
BERT weights load by their layout.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skipway.connect import Kind
from skipway.errors import choose
from skipway.models.checks import check_sizes
from skipway.models.positions import PositionKind, Positions, counted
from skipway.models.transformer import embed
from skipway.models.transformer_layers import Encoder, LayerPlan

Head = Literal["language", "classification", "pooled"]


class LanguageHead(nn.Module):
    """Scores of the tokens that may stand at a place: a linear map, GELU, a norm, and the embedding's own matrix."""

    def __init__(self, width: int, vocabulary: int, epsilon: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, x: Float[Tensor, "n t c"], embedding: Float[Tensor, "v c"]) -> Float[Tensor, "n t v"]:
        return F.linear(self.norm(F.gelu(self.dense(x))), embedding, self.bias)


class BERT(nn.Module):
    """A bidirectional encoder of tokens `[n, t]`, whole numbers below `vocabulary`.

    `head` says what comes out: "language" is scores `[n, t, vocabulary]` of what stands at every place, which is
    trained on hidden tokens; "classification" scores `[n, num_classes]` read off the first token; "pooled" what the
    latter are read from, `[n, c]`. `padding` is True where a token is none, `segments` numbers the sentences of a
    pair, 0 or 1. Raises SkipwayError for tokens out of the vocabulary, sequences that are too long, and connections
    that look at several tokens.

    >>> import torch
    >>> model = BERT(LayerPlan(8, heads=2, activation="gelu"), layers=1, vocabulary=11, length=16)
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
        head: Head = "language",
        num_classes: int = 2,
        positions: PositionKind = "learned",
    ) -> None:
        super().__init__()
        choose("head", head, ("language", "classification", "pooled"))
        check_sizes(vocabulary=vocabulary, length=length, num_classes=num_classes)
        self.plan, self.vocabulary, self.length = plan, vocabulary, length
        self.embedding = nn.Embedding(vocabulary, plan.width)
        self.positions = Positions(positions, plan.width, plan.heads, length)
        self.segments = nn.Embedding(2, plan.width)
        self.embedding_norm = nn.LayerNorm(plan.width, eps=plan.epsilon)
        self.stack = Encoder(plan, layers, skip)
        self.head = LanguageHead(plan.width, vocabulary, plan.epsilon) if head == "language" else None
        self.pooler = nn.Linear(plan.width, plan.width) if head != "language" else None
        self.classifier = nn.Linear(plan.width, num_classes) if head == "classification" else None
        self._initialize()

    def _initialize(self) -> None:
        draw = partial(nn.init.normal_, std=0.02)
        self.stack.initialize(draw)
        for embedding in (self.embedding, self.segments):
            draw(embedding.weight)
        for linear in (None if self.head is None else self.head.dense, self.pooler, self.classifier):
            if linear is not None:
                draw(linear.weight)
                nn.init.zeros_(linear.bias)

    @property
    def depth(self) -> int:
        """Weight layers on the longest path: the branches' linear maps, and the head's."""
        return 4 * len(self.stack.layers) + (1 if self.head is None and self.classifier is None else 2)

    def forward(
        self,
        tokens: Int[Tensor, "n t"],
        padding: Bool[Tensor, "n t"] | None = None,
        segments: Int[Tensor, "n t"] | None = None,
    ) -> Float[Tensor, "..."]:
        x = self.encode(tokens, padding, segments)
        if self.head is not None:
            return self.head(x, self.embedding.weight)
        assert self.pooler is not None
        pooled = torch.tanh(self.pooler(x[:, 0]))
        if self.classifier is None:
            return pooled
        return self.classifier(F.dropout(pooled, self.plan.dropout, self.training))

    def encode(
        self,
        tokens: Int[Tensor, "n t"],
        padding: Bool[Tensor, "n t"] | None = None,
        segments: Int[Tensor, "n t"] | None = None,
    ) -> Float[Tensor, "n t c"]:
        """What the last layer says of every token."""
        self.positions.check(tokens.shape[-1])
        x = embed(self.embedding, tokens)
        x = x + (self.segments.weight[0] if segments is None else self.segments(segments))
        places = counted(tokens.shape[1], 0, None, tokens.device)
        x = F.dropout(self.embedding_norm(self.positions(x, places)), self.plan.dropout, self.training)
        return self.stack(x, padding=padding, rotation=self.positions.rotation(places))
