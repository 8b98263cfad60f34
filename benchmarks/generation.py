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


def seconds(model: Any, prompts: list[list[int]], strategy: Strategy, cache: bool) -> tuple[float, list[list[int]]]:
    """How long it takes to write behind prompts of one token, and what was written."""
    start = time.perf_counter()
    written = generate(model, prompts, TOKENS, strategy, cache=cache)
    return time.perf_counter() - start, [line.tolist() for line in written]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    model = sw.models.create("gpt2", length=TOKENS + 1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    cases: dict[str, tuple[list[list[int]], Strategy]] = {
        "greedy, one prompt": ([[1]], Greedy()),
        "sampling, two prompts": ([[1], [2]], Sampling(top_k=40)),
    }
    results: dict[str, Any] = {"model": "gpt2", "written": TOKENS}
    for name, case in cases.items():
        # What the first run writes is compared.
        runs = [(seconds(model, *case, True), seconds(model, *case, False)) for _ in range(rounds)]
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
