"""What every test shares: quiet threads, fixed seeds, a switch for the shape checks, and where the real data lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Small tensors lose more to starting threads than they gain, and one thread makes timings of parallel workers fair.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing in the suite may depend on a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import jaxtyping
import pytest
import torch
from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def no_shape_checks() -> Iterator[None]:
    """What a user runs: without the run-time shape checks, which speak up before our own errors do, and which
    torch.compile cannot trace."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and trained weights beside the project; the test is skipped where it is missing."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data, the real data and trained weights that lie beside the project")
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A small Ray cluster that this process is connected to; tests that use it are in the group "ray"."""
    import shutil
    import tempfile

    ray = pytest.importorskip("ray")
    # Its workers would give way to all else on the machine, and wait for minutes on a busy one.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # The sockets of a cluster lie in its folder, and their paths may be 107 letters long.
    folder = tempfile.mkdtemp(prefix="sw", dir="/tmp")
    ray.init(
        address="local", num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False,
        logging_level="ERROR", _temp_dir=folder,
    )  # fmt: skip
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
