"""The U-Net against one of torch.nn alone and against the published counts: names, seed, outputs, gradients, sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.unet_reference import ReferenceUNet
from torch import Tensor, nn

import skipway as sw
from skipway.models import UNet, UNetPlan, unet, unet_2015

# milesial/Pytorch-UNet 21d7850, counted, and the caption of arXiv:1505.04597's figure 1 by formula.
PARAMETERS = [
    ("unet", 3, 1, 31_037_633),
    ("unet", 3, 2, 31_037_698),
    ("unet", 1, 1, 31_036_481),
    ("unet", 1, 2, 31_036_546),
    ("unet-bilinear", 3, 2, 17_263_042),
    ("unet-2015", 1, 2, 31_030_658),
]


@pytest.mark.parametrize(("name", "channels", "classes", "parameters"), PARAMETERS)
def test_parameters(name: str, channels: int, classes: int, parameters: int) -> None:
    described = sw.models.describe(name, in_channels=channels, num_classes=classes)
    assert described.parameters == parameters
    # "In total the network has 23 convolutional layers."
    assert described.depth == (19 if name == "unet-bilinear" else 23)


@pytest.mark.parametrize("bilinear", [False, True])
def test_names_order_and_seed_are_milesials(bilinear: bool) -> None:
    torch.manual_seed(0)
    theirs = ReferenceUNet(3, 2, width=8, bilinear=bilinear).state_dict()
    torch.manual_seed(0)
    ours = sw.models.create("unet-bilinear" if bilinear else "unet", num_classes=2, width=8).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def agree(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """Outputs, gradients by the input and every parameter, and what batch norms have counted."""
    ours.load_state_dict(theirs.state_dict())
    y, expected, cotangent = (Tensor(), Tensor(), Tensor())
    gradients = []
    for net in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = net(leaf)
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        gradients.append((y, *torch.autograd.grad(y, [leaf, *net.parameters()], cotangent)))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("size", [(32, 48), (33, 47), (16, 31)])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients_are_those_of_torchs_own_modules(
    bilinear: bool, size: tuple[int, int], training: bool
) -> None:
    theirs = ReferenceUNet(3, 2, width=4, bilinear=bilinear).train(training)
    ours = unet(num_classes=2, width=4, up="bilinear" if bilinear else "transposed").train(training)
    agree(ours, theirs, torch.randn(2, 3, *size))


@pytest.mark.parametrize("size", [(188, 204), (191, 190)])
def test_the_form_of_2015_is_that_of_torchs_own_modules(size: tuple[int, int]) -> None:
    theirs = ReferenceUNet(1, 2, width=3, valid=True)
    ours = unet_2015(width=3, fit="crop")
    agree(ours, theirs, torch.randn(1, 1, *size))


def test_572_pixels_become_388_as_published() -> None:
    ours = unet_2015(width=1, fit="error")
    assert ours(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)


def test_mirrored_borders_give_what_the_paper_says() -> None:
    """Each output pixel is the one that valid convolutions give on the image with 92 mirrored pixels around it."""
    ours = unet_2015(width=2, fit="pad").eval()
    bare = unet_2015(width=2, fit="error").eval()
    bare.load_state_dict(ours.state_dict())
    image = torch.randn(1, 1, 100, 132)
    mirrored = nn.functional.pad(image, [92] * 4, mode="reflect")
    torch.testing.assert_close(ours(image), bare(mirrored), rtol=1e-5, atol=1e-6)
    for size in ((99, 37), (2, 3)):
        assert ours(torch.randn(1, 1, *size)).shape == (1, 2, *size)


def test_weights_of_2015_keep_the_variance() -> None:
    for module in unet_2015(width=16).modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.in_channels > 8:
            fan_in = module.in_channels * 9
            assert abs(float(module.weight.detach().std()) * (fan_in / 2) ** 0.5 - 1) < 0.05
            assert module.bias is not None
            assert not module.bias.any()


SIZES = [(16, 16), (17, 16), (31, 47), (35, 53)]


@pytest.mark.parametrize("size", SIZES)
def test_any_size_in_each_fit(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    assert unet(width=2)(x).shape == (2, 1, *size)
    floored = tuple(16 * (side // 16) for side in size)
    assert unet(width=2, fit="crop")(x).shape == (2, 1, *floored)
    strict = unet(width=2, fit="error")
    if floored == size:
        assert strict(x).shape == (2, 1, *size)
    else:
        with pytest.raises(sw.SkipwayError, match="needs multiples of 16: pad to"):
            strict(x)


def test_where_sizes_halve_evenly_every_fit_is_the_same() -> None:
    x, nets = torch.randn(2, 3, 32, 16), [unet(width=2, fit=fit).eval() for fit in ("pad", "crop", "error")]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
        assert torch.equal(net(x), nets[0](x))


@pytest.mark.parametrize("valid", [False, True])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_the_plan_foretells_the_size_of_the_output(valid: bool, fit: Any) -> None:
    plan = UNetPlan((1, 1, 1), norm="none" if valid else "batch", valid=valid, fit=fit)
    net = UNet(plan, in_channels=1).eval()
    least = UNetPlan((1, 1, 1), valid=valid, fit="crop").least
    for size in range(least, least + 12):
        expected = size if fit == "pad" else plan.output(size)
        assert net(torch.zeros(1, 1, size, size + 1)).shape[2] == expected > 0
        if plan.even(size) == size:
            assert size - plan.output(size) == plan.margin


def test_a_map_is_cut_at_its_middle() -> None:
    """With everything below left out and the bare image as the stream, what is cropped is the border."""
    skip = sw.Residual(merge="concat", drop=sw.StochasticDepth(1 - 1e-9, schedule="constant"))
    net = unet(skip, width=2, in_channels=1, fit="crop", levels=2)
    seen: list[Any] = []
    net.get_submodule("up2.conv").register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net.get_submodule("inc").register_forward_hook(lambda module, args, output: seen.append(output))
    net(torch.randn(2, 1, 11, 14))
    whole, cut = seen
    assert torch.equal(cut[:, :2], whole[:, :, 1:9, 1:13])
    assert not cut[:, 2:].any()
