"""Drift by slice: parts of the traffic are held against the same part of the reference, and counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gateway.errors import ConfigError
from gateway.monitor import drift, telling
from gateway.monitor.alarms import Alarms, Kind
from gateway.monitor.evidence import Findings
from gateway.monitor.metrics import MonitorMetrics
from gateway.monitor.reference import Marks, Reference, TierReference, tagged, tier_reference
from gateway.monitor.settings import Monitors, SlicesEntry
from gateway.monitor.slices import Slices, Slicing
from gateway.monitor.slo import Slos
from gateway.monitor.telling import Seen
from gateway.monitor.watch import Watch
from gateway.monitor.windows import Block
from gateway.nouns import Cost, Features, Hop, Reason

NAMES, PLACE, LABEL = ("lp_mean", "length"), ("default", "small"), "s@1"
SLICING = Slicing(("alice", "bob"), (60,))
BOB, LONG = (*PLACE, "client bob"), (*PLACE, "over 60 prompt tokens")


def block(rng: np.random.Generator, n: int, *, bob: float = 0.0) -> Block:
    """Alice's prompts are short and her answers sure, Bob's are long: parts that differ on any day. bob: a shift of
    his."""
    whose = np.where(rng.random(n) < 0.5, "alice", "bob")
    tokens = np.where(whose == "alice", 40, 80) + rng.integers(-30, 31, n)
    X = rng.normal(size=(n, 2)) + np.where(whose == "alice", 1.0, -1.0)[:, None]
    X[whose == "bob"] += bob
    return Block(np.column_stack([X, 1 / (1 + np.exp(-X[:, 0]))]), Marks(tokens.astype(np.float64), whose))


def known(rng: np.random.Generator, n: int = 1_500) -> TierReference:
    one = block(rng, n)
    return tier_reference(LABEL, NAMES, one.rows, one.marks)


def sent(watch: Watch, one: Block) -> None:
    for row, tokens, client in zip(one.rows, one.marks.prompt_tokens, one.marks.clients, strict=True):
        hop = Hop("small", Reason.CONFIDENT, 0.1, None, float(row[-1]), Features(NAMES, row[:-1]),
                  calibrator_id=LABEL, cost=Cost(int(tokens)))  # fmt: skip
        watch.note("default", [hop], str(client))


def test_slices_are_named_by_what_is_configured_and_lengths_leave_no_gap() -> None:
    slicing = Slicing(("alice",), (10, 20))
    assert slicing.names == [
        "client alice", "up to 10 prompt tokens", "11 to 20 prompt tokens", "over 20 prompt tokens"
    ]  # fmt: skip
    marks = Marks(np.array([1.0, 10, 11, 20, 21, np.nan]), np.array(["alice", "bob", "", "alice", "eve", "eve"]))
    masks = slicing.masks(marks)
    assert {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()} == {
        "client alice": [0, 3], "up to 10 prompt tokens": [0, 1], "11 to 20 prompt tokens": [2, 3],
        "over 20 prompt tokens": [4],
    }  # fmt: skip


def test_a_shift_of_one_client_is_found_where_it_is_and_parts_that_always_differ_raise_nothing() -> None:
    rng = np.random.default_rng(0)
    watch = Watch(Reference({PLACE: known(rng)}), Slos(), rows=500, slicing=SLICING)
    for _ in range(3):
        sent(watch, block(rng, 500))
        watch.look()
    assert watch.latest_of_slices.keys() == {(*PLACE, name) for name in SLICING.names}
    assert not any(shift.drifted for shifts in watch.latest_of_slices.values() for shift in shifts)
    for _ in range(3):
        sent(watch, block(rng, 500, bob=-0.6))
        watch.look()
    found = {part for part, shifts in watch.latest_of_slices.items() if any(shift.drifted for shift in shifts)}
    assert BOB in found
    assert (*PLACE, "client alice") not in found


def test_a_shift_of_what_requests_say_of_themselves_is_found_where_it_is() -> None:
    rng = np.random.default_rng(20)
    said = SlicesEntry(metadata={"lang": ("de", "d"), "feature": ("chat",)})
    one = block(rng, 1_500)
    told = np.where(rng.random(1_500) < 0.5, tagged({"lang": "de", "feature": "chat"}), tagged({"lang": "d"}))
    reference_ = tier_reference(LABEL, NAMES, one.rows, replace(one.marks, metadata=told))
    watch = Watch(Reference({PLACE: reference_}), Slos(), rows=500, slicing=said.slicing())
    german = (*PLACE, "metadata lang=de")
    for shift in (0.0, 1.0):
        for place, row in enumerate(block(rng, 1_000).rows):
            metadata = {"lang": "de", "feature": "chat"} if place % 2 else {"lang": "d"}
            hop = Hop("small", Reason.CONFIDENT, 0.1, None, float(row[-1]), calibrator_id=LABEL,
                      features=Features(NAMES, row[:-1] + shift * (place % 2)))  # fmt: skip
            watch.note("default", [hop], "alice", metadata)
            watch.look()
        found = {part for part, shifts in watch.latest_of_slices.items() if any(one.drifted for one in shifts)}
        assert watch.latest_of_slices.keys() == {german, (*PLACE, "metadata lang=d"), (*PLACE, "metadata feature=chat")}
        assert found == ({german, (*PLACE, "metadata feature=chat")} if shift else set())


def test_of_what_requests_say_of_themselves_only_what_is_listed_is_kept() -> None:
    entry = SlicesEntry(metadata={"lang": ("de",)})
    assert entry.kept({"lang": "de", "name": "Mary"}) == {"lang": "de"}
    assert entry.kept({"lang": "en", "de": "lang"}) == {}
    assert entry.kept(None) == SlicesEntry().kept({"lang": "de"}) == {}


def test_a_slice_that_has_seen_too_little_says_nothing() -> None:
    rng = np.random.default_rng(1)
    watch = Watch(Reference({PLACE: known(rng)}), Slos(), rows=300, slicing=SLICING)
    sent(watch, block(rng, 300, bob=9.0))
    found = watch.look()
    assert any(shift.drifted for shift in found)
    assert not any(shift.slice for shift in found)  # 150 of 300
    assert 0 < watch.slices.waiting(BOB) < 300


def test_a_slice_that_the_reference_hardly_has_is_never_judged() -> None:
    rng = np.random.default_rng(2)
    slicing = Slicing(("alice", "carol"), (60,))
    slices = Slices(Reference({PLACE: known(rng)}), slicing, 200)
    assert slices.blind == {(*PLACE, "client carol"): "the reference has 0 of 200 rows of it"}
    one = block(rng, 1_500)
    old = tier_reference(LABEL, NAMES, one.rows)  # written before there were slices
    assert set(Slices(Reference({PLACE: old}), slicing, 200).blind.values()) == {
        "the reference does not tell slices apart"
    }


def test_years_of_looking_at_slices_raise_a_false_alarm_no_more_often_than_alpha_says() -> None:
    rng = np.random.default_rng(3)
    alarms = tests = 0
    gateways = 100
    for _ in range(gateways):
        reference, slices = (one := Reference({PLACE: known(rng, 800)})), Slices(one, SLICING, 200)
        alarm = False
        for look in range(1, 5):
            traffic = block(rng, 250)
            parts = slices.take({PLACE: traffic})
            found = drift.shifts(reference, {PLACE: traffic.rows}, parts, look=look)
            tests += len(found)
            alarm |= any(shift.p_value < drift.ALPHA / (look * (look + 1)) for shift in found)  # whatever the effect
        alarms += alarm
    assert tests > 2.5 * gateways * 4 * 4  # slices were among what was adjusted for
    assert alarms <= 6  # P(more than 6 of 100 | 1 %) < 1e-4


def test_a_slice_is_told_by_itself_and_its_alarm_says_which_it_is() -> None:
    rng = np.random.default_rng(5)
    slicing = Slicing(("alice", "bob", "carol"))
    watch = Watch(Reference({PLACE: known(rng)}), Slos(), rows=500, slicing=slicing)
    for _ in range(3):
        sent(watch, block(rng, 500, bob=-2.0))
        watch.look()
    served = {"default": {"small": (LABEL, None)}}
    seen = Seen(served, Monitors(rows=500), watch, Findings(), {}, {}, kept=False, requests=1_500, began=0.0)
    alarms = telling.alarms(seen, 0.0)
    assert {(alarm.kind, alarm.what) for alarm in alarms} == {(Kind.DRIFT, ""), (Kind.DRIFT, "client bob")}
    assert next(alarm for alarm in alarms if alarm.what).why.startswith("client bob: ")
    on = Alarms()
    on.found(alarms, 1e9)
    report = telling.report(seen, on, 1e9, 0.0)
    [place] = report["monitors"]["drift"]
    assert place["all_features"]["p_value"] < 0.01
    assert [(part["slice"], part["state"], part["why"]) for part in place["slices"]] == [
        ("client alice", "quiet", None), ("client bob", "drifted", None),
        ("client carol", "unknown", "the reference has 0 of 200 rows of it"),
    ]  # fmt: skip
    assert "client carol" in telling.as_text(report)


def test_slices_are_shown_in_metrics_of_their_own() -> None:
    rng, registry = np.random.default_rng(4), CollectorRegistry()
    metrics, watch = MonitorMetrics(registry), Watch(Reference({PLACE: known(rng)}), Slos(), rows=500, slicing=SLICING)
    for _ in range(3):
        sent(watch, block(rng, 500, bob=-2.0))
        metrics.looked(watch.look(), 0)
    text = generate_latest(registry).decode()
    assert 'confidence_gateway_slice_drifted{policy="default",slice="client bob",tier="small"} 1.0' in text
    assert 'confidence_gateway_slice_drifted{policy="default",slice="client alice",tier="small"} 0.0' in text


@pytest.mark.parametrize("wrong", [{"clients": ["a", "a"]}, {"prompt_tokens": [60, 60]}, {"prompt_tokens": [0]},
                                   {"clients": [f"c{n}" for n in range(17)]}, {"metadata": {"a": []}},
                                   {"metadata": {"a": ["b", "b"]}}, {"metadata": {"a": ["b\n"]}},
                                   {"metadata": {"a=": ["b"]}}, {"metadata": {f"n{n}": ["b"] for n in range(5)}},
                                   {"metadata": {"a": [f"v{n}" for n in range(17)]}}])  # fmt: skip
def test_slices_that_are_no_parts_are_refused(wrong: dict[str, list[object]]) -> None:
    with pytest.raises((ValueError, ConfigError)):
        SlicesEntry.model_validate(wrong)
