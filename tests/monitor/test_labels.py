from __future__ import annotations

import datetime as dt
import json

import numpy as np
import pytest

from gateway.certificate import Certificate, CertifiedStep, Data, Promise
from gateway.errors import ConfigError
from gateway.monitor import labels
from gateway.monitor.labels import ROUTED, AcceptedError, Honesties, Judged

TODAY = dt.date(2026, 11, 22)


def judged(
    rng: np.random.Generator, n: int, over: float, tier: str = "small", calibrator: str = "small@1"
) -> list[Judged]:
    p = rng.uniform(0.85, 0.99, n)
    right = rng.random(n) < p - over
    return [
        Judged("default", tier, calibrator, float(a), bool(b), accepted=True, trusted=True)
        for a, b in zip(p, right, strict=True)
    ]


def certificate() -> Certificate:
    return Certificate.sealed(
        issued=TODAY,
        steps=[CertifiedStep(tier="small", calibrator="small@1")],
        data=Data(split="test", n=100, sha256="0" * 64),
        chosen="by hand",
        promises=[Promise(what="errors", limit=0.1, confidence=0.95, seen=0.05, n=100, method="exact")],
        assumptions=["none"],
    )


def test_a_tier_that_claims_too_much_and_the_whole_are_told_apart_from_an_honest_one() -> None:
    rng, tests = np.random.default_rng(0), Honesties()
    tests.note(judged(rng, 600, 0.0, "large", "large@1"))
    tests.note(judged(rng, 600, 0.2))
    said = {verdict.tier: verdict.overconfident for verdict in tests.verdicts()}
    assert said == {"small": True, "large": False, ROUTED: True}


def test_late_labels_count_for_the_calibrator_that_decided() -> None:
    rng, tests = np.random.default_rng(1), Honesties()
    tests.note(judged(rng, 600, 0.2, calibrator="small@old") + judged(rng, 600, 0.0, calibrator="small@new"))
    by_labels = [verdict.overconfident for verdict in tests.verdicts() if verdict.tier == "small"]
    assert sorted(by_labels) == [False, True]


def test_rolling_scores_stay_within_limits_where_p_is_true_and_leave_them_where_not() -> None:
    rng = np.random.default_rng(2)
    p = rng.uniform(0.5, 1, 500)
    good = labels.rolling(p, (rng.random(500) < p).astype(float), rng)
    bad = labels.rolling(p, (rng.random(500) < p - 0.2).astype(float), rng)
    assert not good.outside
    assert 0 < good.ece_floor < good.ece_limit < bad.ece
    assert good.ks < good.ks_limit < bad.ks
    assert bad.outside
    told, wrong = good.as_json(), bad.as_json()
    assert told["slope"]["low"] < 1 < told["slope"]["high"]
    assert told["intercept"]["low"] < 0 < told["intercept"]["high"]
    assert wrong["intercept"]["high"] < 0, "over-confident on the whole"
    assert json.loads(json.dumps(wrong))["outside"]


def test_a_window_of_right_answers_only_has_no_slope_and_says_so() -> None:
    told = labels.rolling(np.full(60, 0.9), np.ones(60), np.random.default_rng(1)).as_json()
    assert "wrong" in told["slope"]["insufficient"]


def test_the_window_of_rolling_scores_is_bounded() -> None:
    tests = Honesties()
    tests.note(judged(np.random.default_rng(3), labels.ROLLING + 50, 0.0))
    p, right = tests.recent("default", "small", "small@1")
    assert p.shape == right.shape == (labels.ROLLING,)


def test_a_broken_objective_is_proven_from_explored_labels_alone() -> None:
    rng, errors = np.random.default_rng(4), AcceptedError("default", 0.05, least_inclusion=0.1)
    for wrong, drawn in zip(rng.random(8_000) < 0.25, rng.random(8_000) < 0.1, strict=True):
        errors.note(inclusion=0.1, explored=bool(drawn), right=(not wrong) if drawn else None)
    verdict = errors.verdict()
    assert verdict.violated
    assert verdict.low <= 0.25 <= verdict.high


def test_labels_that_nobody_drew_cannot_prove_a_broken_objective() -> None:
    errors = AcceptedError("default", 0.05, least_inclusion=0.1)
    for _ in range(2_000):
        errors.note(inclusion=0.1, explored=False, right=False)
    assert errors.verdict().labels == 0
    assert not errors.verdict().violated


def test_an_inclusion_below_the_stated_least_is_refused() -> None:
    with pytest.raises(ConfigError, match="less than the stated"):
        AcceptedError("default", 0.05, least_inclusion=0.1).note(inclusion=0.01, explored=True, right=True)


def test_estimators_undo_uneven_drawing() -> None:
    rng = np.random.default_rng(5)
    p = rng.uniform(0.3, 0.95, 40_000)
    right = (rng.random(p.size) < p - 0.1).astype(float)
    inclusion = np.where(p > 0.8, 0.02, 0.2)  # the surest are drawn least, so a plain mean is far too low
    drawn = rng.random(p.size) < inclusion
    even = labels.self_normalised(right[drawn], inclusion[drawn])
    assert abs(right[drawn].mean() - right.mean()) > 0.05
    assert even.value == pytest.approx(right.mean(), abs=0.03)
    assert even.n_effective < even.n
    assert labels.doubly_robust(p, right, drawn, inclusion) == pytest.approx(right.mean(), abs=0.03)


def test_certificates_are_withdrawn_by_proof_and_stay_so() -> None:
    rng, tests = np.random.default_rng(6), Honesties()
    tests.note(judged(rng, 600, 0.2))
    gone = labels.withdrawn({"default": certificate(), "other": certificate()}, [], tests.verdicts(), TODAY)
    assert set(gone) == {"default"}
    told = gone["default"].withdrawn
    assert told is not None
    assert "claims more than 600 labels bear out" in told.why
    assert gone["default"].own_sha256() == gone["default"].sha256
    assert labels.withdrawn(gone, [], tests.verdicts(), TODAY) == {}


def test_an_underconfident_tier_withdraws_nothing() -> None:
    rng, tests = np.random.default_rng(7), Honesties()
    tests.note(judged(rng, 1_000, -0.1))
    assert any(verdict.underconfident for verdict in tests.verdicts())
    assert labels.withdrawn({"default": certificate()}, [], tests.verdicts(), TODAY) == {}
