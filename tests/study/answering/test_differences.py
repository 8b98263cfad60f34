import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from tests.study.make import make_record

from skipway.study.answering.differences import LEAST_SEEDS, bootstrap, chance, compare

values = st.floats(-100, 100).map(lambda x: round(x, 3))


@pytest.mark.parametrize("n", [3, 5, 6, 9, 20])
def test_the_interval_is_that_of_scipy(n: int):
    data = np.random.default_rng(n).normal(size=n)
    theirs = scipy.stats.bootstrap(
        (data,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    ours = bootstrap(data.tolist())
    scale = data.std()
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.05 * scale)


@given(st.lists(values, min_size=1, max_size=8), st.floats(0.1, 10), values)
def test_the_interval_holds_the_mean_and_moves_with_the_values(data: list[float], factor: float, shift: float):
    low, high = bootstrap(data)
    mean = sum(data) / len(data)
    assert min(data) - 1e-9 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= max(data) + 1e-9
    moved = bootstrap([factor * value + shift for value in data])
    assert moved == pytest.approx((factor * low + shift, factor * high + shift), abs=1e-6)


@given(st.lists(values, min_size=1, max_size=6))
def test_all_on_one_side_is_an_interval_on_that_side_for_few_seeds(data: list[float]):
    low, high = bootstrap(data)
    if min(data) > 0:
        assert low > 0
    if max(data) < 0:
        assert high < 0


def test_chance_is_that_of_the_sign_test():
    for n in range(1, 9):
        assert chance(n) == pytest.approx(scipy.stats.binomtest(n, n, 0.5).pvalue)


@st.composite
def trials(draw: st.DrawFn) -> list[tuple[int, str, int, float]]:
    skips = draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=2, max_size=3, unique=True))
    depths = draw(st.lists(st.sampled_from([8, 14, 20]), min_size=1, max_size=2, unique=True))
    seeds = draw(st.integers(1, 5))
    errors = st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.5])
    return [(d, s, n, draw(errors)) for n in range(seeds) for d, s in itertools.product(depths, skips)]


@given(trials())
def test_every_value_is_compared_with_the_baseline_seed_by_seed_where_the_rest_agrees(
    rows: list[tuple[int, str, int, float]],
):
    records = [make_record(depth, skip, seed, test=error) for depth, skip, seed, error in rows]
    table = {(depth, skip, seed): error for depth, skip, seed, error in rows}
    baseline = rows[0][1]
    found = compare(records, "skip", baseline, "test_error")
    depths, skips, seeds = {row[0] for row in rows}, {row[1] for row in rows}, {row[2] for row in rows}
    assert len(found) == len(depths) * (len(skips) - 1)
    for one in found:
        depth = int(one.where["depth"])
        differences = [table[depth, one.value, seed] - table[depth, baseline, seed] for seed in sorted(seeds)]
        assert one.seeds == len(seeds)
        assert one.difference == pytest.approx(sum(differences) / len(differences))
        assert (one.low, one.high) == pytest.approx(bootstrap(differences))
        if len(seeds) < LEAST_SEEDS:
            assert one.verdict == "too few seeds"
        elif all(value < 0 for value in differences):
            assert one.verdict == "better"
        elif all(value > 0 for value in differences):
            assert one.verdict == "worse"
        elif all(value == 0 for value in differences):
            assert one.verdict == "unclear"


def test_of_what_is_good_when_high_more_is_better():
    rows = [("a", 0.5), ("b", 0.7)]
    records = [
        make_record(8, skip, seed, curves={"validation_dice": [0.1, value + 0.01 * seed]})
        for skip, value in rows
        for seed in range(3)
    ]
    (one,) = compare(records, "skip", "a", "validation_dice")
    assert one.verdict == "better"
    assert one.difference == pytest.approx(0.2)


def test_a_variant_that_diverges_is_told_apart_from_one_that_does_not():
    ends = {"epoch": 1, "step": 2}
    records = [make_record(8, "a", seed, test=0.2) for seed in range(3)]
    records += [make_record(8, "b", seed, diverged=ends) for seed in range(3)]
    (one,) = compare(records, "skip", "a", "test_loss")
    assert one.verdict == "diverged"
    assert one.difference is None
    (one,) = compare(records, "skip", "a", "test_error")
    assert one.verdict == "diverged"
    assert one.difference == pytest.approx(0.8)
