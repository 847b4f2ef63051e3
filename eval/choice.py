"""Choose one policy out of a sweep: by a budget, by an accuracy to reach, or by what a right answer is worth.

The best of thousands of policies owes part of its score to luck, so among those within one standard error of the best
the cheapest and simplest is taken, and what it scored here is never what is promised: see `Scored`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.crossed import BadTable, Bools, Crossed, Floats, group_codes
from eval.stats import concave_hull, standard_error
from eval.sweep import Played, Route, Swept, replay
from gateway.errors import GatewayError
from gateway.policy import lot


class NothingFits(GatewayError):
    """No policy meets the wish. The message says what could be had."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What makes one policy better than another: the most of worth * accuracy - rate * cost, within limits.

    most_cost: mean per question, in the table's unit.  least_accuracy: share.  worth, rate: >= 0, not both 0.
    """

    most_cost: float = np.inf
    least_accuracy: float = 0.0
    worth: float = 1.0
    rate: float = 0.0

    def feasible(self, accuracy: Floats, cost: Floats) -> Bools:
        """(R,) whether each policy may be chosen at all. A policy right on a limit must not miss it by rounding."""
        affordable: Bools = cost <= self.most_cost * (1 + 1e-12)
        good: Bools = accuracy >= self.least_accuracy - 1e-12
        return affordable & good

    def value(self, right: Floats, cost: Floats) -> Floats:
        """What is maximised, per question or in the mean."""
        return self.worth * right - self.rate * cost


def budget(cost: float) -> Goal:
    """The most accurate policy of at most this mean cost."""
    return Goal(most_cost=cost)


def target(accuracy: float) -> Goal:
    """The cheapest policy that is right at least so often."""
    return Goal(least_accuracy=accuracy, worth=0.0, rate=1.0)


def exchange(rate: float) -> Goal:
    """The best of accuracy - rate * cost. rate: lambda, the share of right answers that one unit of cost is worth."""
    return Goal(rate=rate)


def percent(cost: Floats) -> Floats:
    """Costs in whole percents of the dearest: cheaper by less is no reason for another level."""
    dearest = float(cost.max())
    return np.round(100 * cost / dearest) if dearest > 0 else np.zeros_like(cost)


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and the policy that merely scored best. Both carry their accuracy and cost where chosen."""

    route: Route
    accuracy: float
    cost: float
    best: Route
    best_accuracy: float
    best_cost: float


def choose(swept: Swept, goal: Goal) -> Choice:
    """The cheapest and simplest of the feasible policies within one paired standard error of the best one.

    Raises NothingFits.
    """
    levels = np.array([len(route.chain) for route in swept.routes])
    feasible = np.flatnonzero(goal.feasible(swept.accuracy, swept.cost))
    if feasible.size == 0:
        unit, low, high = swept.table.cost_unit, swept.cost.min(), swept.accuracy.max()
        raise NothingFits(
            f"no policy is right {goal.least_accuracy:.1%} of the time for at most {goal.most_cost:g} {unit}; "
            f"the cheapest costs {low:g}, the most accurate is right {high:.1%} of the time"
        )
    value = goal.value(swept.accuracy, swept.cost)
    order = feasible[np.lexsort((swept.cost[feasible], levels[feasible], percent(swept.cost[feasible])))]
    best = int(order[np.argmax(value[order])])
    chosen = next((int(place) for place in order if _as_good(swept, goal, int(place), best, value)), best)
    return Choice(
        swept.routes[chosen],
        float(swept.accuracy[chosen]),
        float(swept.cost[chosen]),
        swept.routes[best],
        float(swept.accuracy[best]),
        float(swept.cost[best]),
    )


def _as_good(swept: Swept, goal: Goal, place: int, best: int, value: Floats) -> bool:
    """Whether a policy is within one standard error of the best. No replay where no standard error could reach."""
    gap = float(value[best] - value[place])
    if gap <= 0:
        return True
    table = swept.table
    dearest = float(table.cost.sum(axis=1).max())
    ends = goal.value(np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, dearest, 0.0, dearest]))
    groups = group_codes(table)
    largest = float(np.sqrt(np.bincount(groups).max() / table.n))  # of a standard error, when the values span 1
    if gap > largest * float(np.ptp(ends)) * 1.01:
        return False
    mine, theirs = replay(table, swept.routes[place]), replay(table, swept.routes[best])
    gaps = goal.value(theirs.right, theirs.cost) - goal.value(mine.right, mine.cost)
    return gap <= standard_error(gaps, groups)


# Mixing


@dataclass(frozen=True, slots=True)
class Mix:
    """Two routes; a request follows `high` with probability `share`, drawn from its own id, so always alike, and as the
    gateway draws (gateway.policy.drawn) when the mix lists `high` first."""

    low: Route
    high: Route
    share: float

    def route(self, request_id: str) -> Route:
        return self.high if lot(request_id) < self.share else self.low


def mix(swept: Swept, limit: float) -> Mix:
    """The two corners of the hull around a budget, mixed so that the expected cost is exactly that.

    limit: mean cost per question. One beyond the most accurate route leaves money over: that route alone.
    Raises NothingFits.
    """
    frontier = swept.frontier
    hull = frontier[concave_hull(swept.cost[frontier], swept.accuracy[frontier])]
    costs = swept.cost[hull]
    if limit < costs[0]:
        raise NothingFits(f"nothing costs {limit:g} {swept.table.cost_unit} or less; the cheapest costs {costs[0]:g}")
    after = min(int(np.searchsorted(costs, limit, side="right")), len(hull) - 1)
    low, high = hull[max(after - 1, 0)], hull[after]
    width = float(swept.cost[high] - swept.cost[low])
    share = min(1.0, (limit - float(swept.cost[low])) / width) if width > 0 else 1.0
    return Mix(swept.routes[low], swept.routes[high], share)


def replay_mix(table: Crossed, policy: Mix) -> Played:
    """What a mix does with each question, its id being the request's."""
    follows = np.array([lot(question) < policy.share for question in table.questions])
    low, high = replay(table, policy.low), replay(table, policy.high)
    return Played(
        np.where(follows, high.served, low.served),
        np.where(follows, high.right, low.right),
        np.where(follows, high.cost, low.cost),
        np.where(follows, high.seconds, low.seconds),
        np.where(follows, high.asked, low.asked),
    )


# Scoring elsewhere


@dataclass(frozen=True, slots=True)
class Scored:
    """A policy where it was chosen and on questions that chose nothing. accuracy: share; cost: mean per question."""

    chosen_accuracy: float
    chosen_cost: float
    test_accuracy: float
    test_cost: float

    @property
    def optimism(self) -> float:
        """Accuracy promised minus accuracy kept."""
        return self.chosen_accuracy - self.test_accuracy


def scored(choice: Choice, chosen_on: Crossed, test: Crossed) -> Scored:
    """Raises BadTable when the test holds questions that did the choosing, or variants of them."""
    shared = set(chosen_on.questions) & set(test.questions) | set(chosen_on.families) & set(test.families)
    if shared:
        raise BadTable(f"{len(shared)} questions or families chose the policy and would test it: {min(shared)!r}")
    played = replay(test, choice.route)
    return Scored(choice.accuracy, choice.cost, played.accuracy, played.mean_cost)
