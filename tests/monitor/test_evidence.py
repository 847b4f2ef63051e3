"""What labels have shown, and when nothing current can be said."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.monitor.evidence import STALE_LOOKS, Evidence, Served
from gateway.monitor.settings import Monitors
from gateway.monitor.slo import Calibration
from gateway.store.base import Store
from gateway.store.sqlite import Sqlite
from tests.monitor.test_feed import AT, LATER, Failing, filled
from tests.test_certificate import certificate

SERVED: Served = {"default": {"cheap": ("cheap@0123456789ab", 0.8), "dear": ("none", None)}}
WANTED = Monitors.model_validate({"slos": {"min_labels": 100}})
TODAY = dt.date(2026, 11, 22)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Sqlite(tmp_path / "store.db")
    yield opened
    opened.close()


def evidence(store: Store | Failing | None, *, share: float | None = 0.5, served: Served = SERVED) -> Evidence:
    return Evidence(store, WANTED, served, share=share, since=0.0)


def test_without_a_store_or_exploration_it_is_unknown_and_says_why(store: Store) -> None:
    filled(store, 300, 0.9)
    for one, words in ((evidence(None), "no store"), (evidence(store, share=None), "nothing is explored")):
        found = one.read(LATER)
        assert found.states == {"default": Calibration.UNKNOWN}
        assert words in found.unknown


def test_labels_make_it_hold_or_break(store: Store) -> None:
    filled(store, 200, 0.9)
    one = evidence(store)
    assert one.findings.unknown
    found = one.read(AT + 1e5)
    assert found.states == {"default": Calibration.HOLDS}
    assert found.counted == 200
    assert one.withdrawn({"default": certificate()}, TODAY) == {}


def test_a_store_that_stays_away_makes_what_is_known_unknown_and_a_breach_stays_one(store: Store) -> None:
    filled(store, 200, 0.9)
    away = Failing(store, 10)
    one = evidence(away)
    assert one.read(AT + 1e5).states == {"default": Calibration.HOLDS}
    away.left = 0
    states = [one.read(AT + 1e5 + look).states["default"] for look in range(1, STALE_LOOKS + 1)]
    assert states == [Calibration.HOLDS] * (STALE_LOOKS - 1) + [Calibration.UNKNOWN]
    assert "away" in one.findings.unknown
    away.left = 10
    assert one.read(AT + 2e5).states == {"default": Calibration.HOLDS}


def test_what_is_proven_stays_and_withdraws_the_certificate(store: Store) -> None:
    filled(store, 300, 0.5)
    away = Failing(store, 10)
    one = evidence(away)
    one.read(AT + 1e5)
    away.left = 0
    for look in range(STALE_LOOKS):
        assert one.read(AT + 1e5 + look).states == {"default": Calibration.BROKEN}
    why = one.withdrawn({"default": certificate()}, TODAY)["default"]
    assert why.since == TODAY
    assert "claims more than" in why.why


@pytest.mark.parametrize("other", [("cheap@ffffffffffff", 0.8), ("cheap@0123456789ab", 0.7)])
def test_another_release_is_not_judged_by_this_ones_labels(other: tuple[str, float], store: Store) -> None:
    filled(store, 300, 0.5)
    one = evidence(store, served={"default": {"cheap": other, "dear": ("none", None)}})
    assert one.read(AT + 1e5).states == {"default": Calibration.UNKNOWN}
