"""Exponential tilt of the examples: the dual of the worst case within a KL ball."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibrators.base import BadObjective, Floats, Ints
from calibrators.objectives import base_of


@dataclass(frozen=True, slots=True)
class Tilt:
    """value = (1/eta) ln E[exp(eta loss)] = sup over Q of E_Q[loss] - KL(Q | base)/eta; weights = that Q.

    eta: per nat, >= 0; 0 is the mean, infinity would be the maximum.  After Li et al. 2021, arXiv:2007.01162.
    Not a proper score: with log-loss the optimum is logit p = logit(true p) / (1 + eta), temperature scaling in
    disguise (science 3.3). Kept as the faithful reproduction; `group_tilt` is the robust default.
    """

    eta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.eta < np.inf:
            raise BadObjective(f"eta must be >= 0 and finite, got {self.eta}")

    def __call__(self, losses: Floats, _slices: Ints | None = None, base: Floats | None = None) -> tuple[float, Floats]:
        return tilted(losses, base_of(losses, base), self.eta)


def tilted(losses: Floats, base: Floats, eta: float) -> tuple[float, Floats]:
    """(value, weights) of the tilt. Finite for losses of 1e4: bare exp(eta loss) overflows past 709.

    The maximum is taken out first, and log1p(E[expm1]) keeps the value exact to rounding as eta goes to 0.
    """
    if eta == 0:
        return float(base @ losses), base
    top = float(losses[base > 0].max())
    over = np.minimum(eta * (losses - top), 0.0)
    weights = base * np.exp(over)
    return top + float(np.log1p(base @ np.expm1(over))) / eta, weights / weights.sum()
