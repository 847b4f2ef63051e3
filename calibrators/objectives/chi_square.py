"""The worst case within a chi-square ball, as a comparator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibrators.base import BadObjective, Floats, Ints
from calibrators.objectives import base_of


@dataclass(frozen=True, slots=True)
class ChiSquare:
    """value = sup of w . loss over weights with E[(w/base)^2] <= 1 + 2 rho, its corner rounded.

    The same as inf over t of sqrt(1 + 2 rho) sqrt(E[(loss - t)+^2]) + t; the weights are base (loss - t)+, scaled.
    rho: radius, >= 0; 0 is the mean. About mean + sqrt(2 rho Var) for a small ball.  Namkoong and Duchi 2017.
    sharpness: per nat. The supremum pays (E[(w/base)^2] - 1) / (2 sharpness), at most rho / sharpness, because it has
    no gradient where all losses are equal, and on log-loss a large ball's solution is just there: "always 0.5".
    """

    rho: float = 0.5
    sharpness: float = 1000.0

    def __post_init__(self) -> None:
        if not (0 <= self.rho < np.inf and 0 < self.sharpness < np.inf):
            raise BadObjective(f"need rho >= 0 and sharpness > 0, got {self.rho} and {self.sharpness}")

    def __call__(self, losses: Floats, _slices: Ints | None = None, base: Floats | None = None) -> tuple[float, Floats]:
        base = base_of(losses, base)
        if self.rho == 0:
            return float(base @ losses), base
        level, code = np.unique(-losses, return_inverse=True)  # worst first, ties together
        weights = self._priced(losses, base, -level, code)
        if float(weights @ _ratio(weights, base)) > 1 + 2 * self.rho:  # outside the ball: its surface is what binds
            weights = self._on_the_surface(losses, base, -level, code)
        price = (float(weights @ _ratio(weights, base)) - 1) / (2 * self.sharpness)
        return float(weights @ losses) - price, weights

    def _priced(self, losses: Floats, base: Floats, level: Floats, code: Ints) -> Floats:
        """Without a ball: weights base (loss - t)+ sharpness, with the t that makes them sum to 1."""
        share, offset = np.cumsum(np.bincount(code, base)), level - level[0]  # losses of 1e4 would cost digits
        with np.errstate(divide="ignore"):
            t = (np.cumsum(np.bincount(code, base) * offset) - 1 / self.sharpness) / share
        return _weights_above(losses, base, level[0] + t[_first_above_next(t, offset)])

    def _on_the_surface(self, losses: Floats, base: Floats, level: Floats, code: Ints) -> Floats:
        """For the m worst rows t is mean - sd / sqrt((1 + 2 rho) share - 1), in closed form."""
        share, offset = np.cumsum(np.bincount(code, base)), level - level[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.cumsum(np.bincount(code, base) * offset) / share
            variance = np.maximum(np.cumsum(np.bincount(code, base) * offset**2) / share - mean**2, 0.0)
            slack = (1 + 2 * self.rho) * share - 1
            t = np.where(slack > 0, mean - np.sqrt(variance / slack), -np.inf)
        return _weights_above(losses, base, level[0] + t[_first_above_next(t, offset)])


def _first_above_next(t: Floats, offset: Floats) -> int:
    """How many of the worst levels count: the first whose t does not reach down to the next level."""
    above = np.flatnonzero(t >= np.append(offset[1:], -np.inf))
    return int(above[0]) if above.size else len(t) - 1


def _weights_above(losses: Floats, base: Floats, t: float) -> Floats:
    weights = base * np.maximum(losses - t, 0.0)
    total = float(weights.sum())
    worst = base * (losses == losses.max())  # t within rounding of the maximum: all the weight is there
    return weights / total if total > 0 else worst / worst.sum()


def _ratio(weights: Floats, base: Floats) -> Floats:
    return np.divide(weights, base, out=np.zeros_like(base), where=base > 0)
