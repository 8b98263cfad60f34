"""Options of models of torchvision and timm, by stand-ins for both libraries with the signatures of theirs."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from skipway.errors import SkipwayError
from skipway.outside import Settings, find


class Net(nn.Module):
    def __init__(self, num_classes: int = 1000, in_chans: int = 3, groups: int = 1):
        super().__init__()
        self.layer = nn.Conv2d(in_chans, num_classes, 1, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).mean((2, 3))


def resnet18(pretrained: bool = False, **kwargs: Any) -> Net:
    return Net(**kwargs)


def resnet50(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> Net:
    return Net(**kwargs)


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch):
    timm: Any = ModuleType("timm")
    timm.list_models = lambda: ["resnet18"]
    timm.model_entrypoint = lambda name: resnet18
    timm.get_pretrained_cfg = lambda name: None
    timm.create_model = lambda name, pretrained=False, **options: resnet18(pretrained, **options)
    torchvision, models = ModuleType("torchvision"), ModuleType("torchvision.models")
    theirs: Any = models
    theirs.list_models = lambda: ["resnet50"]
    theirs.get_model_builder = lambda name: resnet50
    theirs.get_model = lambda name, **options: resnet50(**options)
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


@pytest.mark.parametrize("spec", ["timm:resnet18", "torchvision:resnet50"])
def test_options_reach_the_class(spec: str):
    network: Any = find(spec, Settings(options={"num_classes": 6, "groups": 3})).built()
    assert (network.layer.out_channels, network.layer.groups) == (6, 3)


@pytest.mark.parametrize("spec", ["timm:resnet18", "torchvision:resnet50"])
def test_one_that_nobody_takes_names_the_nearest(spec: str):
    source = find(spec, Settings(options={"grops": 3}))
    with pytest.raises(SkipwayError, match="'grops'; did you mean 'groups'[?] allowed: num_classes, in_chans, groups$"):
        source.built()


def test_inputs_suit_the_options():
    source = find("timm:resnet18", Settings(options={"in_chans": 1, "img_size": 32}))
    ((example,), _), *_ = source.examples(Net(), "cpu")
    assert example.shape == (1, 1, 32, 32)
