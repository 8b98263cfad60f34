"""The Transformer is torch's own to the gradient, and takes every connection that works token by token."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import skipway as sw
from skipway import connect
from skipway.models import Encoder, EncoderDecoder, LayerPlan, Transformer, transformer
from skipway.models.attention import Cache
from skipway.models.positions import sinusoidal
from skipway.models.recipe import smoothed_loss, warm_up, warmup_rate
from skipway.models.transformer_layers import EncoderLayer


def keeps_width(name: str) -> bool:
    """Whether a connection can serve tokens, and hands on as many channels as it takes in."""
    try:
        return connect.resolve(name).build(connect.Site(8, 8, dims=0)).out_channels == 8
    except sw.SkipwayError:
        return False


LOOKS_AROUND = ("squeeze-excite", "pooled-gate")
NAMES = [name for name in connect.names() if keeps_width(name) and name not in LOOKS_AROUND]


def torchs(**options: Any) -> nn.Transformer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors, which are of no use to these options
        return nn.Transformer(16, 2, 2, 3, 32, batch_first=True, **{"dropout": 0.0, **options})


def ours(placement: str = "post-norm", activation: str = "relu", final_norm: bool | None = True) -> EncoderDecoder:
    plan = LayerPlan(16, 2, 2, activation=activation, placement=placement)  # type: ignore[arg-type]
    return EncoderDecoder(plan, 2, 3, final_norm=final_norm)


@pytest.mark.parametrize("masks", ["causal", "padding", "all"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("first", [False, True], ids=["post-norm", "pre-norm"])
def test_torch_s_weights_outputs_and_gradients(first: bool, activation: str, masks: str, tmp_path: Any) -> None:
    theirs = torchs(norm_first=first, activation=activation)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    model = ours("pre-norm" if first else "post-norm", activation)
    torch.save(theirs.state_dict(), tmp_path / "torch.pt")
    sw.models.load_weights(model, tmp_path / "torch.pt")
    source = torch.randn(3, 7, 16, requires_grad=True)
    target = torch.randn(3, 5, 16, requires_grad=True)
    source_padding = torch.tensor([[False] * 7, [False] * 5 + [True] * 2, [True] + [False] * 6])
    target_padding = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 2 + [True] * 3])
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    given: dict[str, Any] = {}
    wanted: dict[str, Any] = {"tgt_mask": causal}
    if masks != "causal":
        given |= {"source_padding": source_padding, "target_padding": target_padding}
        wanted |= {
            "src_key_padding_mask": source_padding,
            "tgt_key_padding_mask": target_padding,
            "memory_key_padding_mask": source_padding,
        }
    if masks == "all":
        source_mask = torch.rand(7, 7) < 0.3
        source_mask[:, 3] = False
        memory_mask = torch.rand(5, 7) < 0.3
        memory_mask[:, 3] = False
        target_mask = torch.eye(5, dtype=torch.bool).roll(-1, 1).tril(-1)
        given |= {"source_mask": source_mask, "memory_mask": memory_mask, "target_mask": target_mask}
        wanted |= {"src_mask": source_mask, "memory_mask": memory_mask, "tgt_mask": target_mask | causal}
    found, expected = model(source, target, **given), theirs(source, target, **wanted)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    back = torch.randn_like(found)
    named = dict(theirs.named_parameters())
    assert [name for name, _ in model.named_parameters()] == list(named)
    mine = torch.autograd.grad(found, [source, target, *model.parameters()], back)
    other = torch.autograd.grad(expected, [source, target, *named.values()], back)
    for name, a, b in zip(["source", "target", *named], mine, other, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1, float(b.abs().max())), name


def test_the_decoder_may_look_ahead() -> None:
    theirs, model = torchs(), ours()
    model.load_state_dict(theirs.state_dict())
    source, target = torch.randn(2, 7, 16), torch.randn(2, 5, 16)
    torch.testing.assert_close(model(source, target, causal=False), theirs(source, target), rtol=1e-5, atol=1e-5)


def test_the_published_counts() -> None:
    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    with torch.device("meta"):
        assert count(EncoderDecoder(LayerPlan(), final_norm=True)) == 44_140_544
        assert count(EncoderDecoder(LayerPlan())) == 44_138_496
        assert count(sw.models.create("transformer")) == 63_082_496
        assert count(sw.models.create("transformer", tied=False)) == 63_082_496 + 2 * 37_000 * 512
        assert count(sw.models.create("transformer", target_vocabulary=100)) == 63_082_496 + 100 * 512


def tokens(vocabulary: int = 13) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randint(vocabulary, (3, t), generator=generator) for t in (7, 5))  # type: ignore[return-value]


def small(skip: Any = "residual", **options: Any) -> Transformer:
    return transformer(2, 16, 2, skip, **{"vocabulary": 13, "dropout": 0.0, "decoder_layers": 2, **options})


def test_it_is_embeddings_waves_stacks_and_the_same_matrix_again() -> None:
    model = small()
    source, target = tokens()
    waves = sinusoidal(torch.arange(7), 16)
    x, y = (model.embedding.weight[read] * 4 + waves[: read.shape[1]] for read in (source, target))
    expected = EncoderDecoder.forward(model, x, y) @ model.embedding.weight.T
    torch.testing.assert_close(model(source, target), expected)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary", "none"])
@pytest.mark.parametrize("placement", ["post-norm", "pre-norm", "sandwich", "branch-norm"])
def test_no_place_sees_the_tokens_behind_it(positions: Any, placement: str) -> None:
    model = small(positions=positions, placement=placement)
    source, target = tokens()
    changed = target.clone()
    changed[:, 3:] = (changed[:, 3:] + 1) % 13
    before, after = model(source, target), model(source, changed)
    assert before[:, :3].equal(after[:, :3])
    assert not torch.isclose(before[:, 3:], after[:, 3:]).all()


def test_padding_has_exactly_no_influence() -> None:
    model = small()
    source, target = tokens()
    source_padding, target_padding = torch.zeros(3, 7, dtype=torch.bool), torch.zeros(3, 5, dtype=torch.bool)
    source_padding[1, 5:] = target_padding[1, 3:] = True
    inputs: list[Tensor] = []

    def hold(module: nn.Module, given: Any, put_out: Tensor) -> None:
        inputs.append(put_out)

    model.embedding.register_forward_hook(hold)
    logits = model(source, target, source_padding, target_padding)
    by_source, by_target = torch.autograd.grad(logits[~target_padding].square().sum(), inputs)
    for gradient, padding in ((by_source, source_padding), (by_target, target_padding)):
        assert not gradient[padding].any()
        assert gradient[~padding].any(dim=-1).all()
    alone = model(source[1:2, :5], target[1:2, :3])
    torch.testing.assert_close(logits[1:2, :3], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary", "none"])
@pytest.mark.parametrize("chunks", [[1] * 5, [2, 1, 2]])
def test_decoding_with_a_cache_gives_the_same(positions: Any, chunks: list[int]) -> None:
    model = small(positions=positions).eval()
    source, target = tokens()
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 4:] = True
    with torch.no_grad():
        whole, memory, cache = model(source, target, padding), model.encode(source, padding), Cache()
        parts = [model.decode(part, memory, padding, cache=cache) for part in target.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_a_sentence_of_nothing_but_padding_gives_numbers() -> None:
    model = small()
    source, target = tokens()
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[0] = True
    loss = model(source, target, padding).square().mean()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_every_connection_trains(name: str) -> None:
    model = small(name)
    source, target = tokens()
    logits = model(source, target)
    assert logits.shape == (3, 5, 13)
    logits.square().sum().backward()
    idle = name.startswith("stochastic-depth")
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert idle or all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", [name for name in connect.names() if not keeps_width(name)])
def test_what_changes_the_width_is_refused(name: str) -> None:
    with pytest.raises(sw.SkipwayError, match="keep their width, which .* does not|which tokens .* do not have"):
        small(name)


@pytest.mark.parametrize("name", LOOKS_AROUND)
def test_what_looks_at_all_tokens_is_refused(name: str) -> None:
    with pytest.raises(
        sw.SkipwayError, match="takes the mean over all tokens, and so looks at padding and at tokens to"
    ):
        small(name)


@pytest.mark.parametrize("placement", ["post-norm", "pre-norm"])
def test_the_trace_sees_two_skips_a_layer_and_three_in_the_decoder(placement: str) -> None:
    model = small(placement=placement, dropout=0.1).eval()
    graph = sw.trace(model, *tokens())
    assert len(graph.skips) == 2 * 2 + 3 * 2
    assert {(skip.kind, skip.shortcut) for skip in graph.skips} == {("add", "identity")}
    assert max(graph.paths()) == model.depth == 17
    assert len(sw.trace(small("none").eval(), *tokens()).skips) == 0


def test_placements_equal_their_equations() -> None:
    """One encoder layer, written out for each placement and for gate and scale."""
    x = torch.randn(2, 5, 16)

    def layer(skip: Any) -> tuple[EncoderLayer, Tensor]:
        stack = Encoder(LayerPlan(16, 2, 2), 1, skip, final_norm=False).eval()
        found: Any = stack.layers[0]
        return found, stack(x)

    for name in ("post-norm", "pre-norm", "branch-norm", "sandwich", "rezero", "highway", "none", "deepnorm"):
        one, y = layer(name)
        z = x
        for k, branch in ((1, one.self_attn), (2, one.feed_forward)):
            norm: Any = getattr(one, f"norm{k}", None)
            skip: Any = getattr(one, f"skip{k}")
            match name:
                case "pre-norm":
                    z = z + branch(norm(z))
                case "branch-norm":
                    z = z + norm(branch(z))
                case "sandwich":
                    z = z + getattr(one, f"norm{k}_out")(branch(norm(z)))
                case "rezero":
                    z = norm(z + skip.scale.scale * branch(z))
                case "highway":
                    gate = torch.sigmoid(skip.gate.weight(z))
                    z = norm(gate * branch(z) + (1 - gate) * z)
                case "none":
                    z = norm(branch(z))
                case "deepnorm":
                    z = norm(2**0.25 * z + branch(z))
                case _:
                    z = norm(z + branch(z))
        torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-5)


def test_deepnorm_scales_and_narrows_as_published() -> None:
    """Wang et al. 2022, table 1: a and b of an encoder of N and a decoder of M layers, and of either alone."""
    n, m = 3, 5
    torch.manual_seed(0)
    deep = EncoderDecoder(LayerPlan(64, 4), n, m, "deepnorm")
    torch.manual_seed(0)
    usual = EncoderDecoder(LayerPlan(64, 4), n, m, "post-norm")
    expected = {
        "encoder": (0.81 * (n**4 * m) ** (1 / 16), 0.87 * (n**4 * m) ** (-1 / 16)),
        "decoder": ((3 * m) ** 0.25, (12 * m) ** -0.25),
    }
    for name, (alpha, beta) in expected.items():
        for mine, other in zip(getattr(deep, name).layers, getattr(usual, name).layers, strict=True):
            assert mine.skip2.shortcut_scale.scale == pytest.approx(alpha)
            for matrix in ("self_attn.out_proj.weight", "linear1.weight", "linear2.weight"):
                ratio = mine.get_parameter(matrix) / other.get_parameter(matrix)
                torch.testing.assert_close(ratio, torch.full_like(ratio, beta), rtol=5e-3, atol=0)
            queries, keys, values = (mine.self_attn.in_proj_weight / other.self_attn.in_proj_weight).chunk(3)
            assert torch.allclose(queries, torch.ones(()))
            assert torch.allclose(keys, torch.ones(()))
            torch.testing.assert_close(values, torch.full_like(values, beta), rtol=5e-3, atol=0)
    alone: Any = Encoder(LayerPlan(16, 2), 4, "deepnorm").layers[0]
    assert alone.skip1.shortcut_scale.scale == pytest.approx(8**0.25)


def test_dropout_in_training_only() -> None:
    model = small(dropout=0.3)
    source, target = tokens()
    assert not model(source, target).equal(model(source, target))
    model.eval()
    assert model(source, target).equal(model(source, target))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: small(vocabulary=13)(tokens()[0] + 9, tokens()[1]),
            "tokens run from 9 to .*, where this model knows 13",
        ),
        (lambda: small(positions="learned", length=6)(*tokens()), "a sequence of 7 tokens, where this model learned 6"),
        (lambda: LayerPlan(10, 3), "a multiple of the number of heads: 10 is none of 3"),
        (lambda: LayerPlan(8, 2, dropout=1.0), r"dropout in \[0, 1\), not 4, 1.0"),
        (lambda: LayerPlan(8, 2, placement="norm"), "no placement of a Transformer's norms 'norm'"),
        (lambda: transformer(0, 8), "at least 1 layer, not 0"),
        (lambda: small(vocabulary=0), "vocabulary, target_vocabulary and length must be at least 1"),
        (lambda: sw.models.create("transformer", depht=3), "no option of transformer 'depht'"),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_mistakes_get_one_sentence(act: Any, message: str) -> None:
    with pytest.raises(sw.SkipwayError, match=message):
        act()


def test_smoothed_labels_are_the_written_formula() -> None:
    logits, targets = torch.randn(2, 4, 7), torch.randint(7, (2, 4))
    padding = torch.tensor([[False] * 4, [False, False, True, True]])
    total = 0.0
    for n in range(2):
        for t in range(4):
            if not padding[n, t]:
                q = torch.full((7,), 0.1 / 7)
                q[targets[n, t]] += 0.9
                total -= float((q * torch.log_softmax(logits[n, t], 0)).sum())
    assert float(smoothed_loss(logits, targets, padding)) == pytest.approx(total / 6, rel=1e-5)
    with pytest.raises(sw.SkipwayError, match="nothing to take a loss of"):
        smoothed_loss(logits, targets, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(sw.SkipwayError, match=r"smoothing lies in \[0, 1\), not 1.0"):
        smoothed_loss(logits, targets, smoothing=1.0)


def test_the_rate_warms_up_and_falls() -> None:
    assert warmup_rate(1, 512) == pytest.approx(512**-0.5 * 4000**-1.5)
    assert warmup_rate(4000, 512) == pytest.approx(512**-0.5 * 4000**-0.5)
    assert warmup_rate(16000, 512) == pytest.approx(warmup_rate(4000, 512) / 2)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = warm_up(optimizer, width=4, warmup=3)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([2 * 0.5 * min(1 / math.sqrt(k), k * 3**-1.5) for k in range(1, 6)])
    with pytest.raises(sw.SkipwayError, match="at least 1, not 0"):
        warmup_rate(0, 512)


def test_it_learns_to_copy() -> None:
    """A whole training: reading a source and writing it down, by the paper's loss and schedule."""
    model = transformer(1, 32, 4, vocabulary=12, dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5, betas=(0.9, 0.98), eps=1e-9)
    schedule = warm_up(optimizer, 32, 60)
    for _ in range(250):
        source = torch.randint(1, 12, (32, 5))
        target = torch.cat((torch.zeros(32, 1, dtype=torch.int64), source), dim=1)
        loss = smoothed_loss(model(source, target[:, :-1]), target[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    source = torch.randint(1, 12, (64, 5))
    target = torch.cat((torch.zeros(64, 1, dtype=torch.int64), source), dim=1)
    right = (model(source, target[:, :-1]).argmax(-1) == target[:, 1:]).float().mean()
    assert right > 0.95
