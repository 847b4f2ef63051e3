"""The console's figures from rows."""

from __future__ import annotations

import numpy as np
import pytest

from eval.card import Absent
from gateway.console import figures
from gateway.nouns import Prices, Tier
from gateway.store.base import Brief, Role, Source, Whole
from tests.store.rows import decision, hop, label, numbers


def brief(at: float, **changes: object) -> Brief:
    told = {"policy": "default", "status": 200, "reason": "confident", "tier": "cheap", "seconds": 0.1, "usd": 0.001}
    return Brief(at, **{**told, **changes})  # type: ignore[arg-type]


def test_traffic_counts_answers_by_tier_and_failures_apart() -> None:
    briefs = [brief(90.0, tier="dear", seconds=1.0), brief(80.0), brief(70.0), brief(60.0, status=502, tier="")]
    told = figures.traffic(briefs, 50.0, 100.0, most=10)
    assert [(one["tier"], one["value"]) for one in told["tiers"]] == [("cheap", 2 / 3), ("dear", 1 / 3)]
    assert (told["n"], told["cut"], told["from"]) == (4, False, 50.0)
    assert told["failed"]["value"] == 0.25
    assert told["seconds"]["p50"]["value"] == pytest.approx(0.1)
    assert told["per_minute"] == pytest.approx(4.8)
    assert sum(one["n"] for one in told["slices"]) == 4
    assert [one["failed"] for one in told["slices"]].index(1) == 8


def test_traffic_that_was_cut_says_from_when_on_it_tells() -> None:
    told = figures.traffic([brief(90.0), brief(80.0)], 0.0, 100.0, most=2)
    assert (told["cut"], told["from"]) == (True, 80.0)


def test_no_traffic_is_told_as_none() -> None:
    told = figures.traffic([], 0.0, 100.0, most=2)
    assert (told["n"], told["tiers"], told["seconds"], told["usd"], told["failed"]) == (0, [], None, None, None)


def explored(number: str, usd: float, alone: float, inclusion: float, **changes: object) -> Whole:
    shadow = hop(number, 1, tier="dear", role=Role.SHADOW, usd=alone)
    return Whole(decision(number, explored=True, inclusion=inclusion, **changes), (hop(number, usd=usd), shadow), ())


def test_what_was_saved_weighs_by_the_inclusion_probability_and_counts_no_shadow_as_spent() -> None:
    rows = [explored(one, 1.0, 10.0, 0.1) for one in numbers(20)] + [
        explored(one, 4.0, 5.0, 1.0) for one in numbers(20)
    ]
    told = figures.saving(rows, {"default": "dear"}, 30)
    spent, alone = 20 * 10 * 1.0 + 20 * 4.0, 20 * 10 * 10.0 + 20 * 5.0
    assert told["figure"]["value"] == pytest.approx(1 - spent / alone)
    assert told["figure"]["low"] < told["figure"]["value"] < told["figure"]["high"]


def test_nothing_is_said_about_savings_from_few_rows_or_without_prices() -> None:
    few = figures.saving([explored(one, 1.0, 10.0, 0.1) for one in numbers(29)], {"default": "dear"}, 30)
    assert (few["figure"], few["n"]) == (None, 29)
    free = figures.saving([explored(one, 0.0, 0.0, 0.1) for one in numbers(40)], {"default": "dear"}, 30)
    assert (free["figure"], free["free"]) == (None, True)
    unknown = figures.saving([explored(one, 1.0, 1.0, 0.1) for one in numbers(40)], {"other": "dear"}, 30)
    assert unknown["n"] == 0


def labelled(number: str, says: bool, p: float, source: Source = Source.USER, **changes: object) -> Whole:
    return Whole(decision(number, p_correct=p, **changes), (), (label(number, says, source),))


def test_a_proxys_opinion_and_an_answer_without_a_probability_judge_nothing() -> None:
    one, two, three = numbers(3)
    unsure = Whole(decision(two, p_correct=None), (), (label(two),))
    found = figures.judged([labelled(one, True, 0.9), unsure, labelled(three, False, 0.9, Source.PROXY)])
    assert found == [figures.Served("cheap", "cheap@0123456789ab", 0.9, True, False)]


def served(p: float, right: bool, drawn: bool = True) -> figures.Served:
    return figures.Served("cheap", "c@1", p, right, drawn)


def test_true_probabilities_stay_in_the_band_and_overconfident_ones_do_not() -> None:
    rng = np.random.default_rng(5)
    p = rng.beta(8, 2, 2_000)
    true = [served(float(one), bool(rng.random() < one)) for one in p]
    [routed, tier] = figures.calibration(true, np.random.default_rng(0))
    assert (routed["tier"], tier["tier"], tier["calibrator"]) == ("", "cheap", "c@1")
    inside = [one["band_low"] <= one["value"] <= one["band_high"] for one in tier["drawn"]["bins"]]
    assert sum(inside) >= 8
    assert tier["drawn"]["gap"]["low"] < 0 < tier["drawn"]["gap"]["high"]
    too_sure = [served(float(one), bool(rng.random() < one - 0.15)) for one in p]
    [_, found] = figures.calibration(too_sure, np.random.default_rng(0))
    assert found["drawn"]["gap"]["low"] > 0.1
    assert all(one["value"] < one["band_low"] for one in found["drawn"]["bins"])
    assert sum(one["n"] for one in found["drawn"]["bins"]) == 2_000
    cells = found["drawn"]["cells"]
    assert sum(one["right"] + one["wrong"] for one in cells) == 2_000


def test_labels_sought_by_lot_are_told_apart_from_those_people_chose_to_send() -> None:
    rows = [served(0.9, True) for _ in range(25)] + [served(0.9, False, drawn=False) for _ in range(25)]
    [routed, _] = figures.calibration(rows, np.random.default_rng(0))
    assert (routed["drawn"]["n"], routed["drawn"]["right"]["value"]) == (25, 1.0)
    assert (routed["all"]["n"], routed["all"]["right"]["value"]) == (50, 0.5)


def test_few_labels_are_counted_and_not_drawn() -> None:
    [routed, _] = figures.calibration([served(0.9, True) for _ in range(19)], np.random.default_rng(0))
    assert (routed["drawn"]["n"], routed["drawn"]["bins"]) == (19, [])
    assert figures.calibration([], np.random.default_rng(0)) == []


def test_without_exploration_a_saving_is_guessed_from_tokens_and_the_largest_tiers_prices() -> None:
    dear = Tier("dear", Absent("dear", {}), prices=Prices(1.0, 2.0))
    cheap = [
        (decision(one), (hop(one, usd=1e-5),)) for one in numbers(30)
    ]  # 10 tokens in, 20 out: 5e-5 at the dear one
    both = [
        (decision(one, tier="dear"), (hop(one, reason="unsure", usd=1e-5), hop(one, 1, tier="dear", usd=8e-5)))
        for one in numbers(10)
    ]
    lost = [(decision(one, status=502, tier=""), ()) for one in numbers(5)]
    told = figures.likely_saving([*cheap, *both, *lost], {"default": dear}, 30)
    alone = 30 * 5e-5 + 10 * 8e-5
    assert told["n"] == 40
    assert told["figure"]["value"] == pytest.approx(1 - (30 * 1e-5 + 10 * 9e-5) / alone)
    assert figures.likely_saving(cheap[:29], {"default": dear}, 30)["figure"] is None
    free = Tier("dear", Absent("dear", {}))
    assert figures.likely_saving(cheap, {"default": free}, 30)["figure"] is None
