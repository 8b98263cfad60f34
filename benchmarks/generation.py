"""Writing 256 tokens with the cache of keys and values against reading all of them again for each."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

import measure
import skipway as sw
from skipway.models.generation import Greedy, Sampling, Strategy, generate

TOKENS = 256


def seconds(model: Any, strategy: Strategy, cache: bool) -> tuple[float, list[int]]:
    """How long it takes to write behind a prompt of one token, and what was written."""
    start = time.perf_counter()
    (written,) = generate(model, [[1]], TOKENS, strategy, cache=cache)
    return time.perf_counter() - start, written.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    model = sw.models.create("gpt2", length=TOKENS + 1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    strategies = {"greedy": Greedy(), "sampling": Sampling(top_k=40)}
    results: dict[str, Any] = {"model": "gpt2", "written": TOKENS}
    for name, strategy in strategies.items():
        # What the first run writes is compared.
        runs = [(seconds(model, strategy, True), seconds(model, strategy, False)) for _ in range(rounds)]
        (_, first), (_, second) = runs[0]
        results[name] = {
            "seconds_with": round(statistics.median(run[0][0] for run in runs), 3),
            "seconds_without": round(statistics.median(run[1][0] for run in runs), 3),
            "times_faster": round(statistics.median(run[1][0] / run[0][0] for run in runs), 2),
            "same_tokens": first == second,
        }
    measure.record("generation", results)


if __name__ == "__main__":
    main()
