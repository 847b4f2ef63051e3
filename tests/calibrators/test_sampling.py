"""Means over all decisions from the few that are labelled: unbiased by simulation, exact where they must be."""

from __future__ import annotations

import numpy as np
import pytest

from calibrators import sampling, scores
from calibrators.sampling import BadSample, doubly_robust, hajek, horvitz_thompson

N, DRAWS = 400, 3000
rng = np.random.default_rng(11)
P = rng.beta(4, 1, N)
Y = (rng.random(N) < P).astype(float)
E = np.clip(0.6 - 0.5 * P, 0.05, 1.0)  # what is surer is labelled less often: the plain mean is far off
TRUTH = Y.mean()


def drawn() -> list[np.ndarray]:
    return [rng.random(N) < E for _ in range(DRAWS)]


def test_weights_take_out_the_bias_of_who_is_labelled() -> None:
    samples = drawn()
    plain = np.mean([Y[one].mean() for one in samples])
    assert abs(plain - TRUTH) > 0.05, "else there would be nothing to correct"
    for name, values in {
        "ht": [horvitz_thompson(Y, one, E) for one in samples],
        "hajek": [hajek(Y, one, E) for one in samples],
        "dr": [doubly_robust(Y, one, E, P) for one in samples],
        "dr, wrong p": [doubly_robust(Y, one, E, np.full(N, 0.2)) for one in samples],
    }.items():
        told = np.array([value.value for value in values])
        error = told.std() / np.sqrt(DRAWS)
        assert abs(told.mean() - TRUTH) < 4 * error + 0.002, name


def test_their_standard_errors_are_those_of_repeated_draws() -> None:
    samples = drawn()
    for estimator in (horvitz_thompson, hajek):
        told = [estimator(Y, one, E) for one in samples]
        spread = np.std([one.value for one in told])
        assert np.sqrt(np.mean([one.standard_error**2 for one in told])) == pytest.approx(spread, rel=0.1)


def test_a_good_expectation_makes_the_error_smaller() -> None:
    samples = drawn()
    spreads = [np.std([f(one) for one in samples]) for f in (
        lambda one: horvitz_thompson(Y, one, E).value,
        lambda one: hajek(Y, one, E).value,
        lambda one: doubly_robust(Y, one, E, P).value,
    )]  # fmt: skip
    assert spreads[2] < spreads[1] < spreads[0]


def test_a_constant_outcome_and_a_full_count_are_exact() -> None:
    labelled = rng.random(N) < E
    assert hajek(np.ones(N), labelled, E).value == pytest.approx(1.0)
    assert hajek(np.ones(N), labelled, E).standard_error == pytest.approx(0.0)
    everything = horvitz_thompson(Y, np.ones(N, bool), np.ones(N))
    assert (everything.value, everything.standard_error) == (pytest.approx(TRUTH), 0.0)
    assert everything.effective == pytest.approx(N)


def test_what_is_not_labelled_is_never_read() -> None:
    labelled = rng.random(N) < E
    hidden = np.where(labelled, Y, np.nan)
    assert hajek(hidden, labelled, E) == hajek(Y, labelled, E)
    assert doubly_robust(hidden, labelled, E, P) == doubly_robust(Y, labelled, E, P)


@pytest.mark.parametrize(
    ("labelled", "inclusion", "words"),
    [
        (np.zeros(3, bool), np.ones(3), "nothing is labelled"),
        (np.ones(3, bool), np.array([0.0, 1, 1]), "inclusion"),
        (np.ones(3, bool), np.array([1.5, 1, 1]), "inclusion"),
        (np.ones(3, bool), np.array([np.nan, 1, 1]), "inclusion"),
        (np.ones(2, bool), np.ones(3), "shape"),
    ],
)
def test_what_nothing_can_be_told_from_is_refused(labelled: np.ndarray, inclusion: np.ndarray, words: str) -> None:
    with pytest.raises(BadSample, match=words):
        hajek(np.ones(3), labelled, inclusion)


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (3, 10), (940, 1000)])
def test_the_interval_without_scipy_is_the_one_with_it(hits: int, n: int) -> None:
    exact = scores.wilson("share", hits, n)
    assert sampling.wilson(hits / n, n) == pytest.approx((exact.low, exact.high), abs=1e-12)
