"""BLEU of a whole set of translations, from counts that may be added up over its parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor


def bleu_counts(written: Sequence[str], meant: Sequence[str]) -> Float64[Tensor, " 10"]:
    """N-grams of 1 to 4 words that were also meant, n-grams written, and words written and meant.

    Lines are cut into words as in the shared tasks (sacrebleu's "13a"), with capitals as they are.
    """
    from torchmetrics.text import SacreBLEUScore

    score = SacreBLEUScore(tokenize="13a")
    score.update(list(written), [[line] for line in meant])
    return torch.cat([score.numerator, score.denominator, score.preds_len[None], score.target_len[None]]).double()


def bleu(counts: Float64[Tensor, " 10"]) -> float:
    """min(1, e^(1 - r/c)) (p_1 p_2 p_3 p_4)^(1/4), from 0 to 100; 0 where not one n-gram of some n was meant.

    p_n is the share of n-grams written that were meant, c and r are the words written and meant. Papineni et al. 2002.

    >>> bleu(bleu_counts(["a cat sat on a mat"], ["a cat sat on a mat"]))
    100.0
    """
    meant, written, (c, r) = counts[:4].tolist(), counts[4:8].tolist(), counts[8:].tolist()
    if min(meant) == 0:
        return 0.0
    brevity = min(0.0, 1 - r / c)
    return 100 * math.exp(brevity + sum(math.log(m / w) for m, w in zip(meant, written, strict=True)) / 4)
