"""Router metrics by hand-made cases and invariants; McNemar, Holm and the bootstrap against what they must be."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from calibrators.scores import Score
from eval.crossed import Crossed, group_codes
from eval.stats import (
    DEFINITIONS,
    BadComparison,
    aiq,
    apgr,
    audc,
    concave_hull,
    cpt,
    deferral_curve,
    drawn,
    holm,
    interval,
    mcnemar,
    mix_accuracies,
    mix_accuracy,
    pair_scores,
    pgr,
    resampled_means,
    standard_error,
)

World = Callable[..., Crossed]
POINTS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12)


@given(POINTS)
def test_the_hull_is_concave_rising_and_above_every_point(points: list[tuple[int, int]]) -> None:
    cost, accuracy = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    hull = concave_hull(cost, accuracy)
    x, y = cost[hull], accuracy[hull]
    assert x[0] == cost.min()
    assert y[-1] == accuracy.max()
    assert (np.diff(x) > 0).all()
    assert (np.diff(y) > 0).all()
    assert (np.diff(np.diff(y) / np.diff(x)) < 0).all()
    assert (mix_accuracy(cost, cost, accuracy) >= accuracy - 1e-12).all()


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=4, max_size=4), st.floats(0, 25))
def test_many_mixes_at_once_are_each_the_mix_alone(points: list[tuple[int, int]], budget: float) -> None:
    cost, accuracy = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    budgets = np.maximum([budget, 3.0, 20.0], cost.min())
    together = mix_accuracies(budgets, np.tile(cost, (3, 1)), np.tile(accuracy, (3, 1)))
    assert together == pytest.approx([float(mix_accuracy(one, cost, accuracy)) for one in budgets], abs=1e-9)


def test_a_random_mix_lies_on_the_envelope_and_nothing_is_cheaper_than_the_cheapest() -> None:
    cost, accuracy = np.array([1.0, 5.0, 3.0]), np.array([0.5, 0.9, 0.6])
    assert mix_accuracy(3.0, cost, accuracy) == pytest.approx(0.7)
    assert mix_accuracy(9.0, cost, accuracy) == pytest.approx(0.9)
    assert np.isnan(mix_accuracy(0.5, cost, accuracy))


def test_a_useless_signal_gets_half_and_a_perfect_one_more() -> None:
    weak, strong = np.array([1.0, 0, 1, 0]), np.ones(4)
    useless = np.full(4, 0.5)
    assert audc(useless, weak, strong) == pytest.approx(0.75)
    assert apgr(useless, weak, strong) == pytest.approx(0.5)
    assert cpt(useless, weak, strong, 0.8) == pytest.approx(0.8)
    assert cpt(weak, weak, strong, 1.0) == pytest.approx(0.5)
    assert cpt(weak, weak, strong, 0.5) == pytest.approx(0.25)
    assert audc(weak, weak, strong) > 0.75
    assert pgr(0.75, 0.5, 1.0) == pytest.approx(0.5)


def test_answers_without_evidence_are_deferred_before_all_others() -> None:
    share, accuracy = deferral_curve(np.array([0.1, np.nan]), np.array([1.0, 0.0]), np.ones(2))
    assert share.tolist() == [0, 0.5, 1]
    assert accuracy.tolist() == [0.5, 1, 1]
    assert deferral_curve(np.full(2, np.nan), np.zeros(2), np.ones(2))[1].tolist() == [0, 0.5, 1]


def test_pair_scores_come_with_intervals_that_hold_their_values(world: World) -> None:
    crossed = world(600, 7)
    rng = np.random.default_rng(0)
    found = pair_scores(crossed.p[:, 0], crossed.right[:, 0], crossed.right[:, 2], group_codes(crossed), rng)
    assert list(found) == ["AUDC", "APGR", "CPT(50%)", "CPT(80%)"]
    for score in found.values():
        assert isinstance(score, Score)
        assert score.low is not None
        assert score.high is not None
        assert score.low <= score.value <= score.high
    assert found["APGR"].low > 0.5  # type: ignore[union-attr,operator]
    backwards = pair_scores(crossed.p[:, 2], crossed.right[:, 2], crossed.right[:, 0], group_codes(crossed), rng)
    assert all("no gap" in str(score) for score in backwards.values())
    twins = np.arange(600) // 2
    wider = pair_scores(crossed.p[:, 0], crossed.right[:, 0], crossed.right[:, 2], twins, rng)
    assert wider["AUDC"].value == found["AUDC"].value  # type: ignore[union-attr]


def test_no_gap_between_two_models_is_said_and_not_divided_by() -> None:
    with pytest.raises(BadComparison, match="no gap"):
        pgr(0.5, 0.7, 0.7)
    with pytest.raises(BadComparison, match="lie in"):
        cpt(np.ones(2), np.zeros(2), np.ones(2), 0.0)
    with pytest.raises(BadComparison, match="cost the same"):
        aiq(np.array([]), np.array([]), np.array([2.0, 2.0]), np.array([0.1, 0.2]))


def test_aiq_of_the_mix_itself_is_its_mean_height_and_better_routes_raise_it() -> None:
    cost, accuracy = np.array([1.0, 3.0]), np.array([0.4, 0.8])
    assert aiq(np.array([]), np.array([]), cost, accuracy) == pytest.approx(0.6)
    assert aiq(np.array([1.5]), np.array([0.5]), cost, accuracy) == pytest.approx(0.6)
    above = aiq(np.array([2.0]), np.array([0.8]), cost, accuracy)
    # the mix up to 2 (mean .5), then .8
    assert above == pytest.approx((0.5 + 0.8) / 2)


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_sign_test_of_the_discordant_pairs(a: int, b: int) -> None:
    one = np.array([1.0] * a + [0.0] * b + [1.0] * 5)
    two = np.array([0.0] * a + [1.0] * b + [1.0] * 5)
    found = mcnemar(one, two)
    by_hand = min(1.0, 2 * binom.cdf(min(a, b), a + b, 0.5)) if a + b else 1.0
    assert (found.only_a, found.only_b) == (a, b)
    assert found.p_value == pytest.approx(by_hand)


def test_holm_by_its_own_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_the_bootstrap_agrees_with_the_normal_error_and_in_sign_with_mcnemar(world: World) -> None:
    crossed = world(1_500, 0)
    gain = crossed.right[:, 2] - crossed.right[:, 0]
    means = resampled_means(gain[:, None], group_codes(crossed), np.random.default_rng(0))
    assert means.std() == pytest.approx(standard_error(gain, group_codes(crossed)), rel=0.06)
    score = interval("gain", gain.mean(), means[:, 0], crossed.n, "bootstrap")
    found = mcnemar(crossed.right[:, 2], crossed.right[:, 0])
    assert score.low is not None
    assert score.low > 0
    assert found.only_a > found.only_b
    assert found.p_value < 0.05


def test_families_are_drawn_whole() -> None:
    values = np.repeat(np.array([0.0, 1.0] * 20), 5)
    alone, together = np.arange(200), np.repeat(np.arange(40), 5)
    assert standard_error(values, together) == pytest.approx(standard_error(values, alone) * 5**0.5, rel=0.02)
    rng = np.random.default_rng(0)
    means = resampled_means(values[:, None], together, rng, 3_000)
    assert means.std() == pytest.approx(standard_error(values, together), rel=0.06)
    assert drawn(7, 50, rng).sum(axis=1).tolist() == [7] * 50
    assert standard_error(values, np.zeros(200, dtype=np.int64)) == 0


def test_every_number_we_print_has_a_definition() -> None:
    assert {"AUDC", "PGR", "APGR", "CPT(x)", "AIQ", "saving", "skill", "optimism"} <= DEFINITIONS.keys()
