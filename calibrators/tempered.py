"""A calibrator and, on top, one temperature fitted where its answers are used: the final step for every level.

Calibration on all traffic is not calibration on the traffic that reaches a level (science 3.8). A shift beside it is
what labels of served answers ask for later, of a family whose own parameters cannot take it up.
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
    """logit p = inner's logit / t + shift, nats."""

    kind: ClassVar[str] = "tempered"
    inner: Fitted
    t: float
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.t < np.inf:
            raise BadParams(f"need a temperature > 0, got {self.t}")
        if not np.isfinite(self.shift):
            raise BadParams(f"need a finite shift, got {self.shift}")

    def margin(self, X: Floats) -> Floats:
        """X: (N, F) -> logit p (N,), nats."""
        return self.inner.margin(X) / self.t + self.shift

    def predict(self, X: Floats) -> Floats:
        """X: (N, F) -> p (N,) in (0, 1)."""
        return sigmoid(self.margin(X))

    def to_params(self) -> dict[str, Any]:
        told = {"inner": self.inner.kind, "params": self.inner.to_params(), "t": self.t}
        return told | ({"shift": self.shift} if self.shift else {})


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
    shifted = isinstance(params, Mapping) and "shift" in params
    check_keys(params, {"inner", "params", "t", *(["shift"] if shifted else [])}, Tempered.kind)
    shift = saved_float(params, "shift") if shifted else 0.0
    return Tempered(find(params["inner"]).from_params(params["params"]), saved_float(params, "t"), shift)
