"""Writing token by token: `generate` goes on from prompts, `translate` from sources; three ways to choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skipway.errors import SkipwayError
from skipway.models.attention import Cache
from skipway.models.gpt import GPT
from skipway.models.transformer import Transformer

Reader = Callable[[Tensor, Tensor | None, Cache | None], Tensor]
Rows = Tensor | Sequence[Tensor] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Greedy:
    """The likeliest token at every step.

    >>> Greedy()
    Greedy()
    """


@dataclass(frozen=True)
class Sampling:
    """A token drawn from softmax(logits / temperature), the same ones for the same seed.

    `top_k` leaves only the k likeliest; `top_p` only the fewest whose probabilities sum to p or more (nucleus
    sampling: Holtzman et al. 2019, arXiv:1904.09751). Raises SkipwayError for numbers out of range.

    >>> Sampling(temperature=0.8, top_k=40).seed
    0
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise SkipwayError(f"a temperature is above 0, not {self.temperature}: near 0 it is Greedy()")
        if self.top_k is not None and self.top_k < 1:
            raise SkipwayError(f"top_k leaves at least 1 token, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise SkipwayError(f"top_p lies in (0, 1], not {self.top_p}")

    def probabilities(self, logits: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
        """What each token is drawn with."""
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[1]:
            least = logits.topk(self.top_k, dim=1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        if self.top_p is not None:
            ordered, order = logits.softmax(1).sort(dim=1, descending=True)
            # A token stays if those before it do not reach p yet, so that the first always does.
            beyond = ordered.cumsum(1) - ordered >= self.top_p
            logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -math.inf)
        return logits.softmax(1)


@dataclass(frozen=True)
class Beam:
    """The likeliest of the sequences found when `width` of them are kept at every step.

    They are compared by log p / ((5 + length) / 6)^length_penalty (Wu et al. 2016, arXiv:1609.08144); the Transformer
    of 2017 took a width of 4 and a penalty of 0.6. Raises SkipwayError for numbers out of range.

    >>> round(Beam().penalty(7), 4)
    1.5157
    """

    width: int = 4
    length_penalty: float = 0.6

    def __post_init__(self) -> None:
        if self.width < 1 or self.length_penalty < 0:
            raise SkipwayError(
                f"a beam has a width of at least 1 and a penalty of at least 0, not {self.width}, {self.length_penalty}"
            )

    def penalty(self, length: int) -> float:
        """What the log-probability of a sequence is divided by."""
        return ((5 + length) / 6) ** self.length_penalty


Strategy = Greedy | Sampling | Beam


def generate(
    model: GPT,
    prompts: Rows,
    length: int,
    strategy: Strategy = Greedy(),
    end: int | None = None,
    cache: bool = True,
) -> list[Tensor]:
    """What a GPT writes behind each prompt: at most `length` tokens, up to the `end` token, which is left out.

    `prompts` are tokens `[n, t]`, or a list of prompts of several lengths. The model is run as in evaluation, and is
    then as it was. Without the `cache` of keys and values every token costs a reading of all before it. Raises
    SkipwayError for empty prompts, and where prompt and length exceed the positions that the model learned.

    >>> from skipway.models import gpt
    >>> [len(tokens) for tokens in generate(gpt(1, 8, vocabulary=5, length=9), [[1, 2], [3]], length=6)]
    [6, 6]
    """
    _check(length, strategy)
    tokens, padding = rows(prompts, _device(model), left=True)
    model.positions.check(tokens.shape[1] + length - 1)

    def read(tokens: Tensor, padding: Tensor | None, cache: Cache | None) -> Tensor:
        return model(tokens, padding, cache, last=True)

    with _evaluating(model):
        return _write(lambda times: read, tokens, padding, length, strategy, end, cache)


def translate(
    model: Transformer,
    sources: Rows,
    start: int,
    end: int | None,
    length: int,
    strategy: Strategy = Beam(),
    cache: bool = True,
) -> list[Tensor]:
    """What a Transformer writes for each source, from the `start` token to the `end` token, both left out.

    `sources` are tokens `[n, s]`, or a list of sources of several lengths; at most `length` tokens are written. The
    model is run as in evaluation, and is then as it was. Raises SkipwayError for empty sources, and where the length
    exceeds the positions that the model learned.

    >>> from skipway.models import transformer
    >>> model = transformer(1, 8, vocabulary=5)
    >>> [len(tokens) for tokens in translate(model, [[1, 2], [3]], start=0, end=None, length=6)]
    [6, 6]
    """
    _check(length, strategy)
    device = _device(model)
    source, hidden = rows(sources, device, left=False)
    model.positions.check(length)
    starts = torch.full((len(source), 1), start, device=device)
    with _evaluating(model):
        memory = model.encode(source, hidden)

        def reader(times: int) -> Reader:
            # The beams of one source lie together and all look at the same memory.
            repeated = memory.repeat_interleave(times, 0)
            unseen = None if hidden is None else hidden.repeat_interleave(times, 0)
            return lambda tokens, padding, cache: model.decode(tokens, repeated, unseen, padding, cache, last=True)

        return _write(reader, starts, None, length, strategy, end, cache)


def rows(
    given: Rows, device: torch.device | str = "cpu", left: bool = False
) -> tuple[Int[Tensor, "n t"], Bool[Tensor, "n t"] | None]:
    """Sequences of several lengths as one batch and its padding, on the right or `left`; None where none is needed.

    >>> rows([[1, 2], [3]])
    (tensor([[1, 2],
            [3, 0]]), tensor([[False, False],
            [False,  True]]))
    """
    if isinstance(given, Tensor):
        if given.ndim != 2 or given.is_floating_point() or not given.numel():
            raise SkipwayError(
                f"give tokens of shape [n, t], at least one in each row, or a list of sequences: not {given.dtype} of "
                f"shape {list(given.shape)}"
            )
        return given.to(device), None
    sequences = [torch.as_tensor(one, dtype=torch.int64, device=device) for one in given]
    if not sequences or any(one.ndim != 1 or not len(one) for one in sequences):
        raise SkipwayError("give at least one sequence, and at least one token in each: a start token, for one")
    longest = max(map(len, sequences))
    tokens = torch.zeros(len(sequences), longest, dtype=torch.int64, device=device)
    padding = torch.ones(len(sequences), longest, dtype=torch.bool, device=device)
    for row, one in enumerate(sequences):
        place = slice(longest - len(one), longest) if left else slice(len(one))
        tokens[row, place], padding[row, place] = one, False
    return tokens, padding if padding.any() else None


# Up to so many rows the product of a matrix and them is faster than that of them and the matrix.
_FEW = 4
_TENSORS = (Tensor, nn.Parameter)


class _FewRows(TorchFunctionMode):
    """Linear maps of one to four vectors as (W x^T)^T: the same numbers, for which a CPU reads the weights but once.

    As x W^T such a product takes two to four times as long with MKL, and a step of generation as much longer. A single
    vector is cut in two halves, and so is every row of W: the product with two columns keeps all cores reading.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and all(type(given) in _TENSORS for given in args[:2]):
            x, weight, *bias = args
            plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
            if plain and 1 <= x.numel() // x.shape[-1] <= _FEW and not torch.is_autocast_enabled("cpu"):
                y = _few(x.reshape(-1, x.shape[-1]), weight)
                y = y if not bias or bias[0] is None else y + bias[0]
                return y.reshape(*x.shape[:-1], len(weight))
        return func(*args, **(kwargs or {}))


def _few(x: Float[Tensor, "r c"], weight: Float[Tensor, "d c"]) -> Float[Tensor, "r d"]:
    if len(x) == 1 and x.shape[1] % 2 == 0 and weight.is_contiguous():
        halves = torch.mm(weight.view(2 * len(weight), -1), x.reshape(2, -1).t()).view(-1, 2, 2)
        return (halves[:, 0, 0] + halves[:, 1, 1])[None]
    # Where one row of x does not lie behind the other, the product takes three times as long.
    return torch.mm(weight, x.contiguous().t()).t()


class _Reading:
    """What has been written in every row, and the logits of what follows it."""

    def __init__(self, read: Reader, tokens: Tensor, padding: Tensor | None, cached: bool) -> None:
        self.read, self.tokens, self.padding = read, tokens, padding
        self.cache = Cache() if cached else None

    def next(self) -> Float[Tensor, "r v"]:
        if self.cache is None or self.tokens.shape[1] > 1 or len(self.tokens) > _FEW:
            return self.read(self.tokens, self.padding, self.cache).float()
        with _FewRows():
            return self.read(self.tokens, self.padding, self.cache).float()

    def append(self, tokens: Int[Tensor, "r"], rows: Int[Tensor, "r"] | None = None) -> None:
        """Write a token in every row, which goes on from what row `rows` holds."""
        new = tokens[:, None]
        if self.cache is not None:
            if rows is not None:
                self.cache.reorder(rows)
            self.tokens, self.padding = new, None
            return
        before, hidden = self.tokens, self.padding
        if rows is not None:
            before, hidden = before[rows], None if hidden is None else hidden[rows]
        self.tokens = torch.cat((before, new), dim=1)
        self.padding = None if hidden is None else torch.cat((hidden, torch.zeros_like(hidden[:, :1])), dim=1)


def _write(
    reader: Callable[[int], Reader],
    tokens: Tensor,
    padding: Tensor | None,
    length: int,
    strategy: Strategy,
    end: int | None,
    cached: bool,
) -> list[Tensor]:
    if isinstance(strategy, Beam):
        times = strategy.width
        hidden = None if padding is None else padding.repeat_interleave(times, 0)
        reading = _Reading(reader(times), tokens.repeat_interleave(times, 0), hidden, cached)
        return _search(reading, len(tokens), length, strategy, end)
    generator = None
    if isinstance(strategy, Sampling):
        generator = torch.Generator(tokens.device).manual_seed(strategy.seed)
    reading, written = _Reading(reader(1), tokens, padding, cached), []
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for step in range(length):
        logits = reading.next()
        if isinstance(strategy, Sampling):
            chosen = torch.multinomial(strategy.probabilities(logits), 1, generator=generator)[:, 0]
        else:
            chosen = logits.argmax(1)
        written.append(chosen)
        if end is not None:
            ended |= chosen == end
            if ended.all():
                break
        if step + 1 < length:
            reading.append(chosen)
    return [_until(row, end) for row in torch.stack(written, dim=1)]


def _until(tokens: Tensor, end: int | None) -> Tensor:
    found = [] if end is None else (tokens == end).nonzero()[:1, 0].tolist()
    return tokens[: found[0]] if found else tokens


def _search(reading: _Reading, n: int, length: int, beam: Beam, end: int | None) -> list[Tensor]:
    width = beam.width
    device = reading.tokens.device
    scores = torch.full((n, width), -math.inf, device=device)
    scores[:, 0] = 0  # all beams of a row start alike, so only one of them counts
    written = torch.empty(n * width, 0, dtype=torch.int64, device=device)
    best: list[tuple[float, Tensor]] = [(-math.inf, written[0])] * n
    open_rows = set(range(n))
    for step in range(1, length + 1):
        log_probabilities = reading.next().log_softmax(1).view(n, width, -1)
        v = log_probabilities.shape[2]
        totals, places = (scores[:, :, None] + log_probabilities).flatten(1).topk(min(2 * width, width * v), dim=1)
        rows, chosen, kept_scores = [], [], []
        for row, (row_totals, row_places) in enumerate(zip(totals.tolist(), places.tolist(), strict=True)):
            kept: list[tuple[float, int, int]] = []
            for rank, (total, place) in enumerate(zip(row_totals, row_places, strict=True)):
                source, token = row * width + place // v, place % v
                if token == end:
                    score = total / beam.penalty(step)
                    if rank < width and row in open_rows and score > best[row][0]:
                        best[row] = score, written[source]
                elif len(kept) < width:
                    kept.append((total, source, token))
            kept += [(-math.inf, row * width, 0)] * (width - len(kept))
            # No log-probability rises, so this is the most that what is kept can still come to.
            if row in open_rows and best[row][0] >= kept[0][0] / beam.penalty(length):
                open_rows.remove(row)
            kept_scores.append([total for total, _, _ in kept])
            rows += [source for _, source, _ in kept]
            chosen += [token for _, _, token in kept]
        scores = torch.tensor(kept_scores, device=device)
        taken, order = torch.tensor(chosen, device=device), torch.tensor(rows, device=device)
        written = torch.cat((written[order], taken[:, None]), dim=1)
        if not open_rows:
            break
        if step < length:
            reading.append(taken, order)
    for row in open_rows:
        score = float(scores[row, 0]) / beam.penalty(length)
        if score > best[row][0]:
            best[row] = score, written[row * width]
    return [tokens for _, tokens in best]


def _check(length: int, strategy: Strategy) -> None:
    if length < 1:
        raise SkipwayError(f"length is how many tokens to write, at least 1, not {length}")
    if not isinstance(strategy, (Greedy, Sampling, Beam)):
        raise SkipwayError(f"strategy= takes Greedy(), Sampling(...) or Beam(...), not {strategy!r}")


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradients and as in evaluation; every module then trains again that did."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
