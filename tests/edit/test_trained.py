"""A trained ResNet-56, edited: it keeps its error, and trains on."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import skipway as sw
from skipway import edit
from skipway.connect import Residual, ReZero, StochasticDepth

N = 1000


def images(shared_data: Path) -> tuple[Tensor, Tensor]:
    table = pd.read_parquet(shared_data / "cifar10" / "test-00000-of-00001.parquet")[:N]
    pictures = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["img"]]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean.view(3, 1, 1)) / deviation.view(3, 1, 1), torch.tensor(np.asarray(table["label"]))


def guesses(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in x.split(250)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Residual(scale=ReZero(initial=1.0)), Residual(drop=StochasticDepth(0.3))], ids=str)
def test_resnet56_keeps_its_error_and_trains_on(shared_data: Path, kind: Residual):
    x, labels = images(shared_data)
    weights = shared_data / "weights" / "akamaster-resnet56.th"
    model = sw.models.create("resnet56", "zero-pad-split", weights=weights, num_classes=10).eval()
    expected = guesses(model, x)
    assert 4 < 100 * float((expected != labels).float().mean()) < 9.5
    swapped = edit.swap(model, sw.trace(model, x[:1]), kind)
    assert torch.equal(guesses(swapped, x), expected)

    # Labels moved by one class are new to it, so that there is something to learn.
    torch.manual_seed(0)
    swapped.train()
    optimizer = torch.optim.SGD(swapped.parameters(), 0.01, momentum=0.9)
    losses = []
    for step in range(12):
        part = slice(64 * (step % 4), 64 * (step % 4 + 1))
        loss = F.cross_entropy(swapped(x[part]), (labels[part] + 1) % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    scales = [p.detach() for name, p in swapped.named_parameters() if name.endswith("scale.scale")]
    assert len(scales) == (27 if kind.scale is not None else 0)
    assert all(float(scale) != 1 for scale in scales)
