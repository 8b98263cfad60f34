import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from skipway.models import create
from skipway.study.training.shared_norms import shared_norms


@pytest.fixture
def alone_in_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A group of one process that takes itself for one of two, so that sums are over what one process sees."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(3), (5, 3)),
        (nn.BatchNorm1d(3), (5, 3, 4)),
        (nn.BatchNorm2d(3), (5, 3, 4, 2)),
        (nn.BatchNorm3d(3), (2, 3, 4, 2, 3)),
        (nn.BatchNorm2d(3, affine=False), (5, 3, 4, 2)),
        (nn.BatchNorm2d(3, momentum=None), (5, 3, 4, 2)),
        (nn.BatchNorm2d(3, track_running_stats=False), (5, 3, 4, 2)),
    ],
)
def test_outputs_gradients_and_statistics_are_those_of_the_norm(norm: nn.Module, shape: tuple[int, ...]):
    norm = norm.double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x, weight = torch.randn(shape, dtype=torch.float64) + 3, torch.randn(shape, dtype=torch.float64)

    def run(module: nn.Module) -> list[Tensor]:
        given = x.clone().requires_grad_()
        module(given)
        y = module(given)
        (y * weight).sum().backward()
        assert given.grad is not None
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        return [y, given.grad, *gradients, *(buffer.double() for buffer in module.buffers())]

    expected = run(copy.deepcopy(norm))
    with shared_norms(norm):
        found = run(norm)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert "forward" not in vars(norm)


@pytest.mark.usefixtures("alone_in_a_group")
def test_a_network_in_evaluation_runs_by_what_it_has_seen():
    network = create("resnet8", num_classes=3, width=4).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = network(x)
    with shared_norms(network):
        assert torch.equal(network(x), expected)


@pytest.mark.parametrize(
    ("processes", "skip", "shared"), [(1, "residual", 0), (2, "stochastic-depth", 0), (2, "residual", 7)]
)
def test_which_norms_share(monkeypatch: pytest.MonkeyPatch, processes: int, skip: str, shared: int):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    network = create("resnet8", skip=skip, num_classes=3, width=4)
    with shared_norms(network):
        assert sum("forward" in vars(module) for module in network.modules()) == shared
