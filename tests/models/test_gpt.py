"""GPT is GPT-2 to the gradient: its published weights load, transposed as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import skipway as sw
from skipway import connect
from skipway.models import GPT, gpt
from skipway.models.attention import Cache

REASONS = ("keep their width", "takes the mean over all tokens", "which tokens (dims=0) do not have")
COUNTS = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}


def tokens(n: int = 3, t: int = 9) -> Tensor:
    return torch.randint(17, (n, t), generator=torch.Generator().manual_seed(1))


def small(skip: Any = "residual", **options: Any) -> GPT:
    return gpt(2, 16, 2, skip, **{"vocabulary": 17, "length": 24, "dropout": 0.0, **options})


def reference() -> Any:
    transformers = pytest.importorskip("transformers", reason="needs the package 'transformers'")
    transformers.logging.set_verbosity_error()
    config = transformers.GPT2Config(
        vocab_size=17, n_positions=24, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return model


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_counts(name: str) -> None:
    with torch.device("meta"):
        model = sw.models.create(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize("form", ["whole", "without its output", "bare, with masks", "safetensors"])
def test_published_gpt_2_weights_load_and_compute_the_same(form: str, tmp_path: Path) -> None:
    theirs, ours = reference(), small()
    state = dict(theirs.state_dict())
    assert "lm_head.weight" in state
    path = tmp_path / "gpt2.bin"
    if form == "without its output":
        del state["lm_head.weight"]
    if form == "bare, with masks":
        state = {name.removeprefix("transformer."): value for name, value in state.items() if "lm_head" not in name}
        for layer in range(2):
            state[f"h.{layer}.attn.bias"] = torch.ones(24, 24).tril().bool()[None, None]
            state[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    if form == "safetensors":
        from safetensors.torch import save_file

        path = tmp_path / "model.safetensors"
        save_file({name: value.clone() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    sw.models.load_weights(ours, path)
    read = tokens()
    torch.testing.assert_close(ours(read), theirs(read).logits, rtol=1e-5, atol=1e-5)


def test_gradients_are_gpt_2_s(tmp_path: Path) -> None:
    theirs, ours = reference(), small()
    torch.save(theirs.state_dict(), tmp_path / "gpt2.bin")
    sw.models.load_weights(ours, tmp_path / "gpt2.bin")
    read = tokens()
    found, expected = ours(read), theirs(read).logits
    back = torch.randn_like(found)
    found.backward(back)
    expected.backward(back)
    # Their gradients are brought under our names by the same layout as weights are.
    torch.save({name: p.grad for name, p in theirs.named_parameters()}, tmp_path / "gradients.bin")
    twin = small()
    sw.models.load_weights(twin, tmp_path / "gradients.bin")
    for (name, mine), other in zip(ours.named_parameters(), twin.parameters(), strict=True):
        assert mine.grad is not None
        assert (mine.grad - other).abs().max() <= 1e-5 * max(1, float(other.detach().abs().max())), name


def test_an_output_of_its_own_is_not_dropped(tmp_path: Path) -> None:
    theirs = reference()
    state = dict(theirs.state_dict()) | {"lm_head.weight": torch.randn(17, 16)}
    torch.save(state, tmp_path / "untied.bin")
    with pytest.raises(sw.SkipwayError, match=r"1 are unexpected, the first head\.weight"):
        sw.models.load_weights(small(), tmp_path / "untied.bin")
    untied = small(tied=False)
    sw.models.load_weights(untied, tmp_path / "untied.bin")
    assert untied.head is not None
    assert untied.head.weight.equal(state["lm_head.weight"])


def test_a_file_that_does_not_fit_says_what_it_seems_to_hold(tmp_path: Path) -> None:
    held = {
        "a GPT": reference().state_dict(),
        "a BERT": sw.models.bert(1, 16, vocabulary=17).state_dict(),
        "a Transformer of encoder and decoder": sw.models.transformer(1, 16, vocabulary=17).state_dict(),
    }
    for meaning, state in held.items():
        torch.save(state, tmp_path / "held.bin")
        with pytest.raises(sw.SkipwayError, match=f"does not fit this model: .* It seems to hold {meaning}$"):
            sw.models.load_weights(sw.models.small_vit(1, 16), tmp_path / "held.bin")


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "none"])
@pytest.mark.parametrize("chunks", [[1] * 9, [5, 1, 1, 2]])
def test_reading_with_a_cache_gives_the_same(positions: Any, chunks: list[int]) -> None:
    model = small(positions=positions).eval()
    read = tokens()
    with torch.no_grad():
        whole, cache = model(read), Cache()
        parts = torch.cat([model(part, cache=cache) for part in read.split(chunks, dim=1)], dim=1)
        assert cache.length == 9
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(read, last=True), whole[:, -1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "none"])
def test_padding_on_the_left_changes_nothing(positions: Any) -> None:
    model = small(positions=positions).eval()
    read = tokens(1, 6)
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.int64), read), dim=1)
    padding = torch.tensor([[True] * 3 + [False] * 6])
    with torch.no_grad():
        expected = model(read)
        torch.testing.assert_close(model(padded, padding)[:, 3:], expected, rtol=1e-5, atol=1e-5)
        cache = Cache()
        model(padded[:, :5], padding[:, :5], cache)
        torch.testing.assert_close(model(padded[:, 5:], None, cache), expected[:, 2:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", connect.names())
def test_every_connection_trains_and_sees_no_later_token_or_is_refused(name: str) -> None:
    try:
        model = small(name)
    except sw.SkipwayError as refusal:
        if not any(reason in str(refusal) for reason in REASONS):
            raise
        return
    read = tokens()
    model(read).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    changed = read.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 17
    before, after = model(read), model(changed)
    assert before[:, :5].equal(after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all()


def test_the_trace_sees_two_skips_a_layer() -> None:
    model = small(dropout=0.1).eval()
    graph = sw.trace(model, tokens())
    assert [(skip.kind, skip.shortcut) for skip in graph.skips] == [("add", "identity")] * 4
    assert max(graph.paths()) == model.depth == 9
    assert not sw.trace(small("none").eval(), tokens()).skips


def test_its_skips_can_be_edited() -> None:
    model = small().eval()
    read = tokens()
    graph = sw.trace(model, read)
    lesioned = sw.edit.lesion(model, graph.skips[1])
    expected = small().eval()
    expected.load_state_dict(model.state_dict())
    second: Any = expected.stack.layers[0]
    torch.nn.init.zeros_(second.linear2.weight)
    torch.nn.init.zeros_(second.linear2.bias)
    torch.testing.assert_close(lesioned(read), expected(read), rtol=1e-5, atol=1e-5)


def test_branches_start_narrower_the_deeper_the_net() -> None:
    """GPT-2: 0.02, and 0.02 / sqrt(2 layers) for what each branch adds."""
    model = gpt(8, 64, vocabulary=50, length=16)
    layer: Any = model.stack.layers[3]
    assert float(layer.linear1.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    for weight in (layer.linear2.weight, layer.self_attn.out_proj.weight):
        assert float(weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.05)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: small()(tokens(t=25)), "a sequence of 25 tokens, where this model learned 24 positions: shorten it"),
        (lambda: small()(tokens() + 10), "where this model knows 17: build it with vocabulary="),
        (lambda: small()(torch.randn(2, 3)), r"takes tokens, whole numbers of shape \[n, t\], not torch.float32"),
        (lambda: small()(tokens()[0]), r"of shape \[9\]"),
        (lambda: small(vocabulary=0), "must be at least 1, not 0, 24"),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_mistakes_get_one_sentence(act: Any, message: str) -> None:
    with pytest.raises(sw.SkipwayError, match=message):
        act()


def test_any_size_by_its_name() -> None:
    model: Any = sw.models.create("gpt-5x96", vocabulary=11, length=8)
    assert (len(model.stack.layers), model.plan.width, model.plan.heads) == (5, 96, 2)
    assert sw.models.create("gpt-2x80", vocabulary=11).plan.heads == 1  # type: ignore[union-attr]
