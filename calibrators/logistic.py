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
    varying,
)
from calibrators.minimise import newton
from calibrators.objectives import Objective

SCALE_RIDGE = 1.0  # one pseudo-answer that says "this model's slopes are as steep as the others'"
PULL = 10.0  # pseudo-answers that say "this model's slopes are its share of the pooled ones"


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
    others: Sequence[FitData] = (),
    min_rare: int = MIN_RARE,
) -> Logistic:
    """Fit by Newton to convergence.

    ridge: >= 0, in pseudo-answers (scikit-learn's C is 1/ridge); it pulls slopes, never the intercept.
    signs: one of +1, 0, -1 per feature: the slope may not go below 0, is free, may not go above 0.
    others: other models' answers, to share strength with (science 2.2). First one slope vector for all, times a scale
    per model, plus an intercept per model, on all answers together and by ERM; then this model alone, the ridge pulling
    by PULL toward its share of those slopes instead of toward 0. A feature that one of them lacks is not shared.
    Raises OneClass, TooFewRare, ConstantFeature, NotConverged (as for separable data with ridge = 0), and BadFeatures
    when there is nothing to share.
    """
    data.check_rare(min_rare, Logistic.kind)
    pre = Preprocess.fit(data)
    columns = pre.apply(data.X)
    if not others:
        theta = solve(data, columns, objective=objective, ridge=ridge, signs=signs)
    else:
        toward = np.zeros(columns.shape[1])
        shared, slopes = _shared_slopes([data, *others], ridge)
        toward[shared] = slopes
        theta = solve(data, columns, objective=objective, ridge=PULL, signs=signs, toward=toward)
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


def from_params(params: Mapping[str, Any]) -> Logistic:
    """Raises BadParams."""
    return Logistic.from_params(params)


def _shared_slopes(models: Sequence[FitData], ridge: float) -> tuple[list[int], Floats]:
    """(numbers of the first model's features that all have and that vary in all, its share of the pooled slopes)."""
    told = [{model.names[j]: model.missing[j] for j in varying(model.X)} for model in models]
    names = [name for name, policy in told[0].items() if all(one.get(name) is policy for one in told)]
    if not names:
        raise BadFeatures("pooling needs a feature that all models have, with the same policy for missing values")
    few = [model.columns([model.names.index(name) for name in names]) for model in models]
    columns = [Preprocess.fit(model).apply(model.X)[:, : len(names)] for model in few]  # without indicators
    return [models[0].names.index(name) for name in names], _pooled_slopes(few, columns, ridge)[0]


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
