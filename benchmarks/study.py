"""What a study costs beside its training, what a second worker gains, and how long a finished one takes to resume.

Each is a promise with a limit. A study is compared with `fit`, the same loop without the study; what a person waits for
is measured as the whole command, from a shell.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import measure
from skipway.study import Study
from skipway.study.running.trial import study_task
from skipway.study.tasks.problems import Problems
from skipway.study.training.determinism import WEIGHTS, derive, isolated
from skipway.study.training.loop import Loop, fit
from skipway.study.training.plan import make_order

LIMITS = {"overhead": 0.03, "two_workers": 0.6, "resume_seconds": 3.0, "report_seconds": 20.0}
# An epoch of these takes about a second on one core.
LONG: dict[str, Any] = {"depth": [44], "skip": ["residual"], "width": 8, "batch_size": 64, "seeds": [0]}
FINISHED: dict[str, Any] = {
    "depth": [8, 14], "skip": ["none", "residual", "rezero", "highway", "stochastic-depth"], "seeds": list(range(20)),
    "width": 4, "batch_size": 64, "limit": 64, "epochs": 1,
}  # fmt: skip


def overhead(place: Path, epochs: int, rounds: int) -> dict[str, Any]:
    """A study of one trial against the loop in it, in turn, in processor time of one thread."""
    study = Study(**LONG, epochs=epochs)
    (trial,) = study.trials()
    problem = Problems().of(study.choice(trial.variant))
    count = 0

    def in_study() -> None:
        nonlocal count
        count += 1
        study.run(place / f"study-{count}", quiet=True)

    def bare() -> None:
        recipe, task = study.plan(trial.variant, problem).recipe, study_task(problem.task)
        with isolated(True), tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(derive(trial.seed, 0, WEIGHTS))
            network = study.build(trial.variant, problem)
            loop = Loop(network, task, recipe, make_order(task, recipe, trial.seed), epochs)
            fit(loop, Path(folder) / "loop.ckpt", lambda epoch, share: None)

    runs: dict[str, Callable[[], Any]] = {"study": in_study, "loop": bare}
    seconds = measure.alternate(runs, rounds, warmup=1, clock=time.process_time)
    quotients = [a / b - 1 for a, b in zip(seconds["study"], seconds["loop"], strict=True)]
    return {
        "epochs": epochs,
        "seconds_an_epoch": round(statistics.median(seconds["loop"]) / epochs, 3),
        "median": round(statistics.median(quotients), 4),
        "all": [round(one, 4) for one in quotients],
    }


def two_workers(place: Path, epochs: int) -> dict[str, Any]:
    """Eight equal trials by one worker and by two, each a command from its start to its end."""
    values = {**LONG, "seeds": list(range(8)), "epochs": epochs}
    seconds = {}
    for workers in (1, 2):
        folder = str(place / f"workers-{workers}")
        code = f"from skipway.study import Study\nStudy(**{values!r}).run({folder!r}, {workers})\n"
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
        seconds[workers] = time.perf_counter() - start
    return {
        "trials": 8,
        "epochs": epochs,
        "seconds": {str(workers): round(one, 1) for workers, one in seconds.items()},
        "share": round(seconds[2] / seconds[1], 3),
    }


def resume(place: Path, trials: int, rounds: int) -> dict[str, Any]:
    """A finished study run again, and its report built, as commands."""
    seeds = FINISHED["seeds"][: max(1, trials // 10)]
    values = {**FINISHED, "seeds": seeds}
    folder, file = place / "finished", place / "finished.toml"
    Study(**values).run(folder, workers=2, quiet=True)
    lines = [f"{name} = {str(value).lower() if isinstance(value, bool) else value!r}" for name, value in values.items()]
    file.write_text("\n".join(lines).replace("'", '"') + "\n")
    command = [sys.executable, "-m", "skipway", "study", "run", str(file), "--out", str(folder)]
    built = [_timed(command)]
    again = [_timed(command) for _ in range(rounds)]
    code = f"from skipway.study.running.results import read_results\nread_results({str(folder)!r}).report()\n"
    report = [_timed([sys.executable, "-c", code]) for _ in range(rounds)]
    return {
        "trials": 10 * len(seeds),
        "first_seconds": round(built[0], 2),
        "resume_seconds": round(statistics.median(again), 2),
        "report_seconds": round(statistics.median(report), 2),
        "report_kilobytes": (folder / "report.html").stat().st_size // 1024,
    }


def _timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=16, help="Of a trial whose overhead is measured.")
    parser.add_argument("--trials", type=int, default=200, help="Of the finished study.")
    parser.add_argument("--only", choices=("overhead", "two_workers", "resume"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="study-") as folder:
        place = Path(folder)
        runs: dict[str, Callable[[], dict[str, Any]]] = {
            "overhead": lambda: overhead(place, options.epochs, options.rounds),
            "two_workers": lambda: two_workers(place, options.epochs),
            "resume": lambda: resume(place, options.trials, options.rounds),
        }
        results: dict[str, Any] = {"limits": LIMITS}
        for name, run in runs.items():
            if options.only in (None, name):
                results[name] = run()
                print(name, results[name], flush=True)
    if options.only is None:
        measure.record("study", results)
    found = {
        "overhead": results.get("overhead", {}).get("median"),
        "two_workers": results.get("two_workers", {}).get("share"),
        **{name: results.get("resume", {}).get(name) for name in ("resume_seconds", "report_seconds")},
    }
    if beyond := [name for name, value in found.items() if value is not None and value > LIMITS[name]]:
        sys.exit(f"beyond the limit: {beyond}")


if __name__ == "__main__":
    main()
