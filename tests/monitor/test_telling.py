"""Reports: of several workers as one, and for people."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigError
from gateway.monitor import tested
from gateway.monitor.alarms import Alarm, Alarms, Kind
from gateway.monitor.telling import as_text, joined
from gateway.store.telling import moment

Json = dict[str, Any]


def report(*alarms: Alarm, at: float = 1e9, read_at: str | None = None) -> Json:
    on = Alarms()
    on.found(alarms, at)
    return {
        "at": "2026-11-22T00:00:00.000+00:00",
        "alarms": on.told(),
        "policies": [
            {"policy": "default", "calibration": "unknown", "certificate": None, "not_valid": on.voiding("default")}
        ],
        "monitors": {
            "drift": [{"policy": "default", "tier": "small", "calibrator": "s@1", "state": "unknown", "why": "few"}],
            "labels": {"unknown": "away", "by": "operators", "of": "explored", "needed": 300, "read_at": read_at,
                       "first_at": None, "newest_at": None, "revised": 0, "tests": [], "accepted_error": []},
        },
        "covers": {"requests": 5, "since": "2026-11-21"},
        "slos": [
            {"objective": "latency", "policy": None, "why": None, "budget": 0.05, "state": "unknown", "windows": []}
        ],
    }  # fmt: skip


DRIFT = Alarm(Kind.DRIFT, "small", "default", "far away")
LATE = Alarm(Kind.SLO, "", "", "slow", what="latency")


def test_an_alarm_of_any_worker_is_an_alarm_of_all_and_says_whose_it_is() -> None:
    whole = joined([(0, report(read_at="2026-01-01")), (1, report(DRIFT, at=5.0)), (2, report(DRIFT, at=3.0))])
    [alarm] = whole["alarms"]
    assert (alarm["kind"], alarm["workers"]) == ("drift", [1, 2])
    assert alarm["since"].startswith("1970-01-01T00:00:03")
    assert whole["policies"][0]["not_valid"] == ["small: far away"]
    assert [place["worker"] for place in whole["monitors"]["drift"]] == [0, 1, 2]
    assert whole["monitors"]["labels"]["read_at"] == "2026-01-01"
    assert whole["covers"] == {"requests": 15, "since": "2026-11-21", "workers": [0, 1, 2]}
    assert "the workers 0, 1, 2 since 2026-11-21, 15 requests" in as_text(whole)


def test_what_another_gateway_found_counts_here_until_it_is_seen_no_more_and_never_twice() -> None:
    here, there = Alarms(), Alarms()
    there.found([DRIFT, LATE], 100.0)
    here.found([LATE], 130.0)
    here.shared(there.rows(130.0), fresh=100.0)
    assert [(one["kind"], one["elsewhere"]) for one in here.told()] == [("slo", False), ("drift", True)]
    assert {one["since"] for one in here.told()} == {moment(100.0)}
    assert here.voiding("default") == ["small: far away (found by another gateway on this store)"]
    whole = joined([(0, report() | {"alarms": here.told()}), (1, report() | {"alarms": there.told()})])
    assert [(one["kind"], one["workers"], one["elsewhere"]) for one in whole["alarms"]] == [
        ("slo", [0, 1], False), ("drift", [1], False)
    ]  # fmt: skip
    here.shared(there.rows(130.0), fresh=131.0)
    assert here.voiding("default") == []


def test_a_store_hears_of_an_end_once_and_a_clock_that_jumped_back_makes_no_alarm_younger() -> None:
    on = Alarms()
    on.found([DRIFT], 100.0)
    on.shared(on.rows(100.0), fresh=0.0)
    on.found([], 110.0)
    assert on.ended == {DRIFT.about}
    on.found([DRIFT], 20.0)
    assert on.ended == set()
    [row] = on.rows(20.0)
    on.shared([replace(row, since=500.0)], fresh=0.0)
    assert on.rows(21.0)[0].since == 20.0


def test_an_alarm_keeps_the_time_it_began_at_until_it_ends() -> None:
    on = Alarms()
    for at, found in ((1.0, [DRIFT]), (2.0, [DRIFT]), (3.0, []), (4.0, [DRIFT])):
        on.found(found, at)
        told = on.told()
        assert len(told) == len(found)
    assert told[0]["since"].startswith("1970-01-01T00:00:04")
    on.found([DRIFT], 5.0)
    assert on.told()[0]["since"].startswith("1970-01-01T00:00:04")


def test_burning_budgets_and_under_confidence_void_no_claim() -> None:
    on = Alarms()
    on.found(
        [Alarm(Kind.SLO, "", "", "slow", what="latency"), Alarm(Kind.UNDERCONFIDENT, "small", "default", "too low")],
        1.0,
    )
    assert on.voiding("default") == []


DEEP = 100_000 * "["


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": "another"}', "\x00", '{"schema": 5}', pytest.param(DEEP, id="deep")],
)
def test_what_is_no_card_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "card.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is no card"):
        tested.load(path)
    with pytest.raises(ConfigError, match="is no card"):
        tested.load(tmp_path / "gone.json")


def test_the_card_that_is_shipped_tells_its_shifts() -> None:
    found = tested.load(Path(__file__).parents[2] / "docs/results/pocket-card/card.json")
    names = [whole["name"] for whole in found["wholes"]]
    assert names[0] == "test"
    assert {"reworded", "more_steps"} <= set(names)
    assert all(0 <= whole["right"]["value"] <= 1 for whole in found["wholes"])
    json.dumps(found)
