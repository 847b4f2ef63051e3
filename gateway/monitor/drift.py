"""Whether what comes in still looks like what the calibrators were trusted on, without any label. Pure, NumPy only.

A shift found here is not a fault of the calibrator yet; it says that its numbers are being used elsewhere than proven.
Limits are those of science 7.1. Missing values are a value of their own, below all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import lgamma, log

import numpy as np

from gateway.monitor.reference import QUANTILE, Reference, TierReference
from gateway.nouns import Floats

EFFECT = 0.1  # a smaller KS distance is no matter, however sure one is of it
ALPHA = 0.01  # of any false alarm as long as one reference stands
PSI_WATCH, PSI_ACT, PSI_BINS, PSI_FLOOR = 0.1, 0.25, 10, 1e-4
OOD_RATE = 0.02  # beyond the reference's 99th percentile: twice its share; more where few rows estimate it
MIN_ROWS = 200  # below, PSI's own noise comes near its limits
MMD_ROWS, PERMUTATIONS = 500, 200
NO_SLICES: Mapping[tuple[str, str, str], tuple[TierReference, Floats]] = {}


@dataclass(frozen=True, slots=True)
class Shift:
    """One figure against its reference. policy, tier: where.  what: a feature's name, `p_correct` or `ood`.

    effect: KS distance in [0, 1], for `ood` the share beyond the reference's 99th percentile.
    p_value: adjusted by Holm over everything looked at together.  psi: less its mean under no shift, 0 for `ood`.
    drifted: sure, and large by either measure. A large PSI alone is not: one cell that happens to be empty makes it so.
    slice: of the tier's traffic, "" for all of it.
    """

    policy: str
    tier: str
    what: str
    effect: float
    p_value: float
    psi: float
    n: int
    n_reference: int
    drifted: bool
    slice: str = ""

    def __str__(self) -> str:
        where = f"{self.tier} ({self.slice})" if self.slice else self.tier
        return (
            f"{self.policy}/{where} {self.what}: effect {self.effect:.3f}, p = {self.p_value:.2g}, "
            f"PSI {self.psi:.3f} (n = {self.n:,} against {self.n_reference:,})"
        )


def shifts(
    reference: Reference,
    now: Mapping[tuple[str, str], Floats],
    slices: Mapping[tuple[str, str, str], tuple[TierReference, Floats]] = NO_SLICES,
    *,
    look: int = 1,
) -> list[Shift]:
    """Every feature, the score and the distance of every place with enough rows, adjusted together.

    now: by (policy, tier), (n, F + 1) rows with p_correct last.  slices: by (policy, tier, name), the same beside what
    they are held against.
    look: 1 for the first look at this reference, 2 for the second: the k-th may spend ALPHA / (k (k + 1)), which sums
    to ALPHA, so that looking for years raises no false alarm. Rows of a place must not come twice.
    """
    places = [((*place, ""), reference.tiers.get(place), rows) for place, rows in now.items()]
    places += [(place, known, rows) for place, (known, rows) in slices.items()]
    found: list[Shift] = []
    for place, known, rows in sorted(places, key=lambda one: one[0]):
        if known is not None and len(rows) >= MIN_ROWS:
            found += _of(known, rows, place)
    adjusted = holm(np.array([shift.p_value for shift in found]))
    level = ALPHA / (look * (look + 1))
    return [_judged(shift, float(p), level) for shift, p in zip(found, adjusted, strict=True)]


def _judged(shift: Shift, p_value: float, level: float) -> Shift:
    least = OOD_RATE if shift.what == "ood" else EFFECT
    drifted = p_value < level and (shift.effect >= least or shift.psi > PSI_ACT)
    return replace(shift, p_value=p_value, drifted=drifted)


def _of(known: TierReference, rows: Floats, place: tuple[str, str, str]) -> list[Shift]:
    (policy, tier, part), n, n_reference = place, len(rows), len(known.rows)
    found = []
    for column, what in enumerate((*known.names, "p_correct")):
        before, after = known.rows[:, column], rows[:, column]
        effect, p_value = ks(before, after)
        found.append(Shift(policy, tier, what, effect, p_value, psi(before, after), n, n_reference, False, part))
    beyond = int((known.distances(rows[:, :-1]) > known.limit).sum())
    share = 1 - QUANTILE
    p_value = binomial_tail(beyond, n, max(OOD_RATE, share + 3 * (share / n_reference) ** 0.5))
    found.append(Shift(policy, tier, "ood", beyond / n, p_value, 0.0, n, n_reference, False, part))
    return found


def ks(reference: Floats, now: Floats) -> tuple[float, float]:
    """Kolmogorov and Smirnov's distance of two samples in [0, 1], and its asymptotic p-value, too large under ties.

    Stephens' correction for small samples (1970).
    """
    before, after = np.sort(_missing_low(reference)), np.sort(_missing_low(now))
    points = np.concatenate([before, after])
    gap = np.searchsorted(before, points, "right") / before.size - np.searchsorted(after, points, "right") / after.size
    distance = float(np.abs(gap).max())
    root = np.sqrt(before.size * after.size / (before.size + after.size))
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.2:  # the series converges slowly there, and the p-value is 1 to ten digits
        return distance, 1.0
    j = np.arange(1, 101)
    p_value = 2 * float((np.where(j % 2 == 1, 1.0, -1.0) * np.exp(-2 * (j * scaled) ** 2)).sum())
    return distance, min(max(p_value, 0.0), 1.0)


def psi(reference: Floats, now: Floats) -> float:
    """Population stability index over the reference's deciles, less its mean under no shift. May be below 0."""
    before, after = _missing_low(reference), _missing_low(now)
    edges = np.unique(np.quantile(before, np.linspace(0, 1, PSI_BINS + 1)[1:-1], method="higher"))
    cells = edges.size + 1
    old = np.bincount(np.searchsorted(edges, before, "left"), minlength=cells) / before.size
    new = np.bincount(np.searchsorted(edges, after, "left"), minlength=cells) / after.size
    cells = int(((old > 0) | (new > 0)).sum())
    old, new = np.maximum(old, PSI_FLOOR), np.maximum(new, PSI_FLOOR)
    chance = (cells - 1) * (1 / before.size + 1 / after.size)
    return float(((new - old) * np.log(new / old)).sum() - chance)


def holm(p_values: Floats) -> Floats:
    """Holm's step-down adjustment: reject where below alpha, and any false rejection has probability alpha at most."""
    order = np.argsort(p_values)
    steps = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(p_values.size, 0, -1)), 1.0)
    adjusted = np.empty_like(steps)
    adjusted[order] = steps
    return adjusted


def binomial_tail(hits: int, n: int, rate: float) -> float:
    """P(at least `hits` of n), exactly, summed in logs. rate in (0, 1)."""
    if hits <= 0:
        return 1.0
    k = np.arange(hits, n + 1)
    logs = np.array([lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) for i in k]) + k * log(rate)
    logs += (n - k) * log(1 - rate)
    return float(min(np.exp(np.logaddexp.reduce(logs)), 1.0))


def mmd(reference: Floats, now: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """Squared maximum mean discrepancy (unbiased, RBF at the median distance) and its permutation p-value.

    Both (n, F), of which at most MMD_ROWS are drawn. Columns are scaled by the reference's mean and sd first.
    Gretton et al. 2012.
    """
    mean, sd = np.nanmean(reference, axis=0), np.nanstd(reference, axis=0)
    parts = [np.nan_to_num((sample - mean) / np.where(sd > 0, sd, 1.0)) for sample in (reference, now)]
    before, after = (part[rng.permutation(len(part))[:MMD_ROWS]] for part in parts)
    both = np.concatenate([before, after])
    square = (both**2).sum(axis=1)
    apart = np.maximum(square[:, None] + square[None, :] - 2 * both @ both.T, 0.0)
    kernel = np.exp(-apart / max(float(np.median(apart[np.triu_indices(len(both), 1)])), 1e-12))
    np.fill_diagonal(kernel, 0.0)
    n, m = len(before), len(after)
    first = np.zeros((PERMUTATIONS + 1, n + m))
    first[0, :n] = 1.0
    for draw in first[1:]:
        draw[rng.permutation(n + m)[:n]] = 1.0
    second = 1.0 - first
    against = first @ kernel
    within = (against * first).sum(axis=1) / (n * (n - 1))
    across = (against * second).sum(axis=1) / (n * m)
    beyond = ((second @ kernel) * second).sum(axis=1) / (m * (m - 1))
    values = within + beyond - 2 * across
    return float(values[0]), float((values >= values[0] - 1e-12).sum() / (PERMUTATIONS + 1))


def _missing_low(values: Floats) -> Floats:
    low: Floats = np.where(np.isfinite(values), values, -np.finfo(np.float64).max)
    return low
