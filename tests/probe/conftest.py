"""What the tests of probes share: a fixed seed, no figures left open, and the networks of the files beside them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_figures_left() -> Iterator[None]:
    yield
    if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
        pyplot.close("all")


@pytest.fixture
def no_type_checks() -> Iterator[None]:
    """What a user runs: without the run-time type checks, which speak up before our own errors do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
