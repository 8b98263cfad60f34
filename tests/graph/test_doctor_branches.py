"""The doctor's rules about branches, norms and the path between sums: models that trigger them and that must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from doctor_models import Made, residual
from torch import Tensor, nn

import skipway as sw
from skipway.graph.doctor import doctor
from skipway.graph.rules import RULES, Finding

X = torch.zeros(2, 8, 6, 6)
IMAGES = torch.zeros(2, 3, 16, 16)
ROW = torch.zeros(4, 8)
TOKENS = torch.zeros(2, 3, 8)


def conv(c_in: int = 8, c_out: int = 8, size: int = 3, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=bias)


def stack(block: Callable[[], nn.Module], n: int = 5) -> nn.Sequential:
    return nn.Sequential(*(block() for _ in range(n)))


def mlp(width: int = 16) -> list[nn.Module]:
    return [nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8)]


def pre_norm(scale: float = 1.0) -> Callable[[], nn.Module]:
    def block() -> nn.Module:
        layers = [nn.LayerNorm(8), nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)]
        for layer in (layers[1], layers[3]):
            nn.init.normal_(layer.get_parameter("weight"), std=0.02)
        with torch.no_grad():
            layers[3].get_parameter("weight").mul_(scale)
        return residual(*layers)

    return block


def trained() -> nn.Module:
    model = stack(pre_norm(), 8)
    with torch.no_grad():
        for k, block in enumerate(model):
            block.get_parameter("f.3.weight").mul_(1 + 0.2 * k)
    return model


def zeroed(*layers: nn.Module) -> nn.Module:
    nn.init.zeros_(layers[-1].get_parameter("weight"))
    return residual(*layers)


def one_norm_for_both() -> nn.Module:
    return Made(lambda m, x: x + m.norm(m.b(torch.relu(m.norm(m.a(x))))), a=conv(), b=conv(), norm=nn.BatchNorm2d(8))


def one_scale_for_both() -> nn.Module:
    return Made(
        lambda m, x: (x := x + m.a(m.norm(x))) + m.b(m.norm(x)),
        a=nn.Linear(8, 8),
        b=nn.Linear(8, 8),
        norm=nn.LayerNorm(8),
    )


def shared_head() -> nn.Module:
    head = nn.Sequential(conv(), nn.BatchNorm2d(8))
    return Made(
        lambda m, x: m.head(x) + nn.functional.interpolate(m.head(x[:, :, ::2, ::2]), scale_factor=2.0), head=head
    )


def head_in_a_loop() -> nn.Module:
    return Made(lambda m, x: m.norm(m.f(x)) + m.norm(m.f(x.flip(3))), f=conv(), norm=nn.BatchNorm2d(8))


def recurrent_block() -> nn.Module:
    block = residual(nn.LayerNorm(8), *mlp())
    return Made(lambda m, x: m.block(m.block(m.block(m.first(x)))), first=nn.Linear(8, 8), block=block)


def some_activated(odd: int) -> nn.Module:
    def block(k: int) -> nn.Module:
        layers = [conv(), nn.BatchNorm2d(8), nn.ReLU(), conv(), nn.BatchNorm2d(8)]
        return nn.Sequential(residual(*layers), nn.ReLU() if k % odd == odd - 1 else nn.Identity())

    return nn.Sequential(*(block(k) for k in range(6)))


def transformer() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)


def read_twice() -> nn.Module:
    return Made(lambda m, x: (y := m.f(x)) * m.norm(y), f=conv(bias=True), norm=nn.BatchNorm2d(8))


def half(n: int) -> nn.Module:
    return stack(lambda: residual(nn.LayerNorm(8), *mlp()), n).bfloat16()


def resnet(skip: str, name: str = "resnet20", **options: Any) -> Callable[[], nn.Module]:
    return lambda: sw.models.create(name, skip=skip, num_classes=3, width=4, **options)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.lstm(x)[0]


Rows = dict[str, list[tuple[str, Callable[[], nn.Module], Tensor]]]
TRIGGERS: Rows = {
    "unscaled-branch": [
        ("convolutions", lambda: stack(lambda: residual(conv(), nn.ReLU(), conv())), X),
        ("one block", lambda: residual(*mlp()), ROW),
    ],
    "relu-ends-branch": [
        ("relu", lambda: residual(conv(), nn.BatchNorm2d(8), nn.ReLU()), X),
        ("softplus and dropout", lambda: residual(conv(), nn.Softplus(), nn.Dropout(0.1)), X),
        ("preset", resnet("relu-before-sum"), IMAGES),
    ],
    "unzeroed-norm": [
        ("batch norm", lambda: residual(conv(), nn.BatchNorm2d(8)), X),
        ("resnet", resnet("residual"), IMAGES),
    ],
    "unscaled-init": [("pre-norm", lambda: stack(pre_norm(), 8), TOKENS)],
    "shared-norm": [
        ("batch norm behind two convolutions", one_norm_for_both, X),
        ("layer norm before two branches", one_scale_for_both, TOKENS),
    ],
    "bias-before-norm": [
        ("convolution", lambda: nn.Sequential(conv(bias=True), nn.BatchNorm2d(8)), X),
        ("linear", lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), ROW),
        ("instance norm", lambda: nn.Sequential(conv(bias=True), nn.InstanceNorm2d(8)), X),
    ],
    "activation-on-path": [("post-activation", resnet("original"), IMAGES)],
    "norm-on-path": [
        ("post-norm", resnet("post-norm"), IMAGES),
        ("the first Transformer", transformer, TOKENS),
    ],
    "mixed-activations": [("every other", lambda: some_activated(2), X), ("every third", lambda: some_activated(3), X)],
    "low-precision-stream": [("bfloat16", lambda: half(8), TOKENS.bfloat16())],
    "deep-without-skips": [("plain-56", resnet("none", "resnet56"), IMAGES)],
}  # fmt: skip
SILENT: Rows = {
    "unscaled-branch": [
        ("norm in it", lambda: stack(lambda: residual(nn.LayerNorm(8), *mlp())), ROW),
        ("norm behind the sum", lambda: stack(lambda: nn.Sequential(residual(*mlp()), nn.LayerNorm(8))), ROW),
        ("a number", lambda: stack(lambda: Made(lambda m, x: x + 0.2 * m.f(x), f=nn.Sequential(*mlp()))), ROW),
        ("starts at zero", lambda: stack(lambda: zeroed(*mlp())), ROW),
        ("rezero", lambda: stack(lambda: sw.Skip(nn.Sequential(*mlp()), "rezero", channels=8, dims=0)), ROW),
        ("recurrent", Recurrent, TOKENS),
    ],
    "relu-ends-branch": [
        ("norm", lambda: residual(conv(), nn.ReLU(), conv(), nn.BatchNorm2d(8)), X),
        ("signed", lambda: residual(conv(), nn.Tanh()), X),
        ("after the sum", resnet("original"), IMAGES),
    ],
    "unzeroed-norm": [
        ("zeroed", lambda: zeroed(conv(), nn.BatchNorm2d(8)), X),
        ("no scale", lambda: residual(conv(), nn.BatchNorm2d(8, affine=False)), X),
        ("pre-activation", resnet("pre-activation"), IMAGES),
        ("zero_init", resnet("residual", zero_init=True), IMAGES),
    ],
    "unscaled-init": [
        ("scaled", lambda: stack(pre_norm(16**-0.5), 8), TOKENS),
        ("few", lambda: stack(pre_norm(), 4), TOKENS),
        ("trained", trained, TOKENS),
    ],
    "shared-norm": [
        ("one each", resnet("residual"), IMAGES),
        ("a head over two resolutions", shared_head, X),
        ("a head in a loop", head_in_a_loop, X),
        ("a recurrent block", recurrent_block, TOKENS),
    ],
    "bias-before-norm": [
        ("no bias", lambda: nn.Sequential(conv(), nn.BatchNorm2d(8)), X),
        ("group norm keeps part of it", lambda: nn.Sequential(conv(bias=True), nn.GroupNorm(2, 8)), X),
        ("read elsewhere", read_twice, X),
    ],
    "activation-on-path": [
        ("pre-activation", resnet("pre-activation"), IMAGES),
        ("shared with projections", resnet("residual", "preresnet20"), IMAGES),
    ],
    "norm-on-path": [("pre-norm", resnet("pre-norm"), IMAGES), ("deepnorm", resnet("deepnorm"), IMAGES)],
    "mixed-activations": [
        ("all", lambda: some_activated(1), X),
        ("none", lambda: some_activated(99), X),
        ("resnet", resnet("residual"), IMAGES),
    ],
    "low-precision-stream": [("few", lambda: half(4), TOKENS.bfloat16()), ("float32", lambda: half(8).float(), TOKENS)],
    "deep-without-skips": [("resnet-56", resnet("residual", "resnet56"), IMAGES), ("plain-20", resnet("none"), IMAGES)],
}  # fmt: skip


def rows(table: Rows) -> list[object]:
    return [
        pytest.param(rule, build, x, id=f"{rule}: {name}") for rule, cases in table.items() for name, build, x in cases
    ]


@pytest.mark.parametrize(("rule", "build", "x"), rows(TRIGGERS))
def test_is_found(rule: str, build: Callable[[], nn.Module], x: Tensor) -> None:
    model = build()
    assert rule in {finding.rule for finding in doctor(model.train(), x)}
    assert rule in {finding.rule for finding in doctor(model.eval(), x)}


@pytest.mark.parametrize(("rule", "build", "x"), rows(SILENT))
def test_is_silent(rule: str, build: Callable[[], nn.Module], x: Tensor) -> None:
    assert rule not in {finding.rule for finding in doctor(build(), x)}


def test_every_rule_of_these_groups_has_its_models() -> None:
    groups = (".branches", ".norms", ".path")
    names = {name for name, rule in RULES.items() if rule.check.__module__.endswith(groups)}
    assert names == set(TRIGGERS) == set(SILENT)


def one(rule: str, model: nn.Module, x: Tensor) -> Finding:
    (found,) = [finding for finding in doctor(model, x) if finding.rule == rule]
    return found


def test_a_norm_with_statistics_is_an_error_and_a_shared_scale_a_warning() -> None:
    found = one("shared-norm", one_norm_for_both(), X)
    assert found.severity == "error"
    assert found.sentence == (
        "BatchNorm2d norm runs at 2 sites, behind a, then b: one set of running statistics mixes them."
    )
    assert one("shared-norm", one_scale_for_both(), TOKENS).severity == "warning"


def test_the_growth_of_unscaled_branches_is_told_and_few_of_them_are_advice() -> None:
    found = one("unscaled-branch", stack(lambda: residual(*mlp()), 12), ROW)
    assert found.severity == "warning"
    assert "2^12 = 4,096 times" in found.sentence
    assert len(found.also) == 11
    assert one("unscaled-branch", residual(*mlp()), ROW).severity == "advice"


def test_the_variance_of_unscaled_branches_grows_as_told() -> None:
    # De & Smith 2020: a branch that keeps the variance of what it reads doubles it at each sum.
    blocks = stack(lambda: Made(lambda m, x: x + m.f(x), f=nn.Linear(256, 256, bias=False)), 6)
    for parameter in blocks.parameters():
        nn.init.normal_(parameter, std=256**-0.5)
    assert "2^6 = 64 times" in one("unscaled-branch", blocks, torch.zeros(4, 256)).sentence
    assert blocks(torch.randn(512, 256)).var().item() == pytest.approx(64, rel=0.1)


def test_a_bias_before_batch_norm_indeed_changes_nothing() -> None:
    model = TRIGGERS["bias-before-norm"][0][1]()
    x = torch.randn(4, 8, 6, 6)
    before = model(x)
    with torch.no_grad():
        model.get_parameter("0.bias").add_(3.0)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_the_stream_in_half_precision_is_advice_in_evaluation() -> None:
    assert one("low-precision-stream", half(8).eval(), TOKENS.bfloat16()).severity == "advice"
    assert one("low-precision-stream", half(8).train(), TOKENS.bfloat16()).severity == "warning"
