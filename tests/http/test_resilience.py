"""Breaker, seats, retries and pauses of a real gateway. Every test has a cascade of its own, because tiers remember."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import httpx2
import pytest

from tests.faults.ask import ask
from tests.faults.gateway import SURE, Gateway, cascade, running, write_artifact
from tests.faults.upstream import Upstream

LANES = 32
OPEN_SECONDS = 0.6
BREAKS = ("reset", "hang_up", "reset_in_body", "end_in_body")


@pytest.fixture(scope="module")
def lanes(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Many cascades in one process."""
    folder = tmp_path_factory.mktemp("lanes")
    write_artifact(folder / "cheap.json")
    breaker = {"open_seconds": OPEN_SECONDS, "open_max_seconds": OPEN_SECONDS}
    limits = {"in_flight": 2, "waiting": 1, "waiting_seconds": 2, "breaker": breaker}
    plan = cascade(upstream.url)
    cheap, dear = plan["tiers"]
    plan["tiers"] = [
        {**tier, "name": f"{tier['name']}{n}", "limits": limits, "patience_seconds": 1.0}
        for n in range(LANES)
        for tier in (cheap, dear)
    ]
    gone = {"kind": "openai_http", "url": "http://127.0.0.1:1/v1", "model": "small"}
    plan["tiers"].append({"name": "gone", "engine": gone, "limits": limits})
    steps = [[{"tier": f"cheap{n}", "accept_at": 0.8}, {"tier": f"dear{n}"}] for n in range(LANES)]
    plan["policies"] = {f"p{n}": {"steps": step} for n, step in enumerate(steps)} | {"default": {"steps": steps[0]}}
    with running(folder, plan) as process:
        yield process


class Lane:
    """One cascade nobody else uses."""

    numbers = count()

    def __init__(self, http: httpx2.Client) -> None:
        self._http, self.number = http, next(self.numbers)

    def ask(self, small: dict[str, Any] | None = None, large: dict[str, Any] | None = None, **more: Any) -> Any:
        body = {"model": f"auto:p{self.number}", "route": {"debug": True}} | more
        return self._http.post("/v1/chat/completions", json=ask(small, large) | body)

    def hops(self, *plans: dict[str, Any]) -> list[tuple[str, int]]:
        """(reason, retries) of every hop."""
        return [(hop["reason"], hop["retries"]) for hop in self.ask(*plans).json()["route"]["hops"]]

    def metric(self, name: str, tier: str) -> float:
        """0 while it has no such series."""
        start = f'confidence_gateway_{name}{{tier="{tier}{self.number}"}} '
        lines = self._http.get("/metrics").text.splitlines()
        return next((float(line.removeprefix(start)) for line in lines if line.startswith(start)), 0.0)


@pytest.fixture
def lane(lanes: Gateway) -> Iterator[Lane]:
    with httpx2.Client(base_url=lanes.url, timeout=10) as http:
        yield Lane(http)


@pytest.mark.parametrize("fault", BREAKS)
def test_a_broken_connection_is_tried_once_more_on_a_new_one(fault: str, lane: Lane, upstream: Upstream) -> None:
    assert lane.hops({"fault": fault, "times": 1, "nats": SURE}) == [("confident", 1)]
    first, second = upstream.asked("small")
    assert first.connection != second.connection
    assert not second.reused
    assert lane.metric("retries_total", "cheap") == 1


@pytest.mark.parametrize("fault", BREAKS)
def test_there_is_no_third_attempt(fault: str, lane: Lane, upstream: Upstream) -> None:
    assert lane.hops({"fault": fault}) == [("failed", 1), ("last", 0)]
    assert len(upstream.asked("small")) == 2


@pytest.mark.parametrize("fault", ["500", "502", "503", "html", "cut_json", "unauthorized"])
def test_a_server_that_answered_is_not_asked_again(fault: str, lane: Lane, upstream: Upstream) -> None:
    assert lane.hops({"fault": fault}) == [("failed", 0), ("last", 0)]
    assert len(upstream.asked("small")) == 1


def test_a_server_that_refuses_connections_is_tried_twice(lane: Lane) -> None:
    told = lane.ask(model="gone")
    assert told.status_code == 502


@pytest.mark.parametrize("fault", ["503", "reset", "html"])
def test_a_failing_tier_is_left_alone_and_used_again_once_it_has_healed(
    fault: str, lane: Lane, upstream: Upstream
) -> None:
    for _ in range(5):
        assert lane.hops({"fault": fault})[0][0] == "failed"
    assert lane.metric("breaker_open", "cheap") == 1
    upstream.seen.clear()
    barred = lane.ask({"nats": SURE}).json()["route"]["hops"]
    assert [hop["reason"] for hop in barred] == ["breaker_open", "last"]
    assert barred[0]["seconds"] < 0.05
    assert not upstream.asked("small")
    began = time.monotonic()
    while lane.hops({"nats": SURE}) != [("confident", 0)]:
        assert time.monotonic() - began < 2 * OPEN_SECONDS + 2  # of a busy machine
        time.sleep(0.05)
    assert lane.metric("breaker_open", "cheap") == 0


def test_a_silent_tier_is_left_alone_too(lane: Lane) -> None:
    with ThreadPoolExecutor(2) as pool:
        for at_once in (2, 2, 1):
            list(pool.map(lambda _: lane.hops({"fault": "silent"}), range(at_once)))
    assert lane.hops({"nats": SURE})[0] == ("breaker_open", 0)


def test_in_an_outage_of_everything_the_last_tier_alone_is_asked_and_once(lane: Lane, upstream: Upstream) -> None:
    down = {"fault": "reset"}
    for _ in range(5):
        assert lane.ask(down, down).status_code == 502
    upstream.seen.clear()
    began, asks = time.monotonic(), 0
    while time.monotonic() - began < OPEN_SECONDS / 2:
        assert lane.ask(down, down).status_code == 502
        asks += 1
    assert asks > 1, "not fast"
    assert len(upstream.asked("small")) == 0
    assert len(upstream.asked("large")) == asks
    assert lane.hops(down, {})[-1] == ("last", 0), "it has healed"


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [("429", "7"), ("429_day", "60"), ("429_date", "60"), ("429_junk", "1"), ("429_untold", "1")],
)
def test_a_server_that_wants_to_rest_is_skipped_and_clients_are_told_when_to_return(
    fault: str, seconds: str, lane: Lane, upstream: Upstream
) -> None:
    assert lane.hops({"fault": fault}) == [("rate_limited", 0), ("last", 0)]
    began = time.monotonic()
    assert lane.hops() == [("rate_limited", 0), ("last", 0)]
    assert time.monotonic() - began < 0.9, "nobody sleeps"
    assert len(upstream.asked("small")) == 1
    lane.ask({}, {"fault": fault})
    limited = lane.ask()
    assert limited.status_code == 429
    assert limited.headers["retry-after"] == seconds
    assert len(upstream.asked("large")) == 3
    assert lane.metric("breaker_open", "cheap") == 0


def test_a_server_that_rested_is_asked_again(lane: Lane) -> None:
    assert lane.hops({"fault": "429_second"})[0] == ("rate_limited", 0)
    time.sleep(1.05)
    assert lane.hops({"nats": SURE}) == [("confident", 0)]


def test_overload_is_shed_in_order_and_does_not_spill_onto_the_dear_tier(lane: Lane, upstream: Upstream) -> None:
    with ThreadPoolExecutor(6) as pool:
        told = list(pool.map(lambda _: lane.ask({"seconds": 0.5, "nats": SURE}), range(6)))
    assert sorted(one.status_code for one in told) == [200, 200, 200, 503, 503, 503]
    refused = next(one for one in told if one.status_code == 503)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "server_error"
    assert (len(upstream.asked("small")), len(upstream.asked("large"))) == (3, 0)
    assert lane.metric("shed_requests_total", "cheap") == 3
    assert lane.metric("tier_in_flight", "cheap") == lane.metric("tier_waiting", "cheap") == 0
    assert lane.hops({"nats": SURE}) == [("confident", 0)]
