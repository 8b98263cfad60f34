"""Every way of writing finds what an exhaustive search finds, with the cache and without."""

from __future__ import annotations

import itertools
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import skipway as sw
from skipway.models import gpt, transformer
from skipway.models.generation import Beam, Greedy, Sampling, _FewRows, generate, rows, translate
from skipway.models.recipe import smoothed_loss

VOCABULARY = 5
STRATEGIES = [Greedy(), Sampling(seed=3), Sampling(0.7, top_k=3, top_p=0.9, seed=1), Beam(3), Beam(1)]


def writer(**options: Any) -> Any:
    """A GPT whose next token depends on all before it: its weights are wide."""
    model = gpt(2, 16, 2, **{"vocabulary": VOCABULARY, "length": 16, **options})
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def translator(**options: Any) -> Any:
    model = transformer(1, 16, 2, **{"vocabulary": VOCABULARY, **options})
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.7)
    return model


def score(model: Any, prompt: list[int], written: list[int]) -> float:
    """The log-probability of what is written, read at once."""
    tokens = torch.tensor([prompt + written])
    with torch.no_grad():
        chances = model.eval()(tokens).log_softmax(-1)[0]
    return sum(float(chances[len(prompt) - 1 + k, token]) for k, token in enumerate(written))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_the_cache_changes_nothing(strategy: Any, positions: str) -> None:
    model = writer(positions=positions)
    prompts = [[1, 2, 3], [4], [2, 2]]
    cached = generate(model, prompts, 8, strategy, end=0)
    plain = generate(model, prompts, 8, strategy, end=0, cache=False)
    assert [one.tolist() for one in cached] == [one.tolist() for one in plain]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_the_cache_changes_no_translation(strategy: Any) -> None:
    model = translator()
    sources = [[1, 2, 3, 4], [4], [2, 2]]
    cached = translate(model, sources, 1, 0, 7, strategy)
    plain = translate(model, sources, 1, 0, 7, strategy, cache=False)
    assert [one.tolist() for one in cached] == [one.tolist() for one in plain]


@pytest.mark.parametrize("strategy", [Greedy(), Beam(3)], ids=repr)
def test_each_prompt_is_continued_as_if_alone(strategy: Any) -> None:
    model = writer()
    prompts = [[1, 2, 3], [4], [2, 2]]
    together = generate(model, prompts, 6, strategy, end=0)
    alone = [generate(model, [one], 6, strategy, end=0)[0] for one in prompts]
    assert [one.tolist() for one in together] == [one.tolist() for one in alone]
    source = [[1, 2, 3, 4], [4], [2, 2]]
    both = translate(translator(), source, 1, 0, 6, strategy)
    assert len(both) == 3


def test_greedy_takes_the_likeliest_token_each_time() -> None:
    model = writer().eval()
    (written,) = generate(model, torch.tensor([[1, 2]]), 6)
    tokens = [1, 2]
    for token in written.tolist():
        assert int(model(torch.tensor([tokens]))[0, -1].argmax()) == token
        tokens.append(token)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_a_wide_beam_finds_what_an_exhaustive_search_finds(penalty: float) -> None:
    """Every sequence of up to 4 tokens: those that end, and those of full length that do not."""
    model, prompt, length = writer(), [1, 3], 4
    beam = Beam(VOCABULARY**length, penalty)
    candidates = {}
    for t in range(length + 1):
        for tokens in itertools.product(range(1, VOCABULARY), repeat=t):
            if t < length:
                candidates[tokens] = score(model, prompt, [*tokens, 0]) / beam.penalty(t + 1)
            else:
                candidates[tokens] = score(model, prompt, list(tokens)) / beam.penalty(t)
    expected = max(candidates, key=lambda tokens: candidates[tokens])
    (found,) = generate(model, [prompt], length, beam, end=0)
    assert tuple(found.tolist()) == expected


def test_a_beam_of_one_without_an_end_is_greedy() -> None:
    model = writer()
    prompts = torch.tensor([[1, 2], [3, 4]])
    for a, b in zip(generate(model, prompts, 6, Beam(1)), generate(model, prompts, 6), strict=True):
        assert a.equal(b)


def test_a_wider_beam_is_no_less_likely() -> None:
    model, prompt = writer(), [2, 1]
    scores = [score(model, prompt, generate(model, [prompt], 5, Beam(w, 0.0))[0].tolist()) for w in (1, 625)]
    assert scores[1] >= scores[0] - 1e-6


def test_what_is_sampled_has_the_model_s_probabilities() -> None:
    model = writer()
    prompts = torch.tensor([[1, 2]]).expand(4000, 2)
    drawn = torch.stack(generate(model, prompts, 1, Sampling(temperature=1.5)))[:, 0]
    found = torch.bincount(drawn, minlength=VOCABULARY) / 4000
    with torch.no_grad():
        expected = (model.eval()(prompts[:1])[0, -1] / 1.5).softmax(0)
    assert (found - expected).abs().max() < 0.03


def test_top_k_and_top_p_leave_the_likeliest() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()

    def left(**options: Any) -> list[float]:
        return [round(p, 3) for p in Sampling(**options).probabilities(logits)[0].tolist()]

    assert left() == [0.1, 0.4, 0.2, 0.3]
    assert left(top_k=2) == [0, 0.571, 0, 0.429]
    assert left(top_k=9) == [0.1, 0.4, 0.2, 0.3]
    assert left(top_p=0.39) == [0, 1, 0, 0]
    assert left(top_p=0.69) == [0, 0.571, 0, 0.429]
    assert left(top_p=0.71) == [0, 0.444, 0.222, 0.333]
    assert left(top_p=1.0) == [0.1, 0.4, 0.2, 0.3]
    assert left(temperature=0.5) == [0.033, 0.533, 0.133, 0.3]


def test_the_seed_decides_and_the_global_one_stands_still() -> None:
    model = writer()
    before = torch.get_rng_state()
    a, b, c = (generate(model, [[1]], 12, Sampling(seed=seed))[0].tolist() for seed in (1, 1, 2))
    assert a == b != c
    assert torch.get_rng_state().equal(before)


def test_the_model_is_left_as_it_was() -> None:
    model = writer(dropout=0.5).train()
    model.stack.layers[0].eval()
    first, second = (generate(model, [[1, 2]], 5)[0].tolist() for _ in range(2))
    assert first == second
    assert model.training
    assert not model.stack.layers[0].training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_is_written_behind_the_end() -> None:
    model = writer()
    whole = generate(model, [[1, 2], [3, 4]], 10, Sampling(seed=5))
    ended = generate(model, [[1, 2], [3, 4]], 10, Sampling(seed=5), end=2)
    for all_of_it, part in zip(whole, ended, strict=True):
        tokens = all_of_it.tolist()
        assert part.tolist() == (tokens[: tokens.index(2)] if 2 in tokens else tokens)


def test_it_writes_to_the_last_position_and_no_further() -> None:
    model = writer(length=8)
    assert len(generate(model, [[1, 2, 3]], 6)[0]) == 6
    with pytest.raises(sw.SkipwayError, match="a sequence of 9 tokens, where this model learned 8"):
        generate(model, [[1, 2, 3]], 7)
    assert len(generate(writer(length=8, positions="rotary"), [[1, 2, 3]], 20)[0]) == 20


def test_a_trained_copier_copies() -> None:
    """Sources of several lengths are written down as they are by a model that learned to."""
    torch.manual_seed(0)
    model = transformer(1, 32, 4, vocabulary=9, dropout=0.0, placement="pre-norm")
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(200):
        lengths = torch.randint(1, 5, (32,)).tolist()
        source, hidden = rows([torch.randint(2, 9, (t,)) for t in lengths])
        target = torch.zeros(32, 6, dtype=torch.int64)
        for row, t in enumerate(lengths):
            target[row, 1 : t + 1], target[row, t + 1 :] = source[row, :t], 1
        loss = smoothed_loss(model(source, target[:, :-1], hidden), target[:, 1:], smoothing=0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sources = [[2, 7, 3], [5], [8, 8, 2, 4], [3, 6]]
    for strategy in (Greedy(), Beam(3)):
        found = translate(model, sources, start=0, end=1, length=5, strategy=strategy)
        assert [one.tolist() for one in found] == sources


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Sampling(temperature=0.0), r"above 0, not 0.0: near 0 it is Greedy\(\)"),
        (lambda: Sampling(top_k=0), "at least 1 token, not 0"),
        (lambda: Sampling(top_p=1.5), r"top_p lies in \(0, 1\], not 1.5"),
        (lambda: Beam(0), "width of at least 1 and a penalty of at least 0, not 0, 0.6"),
        (lambda: generate(writer(), [[1]], 0), "how many tokens to write, at least 1, not 0"),
        (lambda: generate(writer(), [[]], 3), "at least one token in each"),
        (lambda: generate(writer(), [], 3), "give at least one sequence"),
        (lambda: generate(writer(), torch.tensor([1, 2]), 3), r"not torch.int64 of shape \[2\]"),
        (
            lambda: generate(writer(), [[1]], 3, cast("Any", "beam")),
            r"takes Greedy\(\), Sampling\(...\) or Beam\(...\), not 'beam'",
        ),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_mistakes_get_one_sentence(act: Any, message: str) -> None:
    with pytest.raises(sw.SkipwayError, match=message):
        act()


def test_rows_are_padded_on_either_side() -> None:
    right, hidden = rows([torch.tensor([1, 2]), torch.tensor([3])])
    assert right.tolist() == [[1, 2], [3, 0]]
    assert isinstance(hidden, Tensor)
    left, before = rows([[1, 2], [3]], left=True)
    assert left.tolist() == [[1, 2], [0, 3]]
    assert before is not None
    assert before.tolist() == [[False, False], [True, False]]
    assert rows([[1], [2]])[1] is None


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("channels", "out"), [(6, 9), (9, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_maps_of_few_rows_are_the_same_numbers(rows: int, channels: int, out: int, bias: bool) -> None:
    linear, x = torch.nn.Linear(channels, out, bias=bias), torch.randn(rows, 1, channels)
    with torch.no_grad():
        expected = linear(x)
        with _FewRows():
            found = linear(x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_steps_of_few_rows_take_the_fast_product_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[int] = []
    monkeypatch.setattr(_FewRows, "__enter__", lambda self: entered.append(1))
    monkeypatch.setattr(_FewRows, "__exit__", lambda self, *raised: None)
    model = gpt(1, 8, vocabulary=5, length=9)
    for prompts, expected in (([[1]], 4), ([[1], [2]], 4), ([[1]] * 5, 0)):
        entered.clear()
        generate(model, prompts, 4)
        assert len(entered) == expected


@pytest.mark.parametrize("verb", ["cut", "lesion", "swap"])
@pytest.mark.parametrize("rows", [1, 5])
def test_an_edited_model_writes_with_the_cache_as_without(verb: str, rows: int) -> None:
    model = writer().eval()
    graph = sw.trace(model, torch.tensor([[1, 2, 3]]))
    choice = {"skip": sw.Residual(scale=sw.Constant(0.5))} if verb == "swap" else {}
    prompts = [[1, 2, 3], [4], [2, 2], [3], [1, 1]][:rows]
    for skip in graph.skips:
        edited = getattr(sw.edit, verb)(model, skip, **choice)
        cached = generate(edited, prompts, 6)
        plain = generate(edited, prompts, 6, cache=False)
        assert [one.tolist() for one in cached] == [one.tolist() for one in plain]
