"""The doctor's rules about shortcuts: for each a small model that must trigger it, and some that must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from doctor_models import Made, residual
from torch import Tensor, nn

from skipway.graph.doctor import doctor
from skipway.graph.rules import RULES

X = torch.zeros(2, 8, 6, 6)
ROW = torch.zeros(4, 8)


def conv(c_in: int = 8, c_out: int = 8, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, size, stride, size // 2, bias=False)


def branch(c_in: int = 8, c_out: int = 8, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        conv(c_in, c_out, 3, stride), nn.BatchNorm2d(c_out), nn.ReLU(), conv(c_out, c_out), nn.BatchNorm2d(c_out)
    )


def stack(block: Callable[[], nn.Module], n: int = 3) -> nn.Sequential:
    return nn.Sequential(*(block() for _ in range(n)))


def padded(x: Tensor, gradient: bool) -> Tensor:
    thinned = x[:, :, ::2, ::2]
    return torch.cat([thinned if gradient else thinned.data, torch.zeros_like(thinned)], dim=1)


def no_grad_shortcut(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        shortcut = x * 1.0
    return shortcut + m.f(x)


def frozen(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = x + m.f(x)
    return m.head(x)


def changes_its_input(m: Any, x: Tensor) -> Tensor:
    out = m.f(x)
    out += x
    return out


def first_in_place(m: Any, x: Tensor) -> Tensor:
    out = m.conv(m.relu(x))
    return m.norm(out) + x


def relu_after_sum(m: Any, x: Tensor) -> Tensor:
    out = m.f(x)
    out += x
    return m.relu(out)


def in_place_stream(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    x += m.f(x)
    x += m.g(x)
    return x


def view_in_place(m: Any, x: Tensor) -> Tensor:
    return x + m.f(x)


class InPlaceOnView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 36)
        self.norm = nn.LayerNorm(36)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(2, 8, 36)
        flat.relu_()
        return self.norm(self.layer(flat)).view_as(x)


def activated_first(inplace: bool) -> nn.Module:
    return Made(first_in_place, relu=nn.ReLU(inplace), conv=conv(), norm=nn.BatchNorm2d(8))


def spreads_openly(m: Any, x: Tensor) -> Tensor:
    return x + m.f(x.mean((2, 3), keepdim=True)).expand_as(x)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))


def preactivated() -> nn.Sequential:
    return nn.Sequential(nn.ReLU(inplace=True), conv(), nn.ReLU(inplace=True), conv(), nn.BatchNorm2d(8))


def scaled(by: float, of_branch: float = 1.0) -> Callable[[], nn.Module]:
    return lambda: Made(lambda m, x: x * by + m.f(x) * of_branch, f=branch())


def after_norm() -> nn.Module:
    return Made(lambda m, x: m.norm(x * 2.0 + m.f(x)), f=branch(), norm=nn.BatchNorm2d(8))


TRIGGERS: dict[str, list[tuple[str, Callable[[], nn.Module], Tensor]]] = {
    "cut-gradient": [
        ("detach", lambda: Made(lambda m, x: x.detach() + m.f(x), f=branch()), X),
        ("no_grad", lambda: Made(no_grad_shortcut, f=branch()), X),
        ("option A through .data", lambda: Made(lambda m, x: padded(x, False) + m.f(x), f=branch(8, 16, 2)), X),
    ],
    "overwritten-shortcut": [
        ("hidden in the branch", lambda: nn.Sequential(conv(), Made(changes_its_input, f=preactivated())), X),
        ("on a view", lambda: nn.Sequential(conv(), Made(view_in_place, f=InPlaceOnView())), X),
        (
            "the block's own first step",
            lambda: nn.Sequential(conv(), activated_first(inplace=True)),
            X,
        ),
    ],
    "broadcast-sum": [
        ("[n,c] + [n,1]", lambda: Made(lambda m, x: x + m.f(x), f=nn.Sequential(nn.Linear(8, 1))), ROW),
        ("[n,1,h,w]", lambda: Made(lambda m, x: x + m.f(x), f=conv(8, 1)), X),
        (
            "[n,c,1,1] + [n,c,h,w]",
            lambda: Made(lambda m, x: x + m.f(x), f=nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(8, 8, 1))),
            X,
        ),
    ],
    "needless-projection": [
        ("1x1 convolution", lambda: Made(lambda m, x: m.s(x) + m.f(x), s=conv(8, 8, 1), f=branch()), X),
        ("linear", lambda: Made(lambda m, x: m.s(x) + m.f(x), s=nn.Linear(8, 8), f=mlp()), ROW),
    ],
    "lossy-projection": [
        ("1x1, stride 2", lambda: Made(lambda m, x: m.s(x) + m.f(x), s=conv(8, 16, 1, 2), f=branch(8, 16, 2)), X),
    ],
    "dropout-on-shortcut": [
        ("on the shortcut", lambda: Made(lambda m, x: m.drop(x) + m.f(x), drop=nn.Dropout(0.1), f=branch()), X),
        ("on the path", lambda: stack(lambda: nn.Sequential(residual(*branch()), nn.Dropout2d())), X),
    ],
    "scaled-shortcut": [
        ("halved", lambda: stack(scaled(0.5), 4), X),
        ("mean of both", lambda: stack(scaled(0.5, 0.5)), X),
        ("doubled", lambda: stack(scaled(2.0), 4), X),
    ],
}  # fmt: skip

SILENT: dict[str, list[tuple[str, Callable[[], nn.Module], Tensor]]] = {
    "cut-gradient": [
        ("option A", lambda: Made(lambda m, x: padded(x, True) + m.f(x), f=branch(8, 16, 2)), X),
        ("frozen part", lambda: Made(frozen, f=branch(), head=conv()), X),
        ("straight-through", lambda: Made(lambda m, x: x + (m.f(x) - x).detach(), f=branch()), X),
    ],
    "overwritten-shortcut": [
        ("in-place after the sum", lambda: stack(lambda: Made(relu_after_sum, f=branch(), relu=nn.ReLU(True))), X),
        ("a stream updated in place", lambda: Made(in_place_stream, stem=conv(), f=branch(), g=branch()), X),
        (
            "in-place on the branch's own norm",
            lambda: Made(changes_its_input, f=nn.Sequential(nn.BatchNorm2d(8), *preactivated())),
            X,
        ),
        ("out of place", lambda: nn.Sequential(conv(), activated_first(inplace=False)), X),
    ],
    "broadcast-sum": [
        ("expanded in so many words", lambda: Made(spreads_openly, f=conv(8, 8, 1)), X),
        ("a bias", lambda: Made(lambda m, x: x + m.f(x) + m.f.bias.view(1, -1, 1, 1), f=nn.Conv2d(8, 8, 1)), X),
    ],
    "needless-projection": [
        ("wider", lambda: Made(lambda m, x: m.s(x) + m.f(x), s=conv(8, 16, 1), f=branch(8, 16)), X),
        ("smaller", lambda: Made(lambda m, x: m.s(x) + m.f(x), s=conv(8, 8, 1, 2), f=branch(8, 8, 2)), X),
    ],
    "lossy-projection": [
        (
            "pooled first",
            lambda: Made(lambda m, x: m.s(F.avg_pool2d(x, 2)) + m.f(x), s=conv(8, 16, 1), f=branch(8, 16, 2)),
            X,
        ),
        ("2x2, stride 2", lambda: Made(lambda m, x: m.s(x) + m.f(x), s=nn.Conv2d(8, 16, 2, 2), f=branch(8, 16, 2)), X),
    ],
    "dropout-on-shortcut": [
        ("in the branch", lambda: Made(lambda m, x: x + m.drop(m.f(x)), drop=nn.Dropout(0.1), f=branch()), X),
        ("before the first skip", lambda: nn.Sequential(conv(), nn.Dropout(0.1), residual(*branch())), X),
        ("p = 0", lambda: Made(lambda m, x: m.drop(x) + m.f(x), drop=nn.Dropout(0.0), f=branch()), X),
    ],
    "scaled-shortcut": [
        ("variance kept", lambda: stack(scaled(0.5**0.5, 0.5**0.5)), X),
        ("branch alone", lambda: stack(scaled(1.0, 0.1)), X),
        ("norm behind", lambda: stack(after_norm), X),
    ],
}  # fmt: skip


def rows(table: dict[str, list[tuple[str, Callable[[], nn.Module], Tensor]]]) -> list[object]:
    return [
        pytest.param(rule, build, x, id=f"{rule}: {name}") for rule, cases in table.items() for name, build, x in cases
    ]


@pytest.mark.parametrize(("rule", "build", "x"), rows(TRIGGERS))
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_is_found(rule: str, build: Callable[[], nn.Module], x: Tensor, training: bool) -> None:
    assert rule in {finding.rule for finding in doctor(build().train(training), x)}


@pytest.mark.parametrize(("rule", "build", "x"), rows(SILENT))
def test_is_silent(rule: str, build: Callable[[], nn.Module], x: Tensor) -> None:
    assert rule not in {finding.rule for finding in doctor(build(), x)}


def test_every_rule_of_the_group_has_its_models() -> None:
    names = {name for name, rule in RULES.items() if rule.check.__module__.endswith(".shortcuts")}
    assert names == set(TRIGGERS) == set(SILENT)


def one(rule: str, model: nn.Module, x: Tensor) -> tuple[str, str]:
    (found,) = [finding for finding in doctor(model, x) if finding.rule == rule]
    return found.severity, found.sentence


def test_hidden_overwriting_is_an_error_and_a_blocks_own_is_a_warning() -> None:
    (_, hidden, x), (_, _, _), (_, own, _) = TRIGGERS["overwritten-shortcut"]
    severity, sentence = one("overwritten-shortcut", hidden(), x)
    assert severity == "error"
    assert sentence.startswith("1.f begins with an in-place relu")
    assert one("overwritten-shortcut", own(), x)[0] == "warning"


def test_a_global_context_block_is_a_warning_and_other_broadcasts_are_errors() -> None:
    severities = [one("broadcast-sum", build(), x)[0] for _, build, x in TRIGGERS["broadcast-sum"]]
    assert severities == ["error", "error", "warning"]


def test_sentences_name_shapes_and_numbers() -> None:
    (_, build, x), *_ = TRIGGERS["broadcast-sum"]
    assert "[4, 8]" in one("broadcast-sum", build(), x)[1]
    assert "[4, 1]" in one("broadcast-sum", build(), x)[1]
    (_, build, x), *_ = TRIGGERS["lossy-projection"]
    assert "75%" in one("lossy-projection", build(), x)[1]
    (_, build, x), *_ = TRIGGERS["needless-projection"]
    assert "64 parameters" in one("needless-projection", build(), x)[1]


def test_what_the_scales_of_all_shortcuts_make_decides() -> None:
    severity, sentence = one("scaled-shortcut", stack(scaled(0.5), 4), X)
    assert severity == "warning"
    assert "0.062" in sentence
    assert one("scaled-shortcut", stack(scaled(0.9), 2), X)[0] == "advice"


def test_a_cut_shortcut_indeed_passes_no_gradient() -> None:
    model = TRIGGERS["cut-gradient"][2][1]()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(F.mse_loss(model(x), torch.ones(2, 16, 3, 3)), x)
    assert not gradient.any()
