"""Dense blocks over one buffer against a DenseNet written here of torch.nn alone, and where they give way to it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, jvp
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import skipway as sw
from skipway.models import DenseNet, DenseNetPlan, densenet_function, densenet_inference

BLOCKS, GROWTH, WIDTH = (3, 2), 4, 6
every_memory = pytest.mark.parametrize("memory", ["shared", "recomputed"])
every_form = pytest.mark.parametrize("bottleneck", [4, 0], ids=["bottleneck", "single"])


class Layer(nn.Module):
    """norm-ReLU-conv (twice with a bottleneck) of a concatenation."""

    def __init__(self, c: int, bottleneck: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c)
        inner = bottleneck * GROWTH
        self.conv1 = nn.Conv2d(c, inner or GROWTH, 1 if inner else 3, padding=0 if inner else 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner) if inner else None
        self.conv2 = nn.Conv2d(inner, GROWTH, 3, padding=1, bias=False) if inner else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(self.norm1(x)))
        return x if self.conv2 is None or self.norm2 is None else self.conv2(F.relu(self.norm2(x)))


class Reference(nn.Module):
    """The ordinary implementation: a list of maps, concatenated for each layer."""

    def __init__(self, bottleneck: int = 4) -> None:
        super().__init__()
        self.features = nn.ModuleDict({"conv0": nn.Conv2d(3, WIDTH, 3, padding=1, bias=False)})
        c = WIDTH
        for number, n in enumerate(BLOCKS, 1):
            layers = {f"denselayer{k + 1}": Layer(c + k * GROWTH, bottleneck) for k in range(n)}
            self.features[f"denseblock{number}"] = nn.ModuleDict(layers)
            c += n * GROWTH
            if number < len(BLOCKS):
                parts = {"norm": nn.BatchNorm2d(c), "conv": nn.Conv2d(c, c // 2, 1, bias=False)}
                self.features[f"transition{number}"] = nn.ModuleDict(parts)
                c //= 2
        self.features["norm5"] = nn.BatchNorm2d(c)
        self.classifier = nn.Linear(c, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features["conv0"](x)
        for name, part in self.features.items():
            if name.startswith("denseblock"):
                maps = [x]
                for layer in part.values():  # type: ignore[operator]
                    maps.append(layer(torch.cat(maps, 1)))
                x = torch.cat(maps, 1)
            elif name.startswith("transition"):
                x = F.avg_pool2d(part["conv"](F.relu(part["norm"](x))), 2)  # type: ignore[index]
        x = F.relu(self.features["norm5"](x))
        return self.classifier(x.mean((2, 3)))


def settle(model: nn.Module) -> nn.Module:
    """Norms as training leaves them: scales of both signs, some tiny, some zero; statistics off their start."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            with torch.no_grad():
                module.weight[1], module.weight[2] = 1e-3, 0.0
            if module.running_mean is not None and module.running_var is not None:
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def pair(memory: Any = "shared", bottleneck: int = 4, dtype: torch.dtype = torch.float64) -> tuple[DenseNet, Reference]:
    """Ours and the reference with the same weights."""
    reference = settle(Reference(bottleneck)).to(dtype)
    compression = 0.5
    plan = DenseNetPlan(BLOCKS, GROWTH, WIDTH, bottleneck, compression, stem="cifar")
    ours = DenseNet(plan, num_classes=10, memory=memory).to(dtype)
    ours.load_state_dict(reference.state_dict(), strict=True)
    assert isinstance(reference, Reference)
    return ours, reference


def images(n: int = 3, h: int = 8, w: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 3, h, w, dtype=dtype)


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return list(torch.autograd.grad((y * weights).sum(), [x, *model.parameters()]))


def agree(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * max(1.0, float(theirs.detach().abs().max()))


@pytest.fixture
def shared_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Which blocks ran over the buffer: one entry each, "training" or "inference"."""
    runs: list[str] = []
    for module, kind in ((densenet_function, "training"), (densenet_inference, "inference")):
        inner = module.run

        def spied(*args: Any, inner: Callable[..., Tensor] = inner, kind: str = kind) -> Tensor:
            runs.append(kind)
            return inner(*args)

        monkeypatch.setattr(module, "run", spied)
    return runs  # type: ignore[return-value]


@every_memory
@every_form
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 7), (2, 5, 12)], ids=["even", "one odd image", "wide"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_logits_gradients_and_statistics_are_the_ordinary_ones(
    memory: str, bottleneck: int, shape: tuple[int, int, int], layout: torch.memory_format, shared_runs: list[str]
) -> None:
    ours, theirs = pair(memory, bottleneck)
    x = images(*shape).contiguous(memory_format=layout)
    agree(gradients(ours, x), gradients(theirs, x), 1e-10)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-12, atol=1e-12)
    assert ours.features.get_buffer("denseblock1.denselayer1.norm1.num_batches_tracked") == 1
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)
    assert shared_runs == ["training"] * 4


@every_memory
def test_in_single_precision(memory: str) -> None:
    ours, theirs = pair(memory, dtype=torch.float32)
    x = images(dtype=torch.float32)
    assert (ours(x) - theirs(x)).abs().max() <= 1e-4
    agree(gradients(ours, x), gradients(theirs, x), 1e-3)


@every_form
def test_evaluation_by_running_statistics(bottleneck: int, shared_runs: list[str]) -> None:
    ours, theirs = pair(bottleneck=bottleneck)
    for model in (ours, theirs):
        model(torch.full((2, 3, 6, 6), 0.5, dtype=torch.float64) + images(2, 6, 6).zero_())
        model.eval()
    before = copy.deepcopy(ours.state_dict())
    x = images(2, 7, 6)
    shared_runs.clear()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)
    assert shared_runs == ["inference"] * 2
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())
    agree(gradients(ours, x), gradients(theirs, x), 1e-10)
    assert shared_runs == ["inference"] * 2


@pytest.mark.parametrize("momentum", [None, 0.3, 0.0])
def test_running_statistics_move_by_each_norms_own_momentum(momentum: float | None) -> None:
    ours, theirs = pair()
    for model in (ours, theirs):
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms[::2]:
            norm.momentum = momentum
    for _ in range(3):
        x = images()
        ours(x)
        theirs(x)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-12, atol=1e-12)


def test_norms_without_running_statistics_use_the_batch_in_evaluation_too(shared_runs: list[str]) -> None:
    def untracked(model: nn.Module) -> nn.Module:
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    norm = nn.BatchNorm2d(child.num_features, track_running_stats=False).double()
                    setattr(module, name, norm) if not isinstance(module, nn.ModuleDict) else module.update(
                        {name: norm}
                    )
        return model

    ours, theirs = (untracked(model) for model in pair())
    theirs.load_state_dict(ours.state_dict())
    x = images()
    for training in (True, False):
        agree(gradients(ours.train(training), x), gradients(theirs.train(training), x), 1e-10)
    assert shared_runs == ["training"] * 4


@every_memory
@every_form
def test_second_derivatives(memory: str, bottleneck: int, shared_runs: list[str]) -> None:
    """Products of the Hessian with a vector, through the gradient of the gradient."""
    found = []
    for model in pair(memory, bottleneck):
        torch.manual_seed(1)
        x = images(2, 6, 5).requires_grad_()
        inputs = [x, *model.parameters()]
        first = torch.autograd.grad(model(x).square().sum(), inputs, create_graph=True)
        along = sum((g * torch.randn(g.shape, dtype=g.dtype)).sum() for g in first)
        assert isinstance(along, Tensor)
        found.append(list(torch.autograd.grad(along, inputs)))
    agree(found[0], found[1], 1e-9)
    assert shared_runs == ["training"] * 2


def test_curvature_is_measured_through_the_buffer() -> None:
    ours, _ = pair()
    plain = copy.deepcopy(ours)
    plain.memory = "plain"
    data = (images(4, 4, 4), torch.tensor([0, 1, 2, 3]))
    measured = [sw.probe.curvature(model, data, "cross_entropy", measure=("trace",), seed=0) for model in (ours, plain)]
    assert all("double backward" in result.what for result in measured)
    assert measured[0].trace == pytest.approx(measured[1].trace, rel=1e-6)


def test_a_graph_that_is_kept_gives_its_gradient_again() -> None:
    ours, _ = pair()
    y = ours(images()).sum()
    first = torch.autograd.grad(y, list(ours.parameters()), retain_graph=True)
    agree(list(torch.autograd.grad(y, list(ours.parameters()))), list(first), 0.0)


def test_weights_that_do_not_learn_leave_the_others_gradients() -> None:
    ours, theirs = pair()
    wanted = {
        name: g
        for (name, _), g in zip(theirs.named_parameters(), gradients(theirs, images().fill_(0.3))[1:], strict=True)
    }
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_("conv2" in name)
    torch.manual_seed(5)
    x = images().fill_(0.3)
    y = ours(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    for name, parameter in ours.named_parameters():
        if "conv2" in name:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-9, atol=1e-9)
        else:
            assert parameter.grad is None


def test_copies_pickles_and_checkpointing_compute_the_same() -> None:
    ours, _ = pair()
    x = images()
    wanted = gradients(copy.deepcopy(ours), x)
    agree(gradients(pickle.loads(pickle.dumps(ours)), x), wanted, 0.0)
    held = copy.deepcopy(ours)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = held

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[return-value]

    agree(gradients(Checkpointed(), x), wanted, 1e-12)


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """What autograd keeps between the passes, apart from the parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    held = []
    with saved_tensors_hooks(lambda tensor: held.append(tensor) or pack(tensor), lambda tensor: tensor):
        y = model(x)
    del y
    return sum(kept.values())


def test_what_is_kept_between_the_passes_grows_linearly_with_depth() -> None:
    """A bottleneck layer keeps its 4k channels and its growth; recomputed, its growth alone; plainly, all it reads.

    Beside the buffer, the last ReLU keeps what it puts out, which is as wide.
    """
    kept: dict[tuple[str, int], int] = {}
    for memory in ("plain", "shared", "recomputed"):
        for n in (4, 8, 16):
            model = DenseNet(DenseNetPlan((n,), 8, 8, stem="cifar"), num_classes=2, memory=memory)  # type: ignore[arg-type]
            kept[memory, n] = saved_bytes(model, torch.randn(2, 3, 16, 16))
    pixels = 2 * 16 * 16 * 4
    for n in (4, 8):
        assert (kept["recomputed", 2 * n] - kept["recomputed", n]) / pixels == pytest.approx(n * 2 * 8, rel=0.05)
        assert (kept["shared", 2 * n] - kept["shared", n]) / pixels == pytest.approx(n * (2 * 8 + 32), rel=0.05)
    assert kept["plain", 16] > 4 * kept["shared", 16] > 8 * kept["recomputed", 16]


def test_bfloat16_is_as_near_to_the_truth_as_the_ordinary_way() -> None:
    """Both against double precision; the buffer's rounding errors are no larger but for chance."""
    ours, theirs = pair()
    for model in (ours, theirs):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
    theirs.load_state_dict(ours.state_dict())
    x = images(8, 12, 12)
    truth = gradients(copy.deepcopy(theirs), x)
    errors = []
    for model in (ours.float(), theirs.float()):
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x.float())
        weights = torch.linspace(-1, 1, y.numel()).view_as(y)
        found = torch.autograd.grad((y.float() * weights).sum(), list(model.parameters()))
        assert all(g.dtype == torch.float32 for g in found)
        errors.append([float((g - t).norm() / t.norm()) for g, t in zip(found, truth[1:], strict=True)])
    mean = [sum(row) / len(row) for row in errors]
    assert mean[0] <= 1.3 * mean[1]
    assert ours.features.get_buffer("norm5.running_mean").dtype == torch.float32


def _doubled(module: nn.Module, args: Any, y: Tensor) -> Tensor:
    return 2 * y


def _hook(model: DenseNet) -> None:
    model.features.get_submodule("denseblock1.denselayer2.norm2").register_forward_hook(_doubled)


def _wrapped_forward(model: DenseNet) -> None:
    layer = model.features.get_submodule("denseblock1.denselayer2.conv1")
    inner = layer.forward
    layer.forward = lambda x: 2 * inner(x)  # type: ignore[method-assign]


def _replaced(model: DenseNet) -> None:
    layer = model.features.get_submodule("denseblock1.denselayer2")
    layer.norm2 = nn.GroupNorm(2, 16).double()


def _frozen(model: DenseNet) -> None:
    for module in model.features.get_submodule("denseblock1").modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _another_eps(model: DenseNet) -> None:
    norm = model.features.get_submodule("denseblock1.denselayer2.norm1")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.eps = 0.1


def _another_pool(model: DenseNet) -> None:
    model.features.get_submodule("transition1").pool = nn.MaxPool2d(2)


CHANGES = {
    "hook": _hook, "forward of one's own": _wrapped_forward, "another norm": _replaced, "frozen norms": _frozen,
    "another eps": _another_eps, "another pool": _another_pool,
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_block_runs_as_it_was_changed(change: str, shared_runs: list[str]) -> None:
    ours, _ = pair()
    before = ours(images().fill_(0.3) + torch.arange(8).double())
    shared_runs.clear()
    plain = copy.deepcopy(ours)
    plain.memory = "plain"
    for model in (ours, plain):
        torch.manual_seed(3)
        CHANGES[change](model)
    x = images()
    agree(gradients(ours, x), gradients(plain, x), 1e-10)
    # The other block is as it was, and still runs over its buffer.
    assert shared_runs == ["training"]
    assert not torch.equal(ours(images().fill_(0.3) + torch.arange(8).double()), before)


def test_dropout_runs_the_plain_way_in_training_alone(shared_runs: list[str]) -> None:
    plan = DenseNetPlan(BLOCKS, GROWTH, WIDTH, stem="cifar")
    model = DenseNet(plan, num_classes=10, dropout=0.5)
    x = torch.randn(2, 3, 8, 8)
    assert not torch.equal(model(x), model(x))
    assert not shared_runs
    with torch.no_grad():
        assert torch.equal(model.eval()(x), model(x))
    assert shared_runs == ["inference"] * 4


def test_an_edited_block_does_what_the_edit_says() -> None:
    ours, _ = pair()
    x = images()
    ours.eval()
    with torch.no_grad():
        whole = ours(x)
        graph = sw.trace(ours, x)
        cut = sw.edit.cut(ours, graph.skips[0])
        assert not torch.allclose(cut(x), whole)
        folded = sw.edit.fold(ours, x)
        torch.testing.assert_close(folded(x), whole, rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_modes_transforms_and_other_norms_see_the_ordinary_operations(shared_runs: list[str]) -> None:
    ours, theirs = pair()
    x = images()
    seen: list[str] = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Mode():
        ours(x)
    theirs(x)
    assert {"conv2d", "batch_norm", "cat"} <= set(seen)
    counters = []
    for model in (ours, theirs):
        counters.append(FlopCounterMode(display=False))
        with counters[-1]:
            model(x)
    assert counters[0].get_total_flops() == counters[1].get_total_flops()
    weights = dict(ours.named_parameters())
    for model in (ours, theirs):
        model.eval()

    def loss(weights: dict[str, nn.Parameter], model: nn.Module) -> Tensor:
        return functional_call(model, dict(weights), (x,)).square().sum()

    agree(list(grad(loss)(weights, ours).values()), list(grad(loss)(weights, theirs).values()), 1e-10)
    tangents = tuple(torch.ones_like(t) for t in (x,))
    agree(list(jvp(ours, (x,), tangents)), list(jvp(theirs, (x,), tangents)), 1e-10)
    assert not shared_runs
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(ours.train())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    converted.eval()
    with torch.no_grad():
        torch.testing.assert_close(converted(x), theirs(x), rtol=1e-10, atol=1e-10)
    assert not shared_runs
    with torch.device("cpu"), torch.no_grad():
        theirs.eval()(x)


@pytest.mark.usefixtures("no_shape_checks")
def test_it_compiles_into_one_graph(shared_runs: list[str]) -> None:
    torch._dynamo.reset()
    ours, _ = pair()
    ours.eval()
    x = images()
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    found = compiled(x)
    assert not shared_runs
    torch.testing.assert_close(found, ours(x))


@pytest.mark.usefixtures("no_shape_checks")
def test_a_single_value_a_channel_is_refused_as_by_any_batch_norm() -> None:
    ours, _ = pair()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        ours.features(images(1, 3, 3))


def test_weights_of_two_kinds_are_left_to_torch() -> None:
    ours, _ = pair(dtype=torch.float32)
    ours.features.get_submodule("denseblock1.denselayer1.norm1").double()
    with pytest.raises(RuntimeError):
        ours(images(dtype=torch.float32))


@pytest.mark.slow
def test_gradients_reach_distributed_data_parallel(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        ours, theirs = pair()
        wrapped = nn.parallel.DistributedDataParallel(ours)
        x = images()
        wrapped(x).square().sum().backward()
        theirs(x).square().sum().backward()
        found, wanted = ([p.grad for p in model.parameters() if p.grad is not None] for model in (ours, theirs))
        agree(found, wanted, 1e-10)
    finally:
        torch.distributed.destroy_process_group()
