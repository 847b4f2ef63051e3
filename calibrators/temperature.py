"""Temperature: logit p = z / T, T = e^tau > 0. A last correction of something that is nearly calibrated already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from calibrators import _score
from calibrators._linear import Linear
from calibrators.base import BadParams, FitData, Floats, check_keys, log_losses, saved_float, sigmoid
from calibrators.minimise import brent
from calibrators.objectives import Objective
from calibrators.objectives.erm import Erm

T_RANGE = (0.01, 100.0)  # beyond, z ranks wrongly or separates the classes: no temperature is right


@dataclass(frozen=True, slots=True, eq=False)
class Temperature:
    """logit p = score / t.  t: > 0; above 1 softens."""

    kind: ClassVar[str] = "temperature"
    score: Linear
    t: float

    def __post_init__(self) -> None:
        if not 0 < self.t < np.inf:
            raise BadParams(f"need a temperature > 0, got {self.t}")

    def margin(self, X: Floats) -> Floats:
        """X: (N, F) -> logit p (N,), nats."""
        return self.score.margin(X) / self.t

    def predict(self, X: Floats) -> Floats:
        """X: (N, F) -> p (N,) in (0, 1)."""
        return sigmoid(self.margin(X))

    def to_params(self) -> dict[str, Any]:
        return {"score": self.score.to_params(), "t": self.t}


def fit(
    data: FitData,
    *,
    objective: Objective | None = None,
    learn_score: bool = False,
    min_rare: int = 10,
) -> Temperature:
    """One column is read as a logit, whose 0 means 50/50; more are first reduced to a learned score (`_score`).

    A raw signal is not a logit: T alone cannot move its base rate; use Platt (science 2.1).
    Raises OneClass, TooFewRare, and NotConverged when no temperature inside T_RANGE is best.
    """
    data.check_rare(min_rare, Temperature.kind)
    score, z = _score.as_logit(data, learn=learn_score)
    return Temperature(score, best_temperature(z, data, objective))


def best_temperature(z: Floats, data: FitData, objective: Objective | None = None) -> float:
    """The T that minimises the objective of the log-losses of z / T.  z: (N,) logits of the rows of `data`.

    The log-loss is convex in 1/T, so it has one valley in ln T, and Brent's method finds it to 8 digits.
    """
    risk = Erm() if objective is None else objective
    low, high = np.log(T_RANGE)

    def value(tau: float) -> float:
        return risk(log_losses(z * np.exp(-tau), data.y), data.slices, data.base)[0]

    return float(np.exp(brent(value, low, high)))


def from_params(params: Mapping[str, Any]) -> Temperature:
    """Raises BadParams."""
    check_keys(params, {"score", "t"}, Temperature.kind)
    return Temperature(_score.from_saved(params), saved_float(params, "t"))
