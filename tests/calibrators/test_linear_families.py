"""Logistic and Platt: oracles, recovery of known parameters, signs, pooling."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from calibrators import logistic, objectives, platt
from calibrators._linear import smoothed_targets
from calibrators.base import BadFeatures, FitData, Missing, NotConverged, TooFewRare, sigmoid
from calibrators.objectives.group_tilt import GroupTilt
from calibrators.objectives.tilt import Tilt


def sample(n=4000, slopes=(1.2, -0.7, 0.0), intercept=1.0, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, len(slopes)))
    y = (rng.random(n) < sigmoid(X @ np.array(slopes) + intercept)).astype(float)
    return FitData(X, y, groups=np.arange(n))


DATA = sample()


@pytest.mark.parametrize("ridge", [0.01, 1.0, 100.0])
def test_logistic_agrees_with_scikit_learn(ridge):
    fitted = logistic.fit(DATA, ridge=ridge)
    columns = fitted.linear.preprocess.apply(DATA.X)
    oracle = LogisticRegression(C=1 / ridge, tol=1e-10, max_iter=1000).fit(columns, DATA.y)
    assert fitted.linear.slopes == pytest.approx(oracle.coef_[0], abs=1e-5)
    assert fitted.predict(DATA.X) == pytest.approx(oracle.predict_proba(columns)[:, 1], abs=1e-6)


def test_sample_weights_count_like_repeated_answers():
    times = np.random.default_rng(1).integers(1, 4, size=DATA.n)
    weighted = logistic.fit(FitData(DATA.X, DATA.y, weights=times.astype(float)), ridge=0.0)
    columns = weighted.linear.preprocess.apply(DATA.X)
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(columns, DATA.y, sample_weight=times)
    assert weighted.linear.slopes == pytest.approx(oracle.coef_[0], abs=1e-5)


def test_platt_recovers_a_known_slope_and_intercept_within_one_percent():
    """Labels in exact proportion to the truth, so that nothing but the optimiser can be off."""
    z = np.linspace(-3, 3, 6001)
    p = sigmoid(1.7 * z + 0.6)
    data = FitData(
        np.repeat(z, 2)[:, None], np.tile([1.0, 0.0], 6001), weights=np.column_stack([p, 1 - p]).ravel() * 1e6
    )
    fitted = platt.fit(data)
    slope = fitted.margin(np.array([[1.0]])) - fitted.margin(np.array([[0.0]]))
    # smoothing pulls 1 and 0 in by one part in 6,000, which is inside the one percent
    assert slope == pytest.approx([1.7], rel=0.01)
    assert fitted.margin(np.array([[0.0]])) == pytest.approx([0.6], rel=0.01)


def test_smoothed_targets_are_platts():
    assert smoothed_targets(FitData(np.zeros((4, 1)), np.array([1, 1, 1, 0]))) == pytest.approx([0.8, 0.8, 0.8, 1 / 3])


def test_platt_on_separable_scores_is_steep_but_finite():
    z = np.concatenate([-1 - np.arange(40) / 40, 1 + np.arange(40) / 40])
    p = platt.fit(FitData(z[:, None], (z > 0).astype(float))).predict(z[:, None])
    assert 0 < p.min() < 0.05
    assert 0.95 < p.max() < 1


def test_logistic_without_ridge_on_separable_features_raises_instead_of_stopping_somewhere():
    z = np.concatenate([-1 - np.arange(40) / 40, 1 + np.arange(40) / 40])
    with pytest.raises(NotConverged, match="ridge > 0"):
        logistic.fit(FitData(z[:, None], (z > 0).astype(float)), ridge=0.0)


@pytest.mark.parametrize("objective", [None, Tilt(2.0), GroupTilt(10.0)], ids=repr)
def test_platt_never_slopes_against_the_given_direction(objective):
    one = FitData(DATA.X[:, 1:2], DATA.y, slices=np.arange(DATA.n) % 3)  # falls with the truth
    up, down = platt.fit(one, objective=objective), platt.fit(one, objective=objective, direction=-1)
    grid = np.linspace(-2, 2, 9)[:, None]
    assert up.predict(grid) == pytest.approx(up.predict(grid)[0])
    assert (np.diff(down.predict(grid)) < 0).all()


def test_a_tilted_platt_is_a_softened_platt():
    """Science 3.3: the tilt is temperature 1 + eta wherever the class is rich enough."""
    plain, tilted = platt.fit(sample(slopes=(1.5,))), platt.fit(sample(slopes=(1.5,)), objective=Tilt(1.0))
    assert np.abs(tilted.margin(np.array([[1.5]]))) < 0.65 * np.abs(plain.margin(np.array([[1.5]])))


COMPARATORS = ("tilt(eta=2)", "tilt_selfnorm", "group_tilt(eta=10)", "group_dro(adjust=1)", "cvar", "chi_square(rho=5)")


@pytest.mark.parametrize("spec", COMPARATORS)
@pytest.mark.parametrize("seed", range(4))
def test_every_objective_converges_on_heavy_tails_ties_and_weights(spec, seed):
    """Also where its solution is the corner of a maximum: cvar and a wide chi-square ball end at "always 0.5"."""
    rng = np.random.default_rng(seed)
    X = rng.standard_t(2, size=(400, 3)) * [0.01, 1.0, 100.0]
    X = np.round(X, 1) if seed % 2 else X
    y = rng.random(400) < sigmoid(X[:, 1] + rng.normal())
    weights = rng.gamma(1, size=400) if seed > 1 else None
    data = FitData(X, y, slices=rng.integers(0, 5, size=400), weights=weights)
    for family in (logistic, platt):
        p = family.fit(data, objective=objectives.find(spec)).predict(X)
        assert ((p > 0) & (p < 1)).all()


def test_signs_hold_and_leave_the_other_slopes_free():
    bound = logistic.fit(DATA, signs=[1, 1, 0])
    assert bound.linear.slopes[1] == 0.0
    assert bound.linear.slopes[0] > 1.0
    free = logistic.fit(DATA)
    assert logistic.fit(DATA, signs=[1, -1, 0]).linear.slopes == pytest.approx(free.linear.slopes, abs=1e-8)
    with pytest.raises(BadFeatures, match="one sign"):
        logistic.fit(DATA, signs=[1, 2, 0])


def test_a_missing_value_has_its_own_slope_where_asked():
    X, y = DATA.X.copy(), DATA.y.copy()
    gone = np.random.default_rng(4).random(DATA.n) < 0.2
    X[gone, 0] = np.nan
    y[gone] = np.arange(gone.sum()) % 4 == 0
    fitted = logistic.fit(FitData(X, y, missing=(Missing.INDICATE, Missing.REFUSE, Missing.REFUSE)))
    p = fitted.predict(X)
    assert p[gone].mean() == pytest.approx(0.25, abs=0.02)
    assert p[~gone].mean() == pytest.approx(y[~gone].mean(), abs=0.02)


def test_many_features_are_calibrated_on_out_of_fold_scores():
    """Noise features in a small sample: a score that saw the labels would make Platt over-confident."""
    rng = np.random.default_rng(5)
    X, y = rng.normal(size=(150, 40)), (rng.random(150) < 0.5).astype(float)
    p = platt.fit(FitData(X, y)).predict(rng.normal(size=(2000, 40)))
    in_fold = logistic.fit(FitData(X, y), ridge=1.0).predict(rng.normal(size=(2000, 40)))
    assert np.std(p) < 0.5 * np.std(in_fold)


def test_pooled_slopes_beat_separate_ones_when_answers_are_few():
    truth, scales, intercepts = np.array([1.0, 0.8, -0.6, 0.5, 0.0]), (0.7, 1.0, 1.4), (0.0, 1.0, 2.0)
    gains = []
    for seed in range(6):
        small = [
            sample(250, s * truth, b, seed=10 * seed + k)
            for k, (s, b) in enumerate(zip(scales, intercepts, strict=True))
        ]
        fresh = [
            sample(4000, s * truth, b, seed=500 + k) for k, (s, b) in enumerate(zip(scales, intercepts, strict=True))
        ]
        alone = [logistic.fit(m) for m in small]
        pooled = [logistic.fit(m, others=[*small[:k], *small[k + 1 :]]) for k, m in enumerate(small)]

        def nll(fits, fresh=fresh):
            return np.mean(
                [
                    -np.log(np.where(m.y == 1, p, 1 - p)).mean()
                    for m, p in ((m, f.predict(m.X)) for f, m in zip(fits, fresh, strict=True))
                ]
            )

        gains.append(nll(alone) - nll(pooled))
    assert np.mean(gains) > 0
    assert sum(g > 0 for g in gains) >= 4


def test_only_features_that_all_models_have_are_shared():
    fewer = FitData(DATA.X[:, :2], DATA.y, DATA.names[:2])
    steep = FitData(np.hstack([DATA.X[:, :2], 9 * DATA.X[:, 2:]]), DATA.y, (*DATA.names[:2], "else"))
    once, other = (logistic.fit(DATA, others=[one]).linear.slopes for one in (fewer, steep))
    assert once == pytest.approx(other, abs=1e-9)
    assert once != pytest.approx(logistic.fit(DATA).linear.slopes, abs=1e-9)


def test_pooling_without_a_common_feature_or_with_too_few_answers_is_refused():
    with pytest.raises(BadFeatures, match="a feature that all models have"):
        logistic.fit(DATA, others=[FitData(DATA.X, DATA.y, ("a", "b", "c"))])
    with pytest.raises(TooFewRare):
        logistic.fit(DATA.rows(np.arange(40)), others=[DATA])


def test_rows_that_all_lack_a_covered_feature_are_still_predicted() -> None:
    """A batch is judged row by row: that no row of it has a feature is no mistake when predicting."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 2))
    X[:100, 1] = np.nan
    y = (rng.random(400) < 1 / (1 + np.exp(-X[:, 0]))).astype(float)
    fitted = logistic.fit(FitData(X, y, missing=(Missing.REFUSE, Missing.INDICATE)))
    np.testing.assert_allclose(fitted.predict(X[:3]), [fitted.predict(X[n : n + 1])[0] for n in range(3)])


@pytest.mark.parametrize("seed", range(5))
def test_one_answer_is_worth_what_it_is_worth_among_others(seed):
    """A single row takes another way, past NumPy; far outside the bounds, with a gap and at the sigmoid's ends too."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(400, 6)) * 10.0 ** rng.integers(-3, 6, size=6)
    y = (rng.random(400) < sigmoid(X[:, 0] / np.abs(X[:, 0]).mean())).astype(float)
    fitted = logistic.fit(FitData(X, y, missing=(Missing.INDICATE,) + (Missing.REFUSE,) * 5))
    steep = logistic.Logistic(fitted.linear.scaled(500.0, 3.0))
    asked = np.vstack([X, X * 1e9, np.where(np.arange(6) == 0, np.nan, X[:20])])
    for calibrator in (fitted, steep):
        alone = np.array([calibrator.predict(row[np.newaxis, :])[0] for row in asked])
        np.testing.assert_allclose(alone, calibrator.predict(asked), rtol=1e-12)


def test_one_infinite_value_is_refused_as_among_others():
    fitted = logistic.fit(DATA)
    for rows in ([[np.inf, 0.0, 0.0]], [[np.inf, 0.0, 0.0], [0.0, 0.0, 0.0]], [[np.nan, 0.0, 0.0]]):
        with pytest.raises(BadFeatures):
            fitted.predict(np.array(rows))
