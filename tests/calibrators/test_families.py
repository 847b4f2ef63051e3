"""Every family: range, monotony, invariance, JSON, refusals; and each one's own oracle."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.isotonic import IsotonicRegression, isotonic_regression
from threadpoolctl import threadpool_limits

from calibrators import (
    base,
    beta,
    gbdt,
    histogram,
    intercept,
    isotonic,
    platt,
    quadratic,
    scaling_binning,
    temperature,
    tempered,
    venn_abers,
)
from calibrators._bins import equal_mass_edges
from calibrators.base import (
    BadFeatures,
    BadObjective,
    BadParams,
    BadWeights,
    FitData,
    Missing,
    NotConverged,
    OneClass,
    TooFewRare,
    TooFewRows,
    find,
    log_losses,
    logit,
    sigmoid,
)
from calibrators.minimise import brent
from calibrators.objectives.group_tilt import GroupTilt
from calibrators.objectives.tilt import Tilt

FAMILIES = [name for name in base.names() if name != "tempered"]
SCALAR = [name for name in FAMILIES if name not in ("logistic", "gbdt")]
RISING = [name for name in SCALAR if name not in ("quadratic", "histogram")]
SMALL = {"isotonic": {"min_rows": 1}, "gbdt": {"min_rows": 1, "min_rare": 1, "trees": 20}}


def sample(n=1500, features=1, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, features)) + 0.5
    y = (rng.random(n) < sigmoid(1.4 * X.sum(axis=1) / np.sqrt(features) + 0.3)).astype(float)
    return FitData(X, y, slices=rng.integers(0, 3, size=n))


ONE, FOUR = sample(), sample(features=4)


def fitted(name, data, **options):
    return find(name).fit(data, **{**SMALL.get(name, {}), **options})


FITS = {(name, data.X.shape[1]): fitted(name, data) for name in FAMILIES for data in (ONE, FOUR)}


@pytest.mark.parametrize("columns", [1, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_p_is_inside_0_and_1_and_the_margin_is_its_logit_however_far_out_x_lies(name, columns):
    fit = FITS[name, columns]
    for scale in (1.0, 1e3, 1e12):
        X = np.random.default_rng(1).normal(size=(200, columns)) * scale
        p = fit.predict(X)
        assert p.shape == (200,)
        assert (p > 0).all()
        assert (p < 1).all()
        assert sigmoid(fit.margin(X)) == pytest.approx(p, abs=1e-12)


@pytest.mark.parametrize("columns", [1, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_json_and_back_predicts_identically(name, columns):
    fit, X = FITS[name, columns], sample(300, columns, seed=2).X
    saved = json.dumps(fit.to_params(), allow_nan=False)
    again = find(name).from_params(json.loads(saved))
    assert (again.predict(X) == fit.predict(X)).all()
    assert json.dumps(again.to_params()) == saved
    assert again.kind == name


@pytest.mark.parametrize("name", FAMILIES)
def test_one_row_alone_is_predicted_as_among_others(name):
    X = sample(50, 4, seed=3).X
    together = FITS[name, 4].predict(X)
    assert [FITS[name, 4].predict(row[None])[0] for row in X] == pytest.approx(together.tolist(), rel=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_calibrator_with_a_key_too_few_or_a_number_that_is_none_is_refused(name):
    saved = FITS[name, 4].to_params()
    for key in saved:
        with pytest.raises(BadParams):
            find(name).from_params({k: v for k, v in saved.items() if k != key})
        with pytest.raises(BadParams):
            find(name).from_params({**saved, key: float("nan") if isinstance(saved[key], float) else [float("nan")]})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prediction_on_nan_infinity_or_a_wrong_shape_is_refused_and_says_what_came(name):
    fit = FITS[name, 4]
    for value in (np.nan, np.inf):
        X = FOUR.X[:2].copy()
        X[1, 2] = value
        with pytest.raises(BadFeatures, match="x2"):
            fit.predict(X)
    with pytest.raises(BadFeatures, match=r"\(N, 4\), got \(2, 3\)"):
        fit.predict(FOUR.X[:2, :3])


@pytest.mark.parametrize("name", FAMILIES)
def test_one_class_only_is_refused_by_every_family(name):
    with pytest.raises(OneClass, match="all 1500 answers are right"):
        fitted(name, FitData(FOUR.X, np.ones(1500)))


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "intercept"])
def test_too_few_wrong_answers_are_refused_with_advice(name):
    y = np.ones(1500)
    y[:5] = 0
    with pytest.raises(TooFewRare, match=r"5 answers .* collect \d+ more"):
        find(name).fit(FitData(FOUR.X, y))


@pytest.mark.parametrize(
    ("name", "n"), [("isotonic", 500), ("histogram", 150), ("gbdt", 1500), ("scaling_binning", 300)]
)
def test_too_few_answers_altogether_are_refused(name, n):
    data = FitData(np.arange(n)[:, None], np.arange(n) % 2)
    with pytest.raises(TooFewRows, match=f"{n} answers"):
        find(name).fit(data)


@pytest.mark.parametrize("name", RISING)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_monotone_family_never_ranks_two_answers_against_its_score(name, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=500)
    y = (rng.random(500) < sigmoid(np.round(x, 1) + rng.normal())).astype(float)
    y[:140] = np.arange(140) % 2
    try:
        fit = fitted(name, FitData(x[:, None], y))
    except NotConverged:
        assert name == "temperature"  # scores that rank no better than chance have no temperature
        return
    assert (np.diff(fit.predict(np.linspace(-4, 4, 400)[:, None])) >= -1e-12).all()


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=4, deadline=None)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_the_unit_a_feature_is_measured_in_does_not_matter(name, scale, shift):
    data = FOUR.rows(np.arange(600))
    other = FitData(data.X * scale + shift, data.y)
    new = sample(50, 4, seed=9).X
    here, there = fitted(name, data).predict(new), fitted(name, other).predict(new * scale + shift)
    if name in ("gbdt", "histogram", "scaling_binning", "isotonic", "venn_abers"):  # a tie may fall either way
        assert np.median(np.abs(here - there)) < 1e-6
    else:
        assert there == pytest.approx(here, abs=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_missing_value_is_filled_where_the_policy_says_so(name):
    X = FOUR.X.copy()
    X[::7, 1] = np.nan
    fit = fitted(name, FitData(X, FOUR.y, missing=(Missing.REFUSE, Missing.INDICATE, Missing.REFUSE, Missing.REFUSE)))
    assert np.isfinite(fit.predict(X)).all()
    again = find(name).from_params(json.loads(json.dumps(fit.to_params())))
    assert (again.predict(X) == fit.predict(X)).all()


def test_predicting_needs_no_scipy_and_no_scikit_learn():
    """A serving gateway installs NumPy only."""
    saved = json.dumps({name: FITS[name, 4].to_params() for name in FAMILIES})
    code = (
        "import json, sys, numpy as np; from calibrators.base import find\n"
        "for name, params in json.load(sys.stdin).items(): find(name).from_params(params).predict(np.zeros((1, 4)))\n"
        "print([m for m in ('scipy', 'sklearn') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], input=saved, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# One by one


def graded(z, p):
    """Rows whose weights make the labels exactly as often right as p says."""
    weights = np.column_stack([p, 1 - p]).ravel()
    return FitData(np.repeat(z, 2)[:, None], np.tile([1.0, 0.0], len(z)), weights=weights)


@pytest.mark.parametrize("t", [0.3, 1.0, 2.53, 8.0])
def test_temperature_recovers_a_known_t_within_a_thousandth(t):
    z = np.linspace(-6, 6, 400)
    assert temperature.fit(graded(z, sigmoid(z / t))).t == pytest.approx(t, rel=1e-3)


def test_temperature_from_drawn_labels_is_right_within_one_percent():
    rng = np.random.default_rng(0)
    z = rng.normal(scale=5, size=200_000)
    y = (rng.random(z.size) < sigmoid(z / 2.53)).astype(float)
    assert temperature.fit(FitData(z[:, None], y)).t == pytest.approx(2.53, rel=0.01)


def stopped_early(nll_slope, t=1.0, rate=0.01, steps=50):
    """What torch.optim.LBFGS(lr=0.01, max_iter=50) does in one dimension: secant steps, shortened a hundredfold."""
    slope = nll_slope(t)
    step = -slope * min(1.0, 1 / abs(slope)) * rate
    for _ in range(steps - 1):
        moved, after = t + step, nll_slope(t + step)
        curvature = (after - slope) / step
        t, slope = moved, after
        step = -slope / curvature * rate if curvature > 1e-10 else -slope * rate
    return t + step


def test_the_fixed_step_optimiser_stops_at_half_the_temperature_and_ours_does_not():
    """Science 3.4: four classes, true T = 2.53; one L-BFGS call with lr 0.01 and no line search stops near 1.2."""
    logits = np.random.default_rng(0).normal(scale=5.0, size=(5000, 4))

    def log_softmax(z):
        return z - np.logaddexp.reduce(z, axis=1, keepdims=True)

    truth = np.exp(log_softmax(logits / 2.53))

    def nll(t):
        return float(-(truth * log_softmax(logits / t)).sum(axis=1).mean())

    def slope(t):
        return (nll(t + 1e-5) - nll(t - 1e-5)) / 2e-5

    assert stopped_early(slope) < 1.6
    assert np.exp(brent(lambda tau: nll(np.exp(tau)), -3, 3)) == pytest.approx(2.53, rel=0.001)


def test_scores_that_rank_backwards_or_separate_have_no_temperature():
    z = np.linspace(-3, 3, 200)
    for y in (z > 0, z < 0):
        with pytest.raises(NotConverged, match="edge"):
            temperature.fit(FitData(z[:, None], y))


def test_intercept_moves_a_prior_to_the_new_base_rate_and_nothing_else():
    z = np.random.default_rng(0).normal(size=400)
    data = graded(z, sigmoid(z - 0.8))
    fit = intercept.fit(data)
    assert fit.margin(z[:, None]) == pytest.approx(z - 0.8, abs=1e-6)
    y = np.ones(30)
    y[:3] = 0
    few = intercept.fit(FitData(z[:30, None], y))
    assert few.predict(z[:30, None]).mean() == pytest.approx(0.9)


def test_beta_recovers_its_parameters_and_contains_the_identity():
    z = np.linspace(-5, 5, 1000)
    log_s, log_rest = -np.logaddexp(0, -z), -np.logaddexp(0, z)
    fit = beta.fit(graded(z, sigmoid(0.6 * log_s - 1.8 * log_rest + 0.4)), ridge=0.0)
    assert (fit.a, fit.b, fit.c) == pytest.approx((0.6, 1.8, 0.4), rel=0.01)
    same = beta.fit(graded(z, sigmoid(z)))
    assert (same.a, same.b, same.c) == pytest.approx((1, 1, 0), abs=1e-3)


def test_beta_never_slopes_down():
    z = np.random.default_rng(0).normal(size=2000)
    fit = beta.fit(graded(z, sigmoid(-z)))
    assert fit.a >= 0
    assert fit.b >= 0


def test_quadratic_recovers_a_bend_that_platt_cannot():
    z = np.linspace(-2, 2, 4001)
    p = sigmoid(0.5 * z**2 + z - 0.3)
    data = graded(z, p)
    assert quadratic.fit(data, ridge=0.0).predict(z[:, None]) == pytest.approx(p, abs=0.01)
    assert np.abs(platt.fit(data).predict(z[:, None]) - p).max() > 0.05


def test_isotonic_is_scikit_learns_apart_from_the_clip():
    fit = isotonic.fit(ONE)
    oracle = IsotonicRegression(out_of_bounds="clip").fit(fit.score.margin(ONE.X), ONE.y)
    new = sample(500, seed=4).X
    edge = 1 / (ONE.n + 2)
    assert fit.predict(new) == pytest.approx(np.clip(oracle.predict(fit.score.margin(new)), edge, 1 - edge))


def test_histogram_bins_hold_equal_numbers_keep_ties_together_and_report_shares():
    fit = histogram.fit(ONE, bins=10)
    assert fit.count.sum() == ONE.n
    assert fit.count.min() == fit.count.max() == 150
    code = fit.edges.searchsorted(fit.score.margin(ONE.X), "right")
    assert fit.p == pytest.approx([ONE.y[code == b].mean() for b in range(10)])
    tied = np.repeat([0.0, 1.0, 2.0], [700, 10, 290])
    assert equal_mass_edges(tied, 10).tolist() == [0.5, 1.5]
    assert fit.radius(0.05)[0] == pytest.approx(np.sqrt(np.log(2 * 10 / 0.05) / 300))


def test_scaling_binning_says_the_mean_platt_output_of_each_bin():
    fit = scaling_binning.fit(ONE)
    held = ONE.rows(base.folds(ONE, 2, 0) == 1)
    said, platts = fit.predict(held.X), fit.scaling.predict(held.X)
    for p in np.unique(said):
        assert platts[said == p].mean() == pytest.approx(p)
    assert (np.diff(fit.p) > 0).all()
    with pytest.raises(BadObjective, match="erm"):
        isotonic.fit(ONE, objective=Tilt(1.0))
    assert np.isfinite(scaling_binning.fit(ONE, objective=GroupTilt(3.0)).predict(ONE.X)).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.floats(0, 1)), min_size=1, max_size=30), st.data())
def test_venn_abers_is_two_isotonic_fits_with_the_new_answer_in_them(pairs, draw):
    count = np.array([c for c, _ in pairs], dtype=float)
    right = np.array([np.floor(c * share + 0.5) for c, share in pairs])
    j = draw.draw(st.integers(0, len(pairs)))
    with_new = isotonic_regression(np.insert(right / count, j, 1.0), sample_weight=np.insert(count, j, 1.0))
    assert venn_abers.value_if_right(count, right)[j] == pytest.approx(with_new[j])


def test_venn_abers_agrees_with_refitting_isotonic_for_old_and_new_scores():
    data = sample(300, seed=6)
    data = FitData(np.round(data.X, 1), data.y)
    fit = venn_abers.fit(data)
    new = np.concatenate([data.X[:40], data.X[:40] + 0.03, [[-9.0], [9.0]]])
    p0, p1 = fit.interval(new)
    for x, low, high in zip(new[:, 0], p0, p1, strict=True):
        for label, got in ((0.0, low), (1.0, high)):
            refit = IsotonicRegression().fit(np.append(data.X[:, 0], x), np.append(data.y, label))
            assert got == pytest.approx(float(refit.predict([x])[0]))
    assert fit.predict(new) == pytest.approx(p1 / (1 - p0 + p1))
    assert (fit.width(new) > 0).all()


def test_venn_abers_is_wider_where_calibration_answers_are_few():
    widths = [venn_abers.fit(sample(n, seed=7)).width(ONE.X).mean() for n in (200, 5000)]
    assert widths[0] > 3 * widths[1]
    with pytest.raises(BadWeights, match="isotonic"):
        venn_abers.fit(FitData(ONE.X, ONE.y, weights=np.ones(ONE.n)))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_exported_trees_sum_to_scikit_learns_own_margin(depth):
    with threadpool_limits(1):
        model = HistGradientBoostingClassifier(max_iter=30, max_depth=depth, early_stopping=False).fit(FOUR.X, FOUR.y)
    trees = gbdt._exported(model)
    assert trees.depth == depth
    new = sample(3000, 4, seed=8).X
    assert trees.margin(new) == pytest.approx(model.decision_function(new), abs=1e-12)
    on_a_cut = np.tile(trees.threshold[trees.threshold != 0][:20, None], (1, 4))
    assert trees.margin(on_a_cut) == pytest.approx(model.decision_function(on_a_cut), abs=1e-12)


def test_gbdt_keeps_its_signs_and_is_calibrated_on_fresh_answers():
    data, fresh = sample(3000, 2, seed=1), sample(6000, 2, seed=2)
    fit = gbdt.fit(data, signs=[1, 0], trees=60)
    grid = np.column_stack([np.linspace(-3, 4, 200), np.full(200, 0.4)])
    assert (np.diff(fit.predict(grid)) >= 0).all()
    assert fit.predict(fresh.X).mean() == pytest.approx(fresh.y.mean(), abs=0.03)
    assert (
        log_losses(fit.margin(fresh.X), fresh.y).mean()
        < 1.03 * log_losses(find("logistic").fit(data).margin(fresh.X), fresh.y).mean()
    )
    with pytest.raises(BadFeatures, match="one sign"):
        gbdt.fit(data, signs=[1])


def test_trees_that_point_nowhere_or_in_a_circle_are_refused():
    trees = FITS["gbdt", 4].to_params()["trees"]
    for spoilt in (
        {"left": [10**6] * len(trees["left"])},
        {"left": [0] * len(trees["left"])},
        {"root": []},
        {"value": [0.0]},
    ):
        with pytest.raises(BadParams):
            gbdt.Trees.from_params({**trees, **spoilt})


def test_a_temperature_on_top_corrects_the_region_and_survives_json():
    inner = FITS["platt", 1]
    X = sample(20_000, seed=12).X
    y = (np.random.default_rng(1).random(len(X)) < sigmoid(inner.margin(X) / 1.8)).astype(float)
    fit = tempered.fit(FitData(X, y), inner=inner)
    assert fit.t == pytest.approx(1.8, rel=0.06)
    again = tempered.from_params(json.loads(json.dumps(fit.to_params())))
    assert (again.predict(X) == fit.predict(X)).all()
    assert logit(fit.predict(X[:5])) == pytest.approx(inner.margin(X[:5]) / fit.t)


def test_a_shift_on_top_survives_json_and_none_leaves_an_artefact_as_it_was():
    inner, X = FITS["beta", 1], sample(50, seed=13).X
    shifted = tempered.Tempered(inner, 0.8, -1.5)
    again = tempered.from_params(json.loads(json.dumps(shifted.to_params())))
    assert (again.margin(X) == inner.margin(X) / 0.8 - 1.5).all()
    plain = tempered.Tempered(inner, 0.8).to_params()
    assert set(plain) == {"inner", "params", "t"}
    for rubbish in ({**plain, "shift": "much"}, {**plain, "shift": float("inf")}, {**plain, "shfit": 1.0}, None):
        with pytest.raises(BadParams):
            tempered.from_params(rubbish)
