"""A calibrator and, on top, one temperature fitted where its answers are used: the final step for every level.

Calibration on all traffic is not calibration on the traffic that reaches a level (science 3.8).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from calibrators.base import BadParams, FitData, Fitted, Floats, check_keys, find, saved_float, sigmoid
from calibrators.objectives import Objective
from calibrators.temperature import best_temperature


@dataclass(frozen=True, slots=True, eq=False)
class Tempered:
    """logit p = inner's logit / t."""

    kind: ClassVar[str] = "tempered"
    inner: Fitted
    t: float

    def __post_init__(self) -> None:
        if not 0 < self.t < np.inf:
            raise BadParams(f"need a temperature > 0, got {self.t}")

    def margin(self, X: Floats) -> Floats:
        """X: (N, F) -> logit p (N,), nats."""
        return self.inner.margin(X) / self.t

    def predict(self, X: Floats) -> Floats:
        """X: (N, F) -> p (N,) in (0, 1)."""
        return sigmoid(self.margin(X))

    def to_params(self) -> dict[str, Any]:
        return {"inner": self.inner.kind, "params": self.inner.to_params(), "t": self.t}


def fit(
    data: FitData,
    *,
    inner: Fitted,
    objective: Objective | None = None,
    min_rare: int = 10,
) -> Tempered:
    """data: the routed region, answers that `inner` was not fitted on.  Raises OneClass, TooFewRare, NotConverged."""
    data.check_rare(min_rare, Tempered.kind)
    return Tempered(inner, best_temperature(inner.margin(data.X), data, objective))


def from_params(params: Mapping[str, Any]) -> Tempered:
    """Raises BadParams, UnknownFamily."""
    check_keys(params, {"inner", "params", "t"}, Tempered.kind)
    return Tempered(find(params["inner"]).from_params(params["params"]), saved_float(params, "t"))
