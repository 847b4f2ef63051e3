"""Choosing by budget, target and exchange rate; mixing to a budget; no test question may choose."""

from collections.abc import Callable

import numpy as np
import pytest

from eval.choice import Mix, NothingFits, budget, choose, exchange, lot, mix, replay_mix, scored, target
from eval.crossed import BadTable, Crossed, group_codes
from eval.stats import standard_error
from eval.sweep import Route, replay, sweep

World = Callable[..., Crossed]


def test_the_choice_keeps_to_its_limit_and_is_within_one_standard_error_of_the_best(world: World) -> None:
    crossed = world(1_000, 0)
    swept = sweep(crossed)
    for goal in (budget(6.0), target(0.7), exchange(0.02)):
        chosen = choose(swept, goal)
        assert chosen.cost <= goal.most_cost
        assert chosen.accuracy >= goal.least_accuracy
        mine, best = replay(crossed, chosen.route), replay(crossed, chosen.best)
        gaps = goal.value(best.right, best.cost) - goal.value(mine.right, mine.cost)
        assert gaps.mean() <= standard_error(gaps, group_codes(crossed)) + 1e-12
        assert chosen.cost <= chosen.best_cost * 1.01
    best = choose(swept, budget(6.0))
    fits = swept.cost <= 6.0
    assert best.best_accuracy == swept.accuracy[fits].max()


def test_among_equals_the_cheapest_and_simplest_wins() -> None:
    rng = np.random.default_rng(0)
    n = 400
    right = np.repeat((rng.random((n, 1)) < 0.8).astype(float), 3, axis=1)
    cost = np.tile([1.0, 1.0, 5.0], (n, 1))
    crossed = Crossed(tuple(map(str, range(n))), tuple("abc"), rng.random((n, 3)), right, cost, cost)
    for goal in (budget(10.0), target(right[:, 0].mean()), exchange(0.001)):
        assert choose(sweep(crossed), goal).route == Route((0,))


def test_a_wish_that_cannot_be_met_is_answered_with_what_can(world: World) -> None:
    swept = sweep(world(200, 1))
    with pytest.raises(NothingFits, match="the cheapest costs"):
        choose(swept, budget(0.1))
    with pytest.raises(NothingFits, match="most accurate is right"):
        choose(swept, target(0.999))
    with pytest.raises(NothingFits, match="nothing costs"):
        mix(swept, 0.1)


def test_a_mix_of_two_hull_corners_hits_the_budget_exactly_in_expectation(world: World) -> None:
    crossed = world(4_000, 2)
    swept = sweep(crossed)
    cheapest = swept.cost.min()
    for limit in (cheapest, 3.0, 8.0, 1e9):
        mixed = mix(swept, limit)
        low, high = replay(crossed, mixed.low).mean_cost, replay(crossed, mixed.high).mean_cost
        expected = (1 - mixed.share) * low + mixed.share * high
        assert expected == pytest.approx(min(limit, swept.cost[swept.frontier].max()), rel=1e-9)
        played = replay_mix(crossed, mixed)
        assert played.mean_cost == pytest.approx(expected, rel=0.05)


def test_a_mix_never_changes_its_mind_about_a_request() -> None:
    mixed = Mix(Route((0,)), Route((1,)), 0.3)
    ids = [f"request {i}" for i in range(5_000)]
    assert [mixed.route(one) for one in ids] == [mixed.route(one) for one in ids]
    assert np.mean([mixed.route(one) == mixed.high for one in ids]) == pytest.approx(0.3, abs=0.02)
    assert lot("request 0") == lot("request 0")
    assert np.mean([lot(one) for one in ids]) == pytest.approx(0.5, abs=0.02)


def test_what_was_chosen_here_scores_lower_elsewhere_in_the_mean(world: World) -> None:
    optimism = []
    for seed in range(12):
        fit, test = world(150, 10 + seed, signal=0.2), world(3_000, 900 + seed, signal=0.2)
        chosen = choose(sweep(fit), budget(8.0))
        assert scored(chosen, fit, test).chosen_accuracy == chosen.accuracy
        optimism.append(chosen.best_accuracy - replay(test, chosen.best).accuracy)
    assert np.mean(optimism) > 0.01


def test_a_question_that_chose_may_not_test(world: World) -> None:
    crossed = world(100, 3)
    chosen = choose(sweep(crossed), budget(20.0))
    with pytest.raises(BadTable, match="would test it"):
        scored(chosen, crossed.rows(np.arange(50)), crossed.rows(np.arange(49, 100)))
