"""What a study survives, each fault done for real, and what it cost: behind each the same study is run again.

Each row is written to results/faults.json when it is done. It holds if the run behind the fault ends, leaves every
record that was there as it was, and gives the numbers of a study that nothing disturbed. As root, a disk is filled for
real; else files may not grow.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
from disturbing import RAY, SMALL, begin, end, flip_digit, half_done, numbers, ray_workers, records, running, until
from skipway.study import Study

MANY: dict[str, Any] = {**SMALL, "skip": ["residual"], "seeds": list(range(200)), "epochs": 1}
KILLED = 0.05


@dataclass
class Row:
    """A fault, what became of it, and whether all that was promised holds."""

    fault: str
    outcome: str = ""
    holds: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


class Table:
    """The faults, one after another, each in a folder of its own."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place, self.random, self.rows = place, random.Random(seed), []
        self.undisturbed: dict[str, Any] = {}
        Study(**SMALL).run(place / "undisturbed", quiet=True)
        self.undisturbed = numbers(place / "undisturbed")

    def add(self, row: Row) -> None:
        self.rows.append(row)

    def again(self, row: Row, folder: Path, values: dict[str, Any] = SMALL) -> None:
        """Run again behind the fault, and look at what came of it."""
        kept, undisturbed = records(folder), self.undisturbed
        if values is not SMALL:
            alone = folder.with_name(f"{folder.name}-alone")
            end(begin(alone, "quiet=True", values))
            undisturbed = numbers(alone)
        said = end(begin(folder, "", values))
        now = records(folder)
        unchanged = all(now.get(name) == content for name, content in kept.items())
        equal = numbers(folder) == undisturbed
        left = sorted(path.name for path in folder.iterdir() if path.name not in ("manifest.json", "trials"))
        row.facts |= {"kept": len(kept), "redone": len(now) - len(kept), "left_behind": left}
        row.holds = unchanged and equal and not left and said.count("finished before") == len(kept)
        row.outcome += (
            f"; run again: {len(kept)} kept, {len(now) - len(kept)} done"
            f"{', as undisturbed' if equal else ', NOT AS UNDISTURBED'}{'' if unchanged else ', A RECORD CHANGED'}"
        )
        self.add(row)

    def killed_process(self, workers: int) -> None:
        folder = self.place / f"process-{workers}"
        process = begin(folder, f"workers={workers}, quiet=True")
        until(lambda: half_done(folder), process)
        below = running("spawn_main", process.pid)
        process.kill()
        end(process)
        until(lambda: not set(below) & set(running("spawn_main")))
        self.again(Row(f"kill -9 of the study, {workers} worker(s)", "ended, and its workers with it"), folder)

    def killed_worker(self) -> None:
        folder = self.place / "worker"
        process = begin(folder, "workers=2")
        until(lambda: any(folder.glob("unfinished/*.ckpt")), process)
        os.kill(self.random.choice(running("spawn_main", process.pid)), signal.SIGKILL)
        said = end(process)
        self.again(Row("kill -9 of a local worker", f"begun again {said.count('is begun again')} time(s)"), folder)

    def killed_ray_worker(self) -> None:
        folder = self.place / "ray-worker"
        process = begin(folder, f"engine={RAY}")
        until(lambda: any(folder.glob("unfinished/*.ckpt")), process)
        os.kill(self.random.choice(until(lambda: ray_workers(process.pid), process)), signal.SIGKILL)
        said = end(process)
        self.again(Row("kill -9 of a Ray worker", f"begun again {said.count('is begun again')} time(s)"), folder)

    def killed_head(self) -> None:
        """What runs goes on without a head, so it takes trials that outlast the patience with it."""
        folder, values = self.place / "ray-head", {**SMALL, "seeds": [0, 1], "epochs": 600}
        process = begin(folder, f"engine={RAY}, quiet=True", values)
        until(lambda: len(list(folder.glob("unfinished/*.ckpt"))) == 2, process)
        start = time.monotonic()
        os.kill(running("gcs_server", process.pid)[0], signal.SIGKILL)
        said = end(process).splitlines()[-1:]
        row = Row("kill -9 of the Ray head", f"after {time.monotonic() - start:.0f} s: {' '.join(said)}")
        self.again(row, folder, values)

    def ctrl_c(self, name: str, options: str, below: str) -> None:
        folder = self.place / f"ctrl-c-{name}"
        process = begin(folder, f"{options}, quiet=True")
        until(lambda: half_done(folder), process)
        children = running(below, process.pid)
        os.killpg(process.pid, signal.SIGINT)
        said = end(process).splitlines()[-1:]
        until(lambda: not set(children) & set(running(below)))
        self.again(Row(f"Ctrl-C, {name}", " ".join(said).replace(str(folder), "FOLDER")), folder)

    def full_disk(self) -> None:
        folder = self.place / "disk"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        limit = None if mounted else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        try:
            said = end(begin(folder / "run", preexec_fn=limit)).splitlines()[-1:]
            shutil.copytree(folder / "run", self.place / "roomy")
        finally:
            if mounted:
                subprocess.run(["umount", str(folder)], check=True)
        how = "a file system of 128 KB" if mounted else "files of 20 KB at most"
        self.again(Row(f"full disk ({how})", " ".join(said).replace(str(folder), "DISK")), self.place / "roomy")

    def damaged(self, what: str, how: str) -> None:
        """Of a study that was killed: a record or a checkpoint, cut in half or with one byte, digit or bit changed."""
        folder = self.place / f"damaged-{what}-{how}"
        process = begin(folder)
        until(lambda: half_done(folder), process)
        process.kill()
        end(process)
        path = next(folder.glob("trials/*.json" if what == "record" else "unfinished/*.ckpt"))
        content = bytearray(path.read_bytes())
        if how == "truncated":
            path.write_bytes(content[: len(content) // 2])
        elif how == "with another digit":
            flip_digit(path)
        else:
            place = content.index(b'"curves"') + 3 if what == "record" else len(content) // 2
            content[place] ^= 4
            path.write_bytes(content)
        kept = {name: whole for name, whole in records(folder).items() if name != path.name}
        said = end(begin(folder, ""))
        line = next((line for line in said.splitlines() if "cannot be read" in line), "NOT NAMED")
        aside = path.with_name(f"{path.name}.unreadable-1")
        now = records(folder)
        equal, unchanged = numbers(folder) == self.undisturbed, all(now[name] == kept[name] for name in kept)
        redone = 4 - said.count("finished before")
        holds = equal and unchanged and aside.exists() and path.name in line and redone == 4 - len(kept)
        outcome = (
            f"named, kept as {aside.name[-12:]}; {len(kept)} kept, {redone} done, "
            f"{'as' if equal else 'NOT AS'} undisturbed"
        )
        self.add(Row(f"{what} {how}", outcome, holds, {"said": line.replace(str(folder), "FOLDER")}))

    def two_processes(self) -> None:
        # The first has to be at it for as long as the others take to start.
        folder, values = self.place / "two", {**SMALL, "epochs": 200}
        first = begin(folder, values=values)
        until(lambda: half_done(folder), first)
        second, third = begin(folder, values=values), begin(folder, "wait=True", values)
        refused, waited = end(second), end(third)
        end(first)
        said = refused.splitlines()[-1].replace(str(folder), "FOLDER").replace(str(first.pid), "PID")
        waiting = waited.count("finished before") == 4 and f"in use by process {first.pid}" in refused
        found = "it found 4 finished" if waiting else f"IT SAID {waited}"
        row = Row("two processes on one folder", f"the second said: {said}; told to wait, {found}")
        self.again(row, folder, values)
        row.holds &= waiting

    def diverged(self) -> None:
        folder, values = self.place / "diverged", {**SMALL, "learning_rate": [1e30, 0.1], "seeds": [0]}
        first = end(begin(folder, "", values))
        kept = records(folder)
        again = end(begin(folder, "", values))
        holds = first.count("diverged in round") == 1 and again.count("finished before") == 2
        holds &= kept == records(folder)
        self.add(Row("loss of NaN", "recorded as diverged, shown as such, not done again; the other trial ends", holds))

    def no_memory(self) -> None:
        folder, values = self.place / "memory", {**SMALL, "width": [4, 300_000, 8], "seeds": [0], "epochs": 1}
        first = end(begin(folder, "", values))
        again = end(begin(folder, "", values))
        said = next((line for line in first.splitlines() if "out of memory" in line), "")
        holds = "2 records 1 failed" in first and "2 records 1 failed" in again
        holds &= again.count("finished before") == 2 and again.count("failed: out of memory") == 1
        self.add(Row("out of memory", f"fails alone: {said}", holds))

    def limited_worker(self) -> None:
        """Address space for a small network and not for a wide one, as a job's limit on a shared machine has it."""
        folder, values = self.place / "limited", {**SMALL, "width": [4, 6000, 8], "seeds": [0], "epochs": 1}
        limit = 12 * 2**30
        bound = lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # noqa: E731
        first = end(begin(folder, "workers=2", values, preexec_fn=bound))
        said = next((line for line in first.splitlines() if "out of memory" in line), first[-200:])
        holds = "2 records 1 failed" in first
        self.add(Row("out of memory in a worker of 12 GiB (RLIMIT_AS)", f"fails alone: {said}", holds))

    def many(self, trials: int) -> None:
        """Trials through Ray, of whose workers a share is killed while they run, at moments that a seed chose."""
        folder, values = self.place / "many", {**MANY, "seeds": MANY["seeds"][:trials]}
        kills = round(KILLED * trials)
        moments = sorted(self.random.sample(range(1, trials - 4), kills))
        start = time.monotonic()
        process = begin(folder, f"engine={RAY}", values)
        seen: dict[str, int] = {}
        killed = 0
        log = folder.with_suffix(".log")
        while process.poll() is None:
            for path in folder.glob("trials/*.json"):
                seen.setdefault(path.name, path.stat().st_ino)
            if killed < kills and len(seen) >= moments[killed] and (workers := ray_workers(process.pid)):
                os.kill(self.random.choice(workers), signal.SIGKILL)
                killed += 1
            time.sleep(0.05)
        said = end(process)
        log.write_text(said)
        seconds = time.monotonic() - start
        files = list(folder.glob("trials/*.json"))
        rewritten = sum(seen.get(path.name, path.stat().st_ino) != path.stat().st_ino for path in files)
        ended = len(re.findall(r"^\[ *\d+/\d+\]", said, re.MULTILINE))
        ids = {json.loads(path.read_text())["seed"] for path in files}
        facts = {
            "trials": trials, "workers_killed": killed, "begun_again": said.count("is begun again"),
            "records": len(files), "seeds": len(ids), "reported_as_ended": ended, "records_written_twice": rewritten,
            "seconds": round(seconds, 1),
        }  # fmt: skip
        holds = len(files) == len(ids) == ended == trials and killed == kills and rewritten == 0
        holds &= f"{trials} records 0 failed" in said
        outcome = f"{len(files)} recorded once; {killed} workers killed, {facts['begun_again']} trials begun again"
        self.add(Row(f"{trials} trials through Ray, 5 % of the workers killed", outcome, holds, facts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200, help="Of the row with many trials.")
    parser.add_argument("--seed", type=int, default=0, help="Which workers are killed, and when.")
    parser.add_argument("rows", nargs="*", help="Only these rows, by the names that results/faults.json has.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        table = Table(Path(place), options.seed)
        rows: dict[str, Callable[[], None]] = {
            "process-1": lambda: table.killed_process(1),
            "process-2": lambda: table.killed_process(2),
            "worker": table.killed_worker,
            "ray-worker": table.killed_ray_worker,
            "ray-head": table.killed_head,
            "ctrl-c": lambda: table.ctrl_c("two workers", "workers=2", "spawn_main"),
            "ctrl-c-ray": lambda: table.ctrl_c("Ray", f"engine={RAY}", "gcs_server|raylet"),
            "disk": table.full_disk,
            "record-truncated": lambda: table.damaged("record", "truncated"),
            "record-corrupted": lambda: table.damaged("record", "corrupted"),
            "record-digit": lambda: table.damaged("record", "with another digit"),
            "checkpoint-truncated": lambda: table.damaged("checkpoint", "truncated"),
            "checkpoint-corrupted": lambda: table.damaged("checkpoint", "corrupted"),
            "two": table.two_processes,
            "nan": table.diverged,
            "memory": table.no_memory,
            "limited": table.limited_worker,
            "many": lambda: table.many(options.trials),
        }
        for name, do in rows.items():
            if not options.rows or name in options.rows:
                do()
                row = table.rows[-1]
                print(f"{'holds' if row.holds else 'FAILS':6}{row.fault}: {row.outcome}", flush=True)
                keep(name, row)
    if broken := [row.fault for row in table.rows if not row.holds]:
        sys.exit(f"not survived: {broken}")


def keep(name: str, row: Row) -> None:
    """Write a row into the table of those that were done before."""
    path = measure.RESULTS / "faults.json"
    rows = json.loads(path.read_text())["results"] if path.exists() else {}
    with contextlib.redirect_stdout(None):
        measure.record("faults", {**rows, name: vars(row)})


if __name__ == "__main__":
    main()
