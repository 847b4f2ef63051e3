"""The look-ahead policy: at every tier, go where the benefit is worth its cost, skipping tiers that would not help.

A threshold on p_k alone is optimal only if the gain from asking on falls with p_k; it is not where a tier is a
specialist. Here q_kj, the probability that tier j would be right, is learned from what tier k says, and

    j* = argmax_{j > k} q_kj - rate * cost_j ;   ask j* if q_kj* - rate * cost_j* > p_k, else serve tier k

(Jitkrittum et al. 2023, arXiv:2307.02764, one step ahead). An alternative for measuring: the gateway's configuration
holds chains with thresholds, so what this gains over them says whether it would be worth serving.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from calibrators import logistic
from calibrators.base import CalibrationError, FitData, logit
from eval.crossed import Crossed, Floats, Path
from eval.sweep import Played


@dataclass(frozen=True, slots=True, eq=False)
class Benefit:
    """q_kj: from tier k's p to the probability that tier j is right.

    accuracy: tier j's where k has no p to offer.  calibrator: None where nothing can be learned from p_k, and then
    that accuracy stands for all.
    """

    accuracy: float
    calibrator: logistic.Logistic | None

    def predict(self, p: Floats) -> Floats:
        """p: (n,) or NaN -> (n,)."""
        q, known = np.full(len(p), self.accuracy), ~np.isnan(p)
        if self.calibrator is not None and known.any():
            q[known] = self.calibrator.predict(logit(p[known])[:, np.newaxis])
        return q


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """What every tier knows of the ones after it. cost: (K,) mean cost of each tier where this was learned."""

    benefits: Mapping[tuple[int, int], Benefit]
    cost: Floats


@dataclass(frozen=True, slots=True, eq=False)
class LookAhead:
    """start: the tier asked first.  rate: lambda, right answers that one unit of cost is worth."""

    views: Views
    start: int
    rate: float


def learn(table: Crossed) -> Views:
    """Fit q_kj for all k < j by logistic regression on logit p_k.

    Where calibrators look at earlier tiers, p_k is taken as it is after all of them.
    """
    tiers = len(table.tiers)
    benefits = {}
    for here in range(tiers - 1):
        p = table.p_of(tuple(range(here + 1)))
        for later in range(here + 1, tiers):
            benefits[here, later] = _benefit(p, table.right[:, later])
    return Views(benefits, table.cost.mean(axis=0))


def _benefit(p: Floats, right: Floats) -> Benefit:
    known = ~np.isnan(p)
    overall = float((right.sum() + 1) / (len(right) + 2))
    unseen = float((right[~known].sum() + overall) / ((~known).sum() + 1))
    try:
        fitted = logistic.fit(FitData(logit(p[known])[:, np.newaxis], right[known], ("logit p",)))
    except CalibrationError:  # p never varies, or too few right or wrong answers to learn a slope from
        return Benefit(overall, None)
    return Benefit(unseen, fitted)


def replay(table: Crossed, policy: LookAhead) -> Played:
    """Follow the policy question by question. Questions that have come the same way are handled together."""
    n = table.n
    served, asked = np.full(n, policy.start), np.zeros(n, dtype=np.int64)
    cost, seconds = np.zeros(n), np.zeros(n)
    ways: list[tuple[Path, np.ndarray]] = [((policy.start,), np.arange(n))]
    while ways:
        path, here = ways.pop()
        tier = path[-1]
        cost[here] += table.cost[here, tier]
        seconds[here] += table.seconds[here, tier]
        asked[here] += 1
        served[here] = tier
        later = range(tier + 1, len(table.tiers))
        if not later:
            continue
        p = table.p_of(path)[here]
        views = policy.views
        worth = np.stack([views.benefits[tier, j].predict(p) - policy.rate * views.cost[j] for j in later], axis=1)
        best = worth.argmax(axis=1)
        go_on = np.isnan(p) | (worth.max(axis=1) > p)
        ways += [((*path, j), here[go_on & (best == place)]) for place, j in enumerate(later)]
        ways = [(way, rows) for way, rows in ways if rows.size]
    return Played(served, table.right[np.arange(n), served], cost, seconds, asked)


def candidates(table: Crossed, rates: int = 25) -> list[LookAhead]:
    """Look-ahead policies learned on a table: every start, and rates from "cost is no matter" to "never ask on"."""
    views = learn(table)
    dearest, cheapest = float(views.cost.max()), float(views.cost[views.cost > 0].min(initial=np.inf))
    if not np.isfinite(cheapest):
        return [LookAhead(views, start, 0.0) for start in range(len(table.tiers))]
    grid = np.append(0.0, np.geomspace(0.003 / dearest, 1 / cheapest, rates - 1))
    return [LookAhead(views, start, float(rate)) for start in range(len(table.tiers)) for rate in grid]
