"""Robust Filtered: which answers are filtered and why, what the objective does with them, and the rounds."""

import numpy as np
import pytest

from calibrators import logistic
from calibrators.base import BadLabels, BadObjective, BadWeights, FitData, sigmoid
from calibrators.objectives.robust_filtered import (
    Crossed,
    RobustFiltered,
    accepted_at,
    disagrees,
    filtered,
    fit_cascade,
)

LOSSES = np.random.default_rng(0).gamma(1.0, size=40)
T = np.array([0.5])


def crossed(right, costs, price=0.0, thresholds=T, answers=None):
    right = np.array(right, dtype=float)
    tiers = tuple(FitData(np.zeros((len(right), 1)), column) for column in right.T)
    return Crossed(tiers, np.array(costs, dtype=float), thresholds, answers, price)


def toy(n=3000, seed=0, tiers=3):
    """Shared difficulty; better tiers are right more often; each tier's feature is a noisy look at its own chance."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=n)
    strength = np.array([0.3, 1.2, 2.2])[:tiers]
    z = strength - 1.5 * hard[:, None]
    right = (rng.random((n, tiers)) < sigmoid(z)).astype(float)
    seen = z + rng.normal(size=(n, tiers))
    data = tuple(FitData(seen[:, [k]], right[:, k]) for k in range(tiers))
    costs = np.tile(np.cumsum([1.0, 3.0, 9.0][:tiers]), (n, 1))
    return Crossed(data, costs, np.array([0.7, 0.6, 0.5])[: tiers - 1], price=0.01)


def test_the_first_tier_at_its_threshold_answers_and_the_last_always_does():
    p = np.array([[0.7, 0.2, 0.1], [0.69, 0.6, 0.9], [0.1, 0.1, 0.1]])
    assert accepted_at(p, np.array([0.7, 0.6])).tolist() == [0, 1, 2]


def flags(p, right, price=0.0, costs=((1, 3),), **options):
    told = {"regret": 1e-6, "spread": 9.0, "width": 1e-9, **options}
    return filtered(crossed(right, np.tile(costs, (len(right), 1)), price), np.array(p), **told).tolist()


def test_a_wrong_answer_kept_while_the_next_tier_was_right_is_a_false_accept():
    assert flags([[0.9, 0.9]], [[0, 1]]) == [[True, False, False, False]]


def test_asking_a_second_tier_although_the_first_was_right_is_needless_when_calls_cost():
    assert flags([[0.1, 0.9]], [[1, 1]], price=0.1) == [[False, True, False, False]]
    assert flags([[0.1, 0.9]], [[1, 1]], price=0.0) == [[False, False, False, False]]
    assert flags([[0.1, 0.9]], [[1, 0]], price=0.0) == [[False, True, False, False]]


def test_a_regret_inside_the_tolerance_is_none():
    assert flags([[0.1, 0.9]], [[1, 1]], price=0.1, regret=0.3) == [[False] * 4]


def test_a_p_near_its_threshold_is_flagged_by_logits_not_by_p():
    near = flags([[0.6, 0.9], [0.65, 0.9]], [[1, 1], [1, 1]], width=0.5)
    assert [row[3] for row in near] == [True, False]


def test_different_final_answers_disagree():
    told = crossed([[1, 1], [1, 1]], [[1, 3]] * 2, answers=np.array([[7, 7], [7, 8]]))
    members = filtered(told, np.full((2, 2), 0.9), regret=1e-6, spread=9.0, width=1e-9)
    assert members[:, 2].tolist() == [False, True]


@pytest.mark.parametrize(("kwargs", "message"), [({"gamma": -1.0}, "gamma"), ({"eta": -1.0}, "eta")])
def test_a_negative_strength_is_refused(kwargs, message):
    with pytest.raises(BadObjective, match=message):
        RobustFiltered(np.ones((3, 1), dtype=bool), **kwargs)


def test_the_rounds_end_and_report_what_they_did():
    fitted = fit_cascade(toy())
    assert 1 <= fitted.rounds <= 3
    assert not fitted.erm
    assert fitted.filtered >= 50
    assert set(fitted.slices) == {"false accept", "needless escalation", "disagreement", "near a threshold"}
    assert [c.kind for c in fitted.calibrators] == ["tempered"] * 3


def test_a_filter_of_fewer_than_fifty_answers_is_erm_and_says_so():
    cascade = toy(n=400, tiers=1)
    fitted = fit_cascade(cascade)
    assert fitted.erm
    assert (fitted.rounds, fitted.filtered) == (0, 0)
    plain = logistic.fit(cascade.tiers[0])
    assert fitted.calibrators[0].inner.linear.slopes == pytest.approx(plain.linear.slopes)


def test_the_filter_moves_the_fit_and_gamma_says_how_far():
    cascade = toy()
    slopes = [
        fit_cascade(cascade, gamma=gamma, rounds=1).calibrators[0].inner.margin(np.array([[0.0]]))[0]
        for gamma in (0.0, 0.25, 1.0)
    ]
    assert abs(slopes[2] - slopes[0]) > abs(slopes[1] - slopes[0]) > 0


def test_tables_that_do_not_fit_together_are_refused():
    one, other = FitData(np.zeros((3, 1)), [0, 1, 1]), FitData(np.zeros((2, 1)), [0, 1])
    with pytest.raises(BadLabels, match="different numbers"):
        Crossed((one, other), np.ones((3, 2)), T)
    with pytest.raises(BadLabels, match="costs"):
        Crossed((one, one), np.ones((3, 1)), T)
    with pytest.raises(BadLabels, match="thresholds"):
        Crossed((one, one), np.ones((3, 2)), np.array([1.0]))
    with pytest.raises(BadWeights):
        Crossed((one, FitData(one.X, one.y, weights=np.ones(3))), np.ones((3, 2)), T)


# Science 3.9, defects 5 to 8 of the seed texts


def test_defect_5_the_filter_compares_utilities_with_utilities_not_losses_with_predictions():
    """Raising every p without moving a decision changes no regret: predictions are no part of it."""
    right = [[0, 1], [1, 0], [1, 1]]
    low, high = (flags([[a, 0.2]] * 3, right, price=0.01) for a in (0.6, 0.99))
    assert [row[:2] for row in low] == [row[:2] for row in high]


def test_defect_6_the_spread_is_weighted_absolute_and_defined_for_one_tier():
    options = {"spread": 0.01, "width": 0.5}
    with np.errstate(all="raise"):
        assert disagrees(np.array([[0.9]]), np.empty(0), **options).tolist() == [False]  # NaN when unbiased
    assert not disagrees(np.full((50, 3), 0.8), np.array([0.5, 0.5]), **options).any()
    apart = np.array([[0.9, 0.1], [0.8, 0.75], [0.5, 0.5], [0.9, 0.85]])
    assert disagrees(apart, T, **options).tolist() == [True, False, False, False]  # a median flags half of any batch


def test_defect_7_how_likely_a_tier_is_to_answer_changes_what_its_disagreement_weighs():
    p = np.array([[0.3, 0.6]])
    assert disagrees(p, np.array([0.1]), spread=0.018, width=0.05).tolist() == [True]
    assert disagrees(p, np.array([0.9]), spread=0.018, width=0.05).tolist() == [False]  # tier 1 will not answer


def test_defect_8_an_empty_filter_is_erm_without_a_jump_and_the_terms_are_weighted():
    nobody, one = np.zeros((40, 4), dtype=bool), np.zeros((40, 4), dtype=bool)
    one[3, 0] = True
    value, weights = RobustFiltered(nobody)(LOSSES)
    assert value == pytest.approx(LOSSES.mean())
    assert weights == pytest.approx(np.full(40, 1 / 40))
    for gamma in (0.25, 0.5, 1.0):
        value, weights = RobustFiltered(one, gamma)(LOSSES)
        assert value == pytest.approx((LOSSES.mean() + gamma * LOSSES[3]) / (1 + gamma))
        assert weights.sum() == pytest.approx(1.0)
    assert RobustFiltered(one, 1e-9)(LOSSES)[0] == pytest.approx(LOSSES.mean(), abs=1e-6)
    assert not flags([[0.9, 0.9]], [[1, 1]])[0][0]  # equal utilities are no regret
