"""Scores against hand values, other people's implementations, and the mistakes they must not make."""

import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from calibrators import scores
from calibrators.scores import BadScores, Insufficient, Score

Floats = scores.Floats


def chance() -> np.random.Generator:
    return np.random.default_rng(20260301)


def honest(n: int, rng: np.random.Generator, a: float = 8, b: float = 2) -> tuple[Floats, Floats]:
    """A perfectly calibrated forecaster with mean p of a / (a + b)."""
    p = rng.beta(a, b, n)
    return p, (rng.random(n) < p).astype(float)


forecasts = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5, 0.9, 1.0]) | st.floats(0, 1), st.sampled_from([0.0, 1.0])),
    min_size=2,
    max_size=60,
).map(lambda rows: (np.array([row[0] for row in rows]), np.array([row[1] for row in rows])))


# Bins and ECE


def test_ece_by_hand() -> None:
    p = np.array([0.1, 0.1, 0.9, 0.9])
    y = np.array([0.0, 1.0, 1.0, 1.0])
    assert scores.ece_equal_width(p, y, 10) == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)
    assert scores.ece_equal_mass(p, y, 2) == pytest.approx(0.25)


@settings(deadline=None, max_examples=100)
@given(forecasts, st.integers(1, 20))
def test_every_answer_is_in_exactly_one_bin(rows: tuple[Floats, Floats], bins: int) -> None:
    for cut in (scores.equal_width, scores.equal_mass):
        cells = cut(*rows, bins)
        assert cells.n.sum() == rows[0].size
        assert cells.n.min() >= 1
        assert cells.n @ cells.p_mean == pytest.approx(rows[0].sum())
        assert cells.n @ cells.rate == pytest.approx(rows[1].sum())
        assert len(cells.n) <= bins


def test_a_p_of_one_and_of_zero_are_counted() -> None:
    """Seed texts, defect 9: half-open bins drop p = 1 and report 0 here."""
    ones, zeros = np.ones(10), np.zeros(10)
    assert scores.ece_equal_width(ones, zeros) == 1.0
    assert scores.ece_equal_width(zeros, ones) == 1.0
    assert scores.ece_equal_mass(ones, zeros) == 1.0


def test_a_p_of_one_shares_the_last_bin() -> None:
    """Defect 27: relplot gives p = 1 a bin of its own, one more than was asked for."""
    cells = scores.equal_width(np.array([0.98, 1.0]), np.array([0.0, 1.0]), 10)
    assert cells.n.tolist() == [2]
    assert cells.p_mean == pytest.approx([0.99])


def test_a_constant_at_the_base_rate_has_no_calibration_error_and_no_ranking() -> None:
    y = np.array([1.0] * 70 + [0.0] * 30)
    p = np.full(100, 0.7)
    for score in (scores.ece_equal_width, scores.ece_equal_mass, scores.ks_ce, scores.debiased_l2, scores.smece):
        assert score(p, y) == pytest.approx(0, abs=1e-5)
    assert scores.auroc(p, y) == 0.5


def test_equal_p_stay_together_whatever_their_order() -> None:
    p = np.array([0.2] * 5 + [0.6] * 50 + [0.9] * 5)
    y = np.tile([1.0, 0.0, 1.0], 20)
    cells = scores.equal_mass(p, y, 15)
    assert cells.n.tolist() == [5, 50, 5]
    order = chance().permutation(60)
    for score in (scores.ece_equal_mass, scores.ks_ce, scores.aurc, scores.augrc, scores.debiased_ece):
        assert score(p[order], y[order]) == pytest.approx(float(score(p, y)), abs=1e-12)


def test_equal_mass_bins_of_different_p_differ_by_at_most_one() -> None:
    rng = chance()
    n = scores.equal_mass(rng.random(1319), np.zeros(1319)).n
    assert len(n) == 15
    assert n.max() - n.min() <= 1


def test_equal_mass_bins_stay_full_where_equal_width_bins_are_empty() -> None:
    """Seed texts, defect 11: at 95 % accuracy most equal-width bins hold almost nothing."""
    p, y = honest(1319, chance(), 57, 3)
    assert len(scores.equal_width(p, y).n) <= 4
    assert scores.equal_width(p, y).n.max() > 900
    assert scores.equal_mass(p, y).n.min() > 80


def test_a_reliability_diagram_has_counts_and_intervals() -> None:
    """Seed texts, defects 10 and 11."""
    cells = scores.equal_mass(*honest(600, chance()))
    low, high = scores.clopper_pearson(cells.rate * cells.n, cells.n)
    assert cells.n.sum() == 600
    assert ((low <= cells.rate) & (cells.rate <= high)).all()


def test_mce_looks_at_full_bins_only() -> None:
    p = np.array([0.9] * 60 + [0.1] * 3)
    y = np.array([1.0] * 54 + [0.0] * 6 + [1.0] * 3)
    outcome = scores.mce(p, y)
    assert isinstance(outcome, Score)
    assert outcome.value == pytest.approx(0, abs=1e-12)
    assert isinstance(scores.mce(p[:20], y[:20]), Insufficient)


def test_a_small_ece_does_not_bound_the_local_gap() -> None:
    """Seed texts, defect 17: "ECE < 0.02" is not "confidence within 2 % of accuracy"."""
    p = np.concatenate([np.full(50, 0.9), np.linspace(0.1, 0.2, 950)])
    y = np.concatenate([np.repeat([1.0, 0.0], [30, 20]), np.zeros(950)])
    p[50:], y[50:] = 0.0, 0.0
    assert scores.ece_equal_width(p, y) < 0.02
    worst = scores.mce(p, y)
    assert isinstance(worst, Score)
    assert worst.value == pytest.approx(0.3)


def test_debiased_l2_by_hand() -> None:
    p = np.repeat([0.25, 0.75], 4)
    y = np.array([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0])
    expected = 0.5 * (0.0 - 0.25 * 0.75 / 3) + 0.5 * (0.25**2 - 0.25 / 3)
    assert scores.debiased_l2_squared(p, y, 2) == pytest.approx(expected)
    assert scores.debiased_l2(p, y, 2) == 0.0


def test_a_bin_of_one_adds_nothing_to_the_debiased_error() -> None:
    assert scores.debiased_l2_squared(np.array([0.1, 0.9]), np.array([1.0, 0.0]), 2) == 0.0


def test_debiasing_takes_away_what_noise_adds() -> None:
    rng = chance()
    p = rng.beta(8, 2, 1000)
    labels = (rng.random((400, 1000)) < p).astype(float)
    cells = scores.equal_mass(p, labels)
    assert abs(scores.debiased_l2_squared(p, labels).mean()) < 0.05 * (cells.gap**2 @ cells.share).mean()
    assert scores.debiased_ece(p, labels).mean() < 0.6 * scores.ece_equal_mass(p, labels).mean()


def test_the_closed_form_of_debiased_ece_is_the_mean_of_its_redraws() -> None:
    rng = chance()
    p, y = honest(500, rng)
    cells = scores.equal_mass(p, y)
    redrawn = rng.normal(cells.rate, np.sqrt(cells.rate * (1 - cells.rate) / cells.n), (20_000, len(cells.n)))
    noisy = (np.abs(cells.p_mean - redrawn) @ cells.share).mean()
    assert scores.debiased_ece(p, y) == pytest.approx(2 * scores.ece_equal_mass(p, y) - noisy, abs=5e-4)


def test_ks_by_hand() -> None:
    p, y = np.array([0.2, 0.4, 0.6]), np.array([1.0, 0.0, 1.0])
    assert scores.ks_ce(p, y) == pytest.approx(max(0.8, 0.4, 0.8) / 3)


def test_smece_is_the_constant_gap_of_a_constant_and_close_to_ece_for_a_large_smooth_one() -> None:
    assert scores.smece(np.full(100, 0.9), np.repeat([1.0, 0.0], 50)) == pytest.approx(0.4, abs=1e-5)
    rng = chance()
    true_p = rng.uniform(0.1, 0.6, 200_000)
    y = (rng.random(200_000) < true_p).astype(float)
    assert scores.smece(true_p + 0.2, y) == pytest.approx(0.2, abs=0.005)
    assert scores.smece(true_p, y) < 0.01


def test_smece_is_the_fixed_point_of_a_reflected_gaussian_smoothing() -> None:
    """The definition, summed directly over images of the kernel, at the width that the function found."""
    p, y = honest(300, chance(), 3, 2)
    p = np.clip(p**2, 0, 1)
    width = scores.smece(p, y)
    t = (np.arange(2000) + 0.5) / 2000
    images = np.concatenate([p + 2 * k for k in range(-2, 3)] + [2 * k - p for k in range(-2, 3)])
    kernel = np.exp(-((t[:, None] - images) ** 2) / (2 * width**2)) / np.sqrt(2 * np.pi) / width
    smooth = kernel @ np.tile(y - p, 10) / p.size
    assert np.abs(smooth).mean() == pytest.approx(width, abs=1e-3)


# The noise floor


@pytest.mark.parametrize(
    ("shape", "n", "expected"),
    [
        # science card, section 4.2: EW-10, EW-15, EW-15's 95th percentile, EM-15, KS-CE
        ((1.5, 3.5), 500, (0.041, 0.050, 0.070, 0.054, 0.022)),
        ((1.5, 3.5), 1319, (0.025, 0.031, 0.043, 0.034, 0.014)),
        ((4, 1), 500, (0.035, 0.042, 0.059, 0.048, 0.020)),
        ((4, 1), 1319, (0.021, 0.026, 0.036, 0.029, 0.012)),
        ((4, 1), 5000, (0.011, 0.014, 0.020, 0.015, 0.007)),
        ((14.1, 0.9), 1319, (0.009, 0.012, 0.019, 0.018, 0.008)),
    ],
)
def test_the_noise_floor_of_a_perfect_forecaster(
    shape: tuple[float, float], n: int, expected: tuple[float, float, float, float, float]
) -> None:
    """The card gives the mean of p but not its spread; one Beta for each mean reproduces every row of the table."""
    rng = chance()
    p, y = honest(n, rng, *shape)
    table = {
        "ew10": partial(scores.ece_equal_width, bins=10),
        "ew15": scores.ece_equal_width,
        "em15": scores.ece_equal_mass,
        "ks": scores.ks_ce,
    }
    floor = scores.noise_floor(p, y, rng, table, draws=400)
    came = (floor["ew10"].mean, floor["ew15"].mean, floor["ew15"].p95, floor["em15"].mean, floor["ks"].mean)
    assert came == pytest.approx(expected, rel=0.08, abs=0.0015)


def test_a_weekly_slo_of_two_percent_fails_a_perfect_model() -> None:
    """Seed texts, defect 16: at n = 1,319 the floor itself lies above 0.02."""
    rng = chance()
    floor = scores.noise_floor(*honest(1319, rng), rng, {"ece": scores.ece_equal_mass}, draws=200)["ece"]
    assert floor.mean > 0.02


def test_the_p_value_is_uniform_for_a_perfect_model_and_small_for_an_overconfident_one() -> None:
    rng = chance()
    seen = []
    for _ in range(100):
        p, y = honest(300, rng)
        seen.append(scores.noise_floor(p, y, rng, {"ks": scores.ks_ce}, draws=99)["ks"].p_value)
    assert 0.4 < np.mean(seen) < 0.6
    p, y = honest(1000, rng)
    assert scores.noise_floor(expit(2 * logit(p)), y, rng, {"ks": scores.ks_ce}, draws=99)["ks"].p_value == 0.01


def test_the_same_seed_gives_the_same_floor() -> None:
    p, y = honest(200, chance())
    assert scores.noise_floor(p, y, chance(), draws=50) == scores.noise_floor(p, y, chance(), draws=50)


# Proper scores, against scikit-learn


def test_scores_agree_with_scikit_learn_also_with_ties() -> None:
    rng = chance()
    p, y = honest(2000, rng)
    for q in (p, np.round(p, 1)):
        q = np.clip(q, 0.001, 0.999)
        assert scores.brier(q, y) == pytest.approx(brier_score_loss(y, q))
        assert scores.nll(q, y) == pytest.approx(log_loss(y, q))
        assert scores.auroc(q, y) == pytest.approx(roc_auc_score(y, q))
        assert scores.auprc(q, y, positive="right") == pytest.approx(average_precision_score(y, q))
        assert scores.auprc(q, y, positive="wrong") == pytest.approx(average_precision_score(1 - y, 1 - q))


def test_a_certain_and_wrong_answer_costs_a_finite_and_counted_amount() -> None:
    p, y = np.array([1.0, 0.0, 0.5]), np.array([0.0, 0.0, 1.0])
    assert scores.nll(p, y) == pytest.approx((-np.log(1e-6) - np.log(1 - 1e-6) + np.log(2)) / 3)
    assert scores.clip_count(p) == 2


def test_many_label_vectors_at_once_score_like_one_by_one() -> None:
    rng = chance()
    p = np.round(rng.beta(8, 2, 300), 2)
    labels = (rng.random((7, 300)) < p).astype(float)
    several = (*scores.FLOORED.values(), scores.smece, scores.brier, scores.nll, scores.auroc)
    for score in several:
        assert score(p, labels) == pytest.approx([float(score(p, row)) for row in labels])


# Decompositions


@settings(deadline=None, max_examples=100)
@given(forecasts)
def test_the_parts_of_brier_add_up(rows: tuple[Floats, Floats]) -> None:
    parts = scores.brier_parts(*rows)
    whole = parts.reliability - parts.resolution + parts.uncertainty + parts.within
    assert whole == pytest.approx(float(scores.brier(*rows)))
    for kind in ("brier", "nll"):
        corp = scores.corp(*rows, kind)
        assert corp.score == pytest.approx(corp.miscalibration - corp.discrimination + corp.uncertainty)
        assert corp.discrimination >= -1e-9
        assert corp.miscalibration >= -1e-5  # the clip of the log loss may flatter p = 0 or 1 by 1e-6


def test_within_vanishes_when_p_is_constant_in_bins() -> None:
    y = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    assert scores.brier_parts(np.repeat([0.2, 0.8], 3), y, 2).within == pytest.approx(0, abs=1e-15)


def test_corp_by_hand() -> None:
    corp = scores.corp(np.array([0.1, 0.4, 0.6, 0.9]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert corp.uncertainty == 0.25
    assert corp.score - corp.miscalibration == pytest.approx((0 + 0.25 + 0.25 + 0) / 4)  # q = 0, 1/2, 1/2, 1


def test_a_changed_base_rate_moves_brier_but_not_its_miscalibration() -> None:
    """Seed texts, defect 18: "Brier worse by 10 %" is no evidence of miscalibration."""
    rng = chance()
    easy, hard = scores.corp(*honest(20_000, rng, 57, 3)), scores.corp(*honest(20_000, rng, 6, 4))
    assert hard.score > 2 * easy.score
    assert hard.miscalibration < 0.002
    assert easy.miscalibration < 0.002


# Ranking


def test_aurc_by_hand_and_ties_averaged() -> None:
    y = np.array([1.0, 0.0, 1.0])
    assert scores.aurc(np.array([0.9, 0.8, 0.7]), y) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    assert scores.aurc(np.full(3, 0.5), y) == pytest.approx(1 / 3)
    assert scores.augrc(np.array([0.9, 0.8, 0.7]), y) == pytest.approx((0 + 1 + 1) / 9)


def test_ties_are_the_mean_over_their_orders() -> None:
    p, y = np.array([0.9, 0.5, 0.5, 0.5]), np.array([1.0, 0.0, 0.0, 1.0])
    seen = []
    for place in range(3):  # where the one right answer among the tied comes
        tied = np.zeros(3)
        tied[place] = 1.0
        seen.append(scores.aurc(np.array([0.9, 0.53, 0.52, 0.51]), np.append(1.0, tied)))
    assert scores.aurc(p, y) == pytest.approx(np.mean(seen))


@pytest.mark.parametrize("r", [0.05, 0.2, 0.6])
def test_the_best_aurc_follows_its_formula(r: float) -> None:
    n = 20_000
    y = np.append(np.zeros(int(r * n)), np.ones(n - int(r * n)))
    assert scores.best_aurc(y) == pytest.approx(r + (1 - r) * np.log(1 - r), abs=1e-4)


def test_a_perfect_ranking_has_no_excess() -> None:
    y = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    assert scores.excess_aurc(np.array([0.1, 0.2, 0.6, 0.7, 0.8]), y) == pytest.approx(0, abs=1e-15)


def test_risk_coverage_is_what_an_operator_would_count() -> None:
    p = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.3, 0.2, 0.1, 0.0])
    y = np.array([1.0, 1, 1, 0, 1, 0, 0, 1, 0, 0])
    rows = {row.coverage: row for row in scores.risk_coverage(p, y, (0.4, 0.5, 1.0))}
    assert (rows[0.4].error.value, rows[0.4].error.n, rows[0.4].threshold, rows[0.4].tied) == (0.25, 4, 0.6, False)
    assert rows[0.5].tied
    assert rows[0.5].error.value == pytest.approx(1.5 / 5)
    assert rows[1.0].error.value == 0.5


@pytest.mark.parametrize("y", [np.zeros(5), np.ones(5)])
def test_ranking_one_kind_only_is_refused_not_scored(y: Floats) -> None:
    for score in (scores.auroc, partial(scores.auprc, positive="wrong"), scores.auroc_delong):
        with pytest.raises(BadScores, match="right and wrong"):
            score(np.linspace(0.1, 0.9, 5), y)


# Intervals


def test_shares_have_the_intervals_of_the_textbooks() -> None:
    """8 of 10: Wilson .4902-.9433, Clopper-Pearson .4439-.9748 (R: binom.confint, also Brown, Cai, DasGupta 2001)."""
    wilson, exact = scores.wilson("a", 8, 10), scores.proportion("a", 8, 10)
    assert (wilson.low, wilson.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert (exact.low, exact.high) == (pytest.approx(0.4439, abs=1e-4), pytest.approx(0.9748, abs=1e-4))


def test_no_hits_and_all_hits_have_one_open_end() -> None:
    for make in (scores.wilson, scores.proportion):
        none, every = make("a", 0, 20), make("a", 20, 20)
        assert none.low == 0.0
        assert every.high == 1.0
        assert none.high == pytest.approx(1 - every.low)  # type: ignore[operator]
    assert scores.proportion("a", 0, 20).high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_delong_error_agrees_with_its_definition() -> None:
    p, y = honest(300, chance())
    p = np.round(p, 1)
    right, wrong = p[y == 1], p[y == 0]
    wins = (right[:, None] > wrong) + 0.5 * (right[:, None] == wrong)
    variance = wins.mean(axis=1).var(ddof=1) / len(right) + wins.mean(axis=0).var(ddof=1) / len(wrong)
    assert scores._delong_covariance(p[None, :], y)[0, 0] == pytest.approx(variance)
    assert scores.auroc_delong(p, y).value == pytest.approx(wins.mean())


def test_delong_intervals_cover() -> None:
    rng = chance()
    p, y = honest(200_000, rng)
    truth = float(scores.auroc(p, y))
    hits = 0
    for _ in range(200):
        interval = scores.auroc_delong(*honest(300, rng))
        hits += interval.low <= truth <= interval.high  # type: ignore[operator]
    assert hits >= 180


def test_a_perfect_separation_is_not_certainty() -> None:
    score = scores.auroc_delong(np.linspace(0, 1, 20), np.repeat([0.0, 1.0], [5, 15]))
    assert (score.value, score.high) == (1.0, 1.0)
    assert score.low == pytest.approx(0.025 ** (1 / 5))


def test_the_paired_test_sees_what_two_intervals_hide() -> None:
    rng = chance()
    p, y = honest(3000, rng)
    noisy = expit(logit(p) + rng.normal(0, 0.5, 3000))
    found = scores.auroc_difference(p, noisy, y)
    assert found.p_value is not None
    assert found.p_value < 0.01
    assert found.score.low > 0  # type: ignore[operator]
    same = scores.auroc_difference(p, p**2, y)
    assert (same.score.value, same.p_value) == (0.0, 1.0)


def test_the_paired_test_keeps_its_level() -> None:
    rng = chance()
    alarms = 0
    for _ in range(200):
        z = rng.normal(size=200)
        y = (rng.random(200) < expit(z)).astype(float)
        a, b = expit(z + rng.normal(size=200)), expit(z + rng.normal(size=200))
        alarms += scores.auroc_difference(a, b, y).p_value < 0.05  # type: ignore[operator]
    assert alarms <= 22


def test_recalibration_finds_the_shift_and_the_slope() -> None:
    p, y = honest(20_000, chance())
    true = scores.recalibration(p, y)
    for outcome, truth in ((true.intercept, 0), (true.slope, 1)):
        assert isinstance(outcome, Score)
        assert outcome.low < truth < outcome.high  # type: ignore[operator]
    bent = scores.recalibration(expit(2 * logit(p) + 1), y)
    assert isinstance(bent.slope, Score)
    assert isinstance(bent.intercept, Score)
    assert bent.slope.value == pytest.approx(true.slope.value / 2)  # type: ignore[union-attr]
    assert bent.intercept.value < -0.5


@pytest.mark.parametrize("claimed", [0.5, 0.7, 0.9, 0.97, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("right", [0.3, 0.5, 0.7])
def test_the_shift_is_found_however_far_off_the_claim_is(claimed: float, right: float) -> None:
    y = (np.arange(200) < 200 * right).astype(float)
    found = scores.recalibration(np.full(200, claimed), y).intercept
    assert isinstance(found, scores.Score)
    assert found.value == pytest.approx(logit(right) - logit(min(claimed, 1 - scores.P_CLIP)), abs=1e-6)


def test_recalibration_refuses_in_words_what_has_no_slope() -> None:
    y = np.repeat([0.0, 1.0], 50)
    assert str(scores.recalibration(np.full(100, 0.5), y).slope) == "insufficient: every p is the same"
    assert "separates" in str(scores.recalibration(np.linspace(0.01, 0.99, 100), y).slope)


def test_twelve_wrong_answers_are_insufficient_and_said_to_be() -> None:
    few = scores.too_few("auroc", np.repeat([0.0, 1.0], [12, 500]))
    assert str(few) == "insufficient: 12 wrong answers"
    assert str(scores.too_few("auroc", np.repeat([1.0, 0.0], [1, 500]))) == "insufficient: 1 right answer"
    assert str(scores.too_few("auroc", np.array([]))) == "insufficient: no answers"
    assert scores.too_few("auroc", np.repeat([0.0, 1.0], [30, 500])) is None


# Bootstrap


@pytest.mark.parametrize("score", [scores.ece_equal_width, scores.ece_equal_mass, scores.smece, scores.mce])
def test_a_plain_bootstrap_of_binned_error_is_refused(score: scores.ScoreFunction) -> None:
    """Seed texts, defect 10, and the pitfall of section 4.4: resampling adds noise and ECE counts it."""
    p, y = honest(50, chance())
    with pytest.raises(BadScores, match="biased upward"):
        scores.bootstrap(score, p, y, chance())
    with pytest.raises(BadScores, match="biased upward"):
        scores.bootstrap_difference(partial(score, bins=10), (p, y), (p, y), chance())


def test_the_bootstrap_of_a_mean_is_its_standard_error() -> None:
    p, y = honest(1000, chance())
    found = scores.bootstrap(scores.brier, p, y, chance(), resamples=1000)
    half = 1.96 * ((p - y) ** 2).std() / np.sqrt(1000)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)  # type: ignore[operator]
    assert found.low < found.value < found.high  # type: ignore[operator]


def test_copies_of_a_question_do_not_make_the_interval_narrower() -> None:
    p, y = honest(300, chance())
    question = np.repeat(np.arange(300), 4)
    p_copied, y_copied = p.repeat(4), y.repeat(4)
    alone = scores.bootstrap(scores.brier, p, y, chance())
    copied = scores.bootstrap(scores.brier, p_copied, y_copied, chance(), question=question)
    naive = scores.bootstrap(scores.brier, p_copied, y_copied, chance())
    width = [s.high - s.low for s in (alone, copied, naive)]  # type: ignore[operator]
    assert width[1] == pytest.approx(width[0], rel=0.1)
    assert width[2] < 0.6 * width[0]


def test_resampling_keeps_whole_questions() -> None:
    question = np.array(["b", "a", "b", "c", "a", "b"])
    for rows in scores._resampled(6, np.tile([0.0, 1.0], 3), chance(), question, 50):
        picked = question[rows]
        for name, size in (("a", 2), ("b", 3), ("c", 1)):
            assert (picked == name).sum() % size == 0


def test_a_paired_difference_is_sharper_than_two_intervals() -> None:
    rng = chance()
    p, y = honest(800, rng)
    worse = expit(1.4 * logit(p))
    found = scores.bootstrap_difference(scores.nll, (worse, y), (p, y), chance(), resamples=500)
    assert found.low > 0  # type: ignore[operator]
    assert scores.bootstrap(scores.nll, p, y, chance(), resamples=500).high > scores.nll(worse, y)


def test_a_perfect_forecaster_has_zero_inside_its_ks_interval() -> None:
    rng = chance()
    found = [scores.bootstrap(scores.ks_ce, *honest(600, rng), rng, resamples=200) for _ in range(60)]
    assert sum(score.low == 0 for score in found) >= 45  # 88 % of 300 such samples


# What is refused


@pytest.mark.parametrize(
    ("p", "y", "why"),
    [
        ([0.5, np.nan], [0, 1], "1 of 2"),
        ([0.5, 1.2], [0, 1], "0, 1"),
        ([0.5, -0.1], [0, 1], "0, 1"),
        ([0.5, 0.5], [0, 2], "not its class"),
        ([0.5, 0.5], [0, np.nan], "labels"),
        ([0.5], [0, 1], "shape"),
        ([], [], "N >= 1"),
    ],
)
def test_what_is_no_forecast_is_refused(p: list[float], y: list[float], why: str) -> None:
    """Seed texts, defect 10: no check of range, NaN, or that y is correctness."""
    for score in (scores.ece_equal_mass, scores.brier, scores.auroc, scores.aurc, scores.smece, scores.corp):
        with pytest.raises(BadScores, match=why):
            score(np.array(p), np.array(y))


def test_every_score_of_eight_thousand_answers_takes_under_a_second() -> None:
    p, y = honest(8000, chance())
    start = time.process_time()
    for score in (*scores.FLOORED.values(), scores.smece, scores.mce, scores.brier, scores.nll, scores.brier_parts):
        score(p, y)
    for score in (scores.corp, scores.auroc_delong, scores.aurc, scores.excess_aurc, scores.augrc):
        score(p, y)
    scores.risk_coverage(p, y), scores.recalibration(p, y), scores.auprc(p, y, positive="wrong")
    assert time.process_time() - start < 1
