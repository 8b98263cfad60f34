"""What a model from outside answers, called by position and by name."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.graph import trace
from skipway.outside import answering


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor


class Talking(nn.Module):
    """Answers with logits and more: in an object, in a dictionary, or in a dictionary as torchvision names it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        hidden = x + self.first(x)
        logits = self.last(hidden)
        if self.form == "object":
            return Answer(logits, hidden)
        if self.form == "tensor":
            return logits
        return {"hidden": hidden, ("logits" if self.form == "dictionary" else "out"): logits}


@pytest.mark.parametrize("form", ["object", "dictionary", "torchvision", "tensor"])
def test_by_position_the_logits_alone(form: str):
    model = Talking(form)
    x = torch.randn(4, 3)
    expected = model.last(x + model.first(x))
    names = list(model.state_dict())
    told = answering(model, "classification")
    assert told is model
    assert list(told.state_dict()) == names
    torch.testing.assert_close(told(x), expected)
    assert len(trace(told, x).skips) == 1
    for again in (copy.deepcopy(told), pickle.loads(pickle.dumps(told))):
        torch.testing.assert_close(again(x), expected)


def test_by_name_the_answer_of_its_own_library():
    model = answering(Talking("object"), "classification")
    assert isinstance(model(x=torch.randn(4, 3)), Answer)


def test_what_holds_no_logits_stays_as_it_is():
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, 2 * x

    x = torch.randn(2)
    assert isinstance(answering(Pair(), "classification")(x), tuple)


def test_coarse_masks_are_brought_to_the_size_of_the_image():
    class Coarse(nn.Module):
        def __init__(self, stride: int) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 3, 3, stride, 1)

        def forward(self, x: Tensor) -> Any:
            return {"logits": self.layer(x)}

    x = torch.randn(2, 1, 16, 24)
    coarse, fine = Coarse(4), Coarse(1)
    expected = F.interpolate(coarse.layer(x), (16, 24), mode="bilinear")
    torch.testing.assert_close(answering(coarse, "segmentation")(x), expected)
    torch.testing.assert_close(answering(fine, "segmentation")(x), fine.layer(x))


def test_an_encoder_with_a_decoder_is_asked_with_both_and_their_masks():
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 20, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "use_cache": False,
    }  # fmt: skip
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes)).eval()
    source, target = torch.randint(3, 20, (2, 5)), torch.randint(3, 20, (2, 4))
    hidden = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    ends = torch.tensor([[False] * 4, [False] * 3 + [True]])
    expected = model(
        input_ids=source, attention_mask=~hidden, decoder_input_ids=target, decoder_attention_mask=~ends
    ).logits
    other = model(input_ids=source, decoder_input_ids=target).logits
    told = answering(model, "translation")(source, target, hidden, ends)
    torch.testing.assert_close(told, expected)
    assert not torch.allclose(told, other)
