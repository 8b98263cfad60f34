"""Synthetic records for tests of what is made of them."""

from __future__ import annotations

from typing import Any

from skipway.study import Record


def make_record(
    depth: int = 20,
    skip: str = "none",
    seed: int = 0,
    train: float = 0.0,
    test: float = 0.1,
    diverged: dict[str, int] | None = None,
    **changes: Any,
) -> Record:
    """A record of two epochs whose last errors are given."""
    values: dict[str, Any] = {
        "id": f"{depth}-{skip}-{seed}",
        "labels": {"depth": str(depth), "skip": skip},
        "model": f"resnet{depth}",
        "depth": depth,
        "skip": skip,
        "connection": "Plain(placement=None)" if skip == "none" else f"Residual({skip})",
        "plain": skip == "none",
        "options": {},
        "seed": seed,
        "task": "classification",
        "judge": "test_error",
        "diverged": diverged,
        "curves": {
            "loss": [2.3, 0.1],
            "train_error": [0.9, train],
            "train_loss": [2.3, 0.1],
            "test_error": [0.9, test],
            "test_loss": [2.3, 0.2],
        },
        "measures": {"parameters": 1000.0 * depth, "seconds": 1.5, "memory": 1e6, "multiply_adds": 1e6},
        "layers": ["conv1", "fc"],
        "first_gradients": [10.0, 1.0],
        "last_gradients": [0.1, 0.01],
        "recipe": {
            "epochs": 2,
            "batch_size": 32,
            "learning_rate": 0.1,
            "momentum": 0.9,
            "weight_decay": 0.0,
            "loop": 2,
        },
        "data": {"name": "digits", "fingerprint": "f" * 16, "train": 64, "test": 64, "classes": 10, "shape": [1, 8, 8]},
        "versions": {"skipway": "0.1.0", "torch": "2.13.0", "device": "cpu", "threads": "1"},
    }
    return Record(**{**values, **changes})
