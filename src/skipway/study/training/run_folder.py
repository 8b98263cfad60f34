"""The folder of a training: what was declared, the checkpoints, the history, the record and the curve."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from skipway.errors import SkipwayError
from skipway.storing import write_whole
from skipway.study.records.writing import write_json, write_text

FORMAT = 1
Curves = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class RunFolder:
    """Where a training keeps what it has: every file is whole, or is not there."""

    path: Path

    @property
    def declared(self) -> Path:
        return self.path / "run.json"

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    @property
    def checkpoint(self) -> Path:
        """The state of the training after its last whole round, from which it goes on."""
        return self.path / "last.ckpt"

    @property
    def best(self) -> Path:
        """The weights of the round that was the best, as a file that `models.create(weights=...)` takes."""
        return self.path / "best.pt"

    @property
    def last(self) -> Path:
        return self.path / "last.pt"

    def claim(
        self,
        declaration: Mapping[str, Any],
        offered: Mapping[str, Any],
        facts: Mapping[str, Any],
        files: Mapping[str, str],
    ) -> None:
        """Make the folder this training's; raises SkipwayError where it is another's already."""
        self.path.mkdir(parents=True, exist_ok=True)
        declaration = json.loads(json.dumps(declaration))
        if not self.declared.exists():
            for name, text in files.items():
                write_text(self.path / name, text)
            write_json(self.declared, {"format": FORMAT, "training": declaration, "offered": offered, "data": facts})
            return
        kept, asked = _flat(self.read()["training"]), _flat(declaration)
        # The same data may be called by another path now.
        moved = kept["fingerprint"] == asked["fingerprint"]
        for name in kept:
            if kept[name] != asked.get(name) and not (moved and name == "data"):
                raise SkipwayError(
                    f"'{self.path}' holds a training with {name} {_short(kept[name])}, not {_short(asked.get(name))}; "
                    "choose another folder (--out), or the same settings to go on with it"
                )

    def read(self) -> dict[str, Any]:
        """What `claim` wrote; raises SkipwayError for a folder of anything else."""
        try:
            content = json.loads(self.declared.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SkipwayError(f"'{self.path}' is no folder of 'skipway train': it has no run.json") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise SkipwayError(f"'{self.declared}' cannot be read: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise SkipwayError(f"'{self.declared}' is of another version of skipway, or of another program")
        return content

    def write_weights(self, path: Path, state: Mapping[str, torch.Tensor]) -> None:
        content = io.BytesIO()
        torch.save({name: value.detach().cpu() for name, value in state.items()}, content)
        write_whole(path, content.getvalue())

    def write_history(self, curves: Curves) -> None:
        """history.csv: a row a round, a column a curve."""
        names = list(curves)
        rows = [["round", *names]]
        for number, values in enumerate(zip(*(curves[name] for name in names), strict=True), start=1):
            rows.append([str(number), *(repr(value) for value in values)])
        write_text(self.path / "history.csv", "\n".join(",".join(row) for row in rows) + "\n")

    def draw(self, curves: Curves, judge: str, title: str) -> None:
        """curve.png: the losses, and the metric that judges, over the rounds."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.6), layout="constrained")
        losses, metric = figure.subplots(1, 2)
        for name in [name for name in curves if name in ("loss", "validation_loss")]:
            label = "training" if name == "loss" else "held out"
            losses.plot(range(1, len(curves[name]) + 1), curves[name], marker=".", label=label)
        losses.set(xlabel="round", ylabel="loss")
        losses.legend(frameon=False)
        shown = judge if judge != "validation_loss" else "learning_rate"
        metric.plot(range(1, len(curves[shown]) + 1), curves[shown], marker=".", color="C1")
        metric.set(xlabel="round", ylabel=shown.removeprefix("validation_").replace("_", " "))
        for axes in (losses, metric):
            axes.grid(alpha=0.3)
            axes.xaxis.get_major_locator().set_params(integer=True)
        figure.suptitle(title)
        self.write_figure(self.path / "curve.png", figure)

    def write_figure(self, path: Path, figure: Any) -> None:
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=120)
        write_whole(path, content.getvalue())


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = value if name in ("data", "recipe") else {}
        flat |= {part.replace("_", " "): one for part, one in inner.items()} or {name: value}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
