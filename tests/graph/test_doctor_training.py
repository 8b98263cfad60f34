"""The doctor's rules about construction, stochastic depth, signals and gradients."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from doctor_models import Made, residual
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import skipway as sw
from skipway.graph.doctor import doctor
from skipway.graph.rules import RULES, Finding

X = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
ROW = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(0, 8, (16,), generator=torch.Generator().manual_seed(2))


class Sine(nn.Module):
    """Bounds the signal and not the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class StochasticDepth(nn.Module):
    def __init__(self, p: float, draws: bool = True):
        super().__init__()
        self.p, self.draws = p, draws

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if not self.draws:
            return x * (1 - self.p)
        kept = torch.rand(len(x), *(1,) * (x.ndim - 1)) < 1 - self.p
        return x * kept / max(1 - self.p, 1e-6)


class Masked(nn.Module):
    """Masks its branch by a rate, under a name that says nothing of it."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate, self.f = rate, nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        value = self.f(x)
        if self.training:
            value = value * torch.empty(len(x), 1).bernoulli_(1 - self.rate) / (1 - self.rate)
        return x + value


def branch() -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


def dropped(rates: list[float], draws: bool = True) -> nn.Module:
    return nn.Sequential(*(residual(nn.Sequential(*branch(), StochasticDepth(p, draws))) for p in rates))


def resnet(skip: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 3, 1), sw.models.create("resnet20", skip=skip, num_classes=3, width=4))


def gated(bias: float) -> nn.Module:
    model = Made(lambda m, x: (g := torch.sigmoid(m.gate(x))) * m.f(x) + (1 - g) * x, gate=nn.Linear(8, 8), f=branch())
    nn.init.constant_(model.get_parameter("gate.bias"), bias)
    return model


def sized(weight: float, bias: float = 0.0) -> nn.Module:
    f = branch()
    nn.init.normal_(f[3].get_parameter("weight"), std=weight)
    nn.init.constant_(f[3].get_parameter("bias"), bias)
    return residual(f)


def plain(depth: int, activation: Callable[[], nn.Module], gain: float = 1.0) -> nn.Module:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(8, 8), activation())]
    for layer in layers[::2]:
        with torch.no_grad():
            layer.get_parameter("weight").mul_(gain)
    return nn.Sequential(*layers, nn.Linear(8, 8))


def in_one_mode(training: bool) -> nn.Module:
    return Made(lambda m, x: x + m.f(x) if m.training == training else m.f(x), f=branch())


def trained_head(m: Any, x: Tensor) -> Tensor:
    return m.f(x) + x + (m.head(x + m.g(x)) if m.training else 0)


def cut_branch(m: Any, x: Tensor) -> Tensor:
    return x + m.norm(m.f(x).detach())


def changed_after_use(m: Any, x: Tensor) -> Tensor:
    y = torch.sigmoid(m.f(x))
    z = m.g(y)
    y += 1
    return y + z


def shares_time(m: Any, x: Tensor) -> Tensor:
    return x + (m.f(x) if random.random() > 0.5 or not m.training else m.f(x) * 2)


def recomputed(twice: bool) -> nn.Module:
    f = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    return Made(lambda m, x: x + (checkpoint(m.f, x, use_reentrant=False) if twice else m.f(x)), f=f)


def shortcut_of_a_wrong_name() -> nn.Module:
    return Made(lambda m, x: m.f(x) + downsample(x), f=branch())  # pyright: ignore


def frozen_teacher() -> nn.Module:
    return Made(lambda m, x: x + m.f(x) + m.teacher[0](x), f=branch(), teacher=[nn.Linear(8, 8).requires_grad_(False)])


def cross_entropy(output: Tensor) -> Tensor:
    return F.cross_entropy(output, LABELS[: len(output)])


def in_a_closure() -> nn.Module:
    f = branch()
    return Made(lambda m, x: x + f(x))


def three_classes(output: Tensor) -> Tensor:
    return F.cross_entropy(output, LABELS[: len(output)] % 3)


Rows = dict[str, list[tuple[str, Callable[[], nn.Module], Tensor, Callable[[Any], Any] | None]]]
TRIGGERS: Rows = {
    "forward-fails": [
        ("an undefined name", lambda: nn.Sequential(nn.Linear(8, 8), shortcut_of_a_wrong_name()), ROW, None),
        ("shapes", lambda: residual(nn.Linear(8, 5)), ROW, None),
        ("in the other mode", lambda: Made(lambda m, x: m.f(x) if m.training else m.g(x), f=branch()), ROW, None),
    ],
    "unregistered-layers": [
        ("dict", lambda: Made(lambda m, x: x + m.layers["f"](x), layers={"f": branch()}), ROW, None),
        ("list", lambda: Made(lambda m, x: x + m.layers[0](x), layers=[branch()]), ROW, None),
        ("parameter", lambda: Made(lambda m, x: x * m.scales[0], scales=[nn.Parameter(torch.ones(8))]), ROW, None),
        ("closure", in_a_closure, ROW, None),
    ],
    "skip-in-one-mode": [
        ("training alone", lambda: in_one_mode(True), ROW, None),
        ("evaluation alone", lambda: in_one_mode(False), ROW, None),
    ],
    "constant-drop": [
        ("modules", lambda: dropped([0.2, 0.2, 0.2]), ROW, None),
        ("masks", lambda: nn.Sequential(*(Masked(0.1) for _ in range(4))), ROW, None),
        ("ours", lambda: resnet(sw.Residual(drop=sw.StochasticDepth(0.3, schedule="constant"))), X, None),
    ],
    "drop-everything": [
        ("stochastic depth", lambda: dropped([0.5, 1.0]), ROW, None),
        ("dropout", lambda: residual(nn.Sequential(*branch(), nn.Dropout(1.0))), ROW, None),
    ],
    "drop-that-scales": [
        ("p F(x)", lambda: Made(lambda m, x: x + m.p * m.f(x), f=branch(), p=0.8), ROW, None),
        ("in a module", lambda: dropped([0.2], draws=False), ROW, None),
    ],
    "dead-branch": [("small", lambda: sized(1e-7), ROW, None)],
    "lost-identity": [("large", lambda: sized(100.0), ROW, None)],
    "saturated-gate": [("shut", lambda: gated(-20.0), ROW, None), ("open", lambda: gated(20.0), ROW, None)],
    "not-finite": [("division", lambda: Made(lambda m, x: x + m.f(x) / 0.0, f=branch()), ROW, None)],
    "vanishing-gradient": [
        ("sigmoids", lambda: plain(20, nn.Sigmoid), ROW, cross_entropy),
        ("to nothing", lambda: plain(100, nn.Sigmoid), ROW, cross_entropy),
    ],
    "exploding-gradient": [
        ("large weights", lambda: plain(20, nn.Identity, 8.0), ROW, cross_entropy),
        ("backwards alone", lambda: plain(20, Sine, 8.0), ROW, cross_entropy),
    ],
    "no-gradient": [
        ("a detached branch", lambda: Made(cut_branch, f=nn.Linear(8, 8), norm=nn.LayerNorm(8)), ROW, cross_entropy),
    ],
    "backward-fails": [
        ("changed in place", lambda: Made(changed_after_use, f=nn.Linear(8, 8), g=nn.Linear(8, 8)), ROW, cross_entropy),
    ],
    "loss-without-target": [
        ("sum", lambda: residual(branch()), ROW, lambda output: output.sum()),
        ("mean", lambda: residual(branch()), ROW, lambda output: output.mean()),
    ],
    "norm-counted-twice": [("checkpointed", lambda: recomputed(True), ROW, cross_entropy)],
}  # fmt: skip
SILENT: Rows = {
    "forward-fails": [
        ("runs", lambda: residual(branch()), ROW, None),
        ("one sample of one pixel", lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval(), ROW[:1], None),
    ],
    "unregistered-layers": [
        ("ModuleList", lambda: Made(lambda m, x: x + m.layers[0](x), layers=nn.ModuleList([branch()])), ROW, None),
        ("frozen", frozen_teacher, ROW, None),
        ("does not run", lambda: Made(lambda m, x: x + m.f(x), f=branch(), spare=[branch()]), ROW, None),
        ("registered too", lambda: Made(lambda m, x: x + m.same[0](x), f=(f := branch()), same=[f]), ROW, None),
    ],
    "skip-in-one-mode": [
        ("both", lambda: residual(branch()), ROW, None),
        ("auxiliary head", lambda: Made(trained_head, f=branch(), g=branch(), head=nn.Linear(8, 8)), ROW, None),
        ("stochastic depth", lambda: resnet("stochastic-depth"), X, None),
        ("fused attention", lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), ROW[None], None),
    ],
    "constant-drop": [
        ("linear", lambda: dropped([0.1, 0.2, 0.3]), ROW, None),
        ("ours", lambda: resnet(sw.Residual(drop=0.3)), X, None),
        ("dropout", lambda: nn.Sequential(*(residual(*branch(), nn.Dropout(0.1)) for _ in range(4))), ROW, None),
    ],
    "drop-everything": [("half", lambda: dropped([0.5, 0.9]), ROW, None)],
    "drop-that-scales": [
        ("drawn", lambda: dropped([0.2]), ROW, None),
        ("a residual scale", lambda: Made(lambda m, x: x + m.scale * m.f(x), f=branch(), scale=0.2, p=0.1), ROW, None),
        ("ours", lambda: resnet("stochastic-depth"), X, None),
        ("ours a row", lambda: resnet("stochastic-depth-row"), X, None),
        ("drawn by Python", lambda: Made(shares_time, f=branch(), p=0.5), ROW, None),
    ],
    "dead-branch": [
        ("alive", lambda: sized(0.1), ROW, None),
        ("rezero", lambda: sw.Skip(branch(), "rezero", channels=8, dims=0), ROW, None),
        ("layerscale", lambda: sw.Skip(branch(), "layerscale", channels=8, dims=0), ROW, None),
        ("zeroed", lambda: sized(0.0), ROW, None),
        ("no data", lambda: sized(1e-7), torch.ones(4, 8), None),
    ],
    "lost-identity": [
        ("near", lambda: sized(0.1), ROW, None),
        ("no data", lambda: sized(100.0), torch.zeros(4, 8), None),
    ],
    "saturated-gate": [
        ("half open", lambda: gated(-3.0), ROW, None),
        ("exclusive gate as published", lambda: sw.Skip(branch(), "exclusive-gate", channels=8, dims=0), ROW, None),
    ],
    "not-finite": [("finite", lambda: sized(100.0), ROW, None)],
    "vanishing-gradient": [
        ("shallow", lambda: plain(3, nn.Sigmoid), ROW, cross_entropy),
        ("residual", lambda: nn.Sequential(*(residual(branch()) for _ in range(20))), ROW, cross_entropy),
        ("layerscale", lambda: resnet("layerscale"), X, three_classes),
        ("no loss", lambda: plain(20, nn.Sigmoid), ROW, None),
    ],
    "exploding-gradient": [("resnet", lambda: resnet("residual"), X, three_classes)],
    "no-gradient": [
        ("connected", lambda: residual(branch()), ROW, cross_entropy),
        ("rezero", lambda: sw.Skip(branch(), "rezero", channels=8, dims=0), ROW, cross_entropy),
    ],
    "backward-fails": [("runs", lambda: residual(branch()), ROW, cross_entropy)],
    "loss-without-target": [
        ("cross entropy", lambda: residual(branch()), ROW, cross_entropy),
        ("one output", lambda: nn.Sequential(residual(branch()), nn.Linear(8, 1)), ROW, lambda output: output.mean()),
    ],
    "norm-counted-twice": [("once", lambda: recomputed(False), ROW, cross_entropy)],
}  # fmt: skip


def rows(table: Rows) -> list[object]:
    return [
        pytest.param(rule, *case, id=f"{rule}: {name}") for rule, cases in table.items() for name, *case in cases
    ]  # fmt: skip


@pytest.mark.parametrize(("rule", "build", "x", "loss"), rows(TRIGGERS))
def test_is_found(rule: str, build: Callable[[], nn.Module], x: Tensor, loss: Callable[[Any], Any] | None) -> None:
    assert rule in {finding.rule for finding in doctor(build(), x, loss=loss)}


@pytest.mark.parametrize(("rule", "build", "x", "loss"), rows(SILENT))
def test_is_silent(rule: str, build: Callable[[], nn.Module], x: Tensor, loss: Callable[[Any], Any] | None) -> None:
    assert rule not in {finding.rule for finding in doctor(build(), x, loss=loss)}


def test_every_rule_of_these_groups_has_its_models() -> None:
    groups = (".construction", ".drops", ".signals", ".learning")
    names = {name for name, rule in RULES.items() if rule.check.__module__.endswith(groups)}
    assert names == set(TRIGGERS) == set(SILENT)


def one(rule: str, model: nn.Module, x: Tensor, loss: Callable[[Any], Any] | None = None) -> Finding:
    (found,) = [finding for finding in doctor(model, x, loss=loss) if finding.rule == rule]
    return found


def test_an_undefined_name_is_told_with_the_module_that_uses_it() -> None:
    found = one("forward-fails", TRIGGERS["forward-fails"][0][1](), ROW)
    assert found.severity == "error"
    assert found.site.module == "1"
    assert found.sentence.startswith("Made 1 fails in <lambda> (test_doctor_training.py, line ")
    assert found.sentence.endswith("NameError: name 'downsample' is not defined.")


def test_a_failure_in_the_other_mode_is_a_warning_that_names_it() -> None:
    found = one("forward-fails", TRIGGERS["forward-fails"][2][1](), ROW)
    assert found.severity == "warning"
    assert "in evaluation mode" in found.sentence


def test_unregistered_layers_are_counted() -> None:
    found = one("unregistered-layers", TRIGGERS["unregistered-layers"][0][1](), ROW)
    assert "plain dict, 'layers'" in found.sentence
    assert "296 parameters" in found.sentence


def test_the_sizes_of_a_dead_branch_are_told() -> None:
    model = sized(1e-7)
    found = one("dead-branch", model, ROW)
    branch_size = model.get_submodule("f")(ROW).square().mean().sqrt().item()
    assert f"{branch_size:.2g} where the shortcut carries {ROW.square().mean().sqrt().item():.2g}" in found.sentence


def test_the_cosine_of_a_lost_identity_is_told() -> None:
    model = sized(100.0)
    cosine = F.cosine_similarity(ROW.flatten(), model(ROW).flatten(), dim=0).item()
    assert f"cosine of {cosine:.2f}" in one("lost-identity", model, ROW).sentence


def test_vanishing_gradients_are_those_that_autograd_gives() -> None:
    model = plain(20, nn.Sigmoid)
    cross_entropy(model(ROW)).backward()
    gradients = [model.get_parameter(f"{2 * k}.weight").grad for k in range(7)]
    sizes = sorted(gradient.square().mean().sqrt().item() for gradient in gradients if gradient is not None)
    assert f"shrinks to {sizes[3]:.1g} in" in one("vanishing-gradient", model, ROW, cross_entropy).sentence
