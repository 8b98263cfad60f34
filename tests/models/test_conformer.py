"""The Conformer block is what Hugging Face's speech models compute, and padding has no influence on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import skipway as sw
from skipway import connect
from skipway.models import Conformer, LayerPlan


def small(skip: Any = "residual", layers: int = 1, **options: Any) -> Conformer:
    return Conformer(LayerPlan(16, 2), layers, skip, **{"kernel": 5, **options})


def frames(n: int = 3, t: int = 11) -> Tensor:
    return torch.randn(n, t, 16, generator=torch.Generator().manual_seed(1))


PADDING = torch.tensor([[False] * 11, [False] * 8 + [True] * 3, [True] * 2 + [False] * 9])


def reference() -> Any:
    transformers: Any = pytest.importorskip("transformers", reason="needs the package 'transformers'")
    from transformers.models.wav2vec2_conformer import modeling_wav2vec2_conformer as theirs

    config = transformers.Wav2Vec2ConformerConfig(
        hidden_size=16, num_attention_heads=2, intermediate_size=64, hidden_act="swish", conv_depthwise_kernel_size=5,
        position_embeddings_type=None, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
        conformer_conv_dropout=0.0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return theirs.Wav2Vec2ConformerEncoderLayer(config)


def carry_over(theirs: Any, ours: Any) -> None:
    """Their weights into our block; their convolutions have no biases."""
    pairs = [
        (theirs.ffn1_layer_norm, ours.norm1),
        (theirs.self_attn_layer_norm, ours.norm2),
        (theirs.conv_module.layer_norm, ours.norm3),
        (theirs.ffn2_layer_norm, ours.norm4),
        (theirs.final_layer_norm, ours.norm),
        (theirs.ffn1.intermediate_dense, ours.feed_forward1.linear1),
        (theirs.ffn1.output_dense, ours.feed_forward1.linear2),
        (theirs.ffn2.intermediate_dense, ours.feed_forward2.linear1),
        (theirs.ffn2.output_dense, ours.feed_forward2.linear2),
        (theirs.self_attn.linear_out, ours.self_attn.out_proj),
        (theirs.conv_module.batch_norm, ours.convolution.norm),
        (theirs.conv_module.pointwise_conv1, ours.convolution.pointwise1),
        (theirs.conv_module.depthwise_conv, ours.convolution.depthwise),
        (theirs.conv_module.pointwise_conv2, ours.convolution.pointwise2),
    ]
    with torch.no_grad():
        for source, target in pairs:
            target.weight.copy_(source.weight.view_as(target.weight))
            target.bias.copy_(torch.zeros_like(target.bias) if source.bias is None else source.bias)
        parts = [theirs.self_attn.linear_q, theirs.self_attn.linear_k, theirs.self_attn.linear_v]
        ours.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        ours.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))


@pytest.mark.parametrize("training", [False, True])
def test_the_block_is_that_of_published_speech_models(training: bool) -> None:
    theirs, model = reference(), small(positions="none")
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    carry_over(theirs, model.layers[0])
    theirs.train(training)
    model.train(training)
    x, twin = frames().requires_grad_(), frames().requires_grad_()
    found, expected = model(x), theirs(twin)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    back = torch.randn_like(found)
    (a,), (b,) = torch.autograd.grad(found, x, back), torch.autograd.grad(expected, twin, back)
    assert (a - b).abs().max() <= 1e-5 * max(1, float(b.abs().max()))


@pytest.mark.parametrize("positions", ["rotary", "none"])
@pytest.mark.parametrize("training", [False, True])
def test_padding_has_exactly_no_influence(training: bool, positions: Any) -> None:
    model = small(layers=2, positions=positions).train(training)
    x = frames().requires_grad_()
    y = model(x, PADDING)
    (gradient,) = torch.autograd.grad(y[~PADDING].square().sum(), x)
    assert not gradient[PADDING].any()
    assert gradient[~PADDING].any(dim=-1).all()
    other = torch.where(PADDING[..., None], torch.full_like(x, 50.0), x)
    assert model(other, PADDING)[~PADDING].equal(y[~PADDING])


def test_padded_frames_are_as_good_as_absent() -> None:
    model = small(layers=2).eval()
    x = frames()
    torch.testing.assert_close(model(x, PADDING)[1, :8], model(x[1:2, :8])[0], rtol=1e-5, atol=1e-5)


def test_half_steps_are_the_connections_scale() -> None:
    block: Any = small().layers[0]
    assert [getattr(block, f"skip{k}").scale for k in (2, 3)] == [None, None]
    assert [getattr(block, f"skip{k}").scale.scale for k in (1, 4)] == [0.5, 0.5]
    learned: Any = small("rezero").layers[0]
    assert [float(getattr(learned, f"skip{k}").scale.scale.detach()) for k in (1, 2, 3, 4)] == [0, 0, 0, 0]


def test_rotary_positions_tell_order() -> None:
    """Without convolution windows wider than a frame, attention alone sees where frames stand."""
    x = frames(1)
    flipped = x.flip(1)
    for positions, tells in (("rotary", True), ("none", False)):
        model = small(kernel=1, positions=positions).eval()
        same = torch.allclose(model(flipped).flip(1), model(x), rtol=1e-4, atol=1e-5)
        assert same != tells


@pytest.mark.parametrize("name", connect.names())
def test_every_connection_trains_or_is_refused(name: str) -> None:
    reasons = ("keep their width", "takes the mean over all tokens", "which tokens (dims=0) do not have")
    try:
        model = small(name, 2)
    except sw.SkipwayError as refusal:
        if not any(reason in str(refusal) for reason in reasons):
            raise
        return
    x = frames().requires_grad_()
    model(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_trace_sees_four_skips_a_block_two_of_them_scaled() -> None:
    graph = sw.trace(small(layers=2).eval(), frames())
    found = [(skip.kind, skip.shortcut) for skip in graph.skips]
    assert (
        found == [("scaled add", "identity"), ("add", "identity"), ("add", "identity"), ("scaled add", "identity")] * 2
    )
    assert max(graph.paths()) == small(layers=2).depth == 18


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: small(kernel=4), "an odd number of frames, not 4"),
        (lambda: small(layers=0), "at least 1 block, not 0"),
        (lambda: small(positions="learned"), "no kind of positions of a Conformer 'learned'"),
        (lambda: Conformer(LayerPlan(6, 2), 1), "heads are 3 wide"),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_mistakes_get_one_sentence(act: Any, message: str) -> None:
    with pytest.raises(sw.SkipwayError, match=message):
        act()
