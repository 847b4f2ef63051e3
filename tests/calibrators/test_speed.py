"""What a prediction and a fit may cost, in CPU seconds, with room for a shared and throttled machine."""

import time

import numpy as np
import pytest

from calibrators import base, logistic
from calibrators.base import FitData, find, sigmoid

ROOM = 3.0  # the budgets are for a core of one's own; another process on its sibling thread halves ours
ROW_SECONDS, FIT_SECONDS, ALL_SECONDS = 30e-6, 1.0, 30.0


def study(n=8000, features=20):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, features)) * rng.uniform(0.1, 10, features) + rng.normal(size=features)
    z = (X - X.mean(axis=0)) / X.std(axis=0) @ rng.normal(scale=0.4, size=features) + 2
    return FitData(X, rng.random(n) < sigmoid(z))


def test_every_family_fits_8000_answers_of_20_features_and_predicts_one_in_thirty_microseconds():
    data, spent = study(), time.process_time()
    fits = {name: find(name).fit(data) for name in base.names() if name != "tempered"}
    assert time.process_time() - spent < ROOM * ALL_SECONDS
    row = data.X[:1]
    for name, fit in fits.items():
        best = np.inf
        for _ in range(10):
            started = time.process_time()
            for _ in range(200):
                fit.predict(row)
            best = min(best, (time.process_time() - started) / 200)
        assert best < ROOM * ROW_SECONDS, f"{name}: {best * 1e6:.1f} us a row"


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_a_logistic_fit_of_8000_by_20_takes_under_a_second(ridge):
    data, started = study(), time.process_time()
    logistic.fit(data, ridge=ridge)
    assert time.process_time() - started < ROOM * FIT_SECONDS
