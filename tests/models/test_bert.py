"""BERT is Hugging Face's to the gradient, under each of its heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import skipway as sw
from skipway import connect
from skipway.models import BERT, bert

NAMES = {"pooled": "BertModel", "language": "BertForMaskedLM", "classification": "BertForSequenceClassification"}


def tokens(n: int = 3, t: int = 9) -> Tensor:
    # Their token 0 is padding, whose vector has no gradient.
    return torch.randint(1, 17, (n, t), generator=torch.Generator().manual_seed(1))


def small(skip: Any = "residual", **options: Any) -> BERT:
    return bert(2, 16, 2, skip, **{"vocabulary": 17, "length": 24, "dropout": 0.0, **options})


def reference(name: str) -> Any:
    transformers = pytest.importorskip("transformers", reason="needs the package 'transformers'")
    transformers.logging.set_verbosity_error()
    config = transformers.BertConfig(
        vocab_size=17, max_position_embeddings=24, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    model = getattr(transformers, name)(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return model.eval()


def output(found: Any) -> Tensor:
    return found.pooler_output if hasattr(found, "pooler_output") else found.logits


def test_the_published_counts() -> None:
    """Hugging Face's BertModel, BertForMaskedLM and BertForSequenceClassification, counted."""
    with torch.device("meta"):
        counts = {head: sum(p.numel() for p in sw.models.create("bert-base", head=head).parameters()) for head in NAMES}
        large = sum(p.numel() for p in sw.models.create("bert-large", head="pooled").parameters())
    assert counts == {"pooled": 109_482_240, "language": 109_514_298, "classification": 109_482_240 + 2 * 768 + 2}
    assert large == 335_141_888


@pytest.mark.parametrize("head", NAMES)
def test_published_bert_weights_load_and_compute_the_same(head: Any, tmp_path: Path) -> None:
    theirs, ours = reference(NAMES[head]), small(head=head, num_classes=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "bert.bin")
    sw.models.load_weights(ours, tmp_path / "bert.bin")
    read = tokens()
    padding = torch.zeros(3, 9, dtype=torch.bool)
    padding[1, 6:] = True
    segments = (torch.arange(9) > 4).long().expand(3, 9)
    given = {"attention_mask": (~padding).long(), "token_type_ids": segments}
    found, expected = ours(read, padding, segments), output(theirs(read, **given))
    seen = ~padding if head == "language" else slice(None)
    torch.testing.assert_close(found[seen], expected[seen], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(read), output(theirs(read)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", NAMES)
def test_gradients_are_bert_s(head: Any, tmp_path: Path) -> None:
    theirs, ours = reference(NAMES[head]), small(head=head, num_classes=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "bert.bin")
    sw.models.load_weights(ours, tmp_path / "bert.bin")
    read = tokens()
    found, expected = ours(read), output(theirs(read))
    back = torch.randn_like(found)
    found.backward(back)
    expected.backward(back)
    # Their gradients are brought under our names by the same layout as weights are.
    torch.save({name: p.grad for name, p in theirs.named_parameters()}, tmp_path / "gradients.bin")
    twin = small(head=head, num_classes=3)
    sw.models.load_weights(twin, tmp_path / "gradients.bin")
    for (name, mine), other in zip(ours.named_parameters(), twin.parameters(), strict=True):
        assert mine.grad is not None
        assert (mine.grad - other).abs().max() <= 1e-5 * max(1, float(other.detach().abs().max())), name


@pytest.mark.parametrize("head", NAMES)
def test_a_file_with_all_heads_and_old_names_gives_each_model_its_own(head: Any, tmp_path: Path) -> None:
    """What the Hub's bert-base-uncased holds: both pretraining heads, and norms whose entries are gamma and beta."""
    theirs = reference("BertForPreTraining")
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in theirs.state_dict().items()
    }
    torch.save(state, tmp_path / "bert.bin")
    model = small(head=head, num_classes=3).eval()
    if head == "classification":
        with pytest.raises(sw.SkipwayError, match=r"2 names are missing, the first classifier\.weight"):
            sw.models.load_weights(model, tmp_path / "bert.bin")
        return
    sw.models.load_weights(model, tmp_path / "bert.bin")
    read = tokens()
    expected = theirs.bert(read).pooler_output if head == "pooled" else theirs(read).prediction_logits
    torch.testing.assert_close(model(read), expected, rtol=1e-5, atol=1e-5)


def test_padding_has_exactly_no_influence() -> None:
    model = small().eval()
    read = tokens()
    padding = torch.zeros(3, 9, dtype=torch.bool)
    padding[1, 6:] = padding[2, :2] = True
    vectors: list[Tensor] = []

    def hold(module: torch.nn.Module, given: Any, put_out: Tensor) -> None:
        vectors.append(put_out)

    model.embedding.register_forward_hook(hold)
    (gradient,) = torch.autograd.grad(model(read, padding)[~padding].square().sum(), vectors)
    assert not gradient[padding].any()
    assert gradient[~padding].any(dim=-1).all()


@pytest.mark.parametrize("name", connect.names())
def test_every_connection_trains_or_is_refused(name: str) -> None:
    reasons = ("keep their width", "takes the mean over all tokens", "which tokens (dims=0) do not have")
    try:
        model = small(name)
    except sw.SkipwayError as refusal:
        if not any(reason in str(refusal) for reason in reasons):
            raise
        return
    model(tokens()).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_trace_sees_two_skips_a_layer() -> None:
    for head in NAMES:
        model = small(head=head).eval()
        graph = sw.trace(model, tokens())
        inside = [skip for skip in graph.skips if str(skip.site).startswith("stack.")]
        assert [(skip.kind, skip.shortcut) for skip in inside] == [("add", "identity")] * 4
        assert max(graph.paths()) == model.depth == (9 if head == "pooled" else 10)


@pytest.mark.usefixtures("no_shape_checks")
def test_mistakes_get_one_sentence() -> None:
    with pytest.raises(sw.SkipwayError, match="no head 'langauge'; did you mean 'language'"):
        small(head="langauge")
    with pytest.raises(sw.SkipwayError, match="a sequence of 25 tokens, where this model learned 24"):
        small()(tokens(t=25))
