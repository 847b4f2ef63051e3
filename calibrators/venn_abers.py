"""Venn-Abers: two isotonic fits, with the new answer taken as wrong and as right. Their distance is its own doubt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from calibrators import _score
from calibrators._linear import Linear
from calibrators.base import MIN_RARE, BadParams, BadWeights, FitData, Floats, check_keys, logit, saved_floats
from calibrators.objectives import Objective


@dataclass(frozen=True, slots=True, eq=False)
class VennAbers:
    """p = p1 / (1 - p0 + p1).

    z: (K,) rising calibration scores.  p0, p1: (K + 1,), never falling: the isotonic value at a new answer that is
    taken as wrong, looked up at the right-insertion index of its score, or as right, at the left-insertion index.
    """

    kind: ClassVar[str] = "venn_abers"
    score: Linear
    z: Floats
    p0: Floats
    p1: Floats

    def __post_init__(self) -> None:
        if self.p0.shape != (len(self.z) + 1,) or self.p1.shape != self.p0.shape or bool((np.diff(self.z) <= 0).any()):
            raise BadParams("venn_abers needs rising z, and one more of p0 and of p1 than of z")
        for p in (self.p0, self.p1):
            if bool((np.diff(p) < 0).any()) or p[0] < 0 or p[-1] > 1:
                raise BadParams("venn_abers needs p0 and p1 that never fall and lie in [0, 1]")
        if bool((self.p0 >= self.p1).any()):
            raise BadParams("venn_abers needs p0 < p1 everywhere")

    def interval(self, X: Floats) -> tuple[Floats, Floats]:
        """X: (N, F) -> (p0, p1), each (N,). One of the two is calibrated, whatever the distribution."""
        z = self.score.margin(X)
        return self.p0[self.z.searchsorted(z, "right")], self.p1[self.z.searchsorted(z, "left")]

    def width(self, X: Floats) -> Floats:
        """X: (N, F) -> p1 - p0, (N,) in (0, 1]. Wide: few calibration answers are like this one."""
        p0, p1 = self.interval(X)
        return p1 - p0

    def predict(self, X: Floats) -> Floats:
        """X: (N, F) -> p (N,) in (0, 1)."""
        p0, p1 = self.interval(X)
        return p1 / (1 - p0 + p1)

    def margin(self, X: Floats) -> Floats:
        """X: (N, F) -> logit p (N,), nats."""
        return logit(self.predict(X))

    def to_params(self) -> dict[str, Any]:
        return {
            "score": self.score.to_params(),
            "z": self.z.tolist(),
            "p0": self.p0.tolist(),
            "p1": self.p1.tolist(),
        }


def fit(
    data: FitData,
    *,
    objective: Objective | None = None,
    direction: int = 1,
    learn_score: bool = False,
    min_rare: int = MIN_RARE,
) -> VennAbers:
    """Inductive for one column, which nothing is fitted to but its standardising: the guarantee is exact.

    More columns are reduced to a learned score and calibrated on its out-of-fold values: nearly exact, and no
    answers are set aside.  Vovk, Petej, Fedorova 2015, arXiv:1511.00213.
    Raises OneClass, TooFewRare, BadWeights (a weighted sample has no such guarantee), BadObjective.
    """
    _score.only_mean(objective, VennAbers.kind)
    data.check_rare(min_rare, VennAbers.kind)
    if data.weights is not None:
        raise BadWeights("venn_abers takes no weights; use isotonic")
    score, z = _score.ranked(data, direction, learn=learn_score)
    distinct, code = np.unique(z, return_inverse=True)
    count, right = np.bincount(code).astype(np.float64), np.bincount(code, data.y).astype(np.float64)
    p1 = value_if_right(count, right)
    p0 = 1 - value_if_right(count[::-1], (count - right)[::-1])[::-1]
    p0, p1 = np.maximum.accumulate(p0), np.maximum.accumulate(p1)  # rounding may lower a plateau by one digit
    steps = np.flatnonzero((np.diff(p0) > 0) | (np.diff(p1) > 0))  # a score at which neither changes tells nothing
    kept = np.append(steps, len(distinct))
    return VennAbers(score, distinct[steps], p0[kept], p1[kept])


def value_if_right(count: Floats, right: Floats) -> Floats:
    """Isotonic value at a new answer labelled 1 that is put before score j, for j = 0..K: (K + 1,).

    count, right: (K,) answers, and right ones, at each distinct score, scores rising.
    The value is the slope, at the new answer, of the lower hull of the cumulative sums: the line from the last corner
    left of it to the flattest of the points right of it, all of which the new answer lifts by (1, 1). Moving the new
    answer on by one score adds one point on the left; only when that lies under the line is there a new corner.
    """
    x, y = np.concatenate([[0.0], np.cumsum(count)]), np.concatenate([[0.0], np.cumsum(right)])
    values = np.empty(len(x))
    corner, slope = 0, 0.0
    for j in range(len(x)):
        if j == 0 or y[j] < y[corner] + slope * (x[j] - x[corner]):
            corner = j
            slope = float(((y[j:] + 1 - y[j]) / (x[j:] + 1 - x[j])).min())
        values[j] = slope
    return values


def from_params(params: Mapping[str, Any]) -> VennAbers:
    """Raises BadParams."""
    check_keys(params, {"score", "z", "p0", "p1"}, VennAbers.kind)
    return VennAbers(_score.from_saved(params), *(saved_floats(params, key) for key in ("z", "p0", "p1")))
