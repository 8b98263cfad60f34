import importlib.util
from pathlib import Path
from typing import Any

import pytest

from skipway.engines import Halt
from skipway.errors import SkipwayError
from skipway.study import Study, Trained, train
from skipway.study.running.work import TrialWork
from skipway.study.tasks.problems import Problems
from skipway.study.training.loop import Loop
from skipway.study.training.tracking import Track, tracking


def _train(folder: Path, logger: Any, **changes: Any) -> Trained:
    options: dict[str, Any] = {"limit": 120, "batch_size": 16, "epochs": 2, "quiet": True, **changes}
    return train("tests.study.nets:perceptron", "digits", folder=folder, logger=logger, **options)


def _train_in_two_parts(folder: Path, logger: Any) -> Trained:
    step = Loop.training_step

    def interrupted(self: Loop, *arguments: Any) -> Any:
        if self.global_step == 10:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Loop, "training_step", interrupted)
        _train(folder, logger)
    return _train(folder, logger)


def test_tensorboard_sees_the_history(tmp_path: Path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trained = _train(tmp_path, "tensorboard")
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, values in trained.curves.items():
        assert [event.value for event in events.Scalars(name)] == pytest.approx(values, rel=1e-6)
    assert [event.step for event in events.Scalars("loss")] == [8, 16]
    assert events.Scalars("step_loss")[0].value > 0
    assert "batch_size: 16" in (tmp_path / "tensorboard" / "hparams.yaml").read_text()


@pytest.mark.filterwarnings("default")
def test_mlflow_keeps_one_run_of_a_training_that_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    trained = _train_in_two_parts(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("skipway")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "tests.study.nets:perceptron: digits"
    assert run.info.status == "FINISHED"
    assert run.data.params["batch_size"] == "16"
    assert run.data.params["data"] == "digits"
    for name, values in trained.curves.items():
        history = client.get_metric_history(run.info.run_id, name)
        assert [(point.step, point.value) for point in history] == list(zip((8, 16), values, strict=True))
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.filterwarnings("default")
def test_wandb_stays_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.chdir(tmp_path)
    _train(tmp_path / "run", "wandb", epochs=1)
    _train(tmp_path / "other", "wandb", epochs=1)
    assert wandb.run is None
    for name in ("run", "other"):
        (offline,) = (tmp_path / name / "wandb").glob("offline-run-*")
        (kept,) = offline.glob("run-*.wandb")
        content = kept.read_bytes()
        assert b"validation_error" in content
        assert b"batch_size" in content
    assert not (tmp_path / "wandb").exists()


@pytest.mark.usefixtures("no_shape_checks")
def test_a_machine_that_does_not_see_the_database_ends_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    problems = Problems()
    for logger, kept in (("mlflow", False), ("tensorboard", True)):
        study = _study(logger)
        trial = study.trials()[0]
        job = trial, study.identify(trial, problems.of(study.choice(trial.variant)))
        work = TrialWork(study, tmp_path / "elsewhere", "token", problems)
        if kept:
            sent = work.prepare()(job, lambda told: None).files
            assert any(name.startswith(f"tensorboard/{job[1]}/events") for name in sent)
        else:
            with pytest.raises(Halt, match="set MLFLOW_TRACKING_URI to a server that all machines reach"):
                work.prepare()(job, lambda told: None)


@pytest.mark.parametrize("logger", ["tensorboard", "mlflow", "wandb"])
@pytest.mark.usefixtures("no_shape_checks")
def test_a_tracker_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: str):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == logger else find(name, *rest))
    with pytest.raises(SkipwayError, match=rf"^the logger '{logger}' needs the package '{logger}': pip install"):
        _train(tmp_path, logger)
    with pytest.raises(SkipwayError, match=rf"^the logger '{logger}' needs the package"):
        _study(logger).run(tmp_path, quiet=True)


@pytest.mark.usefixtures("no_shape_checks")
def test_trackers_are_named():
    with pytest.raises(SkipwayError, match="did you mean 'mlflow'"), tracking("mlfow", Track(Path(), "", "", "")):
        pass


def _study(logger: str) -> Study:
    return Study(
        name="kinds", depth=[8], seeds=[0, 1], width=4, limit=64, epochs=2, batch_size=16, skip=["none", "rezero"],
        logger=logger,
    )  # fmt: skip


def test_each_trial_of_a_study_is_a_run(tmp_path: Path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    study = _study("tensorboard")
    records = study.run(tmp_path, quiet=True).records
    assert sorted(path.name for path in (tmp_path / "tensorboard").iterdir()) == sorted(record.id for record in records)
    for record in records:
        events = accumulators.EventAccumulator(str(tmp_path / "tensorboard" / record.id)).Reload()
        told = [event.value for event in events.Scalars("test_error")]
        assert told == pytest.approx(record.curves["test_error"], rel=1e-6)
        settings = (tmp_path / "tensorboard" / record.id / "hparams.yaml").read_text()
        assert f"seed: {record.seed}" in settings
        assert f"skip: {record.skip}" in settings
    # How it is tracked makes no other study.
    assert [record.id for record in _study("csv").run(tmp_path, quiet=True).records] == [r.id for r in records]


@pytest.mark.filterwarnings("default")
def test_mlflow_holds_a_study_as_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    records = _study("mlflow").run(tmp_path, workers=2, quiet=True).records
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("kinds").experiment_id])
    assert sorted(run.info.run_name for run in runs) == sorted(record.title for record in records)
    for run in runs:
        (record,) = [record for record in records if record.title == run.info.run_name]
        assert run.data.params["skip"] == record.skip
        assert run.data.params["seed"] == str(record.seed)
        history = client.get_metric_history(run.info.run_id, "test_error")
        assert [point.value for point in history] == record.curves["test_error"]
