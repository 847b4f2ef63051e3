"""The study of objectives on simulated tiers: every objective has its row, ERM is the measure of all others."""

import numpy as np
import pytest

from calibrators.base import FitData, Floats, sigmoid
from eval import objectives
from eval.objectives import ERM, ROUTED, TOGETHER, Setting, Tier

SETTING = Setting(tune=("harder",), unseen=("odd",), resamples=200)


def answers(n: int, shift: float, skill: float, seed: int) -> FitData:
    """A hard slice whose confidence says too much, the more of it the larger the shift."""
    rng = np.random.default_rng(seed)
    hard = rng.random(n) < 0.2 + shift
    x: Floats = rng.normal(size=n)
    y = rng.random(n) < sigmoid(skill + 1.5 * x - 1.5 * hard)
    X = np.column_stack([x, rng.normal(size=n)])
    return FitData(X, y, ("a", "b"), slices=hard.astype(int), slice_names=("easy", "hard"), groups=np.arange(n))


@pytest.fixture(scope="module")
def tiers() -> list[Tier]:
    splits = {"calibration": (400, 0.0), "test": (300, 0.0), "harder": (300, 0.4), "odd": (300, 0.6)}
    raw = [
        Tier(name, {split: answers(*told, skill, 10 * k + i) for i, (split, told) in enumerate(splits.items())})
        for k, (name, skill) in enumerate({"small": 0.3, "large": 1.5}.items())
    ]
    return objectives.look_back(raw, SETTING)


def test_later_tiers_see_earlier_logits_and_the_first_sees_none(tiers: list[Tier]) -> None:
    assert tiers[0].data["odd"].names == ("a", "b")
    assert tiers[1].data["odd"].names == ("a", "b", "logit of tier 1")


def test_every_objective_is_told_beside_erm_on_every_distribution(tiers: list[Tier]) -> None:
    fits, failed = objectives.fit_all(tiers, SETTING)
    assert not failed
    rows = objectives.measure(tiers, fits, SETTING)
    assert {row["objective"] for row in rows} == set(fits)
    assert {row["tier"] for row in rows} == {"small", "large", ROUTED}
    assert {row["distribution"] for row in rows} == {"test", "harder", "odd", TOGETHER}
    for row in rows:
        assert ("nll_less_erm" in row) == (row["objective"] != ERM)
    erm = {(row["distribution"], row["tier"]): row["nll"] for row in rows if row["objective"] == ERM}
    for row in rows:
        if row["objective"] != ERM:
            gap = row["nll_less_erm"]
            assert gap["value"] == pytest.approx(row["nll"] - erm[row["distribution"], row["tier"]], abs=1e-12)
            assert gap["low"] <= gap["value"] <= gap["high"]


def test_a_chosen_strength_serves_the_worst_tuning_shift_at_least_as_well_as_erm(tiers: list[Tier]) -> None:
    erm = objectives.plain(tiers[0].data["calibration"], ERM, SETTING)
    chosen = objectives.strongest(tiers[0], "group_tilt", (1.0, 3.0, 10.0), SETTING)
    shifted = tiers[0].data["harder"]
    assert objectives.nll_of(chosen.calibrator, shifted) <= objectives.nll_of(erm.calibrator, shifted)
    assert chosen.ess is not None
    assert chosen.ess >= 0.2
