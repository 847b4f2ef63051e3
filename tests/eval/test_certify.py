"""What the command does end to end, choosing and then promising, breaks its promises no more often than it says."""

import datetime as dt
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from scipy.stats import binom

from eval.certify import Promised, by_proof, certificate, of_choice
from eval.choice import Goal, choose, target
from eval.crossed import Crossed
from eval.guarantees import Certificate, Refused
from eval.sweep import Route, Swept, replay, sweep

World = Callable[..., Crossed]
DELTA = 0.2
DRAWS = 1_000
N = 150
ALPHA = 0.15  # near the error of the candidates, where a test without correction would err most
COSTS = np.array([1.0, 10.0])


class Population(NamedTuple):
    p: np.ndarray
    right: np.ndarray
    cost: np.ndarray

    def draw(self, rng: np.random.Generator, name: str) -> Crossed:
        rows = rng.integers(len(self.p), size=N)
        questions = tuple(f"{name}-{i}" for i in range(N))
        return Crossed(questions, ("a", "b"), self.p[rows], self.right[rows], self.cost[rows], self.cost[rows])

    def broken(self, found: Promised) -> tuple[bool, bool, float]:
        """(the final error is more than promised, some tier's error is, share of costs above the promised one)."""
        accepted = [self.p[:, 0] >= mark for mark in found.route.thresholds]
        first = np.ones(len(self.p), dtype=bool) if found.route.chain == (0,) else np.zeros(len(self.p), dtype=bool)
        first = accepted[0] if accepted else first
        right = np.where(first, self.right[:, 0], self.right[:, 1])
        cost = np.where(first, self.cost[:, 0], self.cost[:, 1] + (self.cost[:, 0] if accepted else 0.0))
        limits = {one.what: one.limit for one in found.outcomes if isinstance(one, Certificate)}
        final = 1 - right.mean() > limits.get("share of final answers that are wrong", 1.0)
        tiers = [
            1 - self.right[served, place].mean() > limits[what]
            for place, served in ((0, first), (1, ~first))
            if (what := f"share of wrong answers among those that {'ab'[place]} serves") in limits
        ]
        over = float((cost > limits.get("cost of one request in tokens", np.inf)).mean())
        return bool(final), any(tiers), over


@pytest.fixture(scope="module")
def population() -> Population:
    rng = np.random.default_rng(0)
    margin = np.array([1.5, 2.5]) - 1.2 * rng.normal(size=(12_000, 1)) + 0.5 * rng.normal(size=(12_000, 2))
    p = 1 / (1 + np.exp(-margin))
    return Population(p, (rng.random(p.shape) < p).astype(float), COSTS * rng.integers(50, 150, size=p.shape) / 100)


def chosen(table: Crossed) -> tuple[Swept, Route, list[Route]]:
    """As the command chooses: the policy for the accuracy of the best model, and the path for Learn then Test."""
    swept = sweep(table, steps=5)
    best = float(table.right.mean(axis=0).max())
    hull = swept.frontier
    return swept, choose(swept, target(best)).route, [swept.routes[place] for place in hull[::-1]]


def violations(broken: int, what: str) -> None:
    assert broken <= binom.ppf(0.999, DRAWS, DELTA), f"{what}: {broken} of {DRAWS} draws for {DELTA:.0%}"


def test_choosing_elsewhere_and_deciding_here_between_two_keeps_the_promises(population: Population) -> None:
    """However the certifying questions decide: a draw counts as broken when the promise for either policy is."""
    rng = np.random.default_rng(1)
    final = tiers = 0
    over: list[float] = []
    for _ in range(DRAWS):
        _, route, _ = chosen(population.draw(rng, "fit"))
        test = population.draw(rng, "test")
        rivals = [route, Route((1,))]
        broke = [population.broken(of_choice(test, one, rivals, DELTA)) for one in rivals]
        final, tiers = final + any(one[0] for one in broke), tiers + any(one[1] for one in broke)
        over.append(max(one[2] for one in broke))
    violations(final, "final error")
    violations(tiers, "error of some tier")
    assert final + tiers > 0  # else the test would show nothing
    assert np.mean(over) <= DELTA + 3 * np.std(over) / DRAWS**0.5


def test_a_walk_down_candidates_chosen_elsewhere_keeps_all_its_promises(population: Population) -> None:
    rng = np.random.default_rng(2)
    final = tiers = proven = 0
    over: list[float] = []
    for _ in range(DRAWS):
        _, route, path = chosen(population.draw(rng, "fit"))
        test = population.draw(rng, "test")
        found = by_proof(test, path, ALPHA, DELTA, of_choice(test, route, [route], DELTA))
        if found.refused is not None:
            continue
        proven += 1
        broke = population.broken(found)
        final, tiers = final + broke[0], tiers + broke[1]
        over.append(broke[2])
    assert proven > DRAWS / 4
    assert final > 0
    violations(final, "final error")
    violations(tiers, "error of some tier")
    assert np.mean(over) <= DELTA + 3 * np.std(over) / len(over) ** 0.5


def test_a_certificate_names_what_chose_and_what_certified(world: World) -> None:
    table = world(600, 1, skills=(2.0, 4.0, 8.0))
    route = Route((1, 2), (0.9,))
    found = of_choice(table, route, [route, Route((2,))], 0.05)
    sealed = certificate(found, table, {"b": "b@0123456789ab"}, "validation", "test", dt.date(2026, 11, 22))
    assert sealed is not None
    assert [(step.tier, step.accept_at, step.calibrator) for step in sealed.steps] == [
        ("b", 0.9, "b@0123456789ab"),
        ("c", None, "none"),
    ]
    assert sealed.chosen.startswith("on validation: thresholds were chosen on other questions than these")
    assert "between 2 policies only" in sealed.chosen
    assert (sealed.data.split, sealed.data.n, sealed.data.sha256) == ("test", 600, table.sha256)
    assert "c has no calibrator, so nothing notices when its model becomes another one" in sealed.assumptions
    assert {one.unit for one in sealed.promises} == {"share", "tokens"}


def test_the_more_policies_a_test_may_decide_between_the_less_it_promises(world: World) -> None:
    table, route = world(400, 2), Route((0, 2), (0.6,))
    alone = of_choice(table, route, [route], 0.05).outcomes
    among = of_choice(table, route, [route, Route((2,)), Route((1,))], 0.05).outcomes
    for one, other in zip(alone, among, strict=True):
        assert isinstance(one, Certificate)
        assert isinstance(other, Certificate)
        assert one.limit < other.limit
        assert one.seen == other.seen
    assert "3 policies at once" in among[0].method  # type: ignore[union-attr]


def test_what_is_not_proven_leaves_the_recommended_policy_and_says_so(world: World) -> None:
    table = world(200, 3)
    swept = sweep(table, steps=4)
    route = choose(swept, Goal()).route
    found = by_proof(table, [route], 0.001, 0.05, of_choice(table, route, [route], 0.05))
    assert isinstance(found.refused, Refused)
    assert found.route == route
    assert replay(table, route).accuracy < 0.999
