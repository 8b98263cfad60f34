"""The doctor as a whole: silence on healthy models, the faults of the field's own tutorials, nothing left behind."""

from __future__ import annotations

import copy
import inspect
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from doctor_models import PUBLISHED, Made, published, residual
from torch import Tensor, nn

import skipway as sw
from skipway.errors import SkipwayError
from skipway.graph import rules
from skipway.graph.doctor import doctor
from skipway.graph.rules import RULES
from skipway.graph.rules.registry import SEVERITIES

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


def cross_entropy(output: Tensor) -> Tensor:
    return F.cross_entropy(output, LABELS)


def severities(model: nn.Module, *args: Any, **kwargs: Any) -> set[str]:
    return {finding.severity for finding in doctor(model, *args, **kwargs)}


def additive(skip: str) -> bool:
    try:
        sw.models.create("resnet20", skip=skip, num_classes=3, width=4)
    except SkipwayError:
        return False
    return True


# What each of these does wrong on purpose is what its paper compared with.
WARNED = {"relu-before-sum": "relu-ends-branch", "projection-everywhere": "needless-projection"}


@pytest.mark.parametrize("skip", sw.connect.names())
def test_our_own_connections_are_healthy(skip: str) -> None:
    if not additive(skip):
        pytest.skip("a ResNet's stages keep their width, which this connection does not")
    model = sw.models.create("resnet20", skip=skip, num_classes=3, width=4)
    found = doctor(model, IMAGES, loss=cross_entropy)
    warned = {WARNED[skip]} if skip in WARNED else set()
    assert {finding.rule for finding in found if finding.severity != "advice"} == warned


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "preresnet18", "resnet32"])
def test_our_own_families_are_healthy(name: str) -> None:
    images = torch.randn(4, 3, 32, 32)
    assert severities(sw.models.create(name, num_classes=3, width=8), images, loss=cross_entropy) <= {"advice"}


def test_a_pre_activation_net_is_without_a_finding() -> None:
    assert doctor(sw.models.create("preresnet20", num_classes=3, width=8), IMAGES, loss=cross_entropy) == []


ADVICE = {
    "ResNet": {"activation-on-path", "unzeroed-norm", "lossy-projection"},
    "MobileNetV2": {"unzeroed-norm"},
    "Swin": {"unscaled-init"},
    "ViT": {"unscaled-init"},
    "Llama": {"unscaled-init"},
    "T5": {"unscaled-init"},
    "BERT": {"norm-on-path"},
    "Conformer": {"norm-on-path"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_architectures_get_advice_at_most(name: str) -> None:
    pytest.importorskip("transformers")
    model, (args, kwargs) = published(name)
    found = doctor(model.train(name in ("ResNet", "ConvNeXt", "Conformer")), *args, **kwargs)
    assert {finding.rule for finding in found} == ADVICE.get(name, set())
    assert all(finding.severity == "advice" for finding in found)


def test_trained_weights_are_healthy(shared_data: Any) -> None:
    weights = shared_data / "weights" / "akamaster-resnet20.th"
    model = sw.models.create("resnet20", skip="zero-pad-split", weights=weights, num_classes=10).eval()
    found = doctor(model, torch.randn(4, 3, 32, 32))
    assert {finding.rule for finding in found} == {"activation-on-path"}


class TutorialBlock(nn.Module):
    """One norm for both convolutions, as tutorials have it."""

    def __init__(self, shortcut: nn.Module | None = None):
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(2))
        self.norm = nn.BatchNorm2d(3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        carried = x if self.shortcut is None else shrink(x)  # pyright: ignore[reportUndefinedVariable]
        return torch.relu(self.norm(self.second(torch.relu(self.norm(self.first(x))))) + carried)


class TutorialDense(nn.Module):
    """Layers in a dictionary that registers nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.block = {f"dense{k}": nn.Conv2d(3 + 2 * k, 2, 3, padding=1) for k in range(3)}

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.block.values():
            features.append(layer(torch.cat(features, dim=1)))
        return torch.cat(features, dim=1)


class TutorialDrop(nn.Module):
    """p times the branch, where p was to be the chance of having it."""

    def __init__(self, p: float = 0.8):
        super().__init__()
        self.p = p
        self.branch = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.p * self.branch(x)


@pytest.mark.parametrize(
    ("rule", "model", "loss"),
    [
        ("shared-norm", TutorialBlock(), None),
        ("forward-fails", TutorialBlock(nn.Conv2d(3, 3, 1)), None),
        ("unregistered-layers", TutorialDense(), None),
        ("drop-that-scales", TutorialDrop(), None),
        ("loss-without-target", TutorialDrop(), torch.sum),
    ],
)
def test_every_fault_of_the_tutorials_is_found(rule: str, model: nn.Module, loss: Any) -> None:
    assert rule in {finding.rule for finding in doctor(model, torch.randn(2, 3, 8, 8), loss=loss)}


@pytest.mark.usefixtures("no_shape_checks")
def test_the_model_and_the_generators_are_left_as_they_were() -> None:
    model = sw.models.create("resnet20", skip="stochastic-depth-row", num_classes=3, width=4)
    model.eval()
    model.get_submodule("layer1").train()
    model.get_parameter("fc.weight").grad = torch.ones(3, 16)
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    x = IMAGES.clone().requires_grad_()
    state, python = torch.get_rng_state(), random.getstate()
    doctor(model, x, loss=cross_entropy)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert [module.training for module in model.modules()] == modes
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert list(gradients) == ["fc.weight"]
    assert torch.equal(gradients["fc.weight"], torch.ones(3, 16))
    assert x.grad is None
    assert torch.equal(x, IMAGES)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_model_that_fails_is_left_as_it_was_too() -> None:
    model = Made(lambda m, x: undefined, f=nn.BatchNorm2d(3)).eval()  # pyright: ignore[reportUndefinedVariable]
    (found,) = doctor(model, IMAGES)
    assert found.rule == "forward-fails"
    assert not model.training


def test_findings_come_most_severe_first_and_alike_ones_as_one() -> None:
    def block() -> nn.Module:
        return Made(
            lambda m, x: torch.relu(x.detach() + m.f(x)), f=nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        )

    found = doctor(nn.Sequential(*(block() for _ in range(4))), IMAGES)
    order = [SEVERITIES.index(finding.severity) for finding in found]
    assert order == sorted(order)
    assert found[0].rule == "cut-gradient"
    assert [str(site) for site in (found[0].site, *found[0].also)] == [f"{k}:add:0" for k in range(4)]
    assert [finding.rule for finding in found].count("bias-before-norm") == 1


def test_a_finding_prints_as_a_short_paragraph() -> None:
    lines = str(doctor(residual(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), IMAGES)[0]).split("\n")
    assert lines[0] == "advice: unzeroed-norm, at :add:0"
    assert all(len(line) <= 100 for line in lines)
    assert any(line.startswith("  Remedy: ") for line in lines)
    assert any(line.startswith("  Source: ") for line in lines)


def test_shapes_alone_are_enough_and_the_meta_device_too() -> None:
    with torch.device("meta"):
        model = sw.models.create("resnet20", num_classes=3, width=4)
        x = torch.empty(2, 3, 16, 16)
    assert {finding.rule for finding in doctor(model, x)} == {"activation-on-path"}
    assert severities(sw.models.create("resnet20", num_classes=3, width=4), torch.zeros(2, 3, 16, 16)) == {"advice"}


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_every_rule_says_what_it_detects_when_it_is_silent_and_who_says_so(rule: rules.Rule) -> None:
    assert inspect.getdoc(rule.check)
    assert "Silent" in rule.description
    assert rule.remedy.endswith(".")
    assert len(rule.source) > 10
    assert rule.severity in SEVERITIES


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("model", "args", "loss", "message"),
    [
        (nn.ReLU, (IMAGES,), None, "doctor takes a torch.nn.Module, and this is the class ReLU"),
        ("resnet18", (IMAGES,), None, "doctor takes a torch.nn.Module, and this is a str"),
        (nn.ReLU(), (), None, "forward cannot be called with these arguments"),
        (nn.Conv2d(3, 3, 1), (IMAGES,), 0.5, "loss= takes a function of the model's output, not float"),
        (
            nn.Conv2d(3, 3, 1),
            (IMAGES,),
            torch.relu,
            r"must return one number as a tensor, and returned a tensor of shape",
        ),
        (nn.Conv2d(3, 3, 1), (IMAGES,), lambda output: 0.5, "returned a float"),
        (nn.Conv2d(3, 3, 1), (IMAGES,), cross_entropy, "the loss fails on the model's output"),
        (nn.ReLU(), (IMAGES,), torch.sum, "does not depend on any parameter"),
    ],
)
def test_slips_are_told_in_one_sentence(model: Any, args: tuple[Any, ...], loss: Any, message: str) -> None:
    with pytest.raises(SkipwayError, match=message):
        doctor(model, *args, loss=loss)
