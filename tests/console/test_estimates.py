"""Figures with their intervals, against closed forms, SciPy and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from calibrators import scores
from gateway.console import estimates


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (3, 10), (940, 1000)])
def test_a_share_has_wilsons_interval(hits: int, n: int) -> None:
    ours, theirs = estimates.share(hits, n), scores.wilson("x", hits, n)
    assert (ours.value, ours.n) == (hits / n, n)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_the_interval_of_a_quantile_covers_it_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    true = -np.log(0.05)  # of an exponential
    found = [estimates.quantile(np.sort(rng.exponential(size=400)), 0.95) for _ in range(400)]
    assert 0.90 <= np.mean([one.low <= true <= one.high for one in found]) <= 0.99
    assert estimates.quantile(np.array([2.0]), 0.95) == estimates.Figure(2.0, 2.0, 2.0, 1)


def test_the_interval_of_a_weighted_ratio_covers_it_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(400):
        below = rng.uniform(1, 3, 600)
        above = below * rng.uniform(0, 1, 600)  # the ratio of the means is a half
        inclusion = np.where(below > 2, 0.6, 0.2)
        drawn = rng.random(600) < inclusion
        found = estimates.ratio(above[drawn], below[drawn], 1 / inclusion[drawn])
        covered.append(found.low <= 0.5 <= found.high)
    assert 0.90 <= np.mean(covered) <= 0.99


def test_a_mean_is_the_ratio_to_one_and_even_weights_count_in_full() -> None:
    found = estimates.mean(np.array([1.0, 2.0, 3.0]), np.full(3, 50.0))
    assert (found.value, found.n) == (2.0, 3)
    assert estimates.effective(np.full(3, 50.0)) == pytest.approx(3)
    assert estimates.effective(np.array([100.0, 1e-9])) == pytest.approx(1)
