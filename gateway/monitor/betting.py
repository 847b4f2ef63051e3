"""Tests that may be looked at after every label: wealth that can only grow where the null hypothesis is wrong.

Every test here is one bet: a payoff whose expectation, given the past, is at most 0 under the null. Wealth starts at 1,
and by Ville's inequality it ever reaches 1 / alpha with probability at most alpha. Bets are approximate GRAPA on a
forgetting mean and variance (Waudby-Smith and Ramdas 2024, arXiv:2010.09686). So that a change after a long quiet time
is found too, wealth is a mixture over when to begin: a further start every `EVERY` labels, the k-th with the weight
1 / (k (k + 1)), which sum to 1 (after Shin, Ramdas and Rinaldo 2024, arXiv:2203.03532; theirs counts run lengths).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.nouns import Floats

CAUTION = 0.5  # the share of its wealth that a bet risks at most; science 7.2
MEMORY = 500.0  # labels that the running mean and variance look back; the rolling window of science 7.2
EVERY = 250  # labels between two starts
VARIANCE = 0.25  # of a coin, believed before the first label: it keeps first bets small
GRID = tuple(float(m) for m in np.linspace(0.0, 1.0, 401))  # means that a bound tells apart


@dataclass(frozen=True, slots=True, eq=False)
class Wealth:
    """One bettor, or many at once. All arrays have one shape, () for a single one; n counts payoffs.

    log_running: of what stands on starts that have begun.  total, squares, weight: forgetting sums of payoffs.
    """

    n: int
    log_running: Floats
    total: Floats
    squares: Floats
    weight: float

    @classmethod
    def fresh(cls, shape: tuple[int, ...] = ()) -> Wealth:
        zeros = np.zeros(shape)
        return cls(0, np.full(shape, -np.inf), zeros, zeros, 0.0)

    @property
    def log(self) -> Floats:
        """Natural log of the wealth; 0 at the start."""
        waiting = 1.0 / (self._starts + 1)
        whole: Floats = np.logaddexp(self.log_running, np.log(waiting))
        return whole

    @property
    def _starts(self) -> int:
        return -(-self.n // EVERY)

    def after(self, payoff: Floats | float, worst: Floats | float) -> Wealth:
        """The wealth after one more payoff, at least -worst, of mean at most 0 under the null given the past.

        worst: > 0, known before the payoff. The stake is decided by earlier payoffs alone.
        """
        payoff = np.asarray(payoff, dtype=np.float64)
        mean = self.total / (self.weight + 1)
        variance = (self.squares + VARIANCE) / (self.weight + 1) - mean**2
        stake = np.clip(mean / (np.maximum(variance, 1e-9) + mean**2), 0.0, CAUTION / np.asarray(worst))
        running = self.log_running
        if self.n % EVERY == 0:
            start = self._starts + 1
            running = np.logaddexp(running, -np.log(start * (start + 1.0)))
        keep = 1 - 1 / MEMORY
        return Wealth(
            self.n + 1,
            running + np.log1p(stake * payoff),
            keep * self.total + payoff,
            keep * self.squares + payoff**2,
            keep * self.weight + 1,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Honesty:
    """Whether a calibrated probability keeps its word, on labels as they come. Two bets, half of alpha each.

    over: against E[y | p, past] >= p - tolerance.  under: against E[y | p, past] <= p + tolerance.
    peak_over, peak_under: the most that each log wealth ever was; Ville speaks of the peak, so an alarm stays.
    Labels may be chosen by anything logged (p too), but not by whether the answer is right: science 7.3.
    """

    tolerance: float
    over: Wealth
    under: Wealth
    peak_over: Floats
    peak_under: Floats

    @classmethod
    def fresh(cls, tolerance: float = 0.0, shape: tuple[int, ...] = ()) -> Honesty:
        return cls(tolerance, Wealth.fresh(shape), Wealth.fresh(shape), np.zeros(shape), np.zeros(shape))

    @property
    def n(self) -> int:
        return self.over.n

    def after(self, p: Floats | float, right: Floats | float) -> Honesty:
        """p: calibrated probability in [0, 1].  right: 1 or 0."""
        p, right = np.asarray(p, dtype=np.float64), np.asarray(right, dtype=np.float64)
        over = self.over.after(p - self.tolerance - right, np.maximum(1 - p + self.tolerance, 1e-6))
        under = self.under.after(right - p - self.tolerance, np.maximum(p + self.tolerance, 1e-6))
        return Honesty(
            self.tolerance,
            over,
            under,
            np.maximum(self.peak_over, over.log),
            np.maximum(self.peak_under, under.log),
        )

    def overconfident(self, alpha: float) -> np.bool_:
        """Proven at alpha / 2."""
        return np.bool_(np.all(self.peak_over >= np.log(2 / alpha)))

    def underconfident(self, alpha: float) -> np.bool_:
        return np.bool_(np.all(self.peak_under >= np.log(2 / alpha)))


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """A confidence sequence for a mean, valid at every look: one bettor for each value the mean might have.

    below, above: (G,) wealth against "the mean is at most GRID[g]" and "at least GRID[g]".
    most: the largest value that can come, 1 for a plain share, 1 / the least inclusion probability for weighted ones.
    The lower end needs values >= 0 only; the upper one needs `most`.
    """

    most: float
    below: Wealth
    above: Wealth
    peak_below: Floats
    peak_above: Floats

    @classmethod
    def fresh(cls, most: float = 1.0) -> Bound:
        shape = (len(GRID),)
        return cls(most, Wealth.fresh(shape), Wealth.fresh(shape), np.zeros(shape), np.zeros(shape))

    @property
    def n(self) -> int:
        return self.below.n

    def after(self, value: float) -> Bound:
        grid = np.array(GRID)
        below = self.below.after(value - grid, np.maximum(grid, 1e-6))
        above = self.above.after(grid - value, np.maximum(self.most - grid, 1e-6))
        return Bound(
            self.most, below, above, np.maximum(self.peak_below, below.log), np.maximum(self.peak_above, above.log)
        )

    def low(self, alpha: float) -> float:
        """With probability 1 - alpha the mean was never below it, at any look."""
        refuted = np.flatnonzero(self.peak_below >= np.log(1 / alpha))
        return GRID[int(refuted[-1])] if refuted.size else 0.0

    def high(self, alpha: float) -> float:
        """With probability 1 - alpha the mean was never above it, at any look."""
        refuted = np.flatnonzero(self.peak_above >= np.log(1 / alpha))
        return GRID[int(refuted[0])] if refuted.size else 1.0


def exceeds(limit: float, values: Sequence[float], alpha: float) -> int | None:
    """After how many values it was proven that their mean is above the limit; None while it is not.

    values: >= 0, each with a mean of at most `limit` given the past under the null; weights of exploration, 1 / e for a
    drawn row and 0 for every other, may already be in them.  limit: > 0.
    """
    wealth = Wealth.fresh()
    for n, value in enumerate(values, 1):
        wealth = wealth.after(value - limit, limit)
        if wealth.log >= np.log(1 / alpha):
            return n
    return None
