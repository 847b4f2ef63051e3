"""Isotonic regression: any rising curve. For a thousand answers and more; its plateaus are ties in the ranking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from calibrators import _score
from calibrators._linear import Linear
from calibrators.base import MIN_RARE, BadParams, FitData, Floats, TooFewRows, check_keys, logit, saved_floats
from calibrators.objectives import Objective

MIN_ROWS = 1000  # below, it overfits: scikit-learn's own documentation, and science 2.2


@dataclass(frozen=True, slots=True, eq=False)
class Isotonic:
    """A rising curve through knots, straight between them and flat outside.

    z: (K,) rising scores.  p: (K,), never falling, inside (0, 1).
    """

    kind: ClassVar[str] = "isotonic"
    score: Linear
    z: Floats
    p: Floats

    def __post_init__(self) -> None:
        if self.z.shape != self.p.shape or self.z.size == 0 or bool((np.diff(self.z) <= 0).any()):
            raise BadParams("isotonic needs as many p as z, at least one, with z rising")
        if bool((np.diff(self.p) < 0).any()) or self.p[0] <= 0 or self.p[-1] >= 1:
            raise BadParams("isotonic needs p that never falls and lies inside (0, 1)")

    def predict(self, X: Floats) -> Floats:
        """X: (N, F) -> p (N,) in (0, 1)."""
        return np.interp(self.score.margin(X), self.z, self.p)

    def margin(self, X: Floats) -> Floats:
        """X: (N, F) -> logit p (N,), nats."""
        return logit(self.predict(X))

    def to_params(self) -> dict[str, Any]:
        return {"score": self.score.to_params(), "z": self.z.tolist(), "p": self.p.tolist()}


def fit(
    data: FitData,
    *,
    objective: Objective | None = None,
    direction: int = 1,
    learn_score: bool = False,
    min_rare: int = MIN_RARE,
    min_rows: int = MIN_ROWS,
) -> Isotonic:
    """Pool adjacent violators, by scikit-learn.

    p is kept inside [1/(n+2), 1 - 1/(n+2)], for no finite sample shows 0 or 1.
    One column is standardised; more are first reduced to a learned score (`_score`).
    Raises OneClass, TooFewRare, TooFewRows, and BadObjective for anything but the mean.
    """
    from sklearn.isotonic import IsotonicRegression  # a serving gateway has no scikit-learn

    _score.only_mean(objective, Isotonic.kind)
    data.check_rare(min_rare, Isotonic.kind)
    if data.n < min_rows:
        raise TooFewRows(data.n, min_rows, Isotonic.kind)
    score, z = _score.ranked(data, direction, learn=learn_score)
    curve = IsotonicRegression().fit(z, data.y, sample_weight=data.weights)
    edge = 1 / (data.n + 2)
    knots = np.asarray(curve.X_thresholds_, dtype=np.float64), np.clip(curve.y_thresholds_, edge, 1 - edge)
    return Isotonic(score, *knots)


def from_params(params: Mapping[str, Any]) -> Isotonic:
    """Raises BadParams."""
    check_keys(params, {"score", "z", "p"}, Isotonic.kind)
    return Isotonic(_score.from_saved(params), saved_floats(params, "z"), saved_floats(params, "p"))
