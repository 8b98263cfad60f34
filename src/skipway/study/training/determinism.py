"""Random numbers that are a function of a seed and an epoch, and a caller's state that comes back as it was."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from skipway.torchrun import processes

# Measured on ResNet-20 and 56 of width 8 with 64 digits: a second thread saves at most 15 % of a step on a quiet
# machine and multiplies it on a busy one, for the threads then wait for each other. From CIFAR's size on it pays.
_SMALL_BATCH_PIXELS = 64 * 16 * 16

# Random streams of a training: its weights, the order of its data, what its layers draw, and what its examples draw.
WEIGHTS, ORDER, LAYERS, EXAMPLES = range(4)


def derive(*parts: int) -> int:
    """One 64-bit seed from several numbers, without the collisions of adding them.

    >>> derive(0, 1) == derive(0, 1), derive(0, 1) == derive(1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def small_batch(batch_size: int, size: tuple[int, int]) -> bool:
    """Whether a batch of images of height x width is so small that one thread is best."""
    return batch_size * size[0] * size[1] <= _SMALL_BATCH_PIXELS


@contextlib.contextmanager
def isolated(one_thread: bool) -> Iterator[None]:
    """Inside: fresh random state, deterministic kernels, one thread if asked. Behind: all as it was before."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            if one_thread:
                torch.set_num_threads(1)
            if devices:
                torch.use_deterministic_algorithms(True, warn_only=True)
                torch.backends.cudnn.benchmark = False
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.backends.cudnn.benchmark = benchmark


class Undrawn(TorchFunctionMode):
    """While it is on, weights keep what they are made with: for networks of which only the shapes are asked for.

    To draw them on the meta device, torch imports its compiler, which takes as long as torch itself.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def versions(device: str) -> dict[str, str]:
    """What a result may depend on besides its recipe."""
    from importlib.metadata import version

    import skipway

    return {
        "skipway": skipway.__version__,
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "numpy": np.__version__,
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "threads": str(torch.get_num_threads()),
        # What layers draw, such as dropout, each process draws for itself.
        **({"processes": str(processes())} if processes() > 1 else {}),
    }
