"""Quadratic: logit p = a z^2 + b z + c. Bends where Platt cannot, and may turn back: not monotone by construction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from calibrators import _score
from calibrators._linear import Linear, smoothed_targets, task, with_ones
from calibrators.base import MIN_RARE, FitData, Floats, check_keys, saved_float, sigmoid
from calibrators.objectives import Objective


@dataclass(frozen=True, slots=True, eq=False)
class Quadratic:
    """z: the score; logit p = (a z + b) z + c."""

    kind: ClassVar[str] = "quadratic"
    score: Linear
    a: float
    b: float
    c: float

    def margin(self, X: Floats) -> Floats:
        """X: (N, F) -> logit p (N,), nats."""
        z = self.score.margin(X)
        return (self.a * z + self.b) * z + self.c

    def predict(self, X: Floats) -> Floats:
        """X: (N, F) -> p (N,) in (0, 1)."""
        return sigmoid(self.margin(X))

    def to_params(self) -> dict[str, Any]:
        return {"score": self.score.to_params(), "a": self.a, "b": self.b, "c": self.c}


def fit(
    data: FitData,
    *,
    objective: Objective | None = None,
    ridge: float = 0.1,
    learn_score: bool = False,
    min_rare: int = MIN_RARE,
) -> Quadratic:
    """Fit on Platt's smoothed targets. One column is standardised; more are reduced to a learned score (`_score`).

    ridge: on a and b, in pseudo-answers.  Raises OneClass, TooFewRare, ConstantFeature, NotConverged.
    """
    data.check_rare(min_rare, Quadratic.kind)
    score, z = _score.standardised(data, learn=learn_score)
    a, b, c = task(data, with_ones(z**2, z), targets=smoothed_targets(data), ridge=np.array([ridge, ridge, 0.0])).solve(
        objective
    )
    return Quadratic(score, float(a), float(b), float(c))


def from_params(params: Mapping[str, Any]) -> Quadratic:
    """Raises BadParams."""
    check_keys(params, {"score", "a", "b", "c"}, Quadratic.kind)
    return Quadratic(_score.from_saved(params), *(saved_float(params, key) for key in "abc"))
