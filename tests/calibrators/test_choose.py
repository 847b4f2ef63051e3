"""Choosing a family, a strength and a final temperature."""

import numpy as np
import pytest

from calibrators import choose, logistic
from calibrators.base import (
    BadFeatures,
    BadObjective,
    FitData,
    Missing,
    OneClass,
    TooFewRare,
    folds,
    log_losses,
    sigmoid,
)
from calibrators.objectives.group_tilt import GroupTilt


def sample(n, features=1, curve=lambda z: z, seed=0, per_question=1):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, features))
    p = sigmoid(curve(1.5 * X.sum(axis=1) / np.sqrt(features)) + 0.5)
    return FitData(X, rng.random(n) < p, groups=np.arange(n) // per_question)


def test_one_feature_and_a_straight_truth_get_platt_and_the_reason_says_on_how_many_answers():
    choice = choose.auto(sample(600))
    assert choice.family == choice.calibrator.kind == "platt"
    assert "600 answers" in choice.reason
    assert {t.family for t in choice.tried if t.nll is not None} == {"platt", "beta", "quadratic"}
    assert next(t for t in choice.tried if t.family == "isotonic").why_not == "600 answers, needs 1000"


def test_one_feature_whose_low_values_are_sure_is_turned_around_when_told():
    data = sample(600)
    turned = FitData(-data.X, data.y)
    here, there = choose.auto(data), choose.auto(turned, direction=-1)
    assert there.family == "platt"
    assert there.calibrator.predict(turned.X) == pytest.approx(here.calibrator.predict(data.X), abs=1e-6)


def test_a_bent_truth_with_many_answers_gets_a_family_that_can_bend():
    data = sample(3000, curve=lambda z: z**2 - 1)
    choice = choose.auto(data)
    assert choice.family == "quadratic"
    row = next(t for t in choice.tried if t.family == "platt")
    assert row.worse > row.se


def models(n, slopes, count=4, seed=0):
    """Models that share a truth up to its scale, asked the same questions; each answers with features of its own."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        X = rng.normal(size=(n, len(slopes)))
        found.append(FitData(X, rng.random(n) < sigmoid(X @ slopes), groups=np.arange(n)))
    return found


def test_a_model_with_few_answers_shares_its_slopes_where_that_is_better_on_held_out_folds():
    few, *others = models(150, np.linspace(-1.2, 1.2, 16), count=7)
    choice = choose.auto(few, others=others)
    assert choice.family == choice.calibrator.kind == "logistic"
    assert choice.reason.startswith("pooled logistic: lowest held-out log-loss")
    assert choice.options["others"] == others
    unlike = [FitData(-other.X, other.y, groups=other.groups) for other in others]
    assert not choose.auto(few, others=unlike).reason.startswith("pooled")
    many, *others = models(3000, np.ones(3))
    told = next(one for one in choose.auto(many, others=others).tried if one.family == "pooled logistic")
    assert "pay for slopes of its own" in told.why_not


def test_other_models_answers_to_held_out_questions_are_held_out_too():
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(150, 40)), (rng.random(150) < 0.5).astype(float)
    data, strangers = FitData(X, y, groups=np.arange(150)), FitData(X, y, groups=np.arange(150) + 1000)
    gaps = []
    for other in (strangers, data):
        margins = choose.held_out_margins(data, folds(data), "logistic", others=[other] * 3)
        gaps.append(margins[y == 1].mean() - margins[y == 0].mean())
    assert gaps[0] > 1
    assert gaps[1] < gaps[0] - 0.5


def test_several_features_get_logistic_and_a_thin_rare_class_a_stronger_ridge():
    assert choose.auto(sample(900, 3)).family == "logistic"
    rng = np.random.default_rng(0)
    X = rng.normal(size=(900, 10))
    y = np.ones(900)
    y[np.argsort(X[:, 0] + rng.normal(size=900))[:40]] = 0
    choice = choose.auto(FitData(X, y))
    assert choice.family == "logistic"
    weak = logistic.fit(FitData(X, y), ridge=1.0)
    assert np.linalg.norm(choice.calibrator.linear.slopes) < np.linalg.norm(weak.linear.slopes)


@pytest.mark.parametrize("absent", [0.0, np.nan], ids=["a flag", "mostly undefined"])
@pytest.mark.parametrize("family", ["auto", "logistic", "gbdt", "isotonic", "group_tilt"])
def test_a_column_that_varies_in_one_fold_only_keeps_nobody_from_choosing(family, absent):
    """No fit without that fold can learn anything about it, and all the others can do without."""
    plain = sample(400, 2)
    rare = np.full(400, absent)
    there = np.flatnonzero(folds(plain, 5, 0) == 3)[:12]
    rare[there] = np.linspace(1, 2, 12)
    missing = (Missing.REFUSE, Missing.REFUSE, Missing.INDICATE)
    data = FitData(np.column_stack([plain.X, rare]), plain.y, groups=plain.groups, missing=missing)
    if family == "auto":
        assert np.isfinite(choose.auto(data).calibrator.predict(data.X)).all()
    elif family == "group_tilt":
        grouped = FitData(data.X, data.y, slices=(plain.X[:, 0] > 0).astype(int), groups=plain.groups, missing=missing)
        assert choose.choose_eta(grouped, {"shifted": grouped}).rows
    else:
        margins = choose.held_out_margins(data, folds(data, 5, 0), family)
        without = choose.held_out_margins(plain, folds(plain, 5, 0), family)
        out = folds(plain, 5, 0) == 3
        assert margins[out] == pytest.approx(without[out], abs=1e-9)


def test_signs_stay_with_their_columns_where_a_fold_leaves_one_out():
    plain = sample(400, 2)
    flag = np.zeros(400)
    flag[np.flatnonzero(folds(plain, 5, 0) == 0)[:15]] = 1.0
    data = FitData(np.column_stack([flag, plain.X]), plain.y, groups=plain.groups)
    margins = choose.held_out_margins(data, folds(data, 5, 0), "logistic", signs=[1, -1, 1])
    without = choose.held_out_margins(plain, folds(plain, 5, 0), "logistic", signs=[-1, 1])
    out = folds(plain, 5, 0) == 0
    assert margins[out] == pytest.approx(without[out], abs=1e-9)


def test_the_simplest_within_one_standard_error_wins_over_the_best():
    choice = choose.auto(sample(1500, seed=3))
    tried = [t for t in choice.tried if t.nll is not None]
    first = next(t for t in tried if t.worse <= t.se)
    assert choice.family == first.family
    if min(tried, key=lambda t: t.nll) is not first:
        assert "simplest within one standard error" in choice.reason


def test_fewer_than_thirty_wrong_answers_shift_an_earlier_calibrator_or_are_refused():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(200, 1)), np.ones(200)
    y[:12] = 0
    with pytest.raises(TooFewRare, match="collect 18 more"):
        choose.auto(FitData(z, y))
    choice = choose.auto(FitData(z, y), prior=True)
    assert choice.family == "intercept"
    assert "12 answers" in choice.reason
    with pytest.raises(OneClass):
        choose.auto(FitData(z, np.ones(200)), prior=True)
    with pytest.raises(BadFeatures, match="one column"):
        choose.auto(sample(200, 2), prior=True)


def test_a_prior_that_is_right_but_for_its_sharpness_gets_a_temperature():
    rng = np.random.default_rng(0)
    z = rng.normal(scale=3, size=3000)
    choice = choose.auto(FitData(z[:, None], rng.random(3000) < sigmoid(z / 2)), prior=True)
    assert choice.family == "temperature"
    assert choice.calibrator.t == pytest.approx(2.0, rel=0.15)


def test_a_family_that_counts_is_not_tried_with_an_objective():
    data = sample(1500)
    tilted = choose.auto(FitData(data.X, data.y, slices=np.arange(1500) % 3), objective=GroupTilt(3.0))
    assert next(t for t in tilted.tried if t.family == "isotonic").why_not == "takes no objective but erm"


def test_answers_to_one_question_widen_the_standard_error():
    data = sample(1000)
    losses = np.repeat(log_losses(data.X[::5, 0], data.y[::5]), 5)
    alone = choose.standard_error(losses, FitData(data.X, data.y))
    together = choose.standard_error(losses, FitData(data.X, data.y, groups=np.arange(1000) // 5))
    assert together == pytest.approx(np.sqrt(5) * alone, rel=0.01)
    assert alone == pytest.approx(losses.std(ddof=1) / np.sqrt(1000))


def sliced(n, mix, seed):
    """Three difficulty slices; the hard one has the feature's meaning turned down, as in science 3.3's toy study."""
    rng = np.random.default_rng(seed)
    slices = rng.choice(3, size=n, p=mix)
    z = rng.normal(size=n) + np.array([1.5, 1.0, 0.8])[slices]
    p = sigmoid(np.array([2.0, 1.5, 0.4])[slices] * z + np.array([0.5, 0.0, -0.9])[slices])
    return FitData(z[:, None], rng.random(n) < p, slices=slices)


HOME, SHIFTED = sliced(2000, [0.6, 0.3, 0.1], 0), sliced(4000, [0.1, 0.3, 0.6], 1)
HARD = sliced(4000, [0.0, 0.0, 1.0], 2)


def test_eta_is_chosen_on_the_worst_shifted_split_and_erm_is_always_the_first_row():
    choice = choose.choose_eta(HOME, {"more hard": SHIFTED, "only hard": HARD}, etas=[1, 3, 10, 30])
    erm = choice.rows[0]
    assert [row.eta for row in choice.rows] == [0, 1, 3, 10, 30]
    assert erm.worst == max(erm.shifted.values()) == pytest.approx(erm.shifted["only hard"])
    allowed = [row for row in choice.rows if row.nll <= erm.nll + erm.se and (row.ess >= 0.2 or row.eta == 0)]
    assert all(not row.rejected for row in allowed)
    assert choice.eta == min(allowed, key=lambda row: row.worst).eta > 0
    assert "ERM" in choice.reason
    chosen = next(row for row in choice.rows if row.eta == choice.eta)
    again = float(log_losses(choice.calibrator.margin(HARD.X), HARD.y).mean())
    assert chosen.shifted["only hard"] == pytest.approx(again)


def test_the_example_tilt_after_a_temperature_is_erm_and_the_slice_tilt_is_not():
    """Science 3.3: the temperature undoes the example tilt; the slice tilt keeps its gain."""
    examples = choose.choose_eta(HOME, {"hard": HARD}, objective="tilt", etas=[0.5], family="platt").rows
    slices = choose.choose_eta(HOME, {"hard": HARD}, objective="group_tilt", etas=[10], family="platt").rows
    assert abs(examples[1].nll - examples[0].nll) < 0.002
    assert examples[1].worst > examples[0].worst - 0.005
    assert examples[1].temperature < 0.8
    assert slices[1].worst < slices[0].worst - 0.01


def test_a_tilt_that_rests_on_a_handful_of_answers_is_rejected_and_shown():
    rng = np.random.default_rng(0)
    z = rng.normal(size=3000) + 3
    data = FitData(z[:, None], rng.random(3000) < sigmoid(1.5 * z))
    row = choose.choose_eta(data, {"itself": data}, objective="tilt", etas=[4.0]).rows[1]
    assert row.rejected
    assert 0 < row.ess < 1


def test_no_shifted_split_or_no_grid_is_refused():
    with pytest.raises(BadFeatures, match="shifted split"):
        choose.choose_eta(HOME, {})
    with pytest.raises(BadObjective, match="tilt, group_tilt"):
        choose.choose_eta(HOME, {"hard": HARD}, objective="cvar")


def test_the_final_temperature_is_fitted_on_the_routed_region():
    fit = logistic.fit(HOME)
    routed = HARD.rows(fit.predict(HARD.X) < 0.7)
    final = choose.final_temperature(fit, routed)
    before, after = (log_losses(f.margin(routed.X), routed.y).mean() for f in (fit, final))
    assert after < before
    assert final.inner is fit
