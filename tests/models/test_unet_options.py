"""Every choice a U-Net offers, small: kinds of skip a level, blocks, norms, axes, supervision, checkpointing."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import skipway as sw
from skipway import connect
from skipway.models import UNet, unet, unet_2015

SPACES: dict[int, tuple[int, ...]] = {1: (19,), 2: (10, 13), 3: (9, 8, 11)}


def small(skip: Any = "concat", dims: int = 2, **options: Any) -> UNet:
    return unet(skip, **{"levels": 2, "width": None if "widths" in options else 4, "dims": dims, **options})


def images(dims: int = 2, n: int = 2) -> Tensor:
    return torch.randn(n, 3, *SPACES[dims], generator=torch.Generator().manual_seed(1))


def trains(net: nn.Module, x: Tensor, may_lack: bool = False) -> Tensor:
    """The logits, after a backward pass that reaches the input and every parameter."""
    x = x.clone().requires_grad_()
    y = net(x)
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    for name, parameter in net.named_parameters():
        assert may_lack or parameter.grad is not None, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    return y


@pytest.mark.parametrize("dims", SPACES)
@pytest.mark.parametrize("skip", connect.names())
def test_every_connection_is_a_long_skip(skip: str, dims: int) -> None:
    net = small(skip, dims)
    assert trains(net, images(dims), may_lack=skip == "stochastic-depth").shape == (2, 1, *SPACES[dims])
    net.eval()
    x = images(dims)
    expected = net(x)
    fresh = small(skip, dims).eval()
    fresh.load_state_dict(net.state_dict())
    for other in (fresh, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), expected)


@pytest.mark.parametrize("block", ["residual", "preactivation", "dense"])
@pytest.mark.parametrize("skip", connect.names())
def test_every_connection_is_a_short_skip_or_says_why_not(skip: str, block: Any) -> None:
    try:
        net = small(block=block, short_skip=skip)
    except sw.SkipwayError as refusal:
        reason = str(refusal)
        shrinks, widens = "zero-padding cannot shrink" in reason, "blocks keep their width" in reason
        assert shrinks == skip.startswith("zero-pad")
        assert widens == (skip in ("dense", "concat", "attention-gate", "residual-path"))
        return
    assert trains(net, images(), may_lack=skip == "stochastic-depth").shape == (2, 1, *SPACES[2])


@pytest.mark.parametrize(
    ("dims", "norm"),
    [
        pytest.param(dims, norm, marks=[pytest.mark.slow] if dims != 2 and norm != "batch" else [])
        for dims in SPACES
        for norm in ("batch", "instance", "group", "layer", "none")
    ],
)
@pytest.mark.parametrize("block", ["double", "residual", "preactivation", "dense"])
@pytest.mark.parametrize("up", ["transposed", "interpolated", "nearest"])
def test_blocks_norms_and_ways_up_combine(dims: int, block: Any, up: Any, norm: Any) -> None:
    up = {1: "linear", 2: "bilinear", 3: "trilinear"}[dims] if up == "interpolated" else up
    net = small(["concat", "residual"], dims, block=block, up=up, norm=norm, num_classes=3)
    assert trains(net, images(dims)).shape == (2, 3, *SPACES[dims])
    graph = sw.trace(net.eval(), images(dims))
    assert graph.paths().longest == net.depth
    assert [found.kind for found in graph.skips if found.long] == ["add", "concat"]


@pytest.mark.parametrize("norm", ["instance", "group", "layer", "none"])
def test_without_batch_norm_every_image_is_on_its_own(norm: Any) -> None:
    net = small("residual", norm=norm, widths=[4, 8, 12])
    x = images()
    torch.testing.assert_close(net(x)[:1], net(x[:1]), rtol=1e-4, atol=1e-5)


def test_a_residual_block_without_its_skip_is_a_double_convolution() -> None:
    plain, double = small(block="residual", short_skip="none").eval(), small().eval()
    plain.load_state_dict(double.state_dict())
    assert torch.equal(plain(images()), double(images()))


def encode(net: UNet, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """The encoder's maps, and what comes up to the lowest level."""
    maps = [net.get_submodule("inc")(x)]
    for level in range(1, net.plan.levels + 1):
        maps.append(net.get_submodule(f"down{level}")(maps[-1]))
    return maps[:-1], net.get_submodule("up1.up")(maps[-1])


@pytest.mark.parametrize(
    ("skip", "merge"),
    [
        ("concat", lambda x, v: torch.cat([x, v], 1)),
        ("residual", lambda x, v: x + v),
        ("none", lambda x, v: v),
        (sw.Residual(scale=sw.Scale(0.5)), lambda x, v: x + 0.5 * v),
    ],
    ids=["concat", "add", "none", "scaled"],
)
def test_the_decoder_gets_what_the_connection_says(skip: Any, merge: Any) -> None:
    net = small(skip).eval()
    seen: list[Tensor] = []
    for k in (1, 2):
        net.get_submodule(f"up{k}.conv").register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    x = torch.randn(2, 3, 8, 12)
    net(x)
    (top, lower), value = encode(net, x)
    torch.testing.assert_close(seen[0], merge(lower, value))
    value = net.get_submodule("up2.up")(net.get_submodule("up1.conv")(seen[0]))
    torch.testing.assert_close(seen[1], merge(top, value))


def test_a_list_goes_from_full_resolution_down() -> None:
    net = small(["concat", "none", "residual"], levels=3)
    assert [net.connection(level).out_channels for level in range(3)] == [8, 8, 16]
    graph = sw.trace(net.eval(), torch.randn(2, 3, 16, 16))
    assert [(found.kind, str(found.site)) for found in graph.skips] == [("add", "up1:add:0"), ("concat", "up3:cat:0")]


def test_a_level_whose_branch_is_left_out_runs_nothing_below_it() -> None:
    dropped = sw.Residual(merge="concat", drop=sw.StochasticDepth(1 - 1e-9, schedule="constant"))
    net = small(["concat", dropped])
    ran: list[str] = []
    for name in ("down1", "down2", "up1", "up2"):
        net.get_submodule(name).register_forward_hook(lambda module, given, y, name=name: ran.append(name))
    assert net(images()).shape == (2, 1, *SPACES[2])
    assert ran == ["down1", "up2"]
    ran.clear()
    net.eval()(images())
    assert ran == ["down1", "down2", "up1", "up2"]


@pytest.mark.parametrize("skip", ["concat", "attention-gate", "residual-path", "none"])
def test_what_trace_finds(skip: str) -> None:
    graph = sw.trace(small(skip, levels=3).eval(), torch.randn(2, 3, 16, 24))
    assert graph.paths().longest == 18
    # A path of convolutions passes work on either side of the merge: two branches and no skip.
    expected = {"concat": "identity", "attention-gate": "scaled"}.get(skip)
    assert [(found.kind, found.shortcut, found.long) for found in graph.skips] == [
        ("concat", expected, True) for _ in range(3 if expected else 0)
    ]


def test_edits_take_hold_of_long_skips() -> None:
    net, x = small().eval(), torch.randn(2, 3, 8, 8)
    skips = sw.trace(net, x).skips
    seen: list[Tensor] = []
    for edit, empty in ((sw.edit.cut, slice(0, 4)), (sw.edit.lesion, slice(4, 8))):
        edited = edit(net, skips[-1])
        edited.get_submodule("up2.conv").register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        edited(x)
        assert not seen[-1][:, empty].any()
        assert seen[-1].any()
        assert list(edited.state_dict()) == list(net.state_dict())
    torch.testing.assert_close(sw.edit.fold(net)(x), net(x), rtol=1e-4, atol=1e-5)


def test_deep_supervision_gives_coarser_logits_in_training_alone() -> None:
    net = small(levels=3, deep_supervision=True, num_classes=2)
    found = net(torch.randn(2, 3, 16, 27))
    assert isinstance(found, tuple)
    assert [tuple(y.shape) for y in found] == [(2, 2, 16, 27), (2, 2, 8, 13), (2, 2, 4, 6)]
    torch.stack([y.square().mean() for y in found]).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert net.eval()(torch.randn(2, 3, 16, 27)).shape == (2, 2, 16, 27)
    plain = small(levels=3, num_classes=2)
    assert set(net.state_dict()) - set(plain.state_dict()) == {
        f"heads.{k}.conv.{p}" for k in (0, 1) for p in ("weight", "bias")
    }


@pytest.mark.parametrize("skip", ["concat", "attention-gate", "residual-path", "stochastic-depth", "pre-activation"])
@pytest.mark.parametrize("block", ["double", "preactivation", "dense"])
def test_checkpointing_changes_nothing_but_memory(skip: str, block: Any) -> None:
    """Outputs, gradients, random numbers, and the statistics, which are updated once."""
    plain = small(skip, block=block)
    kept = small(skip, block=block, checkpointing=True)
    kept.load_state_dict(plain.state_dict())
    results = []
    for net in (plain, kept):
        torch.manual_seed(3)
        x = images().requires_grad_()
        outputs = [net(x) for _ in range(2)]
        torch.stack(outputs).square().sum().backward()
        gradients = [x.grad, *(parameter.grad for parameter in net.parameters())]
        results.append([*outputs, *gradients, torch.get_rng_state(), *net.state_dict().values()])
    for found, expected in zip(*results, strict=True):
        assert (found is None) == (expected is None)
        assert found is None or torch.equal(found, expected)
    assert all(not m.training or m.track_running_stats for m in kept.modules() if isinstance(m, nn.BatchNorm2d))


def test_checkpointing_keeps_fewer_maps() -> None:
    def kept_bytes(net: nn.Module) -> int:
        held: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            y = net(torch.randn(2, 3, 32, 32))
            size = sum(held.values())
        del y
        return size

    assert kept_bytes(small(checkpointing=True)) < 0.4 * kept_bytes(small())


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_gives_the_same_and_stays_so(dims: int) -> None:
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    net = small(dims=dims).eval()
    x = torch.randn(2, 3, *(8,) * dims)
    expected = net(x)
    seen: list[Tensor] = []
    net.get_submodule("up2.conv").register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    net.to(memory_format=layout)  # type: ignore[call-overload]
    torch.testing.assert_close(net(x.to(memory_format=layout)), expected, rtol=1e-4, atol=1e-5)
    assert seen[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("skip", ["concat", "residual", "attention-gate"])
def test_autocast_computes_close_to_single_precision(skip: str) -> None:
    net = small(skip)
    net(images())
    expected = net.eval()(images())
    with torch.autocast("cpu", torch.bfloat16):
        found = net(images())
        loss = net.train()(images()).float().square().mean()
    assert (found.float() - expected).abs().max() <= 0.05 * expected.abs().max().clamp(min=1)
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in net.parameters())


@pytest.mark.parametrize(
    "make", [small, lambda: small("attention-gate", up="nearest"), lambda: unet_2015(width=2, levels=2)]
)
@pytest.mark.usefixtures("no_shape_checks")
def test_it_compiles_into_one_graph(make: Any) -> None:
    torch._dynamo.reset()
    net = make().eval()
    x = torch.randn(2, net.in_channels, 10, 13)
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))


def test_it_learns_to_find_a_square() -> None:
    """A few steps on images whose mask is plain to see bring the loss down, for each long skip."""
    corner = torch.randint(0, 8, (8, 2))
    masks = torch.zeros(8, 1, 16, 16)
    for mask, (i, j) in zip(masks, corner.tolist(), strict=True):
        mask[0, i : i + 8, j : j + 8] = 1
    x = masks + 0.3 * torch.randn(8, 1, 16, 16)
    for skip in ("concat", "residual", "attention-gate", "residual-path", "none"):
        net = small(skip, in_channels=1)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        losses: list[float] = []
        for _ in range(25):
            loss = nn.functional.binary_cross_entropy_with_logits(net(x), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0], skip
