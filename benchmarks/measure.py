"""Measuring ours and a peer fairly: in turn in one process, medians, and what a training step holds in memory."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def alternate(
    runs: dict[str, Callable[[], Any]],
    rounds: int,
    warmup: int = 2,
    pause: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each run in each round; within a round all run once, and who goes first moves on by one a round.

    `pause` seconds lie before each: the threads of some runtimes go on turning for a while after a run, at the cost of
    whoever comes next. With one thread, `clock=time.process_time` leaves out what other processes take.
    """
    names = list(runs)
    for _ in range(warmup):
        for name in names:
            runs[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                time.sleep(pause)
                start = clock()
                runs[name]()
                seconds[name].append(clock() - start)
    finally:
        gc.enable()
    return seconds


def keep_memory() -> None:
    """Have the C library keep what is freed, as it comes to in a long run; else whoever allocates in another pattern
    than the run before it pays for pages that were given back, which is most of what is seen in short comparisons."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        for option, value in ((trim_threshold, 2**31 - 1), (top_pad, 2**28), (mmap_threshold, 2**25)):
            library.mallopt(option, value)


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """The median of our time over theirs, round by round, with its quartiles: below 1 we are faster."""
    quotients = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    low, middle, high = statistics.quantiles(quotients, n=4)
    return {"median": round(middle, 4), "lower_quartile": round(low, 4), "upper_quartile": round(high, 4)}


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that torch had allocated during a run, above what it had at the start."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    results = profile.profiler.kineto_results if profile.profiler is not None else None
    assert results is not None
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue] (torch has it and does not declare it)
        peak = max(peak, held)
    return peak


def against(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """The time and the memory of the run "ours" against those of "theirs"."""
    seconds = alternate(runs, rounds)
    memory = {name: peak_bytes(run) for name, run in runs.items()}
    return {
        "time_ratio": ratio(seconds["ours"], seconds["theirs"]),
        "milliseconds": {name: round(sorted(times)[len(times) // 2] * 1000, 1) for name, times in seconds.items()},
        "memory_ratio": round(memory["ours"] / memory["theirs"], 4),
        "peak_mib": {name: round(held / 2**20, 1) for name, held in memory.items()},
    }


def record(name: str, results: dict[str, Any]) -> None:
    """Print the results, and write them with what they were measured on to results/NAME.json."""
    machine = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine, "results": results}, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return model + (" with AMX" if any("amx_bf16" in line for line in lines) else "")
