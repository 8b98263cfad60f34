"""A thousand layers: every number of a mixed-precision step stays finite, and steps lower the loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import skipway as sw
from skipway.study import load_images


def digits(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_images("digits")
    return (data.train_images[:n].float() - 5) / 6, data.train_labels[:n]


@pytest.mark.parametrize("depth", [110, pytest.param(1001, marks=pytest.mark.slow)])
def test_mixed_precision_stays_finite(depth: int) -> None:
    model = sw.models.create(f"preresnet{depth}", in_channels=1, width=4)
    images, labels = digits(8)
    outputs: list[torch.Tensor] = []
    for block in model.modules():
        if isinstance(block, sw.connect.Skip):
            block.register_forward_hook(lambda module, args, y: outputs.append(y.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(images), labels)
    loss.backward()
    assert len(outputs) == (depth - 2) // (3 if depth == 1001 else 2)
    assert all(y.isfinite().all() for y in outputs)
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name


@pytest.mark.slow
def test_the_gradient_of_the_plain_twin_is_beyond_single_precision() -> None:
    """In double precision the first convolution's is above float32's largest number, 3e38; with skips it is not."""
    images, labels = digits(16)
    norms = {}
    for skip in ("none", "residual"):
        model = sw.models.create("preresnet1001", skip, in_channels=1, width=4).double()
        F.cross_entropy(model(images.double()), labels).backward()
        gradient = model.get_parameter("conv1.weight").grad
        assert gradient is not None
        norms[skip] = float(gradient.norm())
    assert norms["none"] > 1e39
    assert norms["residual"] < 1e6


@pytest.mark.slow
def test_a_thousand_layers_learn_a_handful_of_digits() -> None:
    """benchmarks/depth_1001.py watches both twins for longer."""
    model = sw.models.create("preresnet1001", in_channels=1, width=4)
    images, labels = digits(16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) / 3 < 0.7 * losses[0]
