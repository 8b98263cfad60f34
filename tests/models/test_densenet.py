"""DenseNet's published sizes, names, seeds and layouts, and its like with other connections."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import skipway as sw
from skipway.models import DenseNet, DenseNetPlan, cifar_densenet

# Parameters as torchvision 0.28 and gpleiss/efficient_densenet_pytorch build them; those without BC by the formula.
PARAMETERS = {
    ("densenet121", 1000): 7_978_856,
    ("densenet161", 1000): 28_681_000,
    ("densenet169", 1000): 14_149_480,
    ("densenet201", 1000): 20_013_928,
    ("densenet-40-12", 10): 1_019_722,
    ("densenet-100-12", 10): 6_979_642,
    ("densenet-100-24", 10): 27_249_082,
    ("densenet-bc-100-12", 10): 769_162,
    ("densenet-bc-100-12", 100): 800_032,
    ("densenet-bc-250-24", 10): 15_324_406,
    ("densenet-bc-190-40", 10): 25_624_430,
    ("densenet-bc-190-40", 100): 25_821_620,
}
ENTRIES = {121: 727, 161: 967, 169: 1015, 201: 1207}
BLOCKS = {121: (6, 12, 24, 16), 161: (6, 12, 36, 24), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
SMALL = DenseNetPlan(blocks=(2, 3), growth=4, width=8, stem="cifar")


def small(skip: object = "dense", **options: object) -> DenseNet:
    return DenseNet(SMALL, skip, 10, **options)  # type: ignore[arg-type]


def published_names(depth: int) -> list[str]:
    """The entries of torchvision's state_dict, in order, from their published pattern."""
    names = ["features.conv0.weight", *(f"features.norm0.{entry}" for entry in NORM)]
    for block, layers in enumerate(BLOCKS[depth], 1):
        for layer in range(1, layers + 1):
            here = f"features.denseblock{block}.denselayer{layer}"
            for k in (1, 2):
                names += [*(f"{here}.norm{k}.{entry}" for entry in NORM), f"{here}.conv{k}.weight"]
        if block < len(BLOCKS[depth]):
            here = f"features.transition{block}"
            names += [*(f"{here}.norm.{entry}" for entry in NORM), f"{here}.conv.weight"]
    return [*names, *(f"features.norm5.{entry}" for entry in NORM), "classifier.weight", "classifier.bias"]


@pytest.mark.parametrize(("name", "classes"), PARAMETERS)
def test_parameters(name: str, classes: int) -> None:
    with torch.device("meta"):
        model = sw.models.create(name, num_classes=classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name, classes]


@pytest.mark.parametrize(("name", "giga"), [("densenet121", 2.834), ("densenet161", 7.728), ("densenet201", 4.291)])
def test_multiply_adds(name: str, giga: float) -> None:
    """As torchvision publishes them with its weights."""
    assert round(sw.models.describe(name).multiply_adds / 1e9, 3) == giga


def test_a_name_tells_the_number_of_weight_layers() -> None:
    for name in [name for name in sw.models.names() if name.startswith("densenet")]:
        with torch.device("meta"):
            model = sw.models.create(name)
        assert isinstance(model, DenseNet)
        layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert len(layers) == model.depth == int(re.findall(r"\d+", name)[0])


@pytest.mark.parametrize("depth", BLOCKS)
def test_entries_and_order_are_torchvisions(depth: int) -> None:
    with torch.device("meta"):
        model = sw.models.create(f"densenet{depth}")
    assert list(model.state_dict()) == published_names(depth)
    assert len(model.state_dict()) == ENTRIES[depth]
    weighted = [name for name, module in model.named_modules() if hasattr(module, "weight")]
    assert weighted == [n.removesuffix(".weight") for n in published_names(depth) if n.endswith(".weight")]


@pytest.mark.parametrize("memory", ["shared", "plain"])
def test_golden_logits_from_a_seed(shared_data: Path, memory: str) -> None:
    golden = json.loads((shared_data / "golden.json").read_text())["densenet121"]
    torch.manual_seed(0)
    random.seed(0)
    model = sw.models.create("densenet121", num_classes=50, memory=memory).eval()
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0], torch.tensor(golden["logits"]), rtol=1e-5, atol=1e-5)


def published_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.randn_like(value.float()).to(value.dtype) for name, value in model.state_dict().items()}


def test_the_dotted_names_of_old_files_load(tmp_path: Path) -> None:
    """`norm.1`, `conv.2`, and no counters: the files that torchvision's first DenseNets were published as."""
    with torch.device("meta"):
        meta = sw.models.create("densenet121")
    state = {k: torch.randn(v.shape) for k, v in meta.state_dict().items() if "num_batches_tracked" not in k}
    dotted = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): value for name, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in dotted
    torch.save(dotted, tmp_path / "old.pth")
    model = sw.models.create("densenet121", weights=tmp_path / "old.pth")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


@pytest.mark.parametrize("dotted", [False, True])
def test_the_cifar_files_of_gpleiss_load(tmp_path: Path, dotted: bool) -> None:
    """As torchvision's, but that the last norm is `norm_final`; the older ones are dotted too."""
    model = sw.models.create("densenet-bc-40-12")
    state = published_state(model)
    theirs = {name.replace("features.norm5.", "features.norm_final."): value for name, value in state.items()}
    if dotted:
        theirs = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): v for k, v in theirs.items()}
    torch.save(theirs, tmp_path / "model.dat.pt")
    sw.models.load_weights(model, tmp_path / "model.dat.pt")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def test_another_nets_file_is_refused_and_named(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "small.pt")
    with pytest.raises(sw.SkipwayError, match="seems to hold a DenseNet for 10 classes"):
        sw.models.create("densenet-bc-100-12", weights=tmp_path / "small.pt")


@pytest.mark.parametrize("name", sw.connect.names())
def test_every_connection_trains_on_a_stream_of_the_same_widths(name: str) -> None:
    """Whatever the connection, each layer reads, and each transition and classifier reads, as many channels."""
    model = small(name)
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    logits = model(x)
    assert logits.shape == (4, 10)
    logits.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.any()
    for key, weight in small().named_parameters():
        if key.endswith(("conv1.weight", "conv.weight")):
            assert model.get_parameter(key).shape[1] == weight.shape[1]
    assert model.classifier.in_features == small().classifier.in_features
    fresh = small(name)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(x), model.eval()(x))


def test_the_dense_net_is_the_padded_residual_net_that_leaves_old_channels_alone() -> None:
    dense, padded = small().double().eval(), small("residual").double().eval()
    state = padded.state_dict()
    for name, value in dense.state_dict().items():
        if name.endswith("conv2.weight"):
            state[name].zero_()
            state[name][-len(value) :] = value
        else:
            state[name] = value
    padded.load_state_dict(state)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(padded(x), dense(x), rtol=1e-12, atol=1e-12)


def test_concatenating_one_by_one_is_the_dense_net() -> None:
    dense, joined = small().eval(), small("concat").eval()
    joined.load_state_dict(dense.state_dict())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(joined(x), dense(x))


@pytest.mark.parametrize(
    ("skip", "kinds"),
    [("dense", {"concat": 2 * 3 // 2 + 3 * 4 // 2}), ("residual", {"add": 5}), ("none", {})],
)
def test_trace_sees_every_skip(skip: str, kinds: dict[str, int]) -> None:
    """A dense block of n layers concatenates n (n + 1) / 2 times past one of them; the padded sums are n."""
    model = small(skip)
    for training in (True, False):
        graph = sw.trace(model.train(training), torch.randn(2, 3, 8, 8))
        found = [found.kind for found in graph.skips]
        assert {kind: found.count(kind) for kind in set(found)} == kinds


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sw.models.create("densenet-bc-101-12"), "depth 6n\\+4, which 101 is not: the nearest are 100 and 106"),
        (lambda: sw.models.create("densenet-5-12"), "depth 3n\\+4, which 5 is not: the smallest is 7"),
        (lambda: cifar_densenet(40, 0), "growth, width and blocks of at least 1"),
        (lambda: DenseNetPlan((2,), 4, 8, compression=1.5), "above 0 and at most 1, not 1.5"),
        (lambda: small(memory="low"), "no memory 'low'; .*allowed: shared, recomputed, plain"),
        (lambda: small(dropout=1.0), r"a rate in \[0, 1\), not 1.0"),
        (lambda: small(sw.Residual(shortcut=sw.Identity())), "identity shortcut cannot carry 8 channels into 12"),
        (lambda: small()(torch.zeros(1, 1, 8, 8)), r"shape \[n, 3, h, w\], not \[1, 1, 8, 8\]"),
        (lambda: small()(torch.zeros(1, 3, 1, 8)), "images are 1 x 8; .* at least 2 x 2 pixels"),
        (lambda: sw.models.create("densenet121")(torch.zeros(1, 3, 28, 28)), "or use a CIFAR DenseNet"),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_slips_get_one_sentence(make: object, message: str) -> None:
    with pytest.raises(sw.SkipwayError, match=message):
        make()  # type: ignore[operator]
