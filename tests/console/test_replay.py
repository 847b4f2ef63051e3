"""What other thresholds would have done, where every tier's answer is known and where it is not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gateway import policy
from gateway.console import replay
from gateway.nouns import Finish, Policy, Reason, Tier
from gateway.store.base import Role, Source, Whole
from tests.store.rows import decision, hop, label, numbers


class Nobody:
    """An engine that is not asked."""

    name = "nobody"


def route(*thresholds: float | None) -> Policy:
    names = ("cheap", "middle", "dear")[-len(thresholds) :] if len(thresholds) == 3 else ("cheap", "dear")
    calibrators = {"cheap": "cheap@1", "middle": "middle@1", "dear": "none"}
    tiers = [
        Tier(name, Nobody(), threshold=threshold, calibrator_id=calibrators[name])  # type: ignore[arg-type]
        for name, threshold in zip(names, thresholds, strict=True)
    ]
    return Policy("default", tuple(tiers))


def row(number: str, p: float | None, *, says: bool | None = True, agrees: bool | None = True, **changes: Any) -> Whole:
    """Served by the cheap tier at .8, or by the dear one; the other's answer agrees with it or not."""
    cheap = p is not None and p >= 0.8
    facts: dict[str, Any] = {"explored": True, "inclusion": 0.5, "tier": "cheap" if cheap else "dear"}
    hops = (
        hop(number, p_correct=p, calibrator="cheap@1", usd=1.0, agrees=True if cheap else agrees),
        hop(
            number, 1, tier="dear", calibrator="none", role=Role.SHADOW if cheap else Role.HOP, threshold=None,
            usd=10.0, agrees=agrees if cheap else True,
        ),
    )  # fmt: skip
    return Whole(decision(number, **{**facts, **changes}), hops, () if says is None else (label(number, says),))


def test_the_policy_itself_is_replayed_as_it_was_served() -> None:
    p = np.random.default_rng(1).random(200)
    rows = [row(one, float(x)) for one, x in zip(numbers(200), p, strict=True)]
    found = replay.told(rows, route(0.8, None), "cheap")
    served = float(np.mean(p >= 0.8))
    assert found["now"]["shares"] == pytest.approx([served, 1 - served])
    assert found["now"]["usd"]["value"] == pytest.approx(served * 1 + (1 - served) * 11)
    assert (found["rows"], found["labelled"], found["effective"]) == (200, 200, pytest.approx(200))
    assert found["now"]["saving"]["value"] == pytest.approx(1 - found["now"]["usd"]["value"] / 10)


def test_every_replayed_threshold_decides_as_the_policy_would() -> None:
    rng = np.random.default_rng(2)
    p = np.round(rng.random(300), 2)  # so that some lie exactly on a threshold
    rows = replay.crossed([row(one, float(x)) for one, x in zip(numbers(300), p, strict=True)], route(0.8, None))
    for threshold in (0.0, 0.25, 0.5, 0.8, 1.0):
        wanted = [
            policy.decide(float(x), threshold, finish=Finish.STOP, null_reason=None) is Reason.CONFIDENT for x in p
        ]
        assert (replay.replayed(rows, [threshold]) == 0).tolist() == wanted


def test_an_answer_that_was_cut_or_has_no_probability_is_accepted_at_no_threshold() -> None:
    one, two, three = numbers(3)
    cut = row(one, 0.9)
    cut = replace(cut, hops=(replace(cut.hops[0], finish="length"), cut.hops[1]))
    failed = row(three, 0.9)
    failed = replace(failed, hops=(replace(failed.hops[0], error="away", finish="", p_correct=None), failed.hops[1]))
    rows = replay.crossed([cut, row(two, None), failed], route(0.8, None))
    assert replay.replayed(rows, [0.0]).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("says", "agrees", "known"),
    [(True, True, 1.0), (False, True, 0.0), (True, False, 0.0), (False, False, None), (True, None, None)],
)
def test_a_label_tells_about_another_tiers_answer_only_as_far_as_logic_goes(
    says: bool, agrees: bool | None, known: float | None
) -> None:
    [number] = numbers(1)
    [found] = replay.crossed([row(number, 0.9, says=says, agrees=agrees)], route(0.8, None)).right
    assert found[0] == float(says)
    assert math.isnan(found[1]) if known is None else found[1] == known


def test_what_is_not_known_widens_the_accuracy_and_is_never_guessed() -> None:
    some = numbers(100)
    rows = [row(one, 0.9, says=place >= 20, agrees=place >= 20) for place, one in enumerate(some)]
    found = replay.told(rows, route(0.8, None), "cheap")
    assert (found["now"]["least"]["value"], found["now"]["most"]["value"]) == (0.8, 0.8)
    [_, dear] = found["alone"]
    assert (dear["least"]["value"], dear["most"]["value"], dear["unknown"]) == (0.8, 1.0, 0.2)
    assert dear["least"]["low"] < 0.8
    assert dear["usd"]["value"] == 10.0, "nobody before it is asked"


def test_rows_weigh_by_the_inverse_of_their_inclusion_probability() -> None:
    some = numbers(60)
    rows = [row(one, 0.9, says=place < 30, inclusion=0.1 if place < 30 else 1.0) for place, one in enumerate(some)]
    found = replay.told(rows, route(0.8, None), "cheap")
    assert found["now"]["least"]["value"] == pytest.approx(300 / 330)
    assert found["effective"] == pytest.approx(330**2 / (30 * 100 + 30))


def test_estimates_from_drawn_rows_come_close_to_the_truth_of_all() -> None:
    rng = np.random.default_rng(6)
    n = 4_000
    p, right = rng.random(n), rng.random(n)
    inclusion = np.where(p < 0.8, 0.3, 0.6)
    rows = [
        row(one, float(p[place]), says=bool(right[place] < (p[place] if p[place] >= 0.8 else 0.95)),
            inclusion=float(inclusion[place]))
        for place, one in enumerate(numbers(n)) if rng.random() < inclusion[place]
    ]  # fmt: skip
    found = replay.told(rows, route(0.8, None), "cheap")["now"]
    truth = 0.2 * 0.9 + 0.8 * 0.95
    assert found["least"]["low"] < truth < found["most"]["high"]
    assert found["usd"]["low"] < 0.2 * 1 + 0.8 * 11 < found["usd"]["high"]


def test_with_few_labelled_rows_nothing_is_claimed() -> None:
    rows = [row(one, 0.9, says=None) for one in numbers(40)] + [row(one, 0.9) for one in numbers(29, 1.8e9)]
    found = replay.told(rows, route(0.8, None), "cheap")
    assert (found["rows"], found["labelled"], found["points"], found["now"]) == (69, 29, [], None)


def test_a_proxys_label_is_none() -> None:
    [number] = numbers(1)
    proxied = replace(row(number, 0.9), labels=(label(number, False, Source.PROXY),))
    assert not replay.crossed([proxied], route(0.8, None)).labelled.any()


def test_decisions_that_cannot_be_replayed_are_left_out_and_counted() -> None:
    whole, untried, failed, other, given_up, foreign = numbers(6)
    lacking = replace(row(untried, 0.9), hops=row(untried, 0.9).hops[:1])
    broken = row(failed, 0.9)
    broken = replace(broken, hops=(broken.hops[0], replace(broken.hops[1], error="away", finish="")))
    older = row(other, 0.9)
    older = replace(older, hops=(replace(older.hops[0], calibrator="cheap@0"), older.hops[1]))
    short = row(given_up, 0.1)
    short = replace(short, hops=(replace(short.hops[0], finish="", p_correct=None), short.hops[1]))
    found = replay.crossed(
        [row(whole, 0.9), lacking, broken, older, short, row(foreign, 0.9, policy="strict")], route(0.8, None)
    )
    assert found.weights.size == 1
    assert found.left_out == {
        "a tier was not asked": 1,
        "the last tier failed": 1,
        "another calibrator was in service": 1,
        "an answer was given up before its end": 1,
    }


def test_of_three_tiers_the_first_that_is_sure_answers_and_all_up_to_it_are_paid() -> None:
    some = numbers(40)
    rows = []
    for place, one in enumerate(some):
        cheap, dear = row(one, [0.9, 0.1][place % 2]).hops
        middle = hop(
            one, 2, tier="middle", calibrator="middle@1", p_correct=[0.2, 0.7][place % 2], usd=3.0, agrees=True
        )
        base = row(one, 0.9)
        rows.append(replace(base, hops=(cheap, dear, middle)))
    found = replay.told(rows, route(0.8, 0.6, None), "middle")
    assert found["now"]["shares"] == [0.5, 0.5, 0.0]
    assert found["now"]["usd"]["value"] == pytest.approx((1 + 4) / 2)
    stricter = found["points"][-1]
    assert (stricter["threshold"], stricter["shares"]) == (1.0, [0.5, 0.0, 0.5])
    assert stricter["usd"]["value"] == pytest.approx((1 + 14) / 2)
