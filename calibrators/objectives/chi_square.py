"""The worst case within a chi-square ball, as a comparator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibrators.base import BadObjective, Bools, Floats, Ints
from calibrators.objectives import base_of


@dataclass(frozen=True, slots=True)
class ChiSquare:
    """value = inf over t of sqrt(1 + 2 rho) sqrt(E[(loss - t)+^2]) + t; weights proportional to base (loss - t)+.

    rho: radius, >= 0; 0 is the mean. About mean + sqrt(2 rho Var) for a small ball.  Namkoong and Duchi 2017.
    """

    rho: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.rho < np.inf:
            raise BadObjective(f"rho must be >= 0 and finite, got {self.rho}")

    def __call__(self, losses: Floats, _slices: Ints | None = None, base: Floats | None = None) -> tuple[float, Floats]:
        base = base_of(losses, base)
        stretch = 1 + 2 * self.rho
        active = self._active(losses, base, stretch)
        share = float(base[active].sum())
        mean = float(base[active] @ losses[active]) / share
        spread = np.sqrt(float(base[active] @ (losses[active] - mean) ** 2) / share)
        slack = stretch * share - 1
        if spread <= 1e-14 * (1 + abs(mean)) or slack <= 0:  # equal losses, or no ball at all: the plain mean of these
            return mean, np.where(active, base, 0.0) / share
        over = np.where(active, losses - (mean - spread / np.sqrt(slack)), 0.0)
        weights = base * np.maximum(over, 0.0)
        weights /= weights.sum()
        return float(weights @ losses), weights

    def _active(self, losses: Floats, base: Floats, stretch: float) -> Bools:
        """The rows above the best t. For the m worst rows t is mean - sd / sqrt(stretch * share - 1), in closed form;

        the right m is the one whose t lies between its own least loss and the next.
        """
        level, code = np.unique(-losses, return_inverse=True)  # rising -loss: worst first, ties together
        level, share = -level, np.cumsum(np.bincount(code, base))
        offset = level - level[0]  # losses of 1e4 would cost the variance its digits
        mean = np.cumsum(np.bincount(code, base) * offset) / share
        variance = np.maximum(np.cumsum(np.bincount(code, base) * offset**2) / share - mean**2, 0.0)
        slack = stretch * share - 1
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(slack > 0, mean - np.sqrt(variance / slack), -np.inf)
        following = np.append(offset[1:], -np.inf)
        right = np.flatnonzero((slack > 0) & (t >= following))
        m = int(right[0]) if right.size else len(level) - 1
        active: Bools = code <= m
        return active
