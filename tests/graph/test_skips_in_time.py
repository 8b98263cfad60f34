"""Skips of gated, recurrent, reversible and attending networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from graph_nets import Bottleneck, Highway, Written, linear, parameter, skips
from torch import nn


class TestGatesOverTime:
    def test_a_highway_stack(self):
        found = skips(nn.Sequential(*(Highway(4) for _ in range(3))), torch.randn(2, 4))
        assert [(skip.kind, skip.shortcut, skip.span) for skip in found] == [("gate", "scaled", (1, 1))] * 3

    def test_the_cell_of_a_written_out_lstm_is_a_gated_skip_from_the_second_step_on(self):
        def forward(self, x):
            h, c = torch.zeros(2, 4), torch.zeros(2, 4)
            for step in range(3):
                i, f, g, o = (self.w(x[:, step]) + self.u(h)).chunk(4, -1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            return h

        found = skips(Written(forward, w=nn.Linear(4, 16), u=nn.Linear(4, 16)), torch.randn(2, 3, 4))
        assert [(skip.kind, skip.span) for skip in found] == [("gate", (1, 1))] * 2

    def test_residual_attention_scores(self):
        """RealFormer (He et al. 2020): the scores of one layer are added to those of the next."""

        def forward(self, x):
            scores = None
            for _ in range(3):
                new = self.q(x) @ self.k(x).mT
                scores = new if scores is None else new + scores
                x = self.v(torch.softmax(scores, -1) @ x)
            return x

        found = skips(Written(forward, q=linear(), k=linear(), v=linear()), torch.randn(2, 3, 4))
        assert [skip.kind for skip in found] == ["add", "add"]

    def test_learned_latents_that_attend_to_the_input(self):
        """Perceiver: the first stream is made of parameters alone, and its shortcut is a skip all the same."""

        def forward(self, x):
            latents = self.latents.expand(2, -1, -1)
            return latents + self.f(F.scaled_dot_product_attention(self.q(latents), self.k(x), self.v(x)))

        model = Written(forward, f=linear(), q=linear(), k=linear(), v=linear(), latents=parameter(1, 3, 4))
        assert [skip.kind for skip in skips(model, torch.randn(2, 5, 4))] == ["add"]


def test_cross_attention_bypasses_the_attention_not_the_encoder():
    model = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
    found = skips(model, torch.randn(1, 3, 8), torch.randn(1, 5, 8))
    assert [skip.branch_modules[0] for skip in found] == ["self_attn", "multihead_attn", "linear1"]


def test_reversible_blocks():
    def forward(self, x):
        a, b = x.chunk(2, -1)
        for f, g in zip(self.fs, self.gs, strict=True):
            a = a + f(b)
            b = b + g(a)
        return torch.cat([a, b], -1)

    model = Written(forward, fs=nn.ModuleList([linear(), linear()]), gs=nn.ModuleList([linear(), linear()]))
    added = [skip for skip in skips(model, torch.randn(2, 8)) if skip.kind == "add"]
    assert [skip.shortcut for skip in added] == ["identity"] * 4


def test_the_shortcut_is_never_taken_for_the_branch():
    (skip,) = skips(Bottleneck(4, 4, 2), torch.randn(1, 4, 8, 8))
    assert skip.branch_modules == ("body",)
    assert skip.shortcut_modules == ("shortcut",)
