import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skipway.models import create
from skipway.study import Images, Record, Study
from skipway.study.running.trial import run_trial, weight_layers
from skipway.study.tasks.classification import Classification
from skipway.study.tasks.problems import DataChoice, Problem, open_problem
from skipway.study.training.loop import Loop, Round
from skipway.study.training.order import Order


@pytest.fixture(scope="module")
def problem() -> Problem:
    return open_problem(DataChoice("digits", limit=65))


@pytest.fixture(scope="module")
def images(problem: Problem) -> Images:
    assert isinstance(problem.task, Classification)
    return problem.task.images


def _study(**changes: object) -> Study:
    values = {"depth": [8], "skip": ["none"], "seeds": [0], "epochs": 2, "width": 4, "batch_size": 16}
    return Study(**{**values, **changes})  # pyright: ignore[reportArgumentType]


def _train(study: Study, problem: Problem, folder: Path, trial: int = 0) -> Record:
    (folder / "unfinished").mkdir(parents=True, exist_ok=True)
    return run_trial(study, study.trials()[trial], "id", problem, folder, lambda epoch, share: None)


def test_a_record_holds_what_a_reader_needs(problem: Problem, tmp_path: Path):
    record = _train(_study(epochs=3), problem, tmp_path)
    assert record.diverged is None
    assert set(record.curves) >= {"loss", "learning_rate", "train_error", "train_loss", "test_error", "test_loss"}
    for curve in record.curves.values():
        assert len(curve) == 3
        assert all(value is not None for value in curve)
    assert all(round((value or 0) * 65, 6).is_integer() for value in record.curves["train_error"])
    assert len(record.layers) == len(record.first_gradients) == len(record.last_gradients) == 8
    assert record.layers[0] == "conv1"
    assert record.layers[-1] == "fc"
    assert record.recipe["epochs"] == 3
    assert record.data["train"] == 65
    assert record.measures["seconds"]
    network = create("resnet8", "none", width=4, in_channels=1)
    assert record.measures["parameters"] == sum(parameter.numel() for parameter in network.parameters())


def test_first_gradients_are_those_of_the_real_loss_on_the_first_batch(
    problem: Problem, images: Images, tmp_path: Path
):
    study = _study(epochs=1)
    record = _train(study, problem, tmp_path)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    initial: list[nn.Module] = []

    # The same trial again, by hand: its weights and its first batch, caught on the way, in plain PyTorch.
    class Caught(Exception):
        pass

    def catch(pixels: torch.Tensor, labels: torch.Tensor) -> None:
        seen.append((pixels, labels))
        raise Caught

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Caught):
        patch.setattr(Loop, "training_step", lambda self, weighted, index: catch(*weighted[0]))
        build = Study.build

        def keep(self: Study, *arguments: Any, **options: Any) -> nn.Module:
            initial.append(build(self, *arguments, **options))
            return initial[-1]

        patch.setattr(Study, "build", keep)
        _train(study, problem, tmp_path / "again")
    network, (pixels, labels) = initial[-1].train(), seen[0]
    mean, deviation = images.statistics
    F.cross_entropy(network((pixels.float() - mean) / deviation), labels).backward()
    expected = [network.get_submodule(name).weight.grad.norm().item() for name in record.layers]  # pyright: ignore
    assert record.first_gradients == pytest.approx(expected, rel=1e-4)


def test_errors_are_measured_in_evaluation_mode(problem: Problem, images: Images, tmp_path: Path):
    networks: list[nn.Module] = []
    build = Study.build

    def keep(self: Study, *arguments: Any, **options: Any) -> nn.Module:
        networks.append(build(self, *arguments, **options))
        return networks[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Study, "build", keep)
        record = _train(_study(epochs=4), problem, tmp_path)
    mean, deviation = images.statistics
    with torch.no_grad():
        logits = networks[-1].eval()((images.train_images.float() - mean) / deviation)
    wrong = (logits.argmax(1) != images.train_labels).sum().item()
    assert record.curves["train_error"][-1] == wrong / len(images.train_labels)
    assert record.curves["train_loss"][-1] == pytest.approx(
        F.cross_entropy(logits, images.train_labels).item(), rel=1e-5
    )


def test_the_same_seed_gives_the_same_numbers_and_another_seed_does_not(problem: Problem, tmp_path: Path):
    study = _study(skip=["stochastic-depth"], seeds=[0, 1])
    first, again, other = (_train(study, problem, tmp_path / str(n), trial) for n, trial in enumerate((0, 0, 1)))
    assert first.curves["train_loss"] == again.curves["train_loss"]
    assert first.last_gradients == again.last_gradients
    assert first.curves["train_loss"] != other.curves["train_loss"]


def test_training_leaves_the_callers_state_as_it_was(problem: Problem, tmp_path: Path):
    before = torch.random.get_rng_state(), str(np.random.get_state()), torch.get_num_threads()
    shown = list(warnings.filters)
    _train(_study(), problem, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]
    assert torch.get_num_threads() == before[2]
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.is_grad_enabled()
    assert warnings.filters == shown


def test_networks_of_one_seed_see_the_images_in_the_same_order(problem: Problem, tmp_path: Path):
    orders: list[list[list[int]]] = []
    study = _study(skip=["none", "stochastic-depth"])
    with pytest.MonkeyPatch.context() as patch:
        iterate = Round.__iter__

        def spy(self: Round):
            for batch, weight in iterate(self):
                orders[-1].append(batch[1].tolist())
                yield batch, weight

        patch.setattr(Round, "__iter__", spy)
        for trial in range(2):
            orders.append([])
            _train(study, problem, tmp_path / str(trial), trial)
    assert orders[0] == orders[1]
    first_epoch, second_epoch = orders[0][:4], orders[0][4:]
    assert first_epoch != second_epoch


def test_a_trial_that_stops_being_finite_is_recorded_as_diverged(problem: Problem, tmp_path: Path):
    record = _train(_study(learning_rate=1e30, epochs=3), problem, tmp_path)
    assert record.diverged is not None
    assert record.diverged["epoch"] >= 1
    assert len(record.curves["train_error"]) < 3
    assert record.value("train_error") == record.value("test_error") == 1.0


def test_a_trial_of_so_many_seconds_takes_as_many_steps_as_it_was_begun_with(problem: Problem, tmp_path: Path):
    study = _study(epochs=None, seconds=0.3)
    first = _train(study, problem, tmp_path / "first")
    assert (first.measures["steps"] or 0) >= 1
    assert first.recipe["seconds"] == 0.3
    kept = tmp_path / "again" / "unfinished" / "id.steps"
    kept.parent.mkdir(parents=True)
    kept.write_text('{"steps": 7}')
    assert _train(study, problem, tmp_path / "again").measures["steps"] == 7
    kept.write_text('{"ste')
    assert (_train(study, problem, tmp_path / "again").measures["steps"] or 0) >= 1
    assert not list(tmp_path.rglob("*.timing"))


def test_a_damaged_checkpoint_costs_nothing_but_its_epochs(problem: Problem, tmp_path: Path):
    expected = _train(_study(), problem, tmp_path)
    (tmp_path / "unfinished" / "id.ckpt").write_bytes(b"not a checkpoint")
    assert _train(_study(), problem, tmp_path).curves["train_loss"] == expected.curves["train_loss"]


@pytest.mark.parametrize(
    ("count", "size", "pieces", "steps"),
    [(65, 16, 1, 4), (66, 16, 1, 5), (64, 16, 1, 4), (5, 16, 1, 1), (1, 16, 1, 1), (67, 16, 2, 2), (68, 16, 2, 3)],
)
def test_steps_cover_everything_but_a_rest_too_small_to_share(count: int, size: int, pieces: int, steps: int):
    order = Order(count, size, pieces, seed=0)
    assert order.steps == steps
    cut = [order.step(step)[0] for step in range(steps)]
    assert all(len(step) == pieces for step in cut)
    seen = [int(index) for step in cut for piece in step for index in piece]
    left_out = count % (size * pieces) if steps * size * pieces < count else 0
    assert len(seen) == len(set(seen)) == count - left_out
    assert left_out < 2 * pieces
    next_pass = [int(index) for step in range(steps, 2 * steps) for piece in order.step(step)[0] for index in piece]
    assert len(next_pass) == len(seen)
    assert count < 16 or next_pass != seen


def test_examples_of_like_length_share_a_step():
    lengths = torch.randint(1, 40, (203,))
    order, other = Order(203, 8, 1, seed=0, lengths=lengths), Order(203, 8, 1, seed=1, lengths=lengths)
    steps = [order.step(step)[0][0] for step in range(order.steps)]
    assert sorted(torch.cat(steps).tolist()) == list(range(203))
    spread = [int(lengths[step].max() - lengths[step].min()) for step in steps]
    assert sum(spread) / len(spread) < 4
    # Steps of short and long examples follow one another at random.
    means = [float(lengths[step].float().mean()) for step in steps[:-1]]
    assert means != sorted(means)
    assert not torch.equal(steps[0], other.step(0)[0][0])


def test_weight_layers_stand_in_the_order_in_which_they_run():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(2, 2)
            self.norm = nn.BatchNorm2d(1)
            self.first = nn.Conv2d(1, 2, 1)
            self.unused = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(self.norm(x)).mean((2, 3)))

    network = Backwards()
    state = random.getstate(), torch.random.get_rng_state()
    pixels = torch.zeros(4, 1, 3, 3, dtype=torch.uint8)
    images = Images("flat", pixels, torch.arange(4) % 2, pixels, torch.arange(4) % 2, ("a", "b"))
    assert list(weight_layers(network, Classification(images))) == ["first", "last"]
    assert network.training
    assert int(network.norm.num_batches_tracked or 0) == 0
    assert torch.equal(torch.random.get_rng_state(), state[1])
