"""Intercept only: logit p = z + b. The right first answer to a changed base rate, or to a handful of fresh labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from calibrators import _score
from calibrators._linear import LinearCalibrator, task
from calibrators.base import FitData
from calibrators.objectives import Objective


@dataclass(frozen=True, slots=True, eq=False)
class Intercept(LinearCalibrator):
    """A fitted shift."""

    kind: ClassVar[str] = "intercept"


def fit(
    data: FitData,
    *,
    objective: Objective | None = None,
    ridge: float = 0.0,
    learn_score: bool = False,
    min_rare: int = 1,
) -> Intercept:
    """One column is read as a logit (an earlier calibrator's); more are first reduced to a learned score (`_score`).

    ridge: in pseudo-answers, toward no shift.  Raises OneClass, TooFewRare, NotConverged.
    """
    data.check_rare(min_rare, Intercept.kind)
    score, z = _score.as_logit(data, learn=learn_score)
    (shift,) = task(data, np.ones((data.n, 1)), ridge=np.array([ridge])).solve(objective, offset=z)
    return Intercept(score.scaled(1.0, float(shift)))


def from_params(params: Mapping[str, Any]) -> Intercept:
    """Raises BadParams."""
    return Intercept.from_params(params)
