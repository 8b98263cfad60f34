"""Twins of models from outside: without their skips, with skips that they had not, and with others."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from tests.study import outside_nets
from tests.study.outside_nets import GPT2, NETS, RESNET, VIT
from torch import Tensor, nn

from skipway.connect import Plain, Residual
from skipway.errors import SkipwayError
from skipway.graph import trace
from skipway.study.training.building import build_network

DIGITS: dict[str, Any] = {"num_classes": 10, "in_channels": 1, "image_size": 8, "image_shape": [1, 8, 8]}
TEXT: dict[str, Any] = {"vocabulary": 30, "length": 16}


def _built(model: str, skip: Any, options: dict[str, Any] | None = None, offered: dict[str, Any] = DIGITS) -> nn.Module:
    torch.manual_seed(0)
    return build_network(model, "language" if offered is TEXT else "classification", offered, skip, options)


def _images() -> Tensor:
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_plain_twin_is_the_network_without_its_skips():
    twin, plain = _built(f"{NETS}:residual", "none"), _built(f"{NETS}:plain", None)
    for training in (True, False):
        torch.testing.assert_close(twin.train(training)(_images()), plain.train(training)(_images()))
    assert list(twin.state_dict()) == list(plain.state_dict())


def test_the_residual_twin_has_a_skip_past_every_block():
    twin, residual = _built(f"{NETS}:plain", "residual"), _built(f"{NETS}:residual", None)
    for training in (True, False):
        torch.testing.assert_close(twin.train(training)(_images()), residual.train(training)(_images()))
    assert len(trace(twin.eval(), _images()).skips) == 2


def test_who_has_skips_is_its_own_residual_twin_and_who_has_none_its_own_plain_one():
    for name, skip in (("residual", "residual"), ("plain", "none"), ("plain", Plain()), ("residual", Residual())):
        twin, own = _built(f"{NETS}:{name}", skip), _built(f"{NETS}:{name}", None)
        torch.testing.assert_close(twin(_images()), own(_images()), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_another_skip_stands_in_the_place_of_those_there_are_or_could_be(name: str):
    twin: Any = _built(f"{NETS}:{name}", "rezero")
    # At the start y = x + 0 F(x), so that all that is left of a block is its last activation.
    torch.testing.assert_close(twin(_images()), twin.head(torch.relu(twin.stem(_images())).mean(dim=(2, 3))))
    dropped = _built(f"{NETS}:{name}", Residual(drop=0.5)).eval()
    torch.testing.assert_close(dropped(_images()), _built(f"{NETS}:residual", None).eval()(_images()))


@pytest.mark.parametrize(
    ("model", "options", "offered", "skips"),
    [("hf:ViTConfig", VIT, DIGITS, 4), ("hf:ResNetConfig", RESNET, DIGITS, 3), ("hf:GPT2Config", GPT2, TEXT, 4)],
)
def test_twins_of_hugging_face_share_their_first_weights(
    model: str, options: dict[str, Any], offered: dict[str, Any], skips: int
):
    pytest.importorskip("transformers")
    own = _built(model, None, options, offered)
    inputs = _images() if offered is DIGITS else torch.randint(30, (2, 16))
    for skip, expected in ((None, skips), ("none", 0), ("residual", skips), ("highway", skips)):
        twin = _built(model, skip, options, offered)
        assert type(twin) is type(own)
        weights = twin.state_dict()
        for name, value in own.state_dict().items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=0)
        assert skip == "highway" or list(weights) == list(own.state_dict())
        found = [one for one in trace(twin.eval(), inputs).skips if not one.long]
        assert len(found) == expected
        assert isinstance(twin(inputs), Tensor)


def test_importing_a_module_takes_nothing_from_the_seed(monkeypatch: pytest.MonkeyPatch):
    # This module draws the weights of `ready` when it is imported.
    monkeypatch.delitem(sys.modules, NETS)
    first, again = _built(f"{NETS}:plain", None), _built(f"{NETS}:plain", None)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)


def test_a_twin_is_made_without_a_trace_on_the_network():
    twin = _built(f"{NETS}:residual", "none")
    assert all(module.training for module in twin.modules())
    for name, buffer in _built(f"{NETS}:residual", None).named_buffers():
        torch.testing.assert_close(twin.get_buffer(name), buffer)


def test_images_that_are_not_square():
    offered = {**DIGITS, "image_shape": [1, 8, 6]}
    twin = _built(f"{NETS}:Shaped", "residual", offered=offered)
    assert twin(torch.randn(2, 1, 8, 6)).shape == (2, 10)
    assert len(trace(twin.eval(), torch.ones(2, 1, 8, 6)).skips) == 1


def test_a_function_that_takes_a_skip_is_given_it():
    assert len(trace(_built(f"{NETS}:takes_skip", None).eval(), _images()).skips) == 3
    assert not trace(_built(f"{NETS}:takes_skip", "none").eval(), _images()).skips
    names = _built(f"{NETS}:takes_skip", "rezero").state_dict()
    assert any(name.endswith("scale.scale") for name in names)


def test_a_network_that_is_ready_is_copied():
    before = {name: value.clone() for name, value in outside_nets.ready.state_dict().items()}
    twin = _built(f"{NETS}:ready", "none")
    assert not trace(twin.eval(), _images()).skips
    assert len(trace(outside_nets.ready.eval(), _images()).skips) == 2
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    for name, value in outside_nets.ready.state_dict().items():
        torch.testing.assert_close(value, before[name])


@pytest.mark.parametrize(
    ("model", "skip", "options", "sentence"),
    [
        ("Concatenating", "none", {}, "has no twin with skip 'none': it has only skips that concatenate"),
        ("one_layer", "residual", {}, "has no twin with skip 'residual': no block of this Sequential can carry"),
        ("plain", ["none", "residual"], {}, "takes one skip, not a list of 2"),
        ("plain", "dense", {}, "has no twin with skip 'dense'"),
        ("residual", "rezro", {}, "no skip 'rezro'; did you mean 'rezero'"),
        ("ready", None, {"depth": 3}, "is a network already: options are for functions"),
    ],
)
def test_slips_are_one_sentence(model: str, skip: Any, options: dict[str, Any], sentence: str):
    with pytest.raises(SkipwayError, match=sentence) as slip:
        _built(f"{NETS}:{model}", skip, options)
    assert "\n" not in str(slip.value)
