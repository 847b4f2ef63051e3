"""Importance weighting: fit for a target whose features are known but whose labels are not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibrators import logistic
from calibrators.base import BadFeatures, BadObjective, FitData, Floats, Ints
from calibrators.objectives import base_of

CLIP = 10.0  # science 3.6: one odd answer may count for ten, not for a thousand


@dataclass(frozen=True, slots=True, eq=False)
class Importance:
    """value = mean loss under weights proportional to base * ratio.

    ratios: (N,) >= 0, how much likelier each fit row is in the target than in the fit data; see `domain_ratios`.
    Bound to its rows: families that fit on folds refuse it by the number of losses; give those FitData.weights instead.
    """

    ratios: Floats

    def __post_init__(self) -> None:
        ratios = np.array(self.ratios, dtype=np.float64)
        if ratios.ndim != 1 or not bool(np.isfinite(ratios).all()) or bool((ratios < 0).any()) or not ratios.any():
            raise BadObjective("importance needs finite ratios >= 0, not all 0, one per row")
        ratios.setflags(write=False)
        object.__setattr__(self, "ratios", ratios)

    def __call__(self, losses: Floats, _slices: Ints | None = None, base: Floats | None = None) -> tuple[float, Floats]:
        base = base_of(losses, base)
        if self.ratios.shape != losses.shape:
            raise BadObjective(f"{losses.size} losses but importance ratios for {self.ratios.size} rows")
        weights = base * self.ratios / float(base @ self.ratios)
        return float(weights @ losses), weights


def domain_ratios(data: FitData, target: Floats, *, ridge: float = 1.0, clip: float = CLIP) -> Floats:
    """p(target | x) / p(fit | x), corrected for their sizes, clipped, per fit row (N,).

    target: (M, F), unlabelled features of the target, in the columns of `data`. A ridge-logistic classifier tells the
    two apart; the ratios are right as far as it can.  Sugiyama et al. 2012.
    """
    target = np.asarray(target, dtype=np.float64)
    if target.ndim != 2 or target.shape[1] != data.X.shape[1]:
        raise BadFeatures(f"need target features of shape (M, {data.X.shape[1]}), got {target.shape}")
    domain = np.repeat([0.0, 1.0], [data.n, len(target)])
    both = FitData(np.vstack([data.X, target]), domain, data.names, missing=data.missing)
    odds = np.exp(logistic.fit(both, ridge=ridge).margin(data.X))
    return np.minimum(odds * data.n / len(target), clip)
