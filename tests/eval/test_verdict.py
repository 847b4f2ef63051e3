"""The verdict sells what held-out questions show, and nothing else: planted worlds with and without a signal."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from eval.choice import NothingFits, budget, exchange, target
from eval.crossed import BadTable, Crossed
from eval.sweep import Route, replay
from eval.verdict import Verdict, judge

World = Callable[..., Crossed]
STRONG = {"skills": (0.5, 2.0, 3.0), "signal": 1.0}


def judged(chosen_on: Crossed, test: Crossed, goal: object = None, resamples: int = 400, anew: int = 20) -> Verdict:
    return judge(chosen_on, test, np.random.default_rng(0), goal, resamples=resamples, anew=anew)  # type: ignore[arg-type]


def test_a_strong_signal_is_sold_with_its_intervals(world: World) -> None:
    found = judged(world(2_000, 0, **STRONG), world(2_000, 1, **STRONG))
    assert found.sells
    assert found.recommended == found.choice.route
    assert found.sentence.startswith("use b then c: ")
    assert "of the cost of" in found.sentence
    assert "2,000 held-out questions" in found.sentence
    assert found.saving.low is not None
    assert found.saving.low > 0
    assert found.saving.value == pytest.approx(1 - found.cost_share.value)
    assert abs(found.held_out.optimism) < 0.05
    assert found.anew["saving"].high is not None
    assert found.anew["saving"].high > 0


@pytest.mark.parametrize("planted", [{"signal": 0.0}, {"signal": 0.1}, {"signal": 0.0, "skills": (1.0, 1.2, 1.4)}])
def test_a_worthless_signal_is_never_sold_in_25_tiny_worlds(world: World, planted: dict[str, object]) -> None:
    """285 rows: a rule that sold at its 2.5 % level would be caught out twice or more in one of eight such runs."""
    sold = [
        found.sentence
        for seed in range(25)
        for found in [judged(world(285, 2 * seed, **planted), world(285, 2 * seed + 1, **planted), anew=2)]
        if found.sells
    ]
    assert len(sold) <= 1, sold


def test_a_weak_signal_is_named_with_its_auroc(world: World) -> None:
    found = judged(world(1_500, 3, signal=0.0), world(1_500, 4, signal=0.0))
    assert not found.sells
    assert "signal of a (AUROC 0.49 [0.46, 0.52]) is too weak" in found.sentence
    assert found.sentence.endswith("serve c")
    assert found.recommended == Route((2,))


def test_a_last_tier_that_is_worse_than_the_middle_one_is_no_reference(world: World) -> None:
    planted = {"skills": (1.0, 3.5, 1.2), "costs": (1.0, 6.0, 16.0)}
    found = judged(world(1_500, 5, **planted), world(1_500, 6, **planted))
    assert found.reference == Route((1,))
    assert 2 not in found.recommended.chain


def test_tiers_that_are_alike_leave_the_cheapest_alone(world: World) -> None:
    one = world(400, 7, skills=(1.0,), costs=(1.0,))
    twins = [_tiled(one.rows(np.arange(part, 400, 2)), (1.0, 4.0)) for part in (0, 1)]
    found = judged(twins[0], twins[1])
    assert found.recommended == Route((0,))
    assert not found.sells
    assert "no model is cheaper" in found.sentence


def test_two_tiers_of_equal_cost_save_nothing(world: World) -> None:
    planted = {"skills": (0.0, 2.0), "costs": (4.0, 4.0)}
    found = judged(world(1_500, 8, **planted), world(1_500, 9, **planted))
    assert not found.sells
    assert found.recommended == Route((1,))


def test_two_specialists_of_equal_cost_may_be_sold_for_their_accuracy() -> None:
    """Each is right on its own half and knows it: together they cost more than one and are right far more often."""
    rng = np.random.default_rng(0)

    def specialists(name: str) -> Crossed:
        half = rng.random(800) < 0.5
        right = (rng.random((800, 2)) < np.where(np.stack([half, ~half], axis=1), 0.95, 0.2)).astype(float)
        p = np.where(np.stack([half, ~half], axis=1), 0.95, 0.2) + rng.uniform(-0.04, 0.04, (800, 2))
        cost = np.full((800, 2), 4.0)
        return Crossed(tuple(f"{name}{i}" for i in range(800)), ("a", "b"), p, right, cost, cost)

    found = judged(specialists("x"), specialists("y"), target(0.9))
    assert found.sells
    assert found.gain.low is not None
    assert found.gain.low > 0.2


def test_constant_and_absent_confidence_leave_single_models(world: World) -> None:
    for value in (0.5, np.nan):
        tables = [replace(world(285, seed), p=np.full((285, 3), value)) for seed in (10, 11)]
        found = judged(*tables)
        assert not found.sells
        assert len(found.recommended.chain) == 1


def test_one_tier_and_too_few_wrong_answers_are_said(world: World) -> None:
    alone = {"skills": (1.0,), "costs": (1.0,)}
    assert "there is no other" in judged(world(100, 12, **alone), world(100, 13, **alone)).sentence
    rare = {"skills": (12.0, 14.0), "costs": (2.0, 1.0)}
    found = judged(world(285, 14, **rare), world(285, 15, **rare))
    assert not found.sells
    assert "insufficient" in str(found.signals["a"])


def test_a_tiny_world_is_judged_without_a_warning(world: World) -> None:
    for n in (2, 5, 12):
        found = judged(world(n, 16), world(n, 17))
        assert isinstance(found.sentence, str)
        assert not found.sells


def test_a_budget_is_compared_with_the_best_model_that_it_buys(world: World) -> None:
    chosen_on, test = world(2_000, 18), world(2_000, 19)
    found = judged(chosen_on, test, budget(5.0))
    assert found.reference == Route((1,))
    assert found.choice.cost <= 5.0
    free = judged(chosen_on, test, exchange(0.0))
    assert free.reference == Route((2,))
    with pytest.raises(NothingFits):
        judged(chosen_on, test, budget(0.1))


def test_the_policy_is_held_against_every_model_with_holm(world: World) -> None:
    chosen_on, test = world(1_000, 20), world(1_000, 21)
    found = judged(chosen_on, test)
    ours = replay(test, found.choice.route).right
    for one, tier in zip(found.against, range(3), strict=True):
        assert one.only_policy - one.only_model == ours.sum() - test.right[:, tier].sum()
    assert found.against[0].p_value < 0.01


def test_what_chose_may_not_judge(world: World) -> None:
    with pytest.raises(BadTable, match="would test it"):
        judged(world(100, 22), world(100, 22))
    with pytest.raises(BadTable, match="different tiers"):
        judged(world(100, 23), world(100, 24, skills=(1.0,), costs=(1.0,)))


def _tiled(one: Crossed, costs: tuple[float, ...]) -> Crossed:
    """The same model several times, at several prices."""
    twins = len(costs)
    return Crossed(
        one.questions,
        tuple("abcdef"[:twins]),
        np.repeat(one.p, twins, axis=1),
        np.repeat(one.right, twins, axis=1),
        one.cost * np.array(costs),
        np.repeat(one.seconds, twins, axis=1),
    )
