"""Where the curves of a training go beside its own files: TensorBoard, MLflow or Weights & Biases, on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from skipway.engines import Halt
from skipway.errors import choose, missing_extra
from skipway.torchrun import writes

LOGGERS = ("csv", "tensorboard", "mlflow", "wandb")
LoggerName = Literal["csv", "tensorboard", "mlflow", "wandb"]
_TAG = "skipway.id"


@dataclass(frozen=True)
class Track:
    """What a tracker calls a training: its group (an experiment, a project), its name, and an id that never changes.

    A training that goes on behind an interruption goes on in the same run, which is known by the id. `part` is where
    in the folder a training has its own events, if there are others.
    """

    folder: Path
    group: str
    name: str
    id: str
    part: str = ""


def check_logger(logger: str) -> None:
    """Raise SkipwayError for a logger that there is not, and MissingExtra for one that is not installed."""
    if choose("logger", logger, LOGGERS) != "csv" and importlib.util.find_spec(logger) is None:
        raise missing_extra(logger, logger, f"the logger '{logger}'")


def check_far(logger: str) -> None:
    """Raise Halt for a logger that writes into a database of the study's folder, on a machine that does not see it."""
    if logger == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise Halt(
            "a machine of the cluster does not see the study's folder, where MLflow's database is: set "
            "MLFLOW_TRACKING_URI to a server that all machines reach, or use the logger tensorboard"
        )


@contextlib.contextmanager
def tracking(logger: str, track: Track) -> Iterator[Any]:
    """Lightning's logger of that name for the time of one training; False for "csv", which a training writes anyway.

    Everything stays in `folder`: MLflow writes to mlflow.db unless MLFLOW_TRACKING_URI says otherwise, and Weights &
    Biases is offline unless WANDB_MODE is online. Raises MissingExtra for a tracker that is not installed.
    """
    check_logger(logger)
    if logger == "csv" or not writes():
        yield False
        return
    # Neither may tell its makers anything that the user has not asked for.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    made = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}[logger](track)
    try:
        yield made
    finally:
        if logger == "wandb":
            # Lightning leaves the run open, and the next training would write into it.
            import wandb  # pyright: ignore[reportMissingImports]

            wandb.finish()


def _tensorboard(track: Track) -> Any:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(track.folder, name="tensorboard", version=track.part, default_hp_metric=False)


def _mlflow(track: Track) -> Any:
    from lightning.pytorch.loggers import MLFlowLogger

    place = track.folder.absolute()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{place / 'mlflow.db'}"
    made: dict[str, Any] = {"tracking_uri": uri, "artifact_location": (place / "mlflow").as_uri()}
    place.mkdir(parents=True, exist_ok=True)
    # Trials that begin at once must not make the same database or the same experiment twice.
    with FileLock(place / ".mlflow.lock"):
        logger = MLFlowLogger(track.group, track.name, tags={_TAG: track.id}, **made)
        client = logger._mlflow_client
        if (experiment := client.get_experiment_by_name(track.group)) is None:
            client.create_experiment(track.group, made["artifact_location"])
        else:
            # A run that an interruption left is gone on with.
            known = client.search_runs([experiment.experiment_id], f"tags.`{_TAG}` = '{track.id}'", max_results=1)
            if known:
                client.set_terminated(known[0].info.run_id, "RUNNING")
                logger = MLFlowLogger(track.group, run_id=known[0].info.run_id, **made)
    return logger


def _wandb(track: Track) -> Any:
    from lightning.pytorch.loggers import WandbLogger

    made = WandbLogger(
        name=track.name, project=track.group, save_dir=track.folder, id=track.id,
        mode=os.environ.get("WANDB_MODE", "offline"),
    )  # fmt: skip
    import wandb  # pyright: ignore[reportMissingImports]

    made._wandb_init["settings"] = wandb.Settings(silent=True, console="off")
    return made
