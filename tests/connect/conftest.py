"""What the tests of the algebra share: the comparison with a formula written in the test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(scope="session")
def agree() -> Callable[..., None]:
    """Compare a module with a formula: outputs, and gradients by the inputs and by every parameter.

    The formula takes the inputs and the module's parameters by name.
    """

    def compare(module: nn.Module, formula: Callable[..., Tensor], *inputs: Tensor, tolerance: float = 1e-10) -> None:
        weights = dict(module.named_parameters())
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        ours, theirs = module(*leaves), formula(*leaves, weights)
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        cotangent = torch.randn(ours.shape, dtype=ours.dtype)
        by = [*leaves, *weights.values()]
        found = torch.autograd.grad(ours, by, cotangent, allow_unused=True)
        expected = torch.autograd.grad(theirs, by, cotangent, allow_unused=True)
        for name, ours_by, theirs_by in zip([*map(str, range(len(leaves))), *weights], found, expected, strict=True):
            assert (ours_by is None) == (theirs_by is None), f"only one of the two has a gradient by {name}"
            if ours_by is not None:
                torch.testing.assert_close(ours_by, theirs_by, rtol=tolerance, atol=tolerance)

    return compare
