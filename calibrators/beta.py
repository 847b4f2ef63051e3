"""Beta calibration: logit p = a ln s - b ln(1 - s) + c with a, b >= 0: a different slope at each end of the scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from calibrators import _score
from calibrators._linear import Linear, task, with_ones
from calibrators.base import MIN_RARE, BadParams, FitData, Floats, check_keys, saved_float, sigmoid
from calibrators.objectives import Objective


@dataclass(frozen=True, slots=True, eq=False)
class Beta:
    """With z = logit s: logit p = -a softplus(-z) + b softplus(z) + c.  (1, 1, 0) changes nothing."""

    kind: ClassVar[str] = "beta"
    score: Linear
    a: float
    b: float
    c: float

    def __post_init__(self) -> None:
        if not (self.a >= 0 and self.b >= 0):
            raise BadParams(f"need a >= 0 and b >= 0, got {self.a} and {self.b}")

    def margin(self, X: Floats) -> Floats:
        """X: (N, F) -> logit p (N,), nats."""
        z = self.score.margin(X)
        below = np.logaddexp(0.0, -z)  # softplus(z) = z + softplus(-z)
        return (self.b - self.a) * below + self.b * z + self.c

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
) -> Beta:
    """One column is read as logit s; more are first reduced to a learned score (`_score`).

    ridge: in pseudo-answers, toward a = b = 1; it keeps a separable fit finite.  Weights and objectives count, unlike
    in the public package.  Kull, Silva Filho, Flach 2017.  Raises OneClass, TooFewRare, NotConverged.
    """
    data.check_rare(min_rare, Beta.kind)
    score, z = _score.as_logit(data, learn=learn_score)
    a, b, c = task(
        data,
        with_ones(-np.logaddexp(0.0, -z), np.logaddexp(0.0, z)),
        ridge=np.array([ridge, ridge, 0.0]),
        toward=np.array([1.0, 1.0, 0.0]),
        lower=np.array([0.0, 0.0, -np.inf]),
    ).solve(objective)
    return Beta(score, float(a), float(b), float(c))


def from_params(params: Mapping[str, Any]) -> Beta:
    """Raises BadParams."""
    check_keys(params, {"score", "a", "b", "c"}, Beta.kind)
    return Beta(_score.from_saved(params), *(saved_float(params, key) for key in "abc"))
