"""The exact sweep: accuracy and cost of every chain of tiers at every combination of thresholds.

A chain accepts the first answer with p >= its threshold; its last tier answers whatever comes. Going on from one tier
to the next changes the number of right answers by right_next - right_here and the cost by cost_next, so

    right(t) = sum_i right_i0 + sum_k sum_{i rejected by levels 0..k-1} (right_ik - right_i,k-1)

and "rejected by levels 0..k-1" is a lower orthant in (p_0 .. p_{k-1}): one histogram over bins of p and one cumulative
sum along each axis give it for all threshold combinations at once. O(n K + number of combinations); no approximation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from eval.crossed import BadTable, Bools, Crossed, Floats, Ints, Path

MAX_TIERS = 6  # 24 thresholds at 5 levels are 8 million combinations; one more level would be 191 million
STEPS = 24
MAX_COMBINATIONS = 20_000_000  # right and cost take 8 bytes each for every one


@dataclass(frozen=True, slots=True)
class Route:
    """A chain of tiers, by position in the table, and the threshold of each but the last."""

    chain: Path
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.chain or len(self.thresholds) != len(self.chain) - 1 or len(set(self.chain)) < len(self.chain):
            raise BadTable(f"need distinct tiers and one threshold fewer, got {self.chain} and {self.thresholds}")

    def told(self, tiers: Sequence[str]) -> str:
        """In words: "nano (>= 0.9) then base"."""
        steps = [f"{tiers[tier]} (>= {threshold:g})" for tier, threshold in zip(self.chain, self.thresholds)]  # noqa: B905
        return " then ".join([*steps, tiers[self.chain[-1]]])


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """What a policy did with each question. served: (n,) tier.  right: (n,) 1 or 0.  cost, seconds: (n,), all tiers
    tried.  asked: (n,) how many were tried."""

    served: Ints
    right: Floats
    cost: Floats
    seconds: Floats
    asked: Ints

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def mean_cost(self) -> float:
        return float(self.cost.mean())


def replay(table: Crossed, route: Route) -> Played:
    """Follow one route question by question: the plain reading of the rule, which the sweep must agree with."""
    n = table.n
    served, asked = np.full(n, route.chain[-1]), np.zeros(n, dtype=np.int64)
    cost, seconds = np.zeros(n), np.zeros(n)
    waiting = np.ones(n, dtype=bool)
    for level, tier in enumerate(route.chain):
        cost[waiting] += table.cost[waiting, tier]
        seconds[waiting] += table.seconds[waiting, tier]
        asked[waiting] += 1
        if level < len(route.thresholds):
            accepted = waiting & (table.p_of(route.chain[: level + 1]) >= route.thresholds[level])
            served[accepted] = tier
            waiting &= ~accepted
    return Played(served, table.right[np.arange(n), served], cost, seconds, asked)


def reached(table: Crossed, route: Route) -> Iterator[tuple[int, Bools, Bools]]:
    """(tier, reached (n,), accepted (n,)) of each level of a route: what per-tier calibration is judged on."""
    waiting = np.ones(table.n, dtype=bool)
    for level, tier in enumerate(route.chain):
        here = waiting.copy()
        if level < len(route.thresholds):
            accepted = here & (table.p_of(route.chain[: level + 1]) >= route.thresholds[level])
        else:
            accepted = here
        waiting = here & ~accepted
        yield tier, here, accepted


# All combinations of thresholds of one chain


def outcomes(table: Crossed, chain: Path, thresholds: Sequence[Floats]) -> tuple[Floats, Floats]:
    """(right, cost) summed over questions, each of shape (G_1, ..., G_{m-1}): entry [g_1, ...] is that route's.

    thresholds: rising, one array for each level but the last. Raises BadTable when they are too many for the memory.
    """
    sizes = [len(grid) for grid in thresholds]
    if len(thresholds) != len(chain) - 1 or int(np.prod(sizes, dtype=np.int64)) > MAX_COMBINATIONS:
        raise BadTable(
            f"{sizes} thresholds for a chain of {len(chain)}: need one array for each tier but the last, and at most "
            f"{MAX_COMBINATIONS:,} combinations"
        )
    flat, inside = np.zeros(table.n, dtype=np.int64), np.arange(table.n)
    right = np.array(table.right[:, chain[0]].sum())
    cost = np.array(table.cost[:, chain[0]].sum())
    for level, grid in enumerate(thresholds):
        here, after = chain[level], chain[level + 1]
        passed = _passed(table.p_of(chain[: level + 1]), grid)[inside]
        kept = passed < len(grid)  # the others are accepted at every threshold and reach no later level
        inside, flat = inside[kept], flat[kept] * len(grid) + passed[kept]
        shape = tuple(sizes[: level + 1])
        gained = table.right[inside, after] - table.right[inside, here]
        right = right[..., np.newaxis] + _rejected(flat, gained, shape)
        cost = cost[..., np.newaxis] + _rejected(flat, table.cost[inside, after], shape)
    return right, cost


def _passed(p: Floats, grid: Floats) -> Ints:
    """How many of the rising thresholds each p meets; none for NaN, which searchsorted would put above all."""
    passed = np.searchsorted(grid, p, side="right").astype(np.int64)
    passed[np.isnan(p)] = 0
    return passed


def _rejected(flat: Ints, weight: Floats, shape: tuple[int, ...]) -> Floats:
    """Sum of the weights of the questions that a threshold combination rejects at every level so far."""
    total: Floats = np.bincount(flat, weight, minlength=int(np.prod(shape))).astype(np.float64).reshape(shape)
    for axis in range(len(shape)):
        np.cumsum(total, axis=axis, out=total)
    return total


# Which thresholds to try


def grid(table: Crossed, path: Path, steps: int = STEPS) -> Floats:
    """At most `steps` rising thresholds for the last tier of a path: quantiles of its p among distinct values.

    A later tier sees the questions that the one before was unsure of, so half of its quantiles are taken over the half
    of the questions least sure there. Neither "accept all" nor "accept none" is among them: the former is a shorter
    chain, the latter a chain without this tier at a lower cost; only when some answers have no evidence is "accept all
    that have" a choice of its own. Each is the shortest decimal that separates the same answers, so that a file can
    hold it and the last bit of a p does not matter. Empty when p never varies.
    """
    p = table.p_of(path)
    missing = bool(np.isnan(p).any())
    values = np.unique(p[~np.isnan(p)])
    first = 0 if missing else 1
    if values.size <= first:
        return np.empty(0)
    if values.size - first <= steps:
        taken = np.arange(first, values.size)
    else:
        taken = _spread(p, values, first, steps if len(path) == 1 else steps - steps // 2)
        if len(path) > 1:
            before = table.p_of(path[:-1])
            unsure = ~(before > np.nanmedian(before)) if bool((~np.isnan(before)).any()) else np.ones(len(p), bool)
            taken = np.union1d(taken, _spread(p[unsure], values, first, steps // 2))
    below = np.where(taken > 0, values[taken - 1], values[taken] / 2)
    return np.unique([shortest_between(low, high) for low, high in zip(below, values[taken], strict=True)])


def _spread(p: Floats, values: Floats, first: int, steps: int) -> Ints:
    """Places in `values`, from `first` on, of evenly spread quantiles of p."""
    known = p[~np.isnan(p)]
    if known.size == 0:
        return np.empty(0, dtype=np.int64)
    quantiles = np.quantile(known, (np.arange(steps) + 0.5) / steps, method="higher")
    places: Ints = np.unique(np.maximum(np.searchsorted(values, quantiles), first))
    return places


def shortest_between(low: float, high: float) -> float:
    """The number with the fewest decimals in (low, high]; the one nearest to the middle among those of that length.

    low < high, both in [0, 1].
    """
    middle = low + (high - low) / 2
    for digits in range(1, 17):
        tried = round(middle, digits)
        if low < tried <= high:
            return float(tried)
    return float(high)


# All chains


@dataclass(frozen=True, slots=True, eq=False)
class Swept:
    """The efficient routes of every chain: none of the same chain is at least as accurate for less.

    routes: R of them.  right: (R,) right answers among n.  cost: (R,) mean per question.  combinations: how many
    threshold combinations were evaluated to find them.
    """

    table: Crossed
    routes: tuple[Route, ...]
    right: Ints
    cost: Floats
    combinations: int

    @property
    def accuracy(self) -> Floats:
        return self.right / self.table.n

    @property
    def frontier(self) -> Ints:
        """Places in `routes` of those that no other route beats, from the cheapest up."""
        return efficient(self.right, self.cost, np.array([len(route.chain) for route in self.routes]))


def chains(tiers: int, levels: int | None = None) -> list[Path]:
    """All non-empty sub-chains that keep the order of the tiers, of at most so many levels: 63 for six tiers."""
    if tiers > MAX_TIERS:
        raise BadTable(f"{tiers} tiers are too many to try every chain; choose {MAX_TIERS} of them")
    return [chain for length in range(1, (levels or tiers) + 1) for chain in combinations(range(tiers), length)]


def sweep(
    table: Crossed, *, levels: int | None = None, steps: int = STEPS, only: Sequence[Path] | None = None
) -> Swept:
    """Evaluate every chain of at most `levels` tiers at every combination of at most `steps` thresholds per level.

    only: these chains instead of all.  Measured on two cores for 7,473 questions: see tests/eval/test_sweep.py.
    """
    grids: dict[Path, Floats] = {}
    routes: list[Route] = []
    found: list[tuple[Ints, Floats]] = []
    combinations_tried = 0
    for chain in only if only is not None else chains(len(table.tiers), levels):
        paths = [chain[: level + 1] for level in range(len(chain) - 1)]
        for path in paths:
            if path not in grids:
                grids[path] = grid(table, path, steps)
        tried = [grids[path] for path in paths]
        right, cost = outcomes(table, chain, tried)
        if right.size == 0:  # some p never varies: the chain is no better than one without that tier
            continue
        combinations_tried += right.size
        best = _front(right, cost, table.n)
        places = np.unravel_index(best, right.shape) if tried else ()
        marks = [np.asarray(values)[place].tolist() for values, place in zip(tried, places, strict=True)]
        routes += [Route(chain, at) for at in zip(*marks, strict=True)] if tried else [Route(chain)]
        found.append((np.rint(right.ravel()[best]).astype(np.int64), cost.ravel()[best] / table.n))
    return Swept(
        table,
        tuple(routes),
        np.concatenate([right for right, _ in found]),
        np.concatenate([cost for _, cost in found]),
        combinations_tried,
    )


def _front(right: Floats, cost: Floats, n: int) -> Ints:
    """Flat places of the efficient entries. Counts are whole numbers, so the cheapest of each count is all it takes."""
    counts, costs = np.rint(right).astype(np.int64).ravel(), cost.ravel()
    cheapest = np.full(n + 1, np.inf)
    np.minimum.at(cheapest, counts, costs)
    above = np.append(np.minimum.accumulate(cheapest[::-1])[::-1][1:], np.inf)
    wanted = np.where(cheapest < above, cheapest, np.nan)  # strictly cheaper than all that are more often right
    hits = np.flatnonzero(costs == wanted[counts])
    return hits[np.unique(counts[hits], return_index=True)[1]]


def efficient(right: Ints, cost: Floats, levels: Ints) -> Ints:
    """Places of the routes that no other beats on both counts; of equals the one with the fewest levels. By cost."""
    order = np.lexsort((levels, -right, cost))
    best_before = np.maximum.accumulate(np.append(-1, right[order]))[:-1]
    return order[right[order] > best_before]
