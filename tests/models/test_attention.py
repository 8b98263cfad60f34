"""Attention is the published formula under every mask; what is hidden has no influence; the cache changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import skipway as sw
from skipway.models.attention import Attention, Cache, join_masks
from skipway.models.positions import Positions, Rotation, counted, rotate, sinusoidal

N, T, S, C, HEADS = 3, 5, 7, 12, 3


def written(attention: Attention, x: Tensor, source: Tensor, hidden: Tensor) -> Tensor:
    """Head by head, query by query, as the paper writes it; `hidden` is [n, t, s]."""
    wq, wk, wv = attention.in_proj_weight.chunk(3)
    bq, bk, bv = attention.in_proj_bias.chunk(3)
    width = C // HEADS
    rows = []
    for n in range(x.shape[0]):
        heads = []
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            queries = x[n] @ wq[part].T + bq[part]
            keys = source[n] @ wk[part].T + bk[part]
            values = source[n] @ wv[part].T + bv[part]
            outputs = []
            for t in range(x.shape[1]):
                seen = ~hidden[n, t]
                weights = torch.softmax(keys[seen] @ queries[t] / math.sqrt(width), 0)
                outputs.append(weights @ values[seen])
            heads.append(torch.stack(outputs))
        rows.append(torch.cat(heads, dim=1) @ attention.out_proj.weight.T + attention.out_proj.bias)
    return torch.stack(rows)


def layer() -> Attention:
    attention = Attention(C, HEADS).double()
    for bias in (attention.in_proj_bias, attention.out_proj.bias):
        nn.init.normal_(bias)
    return attention


PADDING = torch.tensor([[False] * 7, [False] * 5 + [True] * 2, [True] * 3 + [False] * 4])


@pytest.mark.parametrize("crosses", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("masked", ["nothing", "padding", "mask", "row's mask", "causal", "all"])
def test_the_formula_under_every_mask(crosses: bool, masked: str) -> None:
    attention = layer()
    x = torch.randn(N, T, C, dtype=torch.float64, requires_grad=True)
    source = torch.randn(N, S if crosses else T, C, dtype=torch.float64, requires_grad=True) if crosses else x
    s = source.shape[1]
    hidden = torch.zeros(N, T, s, dtype=torch.bool)
    given: dict[str, Tensor | bool] = {}
    if masked in ("padding", "all"):
        given["padding"] = PADDING[:, :s]
        hidden |= PADDING[:, None, :s]
    if masked == "mask":
        given["mask"] = torch.rand(T, s) < 0.4
        given["mask"][:, 1] = False
        hidden |= given["mask"]
    if masked in ("row's mask", "all"):
        given["mask"] = torch.rand(N, T, s) < 0.4
        hidden |= given["mask"]
    if masked in ("causal", "all"):
        given["causal"] = True
        hidden |= torch.ones(T, s, dtype=torch.bool).triu(s - T + 1)
    ours = attention(x, source if crosses else None, **given)
    theirs = written(attention, x, source, hidden)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert ours.isfinite().all()
    back = torch.randn_like(ours)
    wanted = [x, *([source] if crosses else []), *attention.parameters()]
    found, expected = (torch.autograd.grad(y, wanted, back) for y in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def test_a_query_that_sees_nothing_gets_zeros_and_no_gradient() -> None:
    attention = Attention(C, HEADS)
    x = torch.randn(2, T, C, requires_grad=True)
    padding = torch.tensor([[True] * T, [False] * T])
    y = attention(x, padding=padding)
    torch.testing.assert_close(y[0], attention.out_proj.bias.expand(T, C))
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert gradient.isfinite().all()
    assert not gradient[0].any()
    assert gradient[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_tokens_have_exactly_no_influence(dtype: torch.dtype) -> None:
    attention = Attention(C, HEADS).to(dtype)
    x = torch.randn(N, T, C, dtype=dtype)
    source = torch.randn(N, S, C, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(attention(x, source, padding=PADDING).square().sum(), source)
    assert not gradient[PADDING].any()
    assert gradient[~PADDING].any(dim=-1).all()
    changed = torch.where(PADDING[..., None], torch.full_like(source, 1e4), source)
    assert attention(x, changed, padding=PADDING).equal(attention(x, source, padding=PADDING))


@pytest.mark.parametrize("crosses", [False, True], ids=["self", "cross"])
def test_torch_s_own_weights_and_gradients(crosses: bool) -> None:
    theirs, ours = nn.MultiheadAttention(C, HEADS, batch_first=True), Attention(C, HEADS)
    nn.init.normal_(theirs.in_proj_bias)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(N, S, C, requires_grad=True)
    source = torch.randn(N, S, C) if crosses else x
    mask = torch.rand(S, S) < 0.3
    mask[:, 4] = False
    expected, _ = theirs(x, source, source, key_padding_mask=PADDING, attn_mask=mask)
    found = ours(x, source if crosses else None, mask=mask, padding=PADDING)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    wanted = zip(ours.parameters(), theirs.parameters(), strict=True)
    back = torch.randn_like(found)
    for mine, other in wanted:
        (a,) = torch.autograd.grad(found, mine, back, retain_graph=True)
        (b,) = torch.autograd.grad(expected, other, back, retain_graph=True)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("chunks", [[1] * 9, [4, 1, 4], [9], [2, 3, 4]])
def test_a_cache_gives_what_reading_all_at_once_gives(chunks: list[int], turns: bool) -> None:
    attention = Attention(C, HEADS)
    x = torch.randn(N, 9, C)
    with torch.no_grad():
        whole = attention(x, causal=True, rotation=Rotation.at(torch.arange(9), C // HEADS) if turns else None)
        cache, parts = Cache(), []
        for part in x.split(chunks, dim=1):
            places = torch.arange(cache.length, cache.length + part.shape[1])
            rotation = Rotation.at(places, C // HEADS) if turns else None
            parts.append(attention(part, causal=True, cache=cache, rotation=rotation))
            cache.advance(part.shape[1])
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-6)


def test_a_cache_refuses_gradients() -> None:
    with pytest.raises(sw.SkipwayError, match=r"holds no gradients: read with it under torch\.no_grad"):
        Attention(C, HEADS)(torch.randn(1, 2, C), cache=Cache())


def test_a_cache_projects_its_source_once_and_follows_reordered_rows() -> None:
    attention, cache = Attention(C, HEADS), Cache()
    x, source = torch.randn(2, 1, C), torch.randn(2, S, C)
    with torch.no_grad():
        first = attention(x, source, cache=cache)
        again = attention(x, torch.zeros_like(source), cache=cache)
        assert first.equal(again)
        cache.reorder(torch.tensor([1, 1]))
        swapped = attention(x, source, cache=cache)
        torch.testing.assert_close(swapped, attention(x, source[[1, 1]]))


def test_dropout_falls_on_the_weights_in_training_only() -> None:
    attention = Attention(C, HEADS, dropout=0.5)
    x = torch.randn(N, T, C)
    assert not attention(x).equal(attention(x))
    attention.eval()
    assert attention(x).equal(attention(x))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": torch.zeros(T, T)}, r"a mask is boolean, True where a token is hidden, not torch.float32"),
        ({"mask": torch.zeros(T, T + 1, dtype=torch.bool)}, r"5 tokens look at 5: its last axes must be 5 x 5"),
        ({"padding": torch.zeros(N, T + 2, dtype=torch.bool)}, r"the padding is \(3, 7\), .* must be 5"),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_masks_that_do_not_fit_are_refused(given: dict[str, Tensor], message: str) -> None:
    with pytest.raises(sw.SkipwayError, match=message):
        Attention(C, HEADS)(torch.randn(N, T, C), **given)


def test_heads_divide_the_width() -> None:
    with pytest.raises(sw.SkipwayError, match="multiple of the number of heads: 10 is none of 3"):
        Attention(10, 3)


def test_one_mask_a_head() -> None:
    mask = torch.rand(N, HEADS, T, T) < 0.3
    joined, causal = join_masks(T, T, mask, causal=True)
    assert not causal
    assert joined is not None
    assert joined.equal(mask | torch.ones(T, T, dtype=torch.bool).triu(1))


def test_waves_of_the_paper() -> None:
    found = sinusoidal(torch.arange(50), 6)
    for p in (0, 1, 49):
        for i in range(3):
            angle = p / 10000 ** (2 * i / 6)
            assert found[p, 2 * i] == pytest.approx(math.sin(angle), abs=1e-5)
            assert found[p, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-5)
    assert sinusoidal(torch.arange(4), 5).shape == (4, 5)


def test_rotation_is_the_paper_s_matrix() -> None:
    """RoFormer, equation 15: a block-diagonal matrix of 2 x 2 rotations."""
    x = torch.randn(1, 1, 4, 6, dtype=torch.float64)
    found = rotate(x, Rotation.at(torch.arange(4), 6))
    for p in range(4):
        matrix = torch.zeros(6, 6, dtype=torch.float64)
        for i in range(3):
            angle = p * 10000 ** (-2 * i / 6)
            turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = turn
        torch.testing.assert_close(found[0, 0, p], matrix @ x[0, 0, p], rtol=1e-5, atol=1e-6)


def test_rotated_products_know_only_the_distance() -> None:
    queries, keys = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(p: int, q: int) -> Tensor:
        a, b = (rotate(x, Rotation.at(torch.tensor([place]), 8)) for x, place in ((queries, p), (keys, q)))
        return (a * b).sum()

    torch.testing.assert_close(product(3, 1), product(40, 38), rtol=1e-4, atol=1e-4)
    assert not torch.isclose(product(3, 1), product(3, 2))


def test_padding_has_no_position() -> None:
    padding = torch.tensor([[False, False, False, True], [True, True, False, False]])
    assert counted(4, 0, padding, padding.device).tolist() == [[0, 1, 2, 2], [0, 0, 0, 1]]
    assert counted(2, 2, padding, padding.device).tolist() == [[2, 2], [0, 1]]
    assert counted(2, 3, None, padding.device).tolist() == [3, 4]


@pytest.mark.usefixtures("no_shape_checks")
def test_positions_that_cannot_be_are_refused() -> None:
    with pytest.raises(sw.SkipwayError, match="did you mean 'rotary'"):
        Positions("rotery", 8, 2, 16)  # type: ignore[arg-type]
    with pytest.raises(sw.SkipwayError, match="turn pairs of channels, and heads are 3 wide"):
        Positions("rotary", 6, 2, 16)
    positions = Positions("learned", 8, 2, 16)
    with pytest.raises(sw.SkipwayError, match="a sequence of 17 tokens, where this model learned 16 positions"):
        positions.check(17)
    Positions("sinusoidal", 8, 2, 16).check(17)
