"""Science 3.9: the defects of the seed texts in objectives and fits; ours has none.

Others are tested where ours stands: 5 to 8 in test_robust_filtered; 9, 10, 16 to 18, 27 in test_scores; 11, 22, 23 in
test_card; 12 in tests/monitor; 15 with the routed temperature in tests/eval/test_fit; 20, 21, 26 in tests/confidence;
24 in tests/eval/test_sanity; 28 in tests/eval/test_guarantees. 14, 19 and 25 are about texts alone.
"""

import numpy as np
import pytest

from calibrators import objectives, platt, temperature
from calibrators.base import FitData, sigmoid
from calibrators.objectives.group_tilt import GroupTilt
from calibrators.objectives.tilt import Tilt
from calibrators.objectives.tilt_selfnorm import TiltSelfnorm

LOSSES = np.random.default_rng(0).gamma(1.0, size=64)


def test_defect_1_weights_do_not_overflow_where_a_bare_exponential_does():
    losses = np.array([0.0, 400.0, 1e4])
    with np.errstate(over="ignore", invalid="ignore"):
        bare = np.exp(2.0 * losses) / np.exp(2.0 * losses).sum()
    assert np.isnan(bare).any()
    assert Tilt(2.0)(losses)[1] == pytest.approx([0.0, 0.0, 1.0])


def test_defect_2_the_tilts_gradient_is_the_detached_one_and_never_pays_for_a_worse_easy_example():
    value, weights = Tilt(2.0)(LOSSES)
    softmax = np.exp(2.0 * LOSSES - np.logaddexp.reduce(2.0 * LOSSES))
    assert weights == pytest.approx(softmax)
    assert (TiltSelfnorm(2.0)(LOSSES)[1] < 0).sum() > 10
    assert value < float(softmax @ LOSSES)  # the value is the DRO objective, not the re-weighted mean


def test_defect_2_values_at_different_eta_compare_they_rise_from_the_mean_to_the_maximum():
    values = [Tilt(eta)(LOSSES)[0] for eta in (0.0, 0.1, 0.5, 2.0, 10.0, 1e4)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(LOSSES.mean())
    assert values[-1] == pytest.approx(LOSSES.max(), abs=1e-3)


@pytest.mark.parametrize("objective", [Tilt(2.0), GroupTilt(3.0)], ids=repr)
def test_defect_3_the_same_answers_twice_are_the_same_objective_so_no_batch_size_enters(objective):
    slices = np.arange(64) % 3
    once, twice = objective(LOSSES, slices), objective(np.tile(LOSSES, 2), np.tile(slices, 2))
    assert twice[0] == pytest.approx(once[0])
    assert twice[1][:64] * 2 == pytest.approx(once[1])
    halves = [objective(half, s)[0] for half, s in zip(np.split(LOSSES, 2), np.split(slices, 2), strict=True)]
    assert np.mean(halves) != pytest.approx(once[0], abs=1e-4)  # what averaging over minibatches would minimise


@pytest.mark.parametrize("name", [n for n in objectives.names() if n not in ("importance", "robust_filtered")])
def test_defect_4_every_objective_is_called_alike_with_losses_of_each_row(name):
    value, weights = objectives.find(name)(LOSSES, np.arange(64) % 3, np.full(64, 1 / 64))
    assert isinstance(value, float)
    assert weights.shape == LOSSES.shape


def test_defect_13_a_temperature_is_positive_by_construction_and_reaches_the_optimum():
    rng = np.random.default_rng(1)
    z = rng.normal(scale=4, size=20_000)
    data = FitData(z[:, None], rng.random(20_000) < sigmoid(z / 2.53))
    t = temperature.fit(data).t
    residual = float(np.mean((sigmoid(z / t) - data.y) * z))  # d NLL / d (1/T), 0 at the optimum
    assert t > 0
    assert abs(residual) < 1e-5
    assert t == pytest.approx(2.53, rel=0.03)


def test_defect_13_a_scalar_confidence_has_an_intercept_because_its_zero_means_nothing():
    """exp(lp_mean) lives in 0.8 to 1.0 for right and wrong answers alike: T alone leaves the base rate wrong."""
    rng = np.random.default_rng(2)
    share = rng.uniform(0.8, 1.0, size=4000)
    data = FitData(share[:, None], rng.random(4000) < 0.3)
    as_logit = FitData(np.log(share / (1 - share))[:, None], data.y)
    assert platt.fit(data).predict(data.X).mean() == pytest.approx(data.y.mean(), abs=1e-3)
    z = as_logit.X[:, 0]
    assert sigmoid(z / 100).mean() > 0.5 > data.y.mean()  # the softest temperature there is
