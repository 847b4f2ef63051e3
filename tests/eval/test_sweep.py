"""The exact sweep against the plain reading of the rule, on tables with every oddity, and its speed."""

import itertools
import resource
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.crossed import BadTable, Crossed
from eval.sweep import Route, chains, grid, outcomes, reached, replay, shortest_between, sweep

World = Callable[..., Crossed]


def table(p: np.ndarray, right: np.ndarray, cost: np.ndarray) -> Crossed:
    n, k = p.shape
    return Crossed(tuple(map(str, range(n))), tuple("abcdef"[:k]), p, right, cost, cost / 10)


@st.composite
def tables(draw: st.DrawFn) -> Crossed:
    """Few distinct p, so ties abound; NaN; now and then a column that never varies or that knows nothing at all."""
    n, k = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    values = st.sampled_from([0.0, 0.2, 0.5, 0.5, 0.9, 1.0, np.nan])
    p = np.array(draw(st.lists(st.lists(values, min_size=k, max_size=k), min_size=n, max_size=n)))
    odd = draw(st.sampled_from(["no", "constant", "no evidence"]))
    if odd != "no":
        p[:, draw(st.integers(0, k - 1))] = 0.5 if odd == "constant" else np.nan
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    return table(p, rng.integers(0, 2, (n, k)).astype(float), rng.random((n, k)) * 10.0 ** rng.integers(-3, 4, (1, k)))


@settings(max_examples=60)
@given(tables(), st.lists(st.sampled_from([0.0, 0.2, 0.3, 0.5, 0.9, 1.0]), min_size=1, max_size=4, unique=True))
def test_every_combination_scores_as_it_does_question_by_question(crossed: Crossed, marks: list[float]) -> None:
    marks = sorted(marks)
    for chain in chains(len(crossed.tiers)):
        right, cost = outcomes(crossed, chain, [np.array(marks)] * (len(chain) - 1))
        for places in itertools.product(range(len(marks)), repeat=len(chain) - 1):
            played = replay(crossed, Route(chain, tuple(marks[place] for place in places)))
            assert right[places] == played.right.sum()
            assert cost[places] == pytest.approx(played.cost.sum(), rel=1e-12, abs=1e-12 * crossed.cost.sum())


@settings(max_examples=25)
@given(tables())
def test_the_sweep_misses_no_better_policy(crossed: Crossed) -> None:
    swept = sweep(crossed, steps=50)
    marks = [0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.95, 1.0]
    for chain in chains(len(crossed.tiers)):
        for thresholds in itertools.product(marks, repeat=len(chain) - 1):
            played = replay(crossed, Route(chain, thresholds))
            frontier = swept.frontier
            cheap = swept.cost[frontier] <= played.mean_cost * (1 + 1e-9) + 1e-12
            assert cheap.any()
            assert swept.right[frontier][cheap].max() >= played.right.sum()


@given(tables())
def test_what_the_sweep_says_of_a_route_is_what_the_route_does(crossed: Crossed) -> None:
    swept = sweep(crossed)
    for route, right, cost in zip(swept.routes, swept.right, swept.cost, strict=True):
        played = replay(crossed, route)
        assert played.right.sum() == right
        assert played.mean_cost == pytest.approx(cost, rel=1e-12, abs=1e-12 * crossed.cost.sum())


def test_a_single_tier_is_a_chain_of_its_own_and_a_longer_chain_pays_for_all_it_tried(world: World) -> None:
    crossed = world(400, 1)
    nothing_accepted = replay(crossed, Route((0, 2), (1.0,)))
    assert nothing_accepted.accuracy == crossed.right[:, 2].mean()
    assert nothing_accepted.mean_cost == pytest.approx((crossed.cost[:, 0] + crossed.cost[:, 2]).mean())
    everything_accepted = replay(crossed, Route((0, 2), (0.0,)))
    assert everything_accepted.mean_cost == pytest.approx(crossed.cost[:, 0].mean())
    right, cost = outcomes(crossed, (1,), [])
    assert (float(right), float(cost)) == (crossed.right[:, 1].sum(), pytest.approx(crossed.cost[:, 1].sum()))


def test_a_higher_threshold_never_makes_a_chain_cheaper(world: World) -> None:
    crossed = world(500, 2)
    marks = np.linspace(0.05, 0.95, 7)
    _, cost = outcomes(crossed, (0, 1, 2), [marks, marks])
    assert (np.diff(cost, axis=0) >= -1e-9).all()
    assert (np.diff(cost, axis=1) >= -1e-9).all()


def test_a_later_tier_may_be_surer_for_knowing_what_came_before() -> None:
    rng = np.random.default_rng(0)
    n, k = 60, 3
    p, right, cost = rng.random((n, k)), rng.integers(0, 2, (n, k)).astype(float), rng.random((n, k))
    asked: list[tuple[int, ...]] = []

    def given_path(path: tuple[int, ...]) -> np.ndarray:
        asked.append(path)
        return (p[:, path[-1]] + sum(p[:, tier] for tier in path[:-1])) / len(path)

    crossed = Crossed(tuple(map(str, range(n))), tuple("abc"), p, right, cost, cost, given=given_path)
    swept = sweep(crossed, steps=6)
    for route, got, paid in zip(swept.routes, swept.right, swept.cost, strict=True):
        served = []
        for i in range(n):
            spent = 0.0
            for level, tier in enumerate(route.chain):
                spent += cost[i, tier]
                sure = np.mean([p[i, t] for t in route.chain[: level + 1]])
                if level == len(route.chain) - 1 or sure >= route.thresholds[level]:
                    break
            served.append((right[i, tier], spent))
        assert sum(one for one, _ in served) == got
        assert np.mean([spent for _, spent in served]) == pytest.approx(paid, rel=1e-12)
    assert {(0,), (1,), (0, 1)} <= set(asked)
    assert len(crossed.rows(np.arange(5)).p_of((0, 1))) == 5


def test_the_reached_and_accepted_regions_partition_the_questions(world: World) -> None:
    crossed = world(300, 3)
    route = Route((0, 1, 2), (0.6, 0.8))
    regions = list(reached(crossed, route))
    assert sum(accepted.astype(int) for _, _, accepted in regions).tolist() == [1] * 300
    assert [int(here.sum()) for _, here, _ in regions] == [
        int((replay(crossed, route).asked > level).sum()) for level in range(3)
    ]


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_shortest_decimal_lies_where_it_separates(one: float, other: float) -> None:
    low, high = sorted((one, other))
    if low < high:
        between = shortest_between(low, high)
        assert low < between <= high
        assert float(repr(between)) == between


def test_thresholds_are_numbers_one_can_read() -> None:
    assert shortest_between(0.8712345, 0.9123456) == 0.9
    assert shortest_between(0.0, 1e-300) == 1e-300


def test_a_tier_whose_p_never_varies_gets_no_threshold_unless_some_answers_have_none() -> None:
    right, cost = np.ones((4, 2)), np.ones((4, 2))
    constant = table(np.array([[0.7, 0.1]] * 4), right, cost)
    assert grid(constant, (0,)).size == 0
    assert {route.chain for route in sweep(constant).routes} == {(0,), (1,)}
    p = np.array([[0.7, 0.1], [np.nan, 0.2], [0.7, 0.3], [0.7, 0.4]])
    assert grid(table(p, right, cost), (0,)).tolist() == [0.5]
    assert grid(table(np.full((4, 2), np.nan), right, cost), (0,)).size == 0


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"p": np.array([[1.2]])}, "must lie in"),
        ({"right": np.array([[0.5]])}, "1 or 0"),
        ({"cost": np.array([[-1.0]])}, "cost must be finite"),
        ({"seconds": np.array([[np.inf]])}, "seconds must be finite"),
        ({"p": np.zeros((2, 1))}, "shape"),
        ({"families": ("x", "y")}, "families"),
    ],
)
def test_a_table_that_is_none_is_refused(broken: dict[str, object], told: str) -> None:
    good = {name: np.ones((1, 1)) for name in ("p", "right", "cost", "seconds")}
    with pytest.raises(BadTable, match=told):
        Crossed(("q",), ("a",), **{**good, **broken})  # type: ignore[arg-type]


def test_more_combinations_than_memory_are_refused_with_the_number(world: World) -> None:
    crossed = world(50, 4, skills=(0, 1, 2, 3), costs=(1, 2, 3, 4))
    with pytest.raises(BadTable, match="combinations"):
        outcomes(crossed, (0, 1, 2, 3), [np.linspace(0, 1, 400)] * 3)
    with pytest.raises(BadTable, match="choose 6"):
        chains(7)


def test_three_levels_at_256_thresholds_take_under_a_second(world: World) -> None:
    """Measured on two cores: 0.01 s for 65,536 combinations, 0.05 s with grids and front."""
    crossed = world(7_473, 5)
    began = time.process_time()
    swept = sweep(crossed, steps=256, only=[(0, 1, 2)])
    assert time.process_time() - began < 1
    assert swept.combinations > 0.95 * 256 * 256


@pytest.mark.slow
def test_all_63_chains_of_six_models_take_under_ten_seconds(world: World) -> None:
    """Measured on two cores: 1.9 to 2.3 s and 0.3 GiB for 10.2 million combinations, GSM8K's 7,473 train questions."""
    crossed = world(7_473, 6, skills=np.linspace(-1, 3, 6), costs=(0.5, 1.5, 3, 7, 14, 32))
    began = time.process_time()
    swept = sweep(crossed)
    assert time.process_time() - began < 10
    assert swept.combinations > 10_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 2**20  # KiB, of all that ran in this process
