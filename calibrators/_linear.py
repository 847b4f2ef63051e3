"""The core most families share: a logit that is linear in the columns, fitted under any objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Self

import numpy as np

from calibrators.base import (
    BadParams,
    FitData,
    Floats,
    Ints,
    Preprocess,
    check_keys,
    check_width,
    log_losses,
    saved_float,
    saved_floats,
    sigmoid,
    sigmoid_of_one,
)
from calibrators.minimise import newton
from calibrators.objectives import Objective
from calibrators.objectives.erm import Erm


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """z = slopes . preprocess(x) + intercept, nats.  slopes: (P,), one per column of `preprocess`, standardised units.

    Standardising is folded into the slopes once, so that a prediction is a clip and a dot product on the raw features.
    """

    preprocess: Preprocess
    slopes: Floats
    intercept: float
    _width: int = field(init=False, repr=False)
    _raw_slopes: Floats = field(init=False, repr=False)
    _flag_slopes: Floats = field(init=False, repr=False)
    _raw_intercept: float = field(init=False, repr=False)
    _terms: tuple[tuple[float, float, float], ...] = field(init=False, repr=False)  # low, high, slope of each feature

    def __post_init__(self) -> None:
        pre, width = self.preprocess, len(self.preprocess.names)
        if self.slopes.shape != (len(pre.columns),) or not bool(np.isfinite(self.slopes).all()):
            raise BadParams(f"need {len(pre.columns)} finite slopes, got shape {self.slopes.shape}")
        if not np.isfinite(self.intercept):
            raise BadParams(f"need a finite intercept, got {self.intercept}")
        raw = self.slopes[:width] / pre.sd
        self.slopes.setflags(write=False)
        object.__setattr__(self, "_width", width)
        object.__setattr__(self, "_raw_slopes", raw)
        object.__setattr__(self, "_flag_slopes", self.slopes[width:])
        object.__setattr__(self, "_raw_intercept", self.intercept - float(raw @ pre.mean))
        terms = zip(pre.low.tolist(), pre.high.tolist(), raw.tolist(), strict=True)
        object.__setattr__(self, "_terms", tuple(terms))

    def margin(self, X: Floats) -> Floats:
        """X: (N, F) raw features -> z (N,). Raises BadFeatures."""
        X = check_width(X, self._width)
        if not np.isfinite(X).all():
            filled, flags = self.preprocess.fill(X)
            return self._clipped(filled) + flags @ self._flag_slopes
        return self._clipped(X)

    def margin_of_one(self, X: Floats) -> float | None:
        """margin of a single row, X: (1, F), by plain arithmetic: a row of ten numbers is less than NumPy's calls take.
        Equal to within 1e-12; None for a row with a gap or infinity, which takes the way of all. Raises BadFeatures."""
        values: list[float] = check_width(X, self._width).tolist()[0]
        if not isfinite(sum(values)):  # at once for all; where only their sum is too large, nothing is lost
            return None
        z = self._raw_intercept
        for value, (low, high, slope) in zip(values, self._terms, strict=True):
            z += slope * (low if value < low else high if value > high else value)
        return z

    def _clipped(self, X: Floats) -> Floats:
        inside = np.minimum(np.maximum(X, self.preprocess.low), self.preprocess.high)
        z: Floats = inside @ self._raw_slopes + self._raw_intercept
        return z

    def scaled(self, slope: float, intercept: float) -> Linear:
        """slope * z + intercept, again linear."""
        return Linear(self.preprocess, self.slopes * slope, self.intercept * slope + intercept)

    def to_params(self) -> dict[str, Any]:
        return {
            "preprocess": self.preprocess.to_dict(),
            "slopes": self.slopes.tolist(),
            "intercept": float(self.intercept),
        }

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """Raises BadParams."""
        check_keys(params, {"preprocess", "slopes", "intercept"}, "a linear logit")
        pre = Preprocess.from_dict(params["preprocess"])
        return cls(pre, saved_floats(params, "slopes"), saved_float(params, "intercept"))


@dataclass(frozen=True, slots=True, eq=False)
class LinearCalibrator:
    """p = sigmoid(linear(x)). What platt, logistic, temperature and intercept all are once they are fitted."""

    linear: Linear

    def margin(self, X: Floats) -> Floats:
        """X: (N, F) raw features -> logit p (N,), nats."""
        return self.linear.margin(X)

    def predict(self, X: Floats) -> Floats:
        """X: (N, F) raw features -> p (N,) in (0, 1)."""
        z = self.linear.margin_of_one(X) if len(X) == 1 else None
        return sigmoid(self.linear.margin(X)) if z is None else np.array([sigmoid_of_one(z)])

    def to_params(self) -> dict[str, Any]:
        return self.linear.to_params()

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        return cls(Linear.from_params(params))


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One linear fit: minimise objective(log-losses) + sum_j ridge_j (theta_j - toward_j)^2 / (2 N).

    design: (N, P), a column of ones included where an intercept is wanted.  targets: (N,) in [0, 1].  base: (N,).
    ridge: (P,) >= 0, in pseudo-answers: the strength of C = 1/ridge in scikit-learn.  toward, lower, upper: (P,).
    """

    design: Floats
    targets: Floats
    base: Floats
    slices: Ints | None
    ridge: Floats
    toward: Floats
    lower: Floats
    upper: Floats

    def solve(self, objective: Objective | None = None, offset: Floats | float = 0.0) -> Floats:
        """theta (P,).  offset: (N,), a fixed part of the logit. Raises NotConverged."""
        risk = Erm() if objective is None else objective
        n = len(self.targets)

        def value_and_gradient(theta: Floats) -> tuple[float, Floats]:
            z = self.design @ theta + offset
            value, weights = risk(log_losses(z, self.targets), self.slices, self.base)
            gap = theta - self.toward
            residual = weights * (sigmoid(z) - self.targets)
            return value + 0.5 * float(self.ridge @ gap**2) / n, self.design.T @ residual + self.ridge * gap / n

        return newton(value_and_gradient, self.toward, lower=self.lower, upper=self.upper)


def task(
    data: FitData,
    design: Floats,
    *,
    targets: Floats | None = None,
    ridge: Floats | None = None,
    toward: Floats | None = None,
    lower: Floats | None = None,
    upper: Floats | None = None,
) -> Task:
    """A Task on these data with what is usual where nothing is given: labels as targets, no ridge, no bounds."""
    width = design.shape[1]
    return Task(
        design,
        data.y if targets is None else targets,
        data.base,
        data.slices,
        np.zeros(width) if ridge is None else ridge,
        np.zeros(width) if toward is None else toward,
        np.full(width, -np.inf) if lower is None else lower,
        np.full(width, np.inf) if upper is None else upper,
    )


def smoothed_targets(data: FitData) -> Floats:
    """Platt's targets, (N,): (N1+1)/(N1+2) for right, 1/(N0+2) for wrong. Keeps a separable fit finite. Platt 1999."""
    right = float(data.y.sum())
    return np.where(data.y == 1, (right + 1) / (right + 2), 1 / (data.n - right + 2))


def with_ones(*columns: Floats) -> Floats:
    """Columns (N,) or (N, P) side by side, and a last column of ones for the intercept."""
    return np.column_stack([*columns, np.ones(len(columns[0]))])
