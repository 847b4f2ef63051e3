"""Logistic regression on the features: the default for more than one feature.

logit p = slopes . standardised features + intercept, with ridge, optional signs, and slopes shared across tiers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from calibrators._linear import Linear, LinearCalibrator, task, with_ones
from calibrators.base import (
    MIN_RARE,
    BadFeatures,
    BadObjective,
    FitData,
    Floats,
    Preprocess,
    log_losses,
    sigmoid,
)
from calibrators.minimise import newton
from calibrators.objectives import Objective

SCALE_RIDGE = 1.0  # one pseudo-answer that says "this model's slopes are as steep as the others'"


@dataclass(frozen=True, slots=True, eq=False)
class Logistic(LinearCalibrator):
    """A fitted logistic calibrator. linear.slopes are in nats per standard deviation of each feature."""

    kind: ClassVar[str] = "logistic"


def fit(
    data: FitData,
    *,
    objective: Objective | None = None,
    ridge: float = 1.0,
    signs: Sequence[int] | None = None,
    toward: Floats | None = None,
    min_rare: int = MIN_RARE,
) -> Logistic:
    """Fit by Newton to convergence.

    ridge: >= 0, in pseudo-answers (scikit-learn's C is 1/ridge); it pulls slopes, never the intercept.
    signs: one of +1, 0, -1 per feature: the slope may not go below 0, is free, may not go above 0.
    toward: (P,) slopes the ridge pulls to, 0 when not given; see `fit_pooled`.
    Raises OneClass, TooFewRare, ConstantFeature, NotConverged (as for separable data with ridge = 0).
    """
    data.check_rare(min_rare, Logistic.kind)
    pre = Preprocess.fit(data)
    theta = solve(data, pre.apply(data.X), objective=objective, ridge=ridge, signs=signs, toward=toward)
    return Logistic(Linear(pre, theta[:-1], float(theta[-1])))


def solve(
    data: FitData,
    columns: Floats,
    *,
    objective: Objective | None = None,
    ridge: float = 1.0,
    signs: Sequence[int] | None = None,
    toward: Floats | None = None,
) -> Floats:
    """Slopes and intercept, (P + 1,), for columns that are preprocessed already, (N, P)."""
    width = columns.shape[1]
    if ridge < 0:
        raise BadObjective(f"ridge must be >= 0, got {ridge}")
    lower, upper = _bounds(signs, data.X.shape[1], width)
    centre = np.zeros(width) if toward is None else toward
    return task(
        data,
        with_ones(columns),
        ridge=np.append(np.full(width, ridge), 0.0),
        toward=np.append(centre, 0.0),
        lower=lower,
        upper=upper,
    ).solve(objective)


def fit_pooled(
    models: Sequence[FitData],
    *,
    objective: Objective | None = None,
    ridge: float = 1.0,
    pull: float = 10.0,
    min_rare: int = MIN_RARE,
) -> list[Logistic]:
    """One calibrator per model, sharing strength: all models' features must have the same names (science 2.2).

    First one slope vector for all, times a scale per model, plus an intercept per model, on all answers together.
    Then each model alone, its ridge pulling toward its scaled share of the pooled slopes instead of toward 0.
    pull: that ridge, in pseudo-answers.  objective: of the second step; the first is ERM over all answers.
    """
    if not models or any(m.names != models[0].names or m.missing != models[0].missing for m in models):
        raise BadFeatures("pooling needs at least one model, all with the same features and missing-value policies")
    for model in models:
        model.check_rare(min_rare, "pooled logistic")
    columns = [Preprocess.fit(model).apply(model.X) for model in models]
    pooled = _pooled_slopes(models, columns, ridge)
    return [
        fit(model, objective=objective, ridge=pull, toward=slopes, min_rare=min_rare)
        for model, slopes in zip(models, pooled, strict=True)
    ]


def from_params(params: Mapping[str, Any]) -> Logistic:
    """Raises BadParams."""
    return Logistic.from_params(params)


def _pooled_slopes(models: Sequence[FitData], columns: Sequence[Floats], ridge: float) -> list[Floats]:
    """Each model's e^scale * slopes, (P,). The ridge on the log scales fixes what scale and slopes share."""
    width, count = columns[0].shape[1], len(models)
    n = sum(model.n for model in models)

    def value_and_gradient(theta: Floats) -> tuple[float, Floats]:
        slopes, intercepts, log_scales = np.split(theta, [width, width + count])
        value = 0.5 * (ridge * float(slopes @ slopes) + SCALE_RIDGE * float(log_scales @ log_scales)) / n
        gradient = np.concatenate([ridge * slopes, np.zeros(count), SCALE_RIDGE * log_scales]) / n
        for k, (model, x) in enumerate(zip(models, columns, strict=True)):
            scale, score = np.exp(log_scales[k]), x @ slopes
            z = scale * score + intercepts[k]
            value += model.n / n * float(model.base @ log_losses(z, model.y))
            residual = model.n / n * model.base * (sigmoid(z) - model.y)
            gradient[:width] += scale * (residual @ x)
            gradient[width + k] += residual.sum()
            gradient[width + count + k] += scale * float(residual @ score)
        return value, gradient

    theta = newton(value_and_gradient, np.zeros(width + 2 * count))
    return [np.exp(log_scale) * theta[:width] for log_scale in theta[width + count :]]


def _bounds(signs: Sequence[int] | None, features: int, width: int) -> tuple[Floats, Floats]:
    """Lower and upper bounds, (P + 1,): missing-value indicators and the intercept are free."""
    lower, upper = np.full(width + 1, -np.inf), np.full(width + 1, np.inf)
    if signs is not None:
        given = np.asarray(signs)
        if given.shape != (features,) or not set(given.tolist()) <= {-1, 0, 1}:
            raise BadFeatures(f"need one sign of -1, 0 or 1 for each of {features} features, got {list(signs)}")
        lower[:features][given > 0] = 0.0
        upper[:features][given < 0] = 0.0
    return lower, upper
