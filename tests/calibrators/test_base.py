"""Fit data, preprocessing, folds and the registry: what is refused, and with what advice."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrators import base
from calibrators.base import (
    LOGIT_MAX,
    BadFeatures,
    BadLabels,
    BadParams,
    BadSlices,
    BadWeights,
    ConstantFeature,
    DuplicateQuestion,
    FitData,
    Missing,
    OneClass,
    Preprocess,
    TooFewRare,
    TooFewRows,
    UnknownFamily,
    check_disjoint,
    folds,
    log_losses,
    logit,
    sigmoid,
)

RNG = np.random.default_rng(11)
X = RNG.normal(size=(200, 3)) * [1.0, 10.0, 0.1] + [0.0, 100.0, -5.0]
Y = (RNG.random(200) < 0.7).astype(float)


def with_value(value):
    spoilt = X.copy()
    spoilt[7, 1] = value
    return spoilt


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused_and_its_column_named(value):
    with pytest.raises(BadFeatures, match=r"'gap'.*leave those rows out"):
        FitData(with_value(value), Y, ("mean", "gap", "tail"))


def test_nan_passes_where_a_policy_covers_it_but_infinity_never_does():
    policies = (Missing.REFUSE, Missing.INDICATE, Missing.REFUSE)
    assert np.isnan(FitData(with_value(np.nan), Y, missing=policies).X[7, 1])
    with pytest.raises(BadFeatures, match="infinite"):
        FitData(with_value(np.inf), Y, missing=policies)


@pytest.mark.parametrize(
    ("labels", "says"),
    [(np.where(Y == 1, 2, 0), "the first is 2"), (Y[:-1], "one label per row"), (["yes"] * 200, "text")],
)
def test_labels_other_than_0_and_1_are_refused(labels, says):
    with pytest.raises(BadLabels, match=says):
        FitData(X, labels)


@pytest.mark.parametrize("weights", [-np.ones(200), np.ones(3), np.full(200, np.nan), np.zeros(200)])
def test_weights_that_are_no_weights_are_refused(weights):
    with pytest.raises(BadWeights):
        FitData(X, Y, weights=weights)


@pytest.mark.parametrize("slices", [np.ones(200), -np.ones(200, dtype=int), np.ones(3, dtype=int), np.full(200, 5)])
def test_slices_that_are_no_codes_are_refused(slices):
    with pytest.raises(BadSlices):
        FitData(X, Y, slices=slices, slice_names=("short", "long"))


def test_features_of_a_wrong_shape_or_with_a_name_twice_are_refused():
    with pytest.raises(BadFeatures, match="shape"):
        FitData(X[:, 0], Y)
    with pytest.raises(BadFeatures, match="shape"):
        FitData(X[:0], Y[:0])
    with pytest.raises(BadFeatures, match="distinct"):
        FitData(X, Y, ("a", "a", "b"))


def test_fit_data_is_a_locked_copy():
    mine = X.copy()
    data = FitData(mine, Y)
    mine[:] = 0
    assert (data.X == X).all()
    with pytest.raises(ValueError, match="read-only"):
        data.X[0, 0] = 1.0


def test_too_few_of_the_rare_class_says_how_many_more_and_what_else_to_do():
    labels = np.ones(200)
    labels[:12] = 0
    with pytest.raises(TooFewRare, match=r"12 answers.*collect 18 more.*intercept") as caught:
        FitData(X, labels).check_rare(30, "platt")
    assert (caught.value.n_rare, caught.value.needed) == (12, 30)


def test_one_class_only_says_which():
    with pytest.raises(OneClass, match="all 200 answers are right"):
        FitData(X, np.ones(200)).check_rare(1, "platt")


@pytest.mark.parametrize("value", [0.1, -3.3, 0.0, 1e9])
def test_a_constant_feature_is_named_even_when_its_mean_is_no_exact_float(value):
    flat = X.copy()
    flat[:, 2] = value
    with pytest.raises(ConstantFeature, match=r"'tail'.*drop it"):
        Preprocess.fit(FitData(flat, Y, ("mean", "gap", "tail")))


def test_a_question_in_two_splits_is_refused():
    check_disjoint(["a", "a", "b"], ["c"])
    with pytest.raises(DuplicateQuestion, match=r"1 questions.*'b'.*split by question"):
        check_disjoint(["a", "b"], ["b", "c"])


def test_folds_keep_a_question_together_and_spread_the_rare_class():
    groups = RNG.integers(0, 60, size=200)
    data = FitData(X, Y, groups=groups)
    fold = folds(data, 5)
    assert all(len(set(fold[groups == g])) == 1 for g in np.unique(groups))
    single = FitData(X, Y)
    rare = np.bincount(folds(single, 5), 1 - Y)
    assert rare.max() - rare.min() <= 1
    assert (folds(single, 5, seed=1) != folds(single, 5, seed=2)).any()
    assert (folds(single, 5, seed=1) == folds(single, 5, seed=1)).all()


def test_more_folds_than_questions_are_refused():
    with pytest.raises(TooFewRows, match="questions"):
        folds(FitData(X, Y, groups=np.zeros(200)), 5)


def test_preprocessed_columns_have_mean_0_and_sd_1_and_an_outlier_is_held_back():
    wild = X.copy()
    wild[0, 0] = 1e6
    pre = Preprocess.fit(FitData(wild, Y))
    columns = pre.apply(wild)
    assert columns.mean(axis=0) == pytest.approx(np.zeros(3), abs=1e-10)
    assert columns.std(axis=0) == pytest.approx(np.ones(3))
    assert columns[0, 0] < 5


def test_a_rare_flag_survives_winsorising():
    flag = np.zeros((1000, 1))
    flag[:3] = 1.0
    pre = Preprocess.fit(FitData(flag, np.arange(1000) % 2))
    assert (pre.low[0], pre.high[0]) == (0.0, 1.0)


def test_a_missing_value_becomes_the_mean_and_an_indicator_where_asked():
    spoilt = X.copy()
    spoilt[3, 0] = spoilt[4, 1] = np.nan
    policies = (Missing.IMPUTE, Missing.INDICATE, Missing.REFUSE)
    pre = Preprocess.fit(FitData(spoilt, Y, missing=policies))
    columns = pre.apply(spoilt)
    assert pre.columns == ("x0", "x1", "x2", "x1 missing")
    assert columns[3, 0] == pytest.approx(0.0)
    assert columns[4].tolist()[1::2] == pytest.approx([0.0, 1.0])
    assert columns[3, 3] == 0.0
    with pytest.raises(BadFeatures, match="'x2'"):
        pre.apply(np.array([[0.0, 0.0, np.nan]]))


def test_preprocessing_survives_json_and_a_spoilt_copy_is_refused():
    pre = Preprocess.fit(FitData(X, Y))
    saved = json.loads(json.dumps(pre.to_dict()))
    assert (Preprocess.from_dict(saved).apply(X) == pre.apply(X)).all()
    for key, wrong in (("sd", [0.0] * 3), ("mean", [1.0]), ("low", [float("nan")] * 3), ("missing", ["guess"] * 3)):
        with pytest.raises(BadParams):
            Preprocess.from_dict({**saved, key: wrong})
    with pytest.raises(BadParams, match="exactly"):
        Preprocess.from_dict({k: v for k, v in saved.items() if k != "sd"})


@given(st.floats(-1e300, 1e300))
def test_a_sigmoid_never_reaches_0_or_1(z):
    p = float(sigmoid(np.array(z)))
    assert 0 < p < 1
    assert float(logit(np.array(p))) == pytest.approx(
        np.clip(z, -LOGIT_MAX, LOGIT_MAX), abs=0.3 if abs(z) > 29 else 1e-3
    )


def test_the_log_loss_of_a_hopeless_answer_is_finite():
    assert log_losses(np.array([-1e4, 1e4]), np.array([1.0, 1.0])) == pytest.approx([1e4, 0.0])


def test_every_family_the_registry_lists_can_be_found_and_a_wrong_name_lists_them():
    assert {"platt", "logistic"} <= set(base.names())
    for name in base.names():
        family = base.find(name)
        assert callable(family.fit)
        assert callable(family.from_params)
    with pytest.raises(UnknownFamily, match=r"logistic.*platt"):
        base.find("plat")
