"""Platt scaling: logit p = slope * score + intercept, slope >= 0. The default for one feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from calibrators import _score
from calibrators._linear import LinearCalibrator, smoothed_targets, task, with_ones
from calibrators.base import MIN_RARE, FitData
from calibrators.objectives import Objective


@dataclass(frozen=True, slots=True, eq=False)
class Platt(LinearCalibrator):
    """A fitted Platt calibrator."""

    kind: ClassVar[str] = "platt"


def fit(
    data: FitData,
    *,
    objective: Objective | None = None,
    ridge: float = 0.0,
    direction: int = 1,
    learn_score: bool = False,
    min_rare: int = MIN_RARE,
) -> Platt:
    """Fit slope and intercept on smoothed targets, under any objective. After Platt 1999.

    One column is standardised and, when direction is -1, turned around; more are first reduced to a learned score
    (`_score`).  ridge: on the slope, in pseudo-answers.  A slope of 0 (p is the base rate for everyone) is what a
    feature gets that ranks the wrong way round.  Raises OneClass, TooFewRare, ConstantFeature, NotConverged.
    """
    data.check_rare(min_rare, Platt.kind)
    score, z = _score.standardised(data, direction, learn=learn_score)
    slope, intercept = task(
        data,
        with_ones(z),
        targets=smoothed_targets(data),
        ridge=np.array([ridge, 0.0]),
        lower=np.array([0.0, -np.inf]),
    ).solve(objective)
    return Platt(score.scaled(float(slope), float(intercept)))


def from_params(params: Mapping[str, Any]) -> Platt:
    """Raises BadParams."""
    return Platt.from_params(params)
