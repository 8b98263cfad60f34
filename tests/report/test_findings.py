"""What is said of a result in one clause."""

from __future__ import annotations

import torch
from torch import nn

from skipway.probe import curvature
from skipway.report.findings import finding

X = torch.tensor([[2.0, 0.0], [0.0, 1.0]])


def test_curvature_is_told_by_its_extremes():
    net = nn.Linear(2, 1, bias=False)
    told = finding(curvature(net, (X, torch.zeros(2, 1)), "mse"))
    assert (
        told
        == "the loss bends up by 4 along its sharpest direction and down along none (not all eigenvalues converged)"
    )

    def saddle(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output[0] ** 2 - output[1] ** 2 / 2).sum()

    told = finding(curvature(net, (X, torch.zeros(2, 1)), saddle, top=1))
    assert told == "the loss bends up by 8 along its sharpest direction and down by at most 1, 12.5 % of that"


def test_nothing_is_told_where_no_eigenvalue_was_measured():
    net = nn.Linear(2, 1, bias=False)
    assert finding(curvature(net, (X, torch.zeros(2, 1)), "mse", measure="trace")) == ""
