"""Whether a router is any good, and whether a difference is more than chance. Same questions on all sides, always.

Definitions that a reader of the numbers needs are in DEFINITIONS, to be printed beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from calibrators.scores import LEVEL, Insufficient, Outcome, Score
from eval.crossed import Floats, Ints

PAIR_RESAMPLES = 300  # each sorts all questions anew
RESAMPLES = 2_000  # for intervals; science 6.4 asks 10,000 of numbers that go to print
BLOCK = 4_000_000  # resampled weights held in memory at a time: 32 MB

DEFINITIONS = {
    "cost": "mean per question, every tier that was tried included, also those whose answer was rejected",
    "saving": "1 - cost / cost of the reference, the most accurate single model",
    "gain": "accuracy minus that of the reference on the same questions",
    "skill": "accuracy minus that of a random mix of single models at the same cost; 0 is what no signal at all gives",
    "random mix": "upper concave hull of the single models: each request sent to one of two at random",
    "AUDC": "area under accuracy against the share of questions deferred to the larger model, deferring the least sure "
    "first; trapezoid; two models, and it ignores that a cascade pays for both",
    "PGR": "(accuracy - weak) / (strong - weak): the share of the gap between two models that is recovered",
    "APGR": "area under PGR against the share of calls to the strong model, trapezoid over ten equal steps (RouteLLM)",
    "CPT(x)": "least share of calls to the strong model at which PGR reaches x, interpolated on the best so far",
    "AIQ": "1 / (c_max - c_min) times the area under the non-decreasing concave hull of (cost, accuracy) between the "
    "common ends c_min and c_max, with the random mix to the left of the first point (after RouterBench)",
    "optimism": "what a policy scored where it was chosen minus what it scored on questions that chose nothing",
}


class BadComparison(ValueError):
    """Numbers that cannot be compared. The message says why."""


# Curves


def concave_hull(cost: Floats, accuracy: Floats) -> Ints:
    """Places of the corners of the non-decreasing upper concave hull, rising in cost. cost, accuracy: (N,), N >= 1.

    What a random mix of the points can reach; the first corner is the cheapest point (of equal cost the most accurate).
    """
    corners: list[int] = []
    for place in np.lexsort((-accuracy, cost)):
        if corners and accuracy[place] <= accuracy[corners[-1]]:
            continue
        while len(corners) > 1:
            a, b = corners[-2:]
            rise = (accuracy[b] - accuracy[a]) * (cost[place] - cost[a])
            if rise > (accuracy[place] - accuracy[a]) * (cost[b] - cost[a]):
                break
            corners.pop()
        corners.append(int(place))
    return np.array(corners, dtype=np.int64)


def mix_accuracy(budget: Floats | float, cost: Floats, accuracy: Floats) -> Floats:
    """Accuracy of the best random mix of the points at a budget; flat to the right of the hull.

    Left of the cheapest point there is no mix: NaN, as nothing can be bought for less than the cheapest costs.
    """
    hull = concave_hull(cost, accuracy)
    return np.asarray(np.interp(budget, cost[hull], accuracy[hull], left=np.nan))


def mix_accuracies(budget: Floats, cost: Floats, accuracy: Floats) -> Floats:
    """`mix_accuracy` of many sets of points at once, each at its own budget: what resampling needs.

    budget: (B,), none below the cheapest point but by rounding.  cost, accuracy: (B, K) -> (B,).
    The best mix of a budget is one point that it affords, or two around it that spend it exactly.
    """
    affordable = np.maximum(budget, cost.min(axis=1))[:, np.newaxis]
    best: Floats = np.where(cost <= affordable, accuracy, -np.inf).max(axis=1)
    for here in range(cost.shape[1]):
        low, at_low = cost[:, [here]], accuracy[:, [here]]
        around = (low < affordable) & (cost > affordable)
        width = np.where(around, cost - low, 1.0)
        reached = at_low + (accuracy - at_low) * (affordable - low) / width
        best = np.maximum(best, np.where(around, reached, -np.inf).max(axis=1))
    return best


def pgr(accuracy: Floats | float, weak: float, strong: float) -> Floats:
    """Performance gap recovered. Raises BadComparison when the strong model is no better: there is no gap."""
    if strong <= weak:
        raise BadComparison(f"the strong model is right {strong:.3f} of the time and the weak one {weak:.3f}: no gap")
    return np.asarray((accuracy - weak) / (strong - weak))


def deferral_curve(p: Floats, weak: Floats, strong: Floats) -> tuple[Floats, Floats]:
    """(share deferred, accuracy), (n + 1,) each: the least sure answers of the weak model are replaced first.

    p: (n,), NaN (no evidence) is deferred before all others.  weak, strong: (n,) 1 or 0.  Tied answers are deferred in
    random order, so in the mean along a straight line.
    """
    n = len(p)
    score = np.where(np.isnan(p), -1.0, p)  # below every probability
    order = np.argsort(score, kind="stable")
    gained = np.append(0.0, np.cumsum((strong - weak)[order]))
    ends = np.append(np.flatnonzero(np.diff(score[order]) > 0) + 1, n)
    deferred = np.arange(n + 1)
    return deferred / n, (weak.sum() + np.interp(deferred, np.append(0, ends), np.append(0.0, gained[ends]))) / n


def audc(p: Floats, weak: Floats, strong: Floats) -> float:
    """Area under the deferral curve, in [0, 1]. A useless signal gives the mean of both accuracies."""
    share, accuracy = deferral_curve(p, weak, strong)
    return float(np.trapezoid(accuracy, share))


def apgr(p: Floats, weak: Floats, strong: Floats, steps: int = 10) -> float:
    """Area under PGR over the share of strong calls. A useless signal gives 1/2; above 1 is possible."""
    share, accuracy = deferral_curve(p, weak, strong)
    at = np.linspace(0, 1, steps + 1)
    return float(np.trapezoid(np.interp(at, share, pgr(accuracy, float(weak.mean()), float(strong.mean()))), at))


def cpt(p: Floats, weak: Floats, strong: Floats, wanted: float) -> float:
    """Least share of strong calls with PGR >= wanted; wanted in (0, 1], which sending everything always reaches."""
    if not 0 < wanted <= 1:
        raise BadComparison(f"the share of the gap to recover must lie in (0, 1], got {wanted}")
    share, accuracy = deferral_curve(p, weak, strong)
    best: Floats = np.maximum.accumulate(pgr(accuracy, float(weak.mean()), float(strong.mean())))
    place = int(np.argmax(best >= wanted - 1e-12))
    if place == 0 or best[place] == best[place - 1]:
        return float(share[place])
    part = (wanted - best[place - 1]) / (best[place] - best[place - 1])
    return float(share[place - 1] + part * (share[place] - share[place - 1]))


def aiq(cost: Floats, accuracy: Floats, single_cost: Floats, single_accuracy: Floats) -> float:
    """Average accuracy over budgets between the cheapest and the dearest single model. See DEFINITIONS.

    Raises BadComparison when all single models cost the same.
    """
    low, high = float(single_cost.min()), float(single_cost.max())
    if high <= low:
        raise BadComparison("all single models cost the same: there is no range of budgets to average over")
    all_cost, all_accuracy = np.append(cost, single_cost), np.append(accuracy, single_accuracy)
    hull = concave_hull(all_cost, all_accuracy)
    x, y = all_cost[hull], all_accuracy[hull]
    first = float(cost.min()) if cost.size else high
    mix = concave_hull(single_cost, single_accuracy)
    corners = np.unique(np.clip(np.concatenate([x, single_cost[mix], [low, first, high]]), low, high))
    middle = (corners[:-1] + corners[1:]) / 2  # both curves are straight between corners
    with_points = np.interp(middle, x, y)
    without = np.interp(middle, single_cost[mix], single_accuracy[mix])
    return float((np.where(middle >= first, with_points, without) * np.diff(corners)).sum() / (high - low))


def pair_scores(
    p: Floats, weak: Floats, strong: Floats, groups: Ints, rng: np.random.Generator, resamples: int = PAIR_RESAMPLES
) -> dict[str, Outcome]:
    """AUDC, APGR and CPT of one signal between two models, bootstrapped by family.

    p: (n,) of the weak model, NaN without evidence.  weak, strong: (n,) 1 or 0.  Where the strong model is no better,
    there is no gap to recover, and words stand in place of the numbers; resamples without a gap are drawn again.
    """
    n = len(p)
    if strong.mean() <= weak.mean():
        why = f"the model behind is right {strong.mean():.1%} of the time, the one before {weak.mean():.1%}: no gap"
        return {name: Insufficient(name=name, n=n, why=why) for name in PAIR_SCORES}
    members = (
        [np.flatnonzero(groups == group) for group in range(int(groups.max()) + 1)] if len(set(groups)) < n else []
    )
    seen: dict[str, list[float]] = {name: [] for name in PAIR_SCORES}
    for _ in range(20 * resamples):
        families = rng.integers(int(groups.max()) + 1, size=int(groups.max()) + 1)
        rows = np.concatenate([members[one] for one in families]) if members else families
        if strong[rows].mean() > weak[rows].mean():
            for name, score in PAIR_SCORES.items():
                seen[name].append(score(p[rows], weak[rows], strong[rows]))
        if len(seen["AUDC"]) == resamples:
            break
    how = f"bootstrap of {len(seen['AUDC']):,} by question"
    return {
        name: interval(name, score(p, weak, strong), np.array(seen[name]), n, how)
        for name, score in PAIR_SCORES.items()
    }


PAIR_SCORES: Mapping[str, Callable[[Floats, Floats, Floats], float]] = {
    "AUDC": audc,
    "APGR": apgr,
    "CPT(50%)": lambda p, weak, strong: cpt(p, weak, strong, 0.5),
    "CPT(80%)": lambda p, weak, strong: cpt(p, weak, strong, 0.8),
}


# Chance


def resampled_means(columns: Floats, groups: Ints, rng: np.random.Generator, resamples: int = RESAMPLES) -> Floats:
    """(resamples, M) means of M columns over questions drawn with replacement, whole families at a time.

    columns: (n, M).  groups: (n,) family codes.  All statistics of one comparison are functions of means, so that one
    call gives them paired.
    """
    families = int(groups.max()) + 1
    sums = np.stack([np.bincount(groups, column, families) for column in columns.T], axis=1)
    sizes = np.bincount(groups, minlength=families).astype(np.float64)
    rows = max(1, BLOCK // families)
    means = []
    for start in range(0, resamples, rows):
        times = drawn(families, min(rows, resamples - start), rng)
        means.append(times @ sums / (times @ sizes)[:, np.newaxis])
    return np.concatenate(means)


def drawn(families: int, resamples: int, rng: np.random.Generator) -> Floats:
    """(resamples, families) how often each is drawn when as many are drawn with replacement as there are."""
    times = np.empty((resamples, families))
    for row in times:
        row[:] = np.bincount(rng.integers(families, size=families), minlength=families)
    return times


def interval(name: str, value: float, seen: Floats, n: int, how: str, level: float = LEVEL) -> Score:
    """A number with the percentile interval of its resamples."""
    low, high = (float(end) for end in np.quantile(seen, [(1 - level) / 2, (1 + level) / 2]))
    return Score(name=name, value=float(value), n=n, low=low, high=high, level=level, how=how)


def standard_error(values: Floats, groups: Ints) -> float:
    """Standard error of a mean over questions whose families move together. values: (n,). 0 for one family."""
    families = int(groups.max()) + 1
    if families < 2:
        return 0.0
    sums = np.bincount(groups, values - values.mean(), families)
    return float(np.sqrt((sums**2).sum() * families / (families - 1)) / len(values))


@dataclass(frozen=True, slots=True)
class McNemar:
    """Exact test of two policies on the same questions. only_a: right by a alone; only_b: right by b alone."""

    only_a: int
    only_b: int
    p_value: float


def mcnemar(right_a: Floats, right_b: Floats) -> McNemar:
    """Two-sided, by the binomial distribution of the discordant pairs. right_*: (n,) 1 or 0. No discord: p = 1."""
    only_a, only_b = int(((right_a == 1) & (right_b == 0)).sum()), int(((right_a == 0) & (right_b == 1)).sum())
    discordant = only_a + only_b
    return McNemar(only_a, only_b, float(binomtest(only_a, discordant).pvalue) if discordant else 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """The same p-values, adjusted for having looked at all of them (Holm 1979): reject those <= level."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
