"""The Transformer: an encoder that reads, and a decoder that writes while it looks at what was read.

Vaswani et al. 2017 (arXiv:1706.03762). The stacks' parameter names are those of `torch.nn.Transformer`.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skipway.connect import Kind
from skipway.errors import SkipwayError
from skipway.models.attention import Cache
from skipway.models.checks import check_sizes
from skipway.models.positions import PositionKind, Positions, Rotation, counted
from skipway.models.transformer_layers import Decoder, Encoder, LayerPlan, encoder_share


class EncoderDecoder(nn.Module):
    """Both stacks on vectors, without embeddings: what `torch.nn.Transformer` is, whose weights load as they are.

    Source `[n, s, c]` and target `[n, t, c]` to `[n, t, c]`. Masks and paddings are boolean, True where hidden; the
    decoder is causal unless told otherwise. `final_norm` None puts a norm behind a stack where its layers leave the
    stream without one, as pre-norm layers do; `torch.nn.Transformer` always has both.

    >>> import torch
    >>> model = EncoderDecoder(LayerPlan(8, heads=2), layers=1, decoder_layers=1)
    >>> model(torch.ones(2, 7, 8), torch.ones(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        plan: LayerPlan,
        layers: int = 6,
        decoder_layers: int = 6,
        skip: str | Kind = "residual",
        final_norm: bool | None = None,
    ) -> None:
        super().__init__()
        kind = plan.published(skip)
        self.plan = plan
        self.encoder = Encoder(plan, layers, encoder_share(kind, layers, decoder_layers), final_norm)
        self.decoder = Decoder(plan, decoder_layers, kind, final_norm)
        for stack in (self.encoder, self.decoder):
            stack.initialize(nn.init.xavier_uniform_)

    @property
    def depth(self) -> int:
        """Weight layers on the longest path of content: two a branch, a look at the memory starting from the memory."""
        return 4 * len(self.encoder.layers) + 4 * len(self.decoder.layers)

    def forward(
        self,
        source: Float[Tensor, "n s c"],
        target: Float[Tensor, "n t c"],
        source_mask: Bool[Tensor, "..."] | None = None,
        target_mask: Bool[Tensor, "..."] | None = None,
        memory_mask: Bool[Tensor, "..."] | None = None,
        source_padding: Bool[Tensor, "n s"] | None = None,
        target_padding: Bool[Tensor, "n t"] | None = None,
        causal: bool = True,
    ) -> Float[Tensor, "n t c"]:
        memory = self.encoder(source, source_mask, source_padding)
        return self.decoder(target, memory, target_mask, target_padding, memory_mask, source_padding, causal)


class Transformer(EncoderDecoder):
    """The Transformer for translation: tokens to the scores of the next token, at every place of the target.

    Source `[n, s]` and target `[n, t]`, whole numbers below `vocabulary` and `target_vocabulary` (None: one vocabulary
    for both), to logits `[n, t, target_vocabulary]`. `tied` shares one matrix between the target's embedding and the
    output, and with one vocabulary the source's too. `length` is how many positions a learned table holds. Raises
    SkipwayError for tokens out of the vocabulary and for sequences longer than the table.

    >>> import torch
    >>> model = Transformer(LayerPlan(8, heads=2), vocabulary=11, layers=1, decoder_layers=1)
    >>> model(torch.zeros(2, 7, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64)).shape
    torch.Size([2, 5, 11])
    """

    def __init__(
        self,
        plan: LayerPlan,
        vocabulary: int,
        target_vocabulary: int | None = None,
        layers: int = 6,
        decoder_layers: int = 6,
        skip: str | Kind = "residual",
        length: int = 512,
        positions: PositionKind = "sinusoidal",
        tied: bool = True,
        final_norm: bool | None = None,
    ) -> None:
        super().__init__(plan, layers, decoder_layers, skip, final_norm)
        written = vocabulary if target_vocabulary is None else target_vocabulary
        check_sizes(vocabulary=vocabulary, target_vocabulary=written, length=length)
        self.vocabulary, self.target_vocabulary, self.length = vocabulary, written, length
        shared = tied and target_vocabulary in (None, vocabulary)
        self.embedding = nn.Embedding(vocabulary, plan.width)
        self.target_embedding = None if shared else nn.Embedding(written, plan.width)
        self.positions = Positions(positions, plan.width, plan.heads, length)
        # One table of positions serves both sides.
        self.head = None if tied else nn.Linear(plan.width, written, bias=False)
        for module in (self.embedding, self.target_embedding, self.head):
            if module is not None:
                nn.init.normal_(module.weight, std=plan.width**-0.5)

    @property
    def depth(self) -> int:
        """Weight layers on the longest path: the two stacks, and the output."""
        return super().depth + 1

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] (tokens in place of vectors)
        self,
        source: Int[Tensor, "n s"],
        target: Int[Tensor, "n t"],
        source_padding: Bool[Tensor, "n s"] | None = None,
        target_padding: Bool[Tensor, "n t"] | None = None,
    ) -> Float[Tensor, "n t v"]:
        return self.decode(target, self.encode(source, source_padding), source_padding, target_padding)

    def encode(
        self, source: Int[Tensor, "n s"], source_padding: Bool[Tensor, "n s"] | None = None
    ) -> Float[Tensor, "n s c"]:
        """The memory of a source, for `decode`."""
        x, rotation = self._embed(self.embedding, source, 0, source_padding)
        return self.encoder(x, padding=source_padding, rotation=rotation)

    def decode(
        self,
        target: Int[Tensor, "n t"],
        memory: Float[Tensor, "n s c"],
        source_padding: Bool[Tensor, "n s"] | None = None,
        target_padding: Bool[Tensor, "n t"] | None = None,
        cache: Cache | None = None,
        last: bool = False,
    ) -> Float[Tensor, "n t v"] | Float[Tensor, "n v"]:
        """Logits at every place of the target, or at its `last`; with a `cache`, of what follows what it has seen."""
        n, t = target.shape
        start = 0 if cache is None else cache.length
        padding = target_padding if cache is None else cache.pad(n, t, target_padding)
        embedding = self.embedding if self.target_embedding is None else self.target_embedding
        x, rotation = self._embed(embedding, target, start, padding)
        x = self.decoder(x, memory, None, padding, None, source_padding, cache=cache, rotation=rotation)
        if cache is not None:
            cache.advance(t)
        return F.linear(x[:, -1] if last else x, embedding.weight if self.head is None else self.head.weight)

    def _embed(
        self, embedding: nn.Embedding, tokens: Tensor, start: int, padding: Tensor | None
    ) -> tuple[Tensor, Rotation | None]:
        self.positions.check(start + tokens.shape[1])
        x = embed(embedding, tokens) * math.sqrt(self.plan.width)
        places = counted(tokens.shape[1], start, padding, tokens.device)
        x = F.dropout(self.positions(x, places), self.plan.dropout, self.training)
        return x, self.positions.rotation(places)


def embed(embedding: nn.Embedding, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n t c"]:
    """The vectors of tokens; raises SkipwayError for one that the vocabulary does not hold."""
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise SkipwayError(
            f"this model takes tokens, whole numbers of shape [n, t], not {tokens.dtype} of shape {list(tokens.shape)}"
        )
    try:
        return embedding(tokens)
    except IndexError:
        raise SkipwayError(
            f"tokens run from {int(tokens.min())} to {int(tokens.max())}, where this model knows "
            f"{embedding.num_embeddings}: build it with vocabulary={int(tokens.max()) + 1} or more"
        ) from None
