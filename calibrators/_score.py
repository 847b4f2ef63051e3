"""From any number of features to the one logit that the scalar families (temperature, isotonic, ...) calibrate.

More than one column: a ridge-logistic score is learned first, by ERM, and the family is then fitted on the score's
out-of-fold logits, so that it never sees a score that has seen the same answer. Prediction uses the score fitted on
all rows. The objective shapes the family's map, not the score.
One column: taken as it is, unless the caller asks for a learned score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from calibrators._linear import Linear
from calibrators.base import BadObjective, BadParams, FitData, Floats, Preprocess, folds
from calibrators.logistic import solve
from calibrators.objectives import Objective
from calibrators.objectives.erm import Erm


def standardised(data: FitData, direction: int = 1, *, learn: bool = False) -> tuple[Linear, Floats]:
    """A score and the fit rows' values of it, (N,). One column: winsorised and standardised, times direction.

    direction: +1 when higher is surer (every raw signal of ours), -1 when lower is.
    """
    if direction not in (-1, 1):
        raise BadParams(f"direction must be 1 (higher is surer) or -1, got {direction}")
    pre = Preprocess.fit(data)
    if learn or len(pre.columns) > 1:
        return _learned(data, pre)
    score = Linear(pre, np.array([float(direction)]), 0.0)
    return score, score.margin(data.X)


def ranked(data: FitData, direction: int = 1, *, learn: bool = False) -> tuple[Linear, Floats]:
    """The same for families that look at ranks: one column is not winsorised, which would tie its outermost answers."""
    score, z = standardised(data, direction, learn=learn)
    if learn or len(score.preprocess.columns) > 1:
        return score, z
    score = Linear(score.preprocess.unwinsorised(), score.slopes, 0.0)
    return score, score.margin(data.X)


def as_logit(data: FitData, *, learn: bool = False) -> tuple[Linear, Floats]:
    """The same, but one column is read as a logit already: 0 means 50/50."""
    if learn or data.X.shape[1] > 1:
        return _learned(data, Preprocess.fit(data))
    score = Linear(Preprocess.identity(data.names[0]), np.ones(1), 0.0)
    return score, score.margin(data.X)


def only_mean(objective: Objective | None, kind: str) -> None:
    """Raises BadObjective when a family that counts answers is asked to minimise anything but their mean loss."""
    if objective is not None and not isinstance(objective, Erm):
        raise BadObjective(f"{kind} is fitted by counting and takes no objective but erm; weights in FitData do count")


def from_saved(params: Mapping[str, Any]) -> Linear:
    """The score saved under "score". Raises BadParams."""
    return Linear.from_params(params["score"])


def _learned(data: FitData, pre: Preprocess) -> tuple[Linear, Floats]:
    columns, fold = pre.apply(data.X), folds(data)
    held_out = np.empty(data.n)
    for k in range(int(fold.max()) + 1):
        inside = fold != k
        theta = solve(data.rows(inside), columns[inside])
        held_out[~inside] = columns[~inside] @ theta[:-1] + theta[-1]
    theta = solve(data, columns)
    return Linear(pre, theta[:-1], float(theta[-1])), held_out
