"""Uniform-mass histogram: the share that was right in each of B bins of equal size. For audits and guarantees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from calibrators import _score
from calibrators._bins import PER_BIN, bin_count, check_bins, equal_mass_edges
from calibrators._linear import Linear
from calibrators.base import MIN_RARE, BadParams, FitData, Floats, TooFewRows, check_keys, logit, saved_floats
from calibrators.objectives import Objective


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """p is constant in each bin of the score. Not monotone by construction.

    edges: (B - 1,) rising scores; a score on an edge belongs to the bin above.  p: (B,).  count: (B,) answers.
    """

    kind: ClassVar[str] = "histogram"
    score: Linear
    edges: Floats
    p: Floats
    count: Floats

    def __post_init__(self) -> None:
        check_bins(self.edges, self.p)
        if self.count.shape != self.p.shape or bool((self.count < 1).any()):
            raise BadParams("need a count of at least 1 for each bin")

    def predict(self, X: Floats) -> Floats:
        """X: (N, F) -> p (N,) in (0, 1)."""
        return self.p[self.edges.searchsorted(self.score.margin(X), "right")]

    def margin(self, X: Floats) -> Floats:
        """X: (N, F) -> logit p (N,), nats."""
        return logit(self.predict(X))

    def radius(self, delta: float = 0.05) -> Floats:
        """(B,): with probability 1 - delta every bin's true share is within its radius of p (Hoeffding, union bound).

        Holds for equally weighted, independent answers and a score that did not see their labels.
        """
        radius: Floats = np.sqrt(np.log(2 * len(self.p) / delta) / (2 * self.count))
        return radius

    def to_params(self) -> dict[str, Any]:
        return {
            "score": self.score.to_params(),
            "edges": self.edges.tolist(),
            "p": self.p.tolist(),
            "count": self.count.tolist(),
        }


def fit(
    data: FitData,
    *,
    objective: Objective | None = None,
    bins: int | None = None,
    direction: int = 1,
    learn_score: bool = False,
    min_rare: int = MIN_RARE,
) -> Histogram:
    """bins: as many as leave 100 answers in each (2 to 15) when not given; equal scores stay in one bin.

    p is kept inside [1/(n_b+2), 1 - 1/(n_b+2)].  One column is standardised; more are reduced to a learned score.
    Raises OneClass, TooFewRare, TooFewRows, and BadObjective for anything but the mean.
    """
    _score.only_mean(objective, Histogram.kind)
    data.check_rare(min_rare, Histogram.kind)
    needed = 2 * PER_BIN if bins is None else bins
    if data.n < needed:
        raise TooFewRows(data.n, needed, Histogram.kind)
    score, z = _score.ranked(data, direction, learn=learn_score)
    edges = equal_mass_edges(z, bin_count(data.n) if bins is None else bins)
    code = edges.searchsorted(z, "right")
    count = np.bincount(code).astype(np.float64)
    share_right = np.bincount(code, data.base * data.y) / np.bincount(code, data.base)
    return Histogram(score, edges, np.clip(share_right, 1 / (count + 2), 1 - 1 / (count + 2)), count)


def from_params(params: Mapping[str, Any]) -> Histogram:
    """Raises BadParams."""
    check_keys(params, {"score", "edges", "p", "count"}, Histogram.kind)
    return Histogram(_score.from_saved(params), *(saved_floats(params, key) for key in ("edges", "p", "count")))
