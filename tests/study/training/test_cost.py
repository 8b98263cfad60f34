import pytest
import torch

from skipway.models import create
from skipway.study.tasks.problems import DataChoice, Problem, open_problem
from skipway.study.training.cost import cost_of_a_step
from skipway.study.training.determinism import WEIGHTS, derive
from skipway.study.training.order import Order


@pytest.fixture(scope="module")
def problem() -> Problem:
    return open_problem(DataChoice("digits", limit=64))


def test_a_step_costs_what_autograd_keeps_and_leaves_no_trace(problem: Problem):
    torch.manual_seed(derive(0, 0, WEIGHTS))
    network = create("resnet8", "stochastic-depth", width=4, in_channels=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    small, large = (cost_of_a_step(network, problem.task, Order(problem.task.count, size, 1, 0)) for size in (16, 32))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert large["memory"] > 1.5 * small["memory"]


def test_multiply_adds_are_those_of_one_example(problem: Problem):
    network = create("resnet8", "residual", width=4, in_channels=1)
    cost = cost_of_a_step(network, problem.task, Order(problem.task.count, 16, 1, 0))
    # Convolutions of ResNet-8 at width 4 on 8 x 8: 3 x 3 kernels, and the zero-padding shortcut has none.
    stem = 64 * 9 * 1 * 4
    stages = 64 * 9 * 4 * 4 * 2 + 16 * 9 * (4 * 8 + 8 * 8) + 4 * 9 * (8 * 16 + 16 * 16)
    assert cost["multiply_adds"] == stem + stages + 16 * 10
