"""How many operations are left, exactly, and what the report says of them."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from tests.edit.folding.folding_nets import (
    DenseNet,
    DiverseBranchBlock,
    RepVGGBlock,
    conv_norm,
    convnext,
    mobilenet,
    settle,
    small_resnet,
)
from torch import Tensor, nn

import skipway as sw
from skipway.edit.folding import Folded, fold
from skipway.edit.folding.backend import fused_calls

needs_onednn = pytest.mark.skipif(not fused_calls(), reason="needs oneDNN's fused calls")


def calls(folded: Folded) -> Counter[str]:
    """How often each function is called in a program; in place or not is the same."""
    found = re.findall(r"^\s+(?:v\d+ = |v\d+, .*= tensors_in\()?(\w+?)_?\(", folded.source, flags=re.M)
    return Counter(re.sub(r"(_default|_binary)?(_\d+)?$", "", name) for name in found)


def plain(model: nn.Module, *inputs: Tensor) -> Counter[str]:
    """The calls of a float64 program, which nothing is fused in."""
    settle(model).double()
    return calls(fold(model, *(tensor.double() for tensor in inputs), memory_format="contiguous"))


@needs_onednn
def test_resnet50_is_53_convolutions_two_pools_and_a_linear_map():
    folded = fold(settle(sw.models.create("resnet50")), torch.randn(1, 3, 64, 64))
    found = calls(folded)
    # The 16 sums are part of the convolutions before them, and overwrite what they add.
    assert (found.pop("_convolution_pointwise"), found.pop("_convolution_pointwise_")) == (37, 16)
    assert found == {"_channels_last": 1, "max_pool2d": 1, "mean": 1, "reshape": 1, "linear": 1}


def test_plain_resnet50():
    found = plain(sw.models.create("resnet50"), torch.randn(1, 3, 64, 64))
    assert found == {
        "convolution": 53, "relu": 49, "add": 16, "max_pool2d": 1, "mean": 1, "reshape": 1, "linear": 1
    }  # fmt: skip


def test_repvgg_blocks_become_one_convolution():
    for block in (RepVGGBlock(4, 4), RepVGGBlock(4, 4, groups=2), RepVGGBlock(4, 6, 2)):
        assert plain(block, torch.randn(1, 4, 8, 8)) == {"convolution": 1, "relu": 1}


def test_diverse_branches_become_one_convolution():
    assert plain(DiverseBranchBlock(4, 6), torch.randn(1, 4, 8, 8)) == {"convolution": 1, "relu": 1}


class Linear(nn.Module):
    """A residual identity with nothing but linear maps between: the sum is one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x))


def test_residual_identity_without_a_nonlinearity():
    assert plain(nn.Sequential(conv_norm(4, 4)), torch.randn(1, 4, 8, 8)) == {"convolution": 1}

    class Skip(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return input + super().forward(input)

    assert plain(Skip(conv_norm(4, 4)), torch.randn(1, 4, 8, 8)) == {"convolution": 1}
    assert plain(Linear(), torch.randn(2, 4)) == {"linear": 1}


def test_chains_are_joined_only_where_that_is_exact_and_costs_no_more():
    x = torch.randn(1, 4, 8, 8)
    joined = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 3, padding=1))
    assert plain(joined, x) == {"convolution": 1}
    # A bias of the first is not what is padded around it.
    assert plain(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)), x) == {"convolution": 2}
    assert plain(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)), x) == {"convolution": 1}
    assert plain(nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1)), x) == {"convolution": 1}
    # A narrow waist is cheaper than the whole.
    assert plain(nn.Sequential(nn.Linear(16, 2), nn.Linear(2, 16)), torch.randn(1, 16)) == {"linear": 2}


def test_norms_before_a_convolution_are_folded_where_there_is_no_border():
    x = torch.randn(1, 4, 8, 8)
    assert plain(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)), x) == {"convolution": 1}
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))
    assert plain(model, x) == {"addcmul": 1, "convolution": 1}
    assert "padded with zeros" in str(fold(model, x.double()).report.left[0])
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    assert plain(model, x) == {"clamp": 1, "convolution": 1}


def test_scales_and_shifts_of_layer_norms_go_into_their_readers():
    found = plain(convnext(), torch.randn(1, 3, 16, 16))
    assert found["layer_norm"] == 0
    assert found["mul"] == 0
    model = settle(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)))
    assert "scale and shift of layer_norm folded into 1" in str(fold(model, torch.randn(2, 4)).report)


def test_depthwise_nets():
    found = plain(mobilenet(), torch.randn(1, 3, 16, 16))
    assert found == {"convolution": 10, "hardtanh": 7, "add": 2, "mean": 1, "reshape": 1, "linear": 1}


def test_dense_blocks_need_no_concatenation():
    found = plain(DenseNet(), torch.randn(1, 3, 16, 16))
    assert found["cat"] == found["batch_norm"] == found["addcmul"] == 0
    # A clamp for each of 6 layers, the transition and the last norm; 6 x 2 convolutions, the stem, the transition.
    assert (found["clamp"], found["convolution"], found["narrow"], found["_store"]) == (8, 14, 6, 8)


def test_zero_branches_are_removed_unless_they_are_to_be_kept():
    model = small_resnet(skip="rezero").eval()
    x = torch.randn(1, 3, 16, 16)
    folded = fold(model, x)
    assert "puts out zero" in str(folded.report)
    assert folded.source.count("convolution") == 1
    with torch.no_grad():
        assert torch.allclose(folded(x), model(x), atol=1e-5)
    assert fold(model, x, keep_zeros=True).source.count("convolution") == 5
    zero = small_resnet(zero_init=True).eval()
    assert fold(zero, x).source.count("convolution") == 1


def test_a_report_is_lines_for_people_and_rows_for_tools():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.BatchNorm2d(4)).eval()
    report = fold(model, torch.randn(1, 3, 8, 8), memory_format="contiguous").report
    assert str(report).splitlines() == [
        "2: dropout does nothing here and is removed",
        "1: batch_norm folded into 0",
        "3: batch_norm folded into 0",
        "3 operations became 1",
    ]
    assert report.rows()[1] == {"where": "1", "what": "batch_norm", "folded": True, "detail": "folded into 0"}
    assert report.folded == report.entries
    with pytest.raises(AttributeError):
        report.before = 0  # pyright: ignore[reportAttributeAccessIssue]
