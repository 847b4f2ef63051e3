"""Scaling-binning: Platt, then its outputs replaced by their mean in equal-mass bins. Its error can be measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from calibrators import platt
from calibrators._bins import PER_BIN, bin_count, check_bins, equal_mass_edges
from calibrators.base import MIN_RARE, FitData, Floats, TooFewRows, check_keys, folds, logit, saved_floats
from calibrators.objectives import Objective
from calibrators.platt import Platt


@dataclass(frozen=True, slots=True, eq=False)
class ScalingBinning:
    """p takes B values only.  edges: (B - 1,) rising Platt logits, each in the bin above.  p: (B,) never falls."""

    kind: ClassVar[str] = "scaling_binning"
    scaling: Platt
    edges: Floats
    p: Floats

    def __post_init__(self) -> None:
        check_bins(self.edges, self.p)

    def predict(self, X: Floats) -> Floats:
        """X: (N, F) -> p (N,) in (0, 1)."""
        return self.p[self.edges.searchsorted(self.scaling.margin(X), "right")]

    def margin(self, X: Floats) -> Floats:
        """X: (N, F) -> logit p (N,), nats."""
        return logit(self.predict(X))

    def to_params(self) -> dict[str, Any]:
        return {"scaling": self.scaling.to_params(), "edges": self.edges.tolist(), "p": self.p.tolist()}


def fit(
    data: FitData,
    *,
    objective: Objective | None = None,
    bins: int | None = None,
    direction: int = 1,
    min_rare: int = MIN_RARE,
    seed: int = 0,
) -> ScalingBinning:
    """Platt on one half of the questions, bins and the means of the Platt outputs on the other.

    bins: as many as leave 100 answers of the second half in each when not given.  min_rare: in each half.
    The objective shapes the Platt step.  Kumar, Liang, Ma 2019, arXiv:1909.10155.
    Raises OneClass, TooFewRare, TooFewRows, ConstantFeature, NotConverged.
    """
    data.check_rare(2 * min_rare, ScalingBinning.kind)
    needed = 4 * PER_BIN if bins is None else 2 * bins
    if data.n < needed:
        raise TooFewRows(data.n, needed, ScalingBinning.kind)
    second = folds(data, 2, seed) == 1
    scaling = platt.fit(data.rows(~second), objective=objective, direction=direction, min_rare=1)
    held = data.rows(second)
    z, p = scaling.margin(held.X), scaling.predict(held.X)
    edges = equal_mass_edges(z, bin_count(held.n) if bins is None else bins)
    code = edges.searchsorted(z, "right")
    return ScalingBinning(scaling, edges, np.bincount(code, held.base * p) / np.bincount(code, held.base))


def from_params(params: Mapping[str, Any]) -> ScalingBinning:
    """Raises BadParams."""
    check_keys(params, {"scaling", "edges", "p"}, ScalingBinning.kind)
    return ScalingBinning(
        platt.from_params(params["scaling"]), saved_floats(params, "edges"), saved_floats(params, "p")
    )
