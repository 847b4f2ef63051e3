"""Reference lines: each by its definition, and the order in which they must lie."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from eval.baselines import LENGTH, RAW, Line, agreeing, cascade_oracle, lines, random_escalation, router_oracle
from eval.choice import Goal, budget
from eval.crossed import BadTable, Crossed
from eval.stats import mix_accuracy
from eval.sweep import Route, replay, sweep

World = Callable[..., Crossed]


def equipped(table: Crossed, seed: int) -> Crossed:
    """With lengths that know a little, raw scores that order like p, and final answers."""
    rng = np.random.default_rng(seed)
    wrong = np.array([[f"w{rng.integers(3)}" for _ in table.tiers] for _ in table.questions])
    answers = np.where(table.right == 1, "right", wrong)
    answers[0] = ""
    scores = {
        LENGTH: 1 / (1 + np.clip(100 - 20 * table.right + rng.normal(0, 40, table.right.shape), 1, None)),
        RAW: np.sqrt(table.p),
    }
    return replace(table, answers=tuple(map(tuple, answers.tolist())), scores=scores)


def by_name(found: list[Line]) -> dict[str, Line]:
    return {line.name: line for line in found}


def test_every_mandatory_line_is_drawn(world: World) -> None:
    found = lines(equipped(world(400, 0), 0), equipped(world(400, 1), 1), Goal())
    assert [line.name for line in found] == [
        "a", "b", "c", "random mix", "random escalation", LENGTH, RAW, "agreement", "router oracle", "cascade oracle",
    ]  # fmt: skip
    assert all(line.cost.shape == line.accuracy.shape for line in found)
    assert [line.name for line in found if line.oracle] == ["router oracle", "cascade oracle"]


def test_lines_that_need_what_is_not_known_are_left_out(world: World) -> None:
    names = [line.name for line in lines(world(100, 2), world(100, 3), Goal())]
    assert not {LENGTH, RAW, "agreement"} & set(names)


def test_no_policy_is_above_the_oracles_and_random_lies_on_the_envelope_or_below(world: World) -> None:
    test = world(500, 4)
    found = by_name(lines(test, world(500, 5), Goal()))
    singles = test.cost.mean(axis=0), test.right.mean(axis=0)
    best_possible = router_oracle(test)
    swept = sweep(test)
    assert swept.accuracy.max() <= best_possible.accuracy[0] == cascade_oracle(test).accuracy[0]
    as_good = swept.accuracy >= cascade_oracle(test).accuracy[0] - 1e-12
    assert not (swept.cost[as_good] < best_possible.cost[0]).any()
    assert best_possible.cost[0] <= cascade_oracle(test).cost[0]
    escalated = random_escalation(test)
    assert (escalated.accuracy <= mix_accuracy(escalated.cost, *singles) + 1e-12).all()
    assert found["random mix"].cost[0] == pytest.approx(world(500, 5).cost.mean(axis=0)[0])


def telling(table: Crossed, seed: int) -> Crossed:
    """With one feature that knows what p knows, surest when low, one that knows nothing, and prompts that tell how hard
    a question is."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=table.p.shape)
    easy = table.right.sum(axis=1) + rng.normal(size=table.n)
    known = {"noise": noise, "entropy": -np.log(table.p / (1 - table.p)), "elsewhere": np.full(table.p.shape, np.nan)}
    return replace(table, signals=known, prompts={"easy": easy})


def test_the_best_single_feature_is_found_turned_around_and_calibrated(world: World) -> None:
    chosen_on, test = (telling(world(1500, seed, signal=0.7), seed) for seed in (11, 12))
    found = by_name(lines(chosen_on, test, Goal()))["best feature"]
    assert found.told == "calibrated on its best single feature: entropy of a, entropy of b, entropy of c"
    ours = sweep(replace(test), levels=3, steps=12)
    reached = [mix_accuracy(cost, ours.cost[ours.frontier], ours.accuracy[ours.frontier]) for cost in found.cost]
    assert np.abs(np.array(reached) - found.accuracy).max() < 0.02
    blind = replace(chosen_on, signals={"noise": chosen_on.signals["noise"]})
    weak = by_name(lines(blind, test, Goal()))["best feature"]
    middle = float(np.median(found.cost))
    assert np.interp(middle, weak.cost, weak.accuracy) < np.interp(middle, found.cost, found.accuracy) - 0.01


def test_a_router_that_reads_the_prompt_asks_one_model_and_pays_it_alone(world: World) -> None:
    chosen_on, test = (telling(world(1500, seed), seed) for seed in (13, 14))
    limit = float(test.cost.mean(axis=0)[1])
    found = by_name(lines(chosen_on, test, budget(limit)))["before answering"]
    singles = test.cost.mean(axis=0), test.right.mean(axis=0)
    assert found.cost.min() >= singles[0].min() - 0.05
    assert found.cost.max() <= singles[0].max() + 0.05
    assert found.picked is not None
    assert (found.picked.asked == 1).all()
    assert found.picked.mean_cost < limit * 1.1
    assert found.picked.accuracy > mix_accuracy(found.picked.mean_cost, *singles) + 0.005
    rng = np.random.default_rng(0)
    blind = [replace(table, prompts={"easy": rng.normal(size=table.n)}) for table in (chosen_on, test)]
    gained = by_name(lines(*blind, Goal()))["before answering"]
    assert (gained.accuracy <= mix_accuracy(gained.cost, *singles) + 0.01).all()


def test_what_tells_nothing_or_has_one_class_still_gives_a_line(world: World) -> None:
    sure = replace(world(100, 15), right=np.ones((100, 3)))
    table = replace(sure, signals={"x": np.full((100, 3), np.nan)}, prompts={"same": np.zeros(100)})
    found = by_name(lines(table, table, Goal()))
    assert found["best feature"].told == "no single feature tells anything"
    assert found["before answering"].accuracy.tolist() == [1.0]


def test_the_oracles_by_hand() -> None:
    right = np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    cost = np.array([[1.0, 10.0]] * 3)
    table = Crossed(("x", "y", "z"), ("a", "b"), np.full((3, 2), 0.5), right, cost, cost)
    assert router_oracle(table).cost[0] == pytest.approx((1 + 10 + 1) / 3)
    assert cascade_oracle(table).cost[0] == pytest.approx((1 + 11 + 11) / 3)
    assert router_oracle(table).accuracy[0] == pytest.approx(2 / 3)


def test_agreement_serves_the_second_where_two_agree_and_never_two_empty_answers(world: World) -> None:
    table = equipped(world(300, 6), 6)
    played = replay(agreeing(table), Route((0, 1, 2), (1.0, 1.0)))
    for i in range(300):
        first, second, _ = table.answers[i]
        assert played.served[i] == (1 if first == second != "" else 2)
    assert played.served[0] == 2
    assert played.asked.min() == 2


def test_a_raw_score_that_orders_alike_makes_nearly_the_same_cascade(world: World) -> None:
    """One threshold per tier is tuned, so a monotone change of p may not matter; the grid is all that differs."""
    chosen_on, test = equipped(world(1_000, 7), 7), equipped(world(1_000, 8), 8)
    goal = budget(8.0)
    raw = by_name(lines(chosen_on, test, goal))[RAW]
    ours = sweep(test, steps=12)
    assert raw.picked is not None
    assert raw.picked.accuracy == pytest.approx(
        float(mix_accuracy(raw.picked.mean_cost, ours.cost, ours.accuracy)), abs=0.03
    )


def test_a_goal_that_a_baseline_cannot_reach_leaves_it_without_a_pick(world: World) -> None:
    found = by_name(lines(equipped(world(100, 9), 9), equipped(world(100, 10), 10), budget(0.01)))
    assert found[LENGTH].picked is None
    assert found["agreement"].picked is None


def test_scores_and_tables_that_do_not_fit_are_refused(world: World) -> None:
    table = world(20, 11)
    with pytest.raises(BadTable, match="no score 'length' in this table; have none"):
        table.by(LENGTH)
    with pytest.raises(BadTable, match="shape"):
        replace(table, scores={RAW: np.ones(3)})
