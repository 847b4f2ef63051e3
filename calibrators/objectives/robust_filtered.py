"""Robust Filtered, translated to a hard cascade: press on the answers where the cascade's decision is fragile.

The released filter compares a blend with its best expert, which it can never beat, and so flags nearly everything; and
a cascade's answer comes from one model, so there is no blend. Here a question is filtered for what the cascade decided
about it: a regretted decision, tiers that disagree, or a confidence near its threshold.
After arXiv:2606.20544; the translation is science 3.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibrators import logistic, tempered
from calibrators.base import (
    BadLabels,
    BadObjective,
    BadWeights,
    Bools,
    FitData,
    Fitted,
    Floats,
    Ints,
    logit,
    sigmoid,
)
from calibrators.objectives import base_of
from calibrators.objectives.erm import Erm
from calibrators.objectives.tilt import tilted

MIN_FILTERED = 50  # fewer carry no slice of their own; science 3.7
NAMES = ("false accept", "needless escalation", "disagreement", "near a threshold")


@dataclass(frozen=True, slots=True, eq=False)
class RobustFiltered:
    """value = (mean loss + gamma * tilt over the slices of F) / (1 + gamma), so that its weights sum to 1.

    members: (N, S) bool, which rows each slice of F holds; slices may overlap, and empty ones do not count. No member
    at all: ERM exactly, with no jump in the value.  gamma: >= 0.  eta: per nat, of the tilt over slices.
    Tilting whole slices, not examples, keeps the calibration incentive (science 3.3). Bound to its rows.
    """

    members: Bools
    gamma: float = 0.5
    eta: float = 3.0

    def __post_init__(self) -> None:
        if not (0 <= self.gamma < np.inf and 0 <= self.eta < np.inf):
            raise BadObjective(f"need gamma >= 0 and eta >= 0, got {self.gamma} and {self.eta}")
        members = np.array(self.members)
        if members.ndim != 2 or members.dtype != np.bool_:
            raise BadObjective(f"need members of shape (N, S) and kind bool, got {members.dtype} {members.shape}")
        members.setflags(write=False)
        object.__setattr__(self, "members", members)

    def __call__(self, losses: Floats, _slices: Ints | None = None, base: Floats | None = None) -> tuple[float, Floats]:
        base = base_of(losses, base)
        if len(self.members) != losses.size:
            raise BadObjective(f"{losses.size} losses but slices of {len(self.members)} rows")
        mass = base @ self.members
        held = self.members[:, mass > 0]
        if self.gamma == 0 or not held.shape[1]:
            return float(base @ losses), base
        inside = base[:, None] * held / mass[mass > 0]  # (N, S), each column a distribution over its slice
        value, q = tilted(losses @ inside, mass[mass > 0] / mass.sum(), self.eta)
        weights = (base + self.gamma * (inside @ q)) / (1 + self.gamma)
        return (float(base @ losses) + self.gamma * value) / (1 + self.gamma), weights


@dataclass(frozen=True, slots=True, eq=False)
class Crossed:
    """Every question answered by every tier, cheapest first.

    tiers: K fit data with the same N questions in the same order; y of tier k is y_ik.  costs: (N, K) >= 0, cumulative
    cost up to and with each tier, in the unit of `price`.  thresholds: (K - 1,) in (0, 1): tier k is accepted at
    p >= thresholds[k]; the last always.  answers: (N, K) codes, equal when final answers agree, or None.
    price: lambda, what one unit of cost is worth in right answers.
    """

    tiers: tuple[FitData, ...]
    costs: Floats
    thresholds: Floats
    answers: Ints | None = None
    price: float = 0.0

    def __post_init__(self) -> None:
        n, k = self.tiers[0].n, len(self.tiers)
        if any(tier.n != n for tier in self.tiers):
            raise BadLabels(f"tiers have different numbers of answers: {', '.join(str(t.n) for t in self.tiers)}")
        if any(tier.weights is not None for tier in self.tiers):
            raise BadWeights("the filter compares questions one by one and takes no sample weights")
        if self.costs.shape != (n, k) or (self.answers is not None and self.answers.shape != (n, k)):
            raise BadLabels(f"need costs and answers of shape ({n}, {k})")
        inside = bool(((self.thresholds > 0) & (self.thresholds < 1)).all())
        if self.thresholds.shape != (k - 1,) or not inside:
            raise BadLabels(f"need {k - 1} thresholds inside (0, 1), got {self.thresholds}")

    @property
    def right(self) -> Floats:
        """(N, K) in {0, 1}."""
        return np.column_stack([tier.y for tier in self.tiers])


@dataclass(frozen=True, slots=True, eq=False)
class RobustCascade:
    """calibrators: one per tier, each with its routed-region temperature.  rounds: refits done, 0 to 3.

    filtered: size of F at the end.  slices: size of each slice of F, by name.  erm: whether F was too small and plain
    ERM was fitted.  settled: whether F stopped changing.  untempered: tiers reached too rarely for a temperature.
    """

    calibrators: tuple[Fitted, ...]
    rounds: int
    filtered: int
    slices: dict[str, int]
    erm: bool
    settled: bool
    untempered: tuple[int, ...]


def fit_cascade(
    crossed: Crossed,
    *,
    gamma: float = 0.5,
    eta: float = 3.0,
    regret: float = 1e-6,
    spread: float = 0.01,
    width: float = 0.5,
    ridge: float = 1.0,
    rounds: int = 3,
) -> RobustCascade:
    """ERM per tier, F from its p, refit against the frozen F, at most `rounds` times; then a temperature per tier.

    F depends on p and cannot be differentiated, hence frozen. Every tier's mean loss runs over all questions, so that
    it stays valid when thresholds move (science 3.8); its tilt runs over the rows of F that reach it.
    regret, spread, width: see `filtered`.  Raises what `logistic.fit` raises.
    """
    fits = _fit_tiers(crossed, [Erm() for _ in crossed.tiers], ridge)
    members = filtered(crossed, _p(crossed, fits), regret=regret, spread=spread, width=width)
    done, settled, too_few = 0, False, int(members.any(axis=1).sum()) < MIN_FILTERED
    while done < rounds and not settled and not too_few:
        level = accepted_at(_p(crossed, fits), crossed.thresholds)
        reach = [level >= k for k in range(len(crossed.tiers))]
        fits = _fit_tiers(crossed, [RobustFiltered(members & r[:, None], gamma, eta) for r in reach], ridge)
        done += 1
        again = filtered(crossed, _p(crossed, fits), regret=regret, spread=spread, width=width)
        settled, members = bool((again == members).all()), again
        too_few = int(members.any(axis=1).sum()) < MIN_FILTERED
    if too_few and done:
        fits = _fit_tiers(crossed, [Erm() for _ in crossed.tiers], ridge)
    calibrators, untempered = _tempered(crossed, fits)
    sizes = dict(zip(NAMES, members.sum(axis=0).tolist(), strict=True))
    count = int(members.any(axis=1).sum())
    return RobustCascade(calibrators, done, count, sizes, too_few, settled, untempered)


def accepted_at(p: Floats, thresholds: Floats) -> Ints:
    """The tier that answers each question, (N,): the first whose p (N, K) reaches its threshold, or the last."""
    accepts = np.column_stack([p[:, :-1] >= thresholds, np.ones(len(p), dtype=bool)])
    level: Ints = accepts.argmax(axis=1)
    return level


def filtered(crossed: Crossed, p: Floats, *, regret: float, spread: float, width: float) -> Bools:
    """F as four slices, (N, 4) bool, in the order of NAMES.  p: (N, K), the tiers' calibrated probabilities.

    Regret is the best tier's right - price * cost less that of the tier that answered; over the tolerance `regret`, the
    question is a false accept when a later tier would have been best, a needless escalation when an earlier one.
    Disagreement: `disagrees`.  Near a threshold: within `width` nats of logit p.
    """
    level, rows = accepted_at(p, crossed.thresholds), np.arange(len(p))
    utility = crossed.right - crossed.price * crossed.costs
    best = utility.argmax(axis=1)  # of equals the cheapest
    regretted = utility[rows, best] - utility[rows, level] > regret
    distance = np.abs(logit(p[:, :-1]) - logit(crossed.thresholds))
    near = (distance <= width).any(axis=1) if distance.shape[1] else np.zeros(len(p), dtype=bool)
    apart = disagrees(p, crossed.thresholds, spread=spread, width=width)
    if crossed.answers is not None:
        apart |= (crossed.answers[:, 1:] != crossed.answers[:, :-1]).any(axis=1)
    return np.column_stack([regretted & (best > level), regretted & (best < level), apart, near])


def disagrees(p: Floats, thresholds: Floats, *, spread: float, width: float) -> Bools:
    """(N,): whether sum_k w_k (p_k - mean)^2 > spread, with w_k the soft chance that tier k is the one that answers.

    w_k is proportional to sigmoid((p_k - t_k) / width), the last tier's being 1; the mean is weighted with the same
    w. One tier never disagrees with itself: the spread is 0, not NaN, and 0 is not over an absolute bound.
    """
    openness = np.column_stack([sigmoid((p[:, :-1] - thresholds) / width), np.ones(len(p))])
    w = openness / openness.sum(axis=1, keepdims=True)
    mean = (w * p).sum(axis=1, keepdims=True)
    apart: Bools = (w * (p - mean) ** 2).sum(axis=1) > spread
    return apart


def _fit_tiers(crossed: Crossed, objectives: Sequence[Erm | RobustFiltered], ridge: float) -> list[Fitted]:
    return [logistic.fit(t, objective=o, ridge=ridge) for t, o in zip(crossed.tiers, objectives, strict=True)]


def _p(crossed: Crossed, fits: Sequence[Fitted]) -> Floats:
    return np.column_stack([fit.predict(tier.X) for fit, tier in zip(fits, crossed.tiers, strict=True)])


def _tempered(crossed: Crossed, fits: Sequence[Fitted]) -> tuple[tuple[Fitted, ...], tuple[int, ...]]:
    """Each tier's calibrator with the temperature of the questions that reach it, where at least 10 of each class do.

    The same rows as the fit's: a ridge-logistic fit of thousands of rows hardly flatters itself, and what this corrects
    is the region, not the fit. `choose.final_temperature` does it again on fresh answers where there are some.
    """
    level = accepted_at(_p(crossed, fits), crossed.thresholds)
    out: list[Fitted] = []
    left: list[int] = []
    for k, (fit, tier) in enumerate(zip(fits, crossed.tiers, strict=True)):
        reached = level >= k
        n_right, n = float(tier.y[reached].sum()), int(reached.sum())
        if min(n_right, n - n_right) < 10:
            left.append(k)
            out.append(fit)
        else:
            out.append(tempered.fit(tier.rows(reached), inner=fit))
    return tuple(out), tuple(left)
