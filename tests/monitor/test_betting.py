from __future__ import annotations

import numpy as np
import pytest

from gateway.monitor.betting import Bound, Honesty, Wealth, exceeds
from gateway.nouns import Floats

ALPHA = 0.01  # science 7.2


def streams(rng: np.random.Generator, labels: int, over: float, count: int = 1_000) -> tuple[Floats, Floats]:
    """p and right, (labels, count): p of science 7.2, and truth `over` below it."""
    p = rng.beta(9, 1, size=(labels, count))
    return p, (rng.random((labels, count)) < np.maximum(p - over, 0)).astype(float)


def detected(p: Floats, right: Floats, alpha: float = ALPHA) -> Floats:
    """Labels until over-confidence is proven, (count,); infinite where it never is."""
    state, when = Honesty.fresh(shape=p.shape[1:]), np.full(p.shape[1], np.inf)
    for n, (told, truth) in enumerate(zip(p, right, strict=True), 1):
        state = state.after(told, truth)
        when = np.where((when == np.inf) & (state.peak_over >= np.log(2 / alpha)), n, when)
    return when


def test_honest_streams_raise_fewer_false_alarms_than_alpha() -> None:
    p, right = streams(np.random.default_rng(1), 2_000, 0.0)
    state = Honesty.fresh(shape=p.shape[1:])
    for told, truth in zip(p, right, strict=True):
        state = state.after(told, truth)
    alarmed = (state.peak_over >= np.log(2 / ALPHA)) | (state.peak_under >= np.log(2 / ALPHA))
    assert alarmed.mean() <= ALPHA


@pytest.mark.parametrize(("over", "most"), [(0.1, 200), (0.05, 700)])
def test_overconfidence_is_found_about_as_fast_as_the_reference_card_says(over: float, most: int) -> None:
    when = detected(*streams(np.random.default_rng(2), 2_000, over, count=300))
    assert np.median(when) < most  # 130 and 420 there, where alpha is spent on one side only and nothing on restarts


def test_a_change_after_a_long_quiet_time_is_found_almost_as_fast_as_one_at_the_start() -> None:
    rng = np.random.default_rng(3)
    quiet, shifted = streams(rng, 3_000, 0.0, count=200), streams(rng, 1_000, 0.1, count=200)
    late = detected(*(np.concatenate(both) for both in zip(quiet, shifted, strict=True))) - 3_000
    early = detected(*shifted)
    assert np.median(late) < 2 * np.median(early)


def test_underconfidence_is_its_own_alarm() -> None:
    rng = np.random.default_rng(4)
    state = Honesty.fresh()
    for right in rng.random(600) < 0.9:
        state = state.after(0.7, float(right))
    assert state.underconfident(ALPHA)
    assert not state.overconfident(ALPHA)


def test_a_gap_within_the_tolerance_is_no_alarm() -> None:
    rng = np.random.default_rng(5)
    strict, lenient = Honesty.fresh(), Honesty.fresh(tolerance=0.1)
    for right in rng.random(1_500) < 0.82:
        strict, lenient = strict.after(0.9, float(right)), lenient.after(0.9, float(right))
    assert strict.overconfident(ALPHA)
    assert not lenient.overconfident(ALPHA)


def test_wealth_is_never_lost_altogether() -> None:
    wealth = Wealth.fresh()
    for _ in range(50):
        wealth = wealth.after(1.0, 1.0)
    for _ in range(20_000):
        wealth = wealth.after(-1.0, 1.0)
    assert np.isfinite(wealth.log)


def test_the_first_bet_is_made_before_its_label_is_seen() -> None:
    assert Wealth.fresh().after(1.0, 1.0).log == pytest.approx(0.0)


def test_bounds_hold_at_every_look_and_close_in() -> None:
    rng, missed = np.random.default_rng(6), 0
    for _ in range(10):
        bound = Bound.fresh()
        for wrong in rng.random(400) < 0.1:
            bound = bound.after(float(wrong))
        missed += not bound.low(0.025) <= 0.1 <= bound.high(0.025)  # peaks: one miss at any look counts
    assert missed <= 3  # at most 0.5 expected
    assert bound.high(0.025) - bound.low(0.025) < 0.15


def test_the_limit_is_proven_broken_with_weighted_labels_and_not_when_it_holds() -> None:
    rng = np.random.default_rng(7)

    def weighted(rate: float, n: int) -> list[float]:
        drawn, wrong = rng.random(n) < 0.05, rng.random(n) < rate
        return list(np.where(drawn & wrong, 1 / 0.05, 0.0))

    assert exceeds(0.05, weighted(0.3, 5_000), ALPHA) is not None
    assert sum(exceeds(0.05, weighted(0.05, 2_000), ALPHA) is not None for _ in range(10)) <= 1
