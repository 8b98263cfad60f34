"""Weights of milesial's U-Nets load as they are; older ones are made to fit, and others refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.unet_reference import ReferenceUNet
from torch import Tensor, nn

import skipway as sw
from skipway.models import load_weights


def settled(net: nn.Module) -> nn.Module:
    """Norms as training leaves them: statistics, weights and biases that are not their start."""
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return net.eval()


def biased(net: nn.Module) -> nn.Module:
    """The same net with biases before its norms, as published until 2021."""
    for block in net.modules():
        if isinstance(block, nn.Sequential) and isinstance(block[0], nn.Conv2d):
            for conv in (block[0], block[3]):
                assert isinstance(conv, nn.Conv2d)
                conv.bias = nn.Parameter(torch.randn(conv.out_channels))
    return net


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("with_biases", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoints_load_and_compute_the_same(bilinear: bool, with_biases: bool, prefix: str, tmp_path: Path) -> None:
    theirs = settled(ReferenceUNet(3, 2, width=4, bilinear=bilinear))
    if with_biases:
        theirs = biased(theirs)
    state: dict[str, Any] = {prefix + name: value for name, value in theirs.state_dict().items()}
    # train.py saves the values of the masks beside the weights.
    torch.save({**state, "mask_values": [0, 255]}, tmp_path / "checkpoint_epoch5.pth")
    ours = sw.models.create(
        "unet-bilinear" if bilinear else "unet", num_classes=2, width=4, weights=tmp_path / "checkpoint_epoch5.pth"
    )
    x = torch.randn(1, 3, 35, 48)
    torch.testing.assert_close(ours.eval()(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_biases_stay_where_a_net_without_norms_has_them(tmp_path: Path) -> None:
    theirs = sw.models.create("unet-2015", width=2)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    ours = sw.models.create("unet-2015", width=2, weights=tmp_path / "weights.pt")
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "interpolation into transposed": ("unet", {"num_classes": 2}, "with interpolation for 2 classes"),
    "other classes": (
        "unet-bilinear",
        {"num_classes": 1},
        "2 have another shape, the first outc.conv.weight: [2, 4, 1, 1] in the file, [1, 4, 1, 1] in the model",
    ),
    "other depth": ("unet-bilinear", {"levels": 3, "num_classes": 2}, "It seems to hold a U-Net of 4 levels"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.usefixtures("no_shape_checks")
def test_what_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    name, options, said = REFUSED[case]
    torch.save(ReferenceUNet(3, 2, width=4, bilinear=True).state_dict(), tmp_path / "weights.pt")
    model = sw.models.create(name, width=4, **options)
    before: dict[str, Tensor] = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(sw.SkipwayError, match="does not fit this model") as caught:
        load_weights(model, tmp_path / "weights.pt")
    assert said in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
