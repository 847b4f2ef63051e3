"""Breaker, seats, retries and pauses of a real gateway. Every test has a cascade of its own, because tiers remember."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from typing import Any

import httpx2
import pytest

from tests.faults.ask import ask, leave_idle
from tests.faults.gateway import PATIENCE, SURE, Gateway, cascade, running, soonest, timed, until, write_artifact
from tests.faults.upstream import Upstream

LANES = 50
LONG, SHORT = 120.0, 0.3  # s, for which a breaker stays open: for what is seen while it is, for what comes after
BREAKS = ("reset", "hang_up", "reset_in_body", "end_in_body")


@pytest.fixture(scope="module")
def lanes(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Many cascades in one process."""
    folder = tmp_path_factory.mktemp("lanes")
    write_artifact(folder / "cheap.json")
    write_artifact(folder / "first.json", span="prefix-1")
    plan = cascade(upstream.url)
    cheap, dear = plan["tiers"]
    cheap["prefix_calibrator"] = "first.json"

    def tier(like: dict[str, Any], name: str) -> dict[str, Any]:
        seconds = SHORT if name.startswith("healing") else LONG
        breaker = {"open_seconds": seconds, "open_max_seconds": seconds}
        limits = {"in_flight": 2, "waiting": 1, "waiting_seconds": PATIENCE, "breaker": breaker}
        return {**like, "name": f"{like['name']}-{name}", "limits": limits}

    names = [*map(str, range(LANES)), *(f"healing-{n}" for n in range(6)), "gone", "hurried"]
    plan["tiers"] = [tier(one, name) for name in names for one in (cheap, dear)]
    plan["tiers"][-2]["patience_seconds"] = 0.3
    plan["tiers"][-4]["engine"] = {**cheap["engine"], "url": "http://127.0.0.1:1/v1"}
    plan["on_bad_artifact"] = "escalate"  # nobody is there to be held against the calibrator
    steps = {name: [{"tier": f"cheap-{name}", "accept_at": 0.8}, {"tier": f"dear-{name}"}] for name in names}
    plan["policies"] = {f"p-{name}": {"steps": step, "commit_to": step[0]["tier"]} for name, step in steps.items()} | {
        "default": {"steps": steps[names[0]]}
    }
    with running(folder, plan) as process:
        yield process


def hops(answer: Any) -> list[tuple[str, int]]:
    """(reason, retries) of each."""
    return [(hop["reason"], hop["retries"]) for hop in answer.json()["route"]["hops"]]


class Lane:
    """One cascade nobody else uses."""

    def __init__(self, http: httpx2.Client, name: str) -> None:
        self._http, self.name = http, name

    def ask(self, small: dict[str, Any] | None = None, large: dict[str, Any] | None = None, **more: Any) -> Any:
        body = {"model": f"auto:p-{self.name}", "route": {"debug": True}} | more
        return self._http.post("/v1/chat/completions", json=ask(small, large) | body)

    def hops(self, *plans: dict[str, Any]) -> list[tuple[str, int]]:
        return hops(self.ask(*plans))

    def metric(self, name: str, tier: str) -> float:
        """0 while it has no such series."""
        start = f'confidence_gateway_{name}{{tier="{tier}-{self.name}"}} '
        lines = self._http.get("/metrics").text.splitlines()
        return next((float(line.removeprefix(start)) for line in lines if line.startswith(start)), 0.0)


NUMBERS, HEALING = count(), count()


@pytest.fixture
def http(lanes: Gateway) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=lanes.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def lane(http: httpx2.Client) -> Lane:
    return Lane(http, str(next(NUMBERS)))


@pytest.fixture
def healing(http: httpx2.Client) -> Lane:
    """One whose breakers are open for a moment only."""
    return Lane(http, f"healing-{next(HEALING)}")


@pytest.mark.parametrize("fault", BREAKS)
def test_a_broken_connection_is_tried_once_more_on_a_new_one(fault: str, lane: Lane, upstream: Upstream) -> None:
    leave_idle(2, lane.ask, upstream)
    upstream.seen.clear()
    assert lane.hops({"fault": fault, "times": 1, "nats": SURE}) == [("confident", 1)]
    assert [seen.reused for seen in upstream.asked("small")] == [True, False]
    assert lane.metric("retries_total", "cheap") == 1


@pytest.mark.parametrize("fault", BREAKS)
def test_there_is_no_third_attempt(fault: str, lane: Lane, upstream: Upstream) -> None:
    assert lane.hops({"fault": fault}) == [("failed", 1), ("last", 0)]
    assert len(upstream.asked("small")) == 2


def test_a_retry_that_is_over_makes_room_for_the_next(lane: Lane) -> None:
    """More of them, one after another, than there may be at once."""
    for times, told in ((1, [("confident", 1)]), (None, [("failed", 1), ("last", 0)])):
        for text in "abcd":
            assert lane.hops({"fault": "reset", "times": times, "nats": SURE, "text": text}) == told


@pytest.mark.parametrize("fault", ["500", "502", "503", "html", "cut_json", "unauthorized"])
def test_a_server_that_answered_is_not_asked_again(fault: str, lane: Lane, upstream: Upstream) -> None:
    assert lane.hops({"fault": fault}) == [("failed", 0), ("last", 0)]
    assert len(upstream.asked("small")) == 1


def test_a_server_that_refuses_connections_is_tried_twice(http: httpx2.Client) -> None:
    gone = Lane(http, "gone")
    for _ in range(5):
        assert gone.hops() == [("failed", 1), ("last", 0)]
    assert gone.hops() == [("breaker_open", 0), ("last", 0)]
    assert gone.ask(model="cheap-gone").status_code == 502


@pytest.mark.parametrize("fault", ["503", "reset", "html"])
def test_a_failing_tier_is_left_alone_at_no_cost_to_the_client(fault: str, lane: Lane, upstream: Upstream) -> None:
    for _ in range(5):
        assert lane.hops({"fault": fault})[0][0] == "failed"
    assert lane.metric("breaker_open", "cheap") == 1
    upstream.seen.clear()

    def barred() -> float:
        first, last = lane.ask({"nats": SURE}).json()["route"]["hops"]
        assert (first["reason"], last["reason"]) == ("breaker_open", "last")
        return float(first["seconds"])

    assert soonest(barred, 0.05) < 0.05
    assert not upstream.asked("small")


@pytest.mark.parametrize("fault", ["503", "reset", "html"])
def test_a_failing_tier_is_used_again_once_it_has_healed(fault: str, healing: Lane) -> None:
    while not healing.metric("breaker_open", "cheap"):
        healing.ask({"fault": fault})
    until(lambda: healing.hops({"nats": SURE}) == [("confident", 0)])
    assert healing.metric("breaker_open", "cheap") == 0


def test_one_question_at_a_time_finds_out_whether_it_has_healed(healing: Lane, upstream: Upstream) -> None:
    while not healing.metric("breaker_open", "cheap"):
        healing.ask({"fault": "503"})
    upstream.seen.clear()
    asked = list[Future[Any]]()

    def looks() -> bool:
        asked.append(pool.submit(healing.ask, {"nats": SURE, "gate": "healed"}))
        until(lambda: upstream.asked("small") or asked[-1].done())
        return bool(upstream.asked("small"))

    with ThreadPoolExecutor(1) as pool:
        until(looks)
        assert healing.hops({"nats": SURE}) == [("breaker_open", 0), ("last", 0)]
        upstream.opened.add("healed")
        assert hops(asked[-1].result()) == [("confident", 0)]


@pytest.mark.parametrize("mode", ["commit", "prefix"])
def test_a_stream_that_finds_it_healed_lets_others_in_with_its_first_piece(
    mode: str, healing: Lane, http: httpx2.Client, upstream: Upstream
) -> None:
    while not healing.metric("breaker_open", "cheap"):
        healing.ask({"fault": "503"})
    upstream.seen.clear()
    body = ask({"nats": SURE, "gate": "long", "before": 2}, stream=True, route={"stream_mode": mode})
    body["model"] = f"auto:p-{healing.name}"
    with ExitStack() as streams:

        def looks() -> bool:
            streams.enter_context(http.stream("POST", "/v1/chat/completions", json=body))
            return bool(upstream.asked("small"))

        until(looks)
        until(lambda: healing.hops({"nats": SURE}) == [("confident", 0)])
        assert "long" not in upstream.opened
        upstream.opened.add("long")


def test_a_silent_tier_is_left_alone_too(http: httpx2.Client) -> None:
    hurried = Lane(http, "hurried")
    with ThreadPoolExecutor(2) as pool:
        for at_once in (2, 2, 1):
            list(pool.map(lambda _: hurried.hops({"fault": "silent"}), range(at_once)))
    assert hurried.hops({"nats": SURE})[0] == ("breaker_open", 0)


def test_in_an_outage_of_everything_the_last_tier_alone_is_asked_and_once(lane: Lane, upstream: Upstream) -> None:
    down = {"fault": "reset"}
    for _ in range(5):
        assert lane.ask(down, down).status_code == 502
    upstream.seen.clear()
    asks = count(1)

    def fail() -> None:
        assert lane.ask(down, down).status_code == 502
        assert len(upstream.asked("large")) == next(asks)

    assert soonest(lambda: timed(fail), 0.15) < 0.15
    assert len(upstream.asked("small")) == 0
    assert lane.hops(down, {})[-1] == ("last", 0), "it has healed"


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [("429", "7"), ("429_day", "60"), ("429_date", "60"), ("429_junk", "1"), ("429_untold", "1")],
)
def test_a_server_that_wants_to_rest_is_skipped_and_clients_are_told_when_to_return(
    fault: str, seconds: str, http: httpx2.Client, upstream: Upstream
) -> None:
    limits = {"fault": fault}
    lane, told = Lane(http, ""), list[Any]()

    def both_rest() -> None:
        nonlocal lane
        lane = Lane(http, str(next(NUMBERS)))
        upstream.seen.clear()
        told[:] = [lane.ask(limits), lane.ask(), lane.ask({}, limits), lane.ask()]

    assert soonest(lambda: timed(both_rest), 0.9, tries=5) < 0.9, "nobody sleeps"  # and the pauses last
    skipped = [("rate_limited", 0), ("last", 0)]
    assert [hops(one) for one in told[:2]] == [skipped] * 2
    assert len(upstream.asked("small")) == 1
    assert [one.status_code for one in told] == [200, 200, 429, 429]
    assert told[-1].headers["retry-after"] == seconds
    assert len(upstream.asked("large")) == 3
    assert lane.metric("breaker_open", "cheap") == 0


def test_a_server_that_wants_to_rest_again_and_again_is_not_taken_for_a_failing_one(lane: Lane) -> None:
    for _ in range(10):
        assert lane.hops({"fault": "429_at_once"}) == [("rate_limited", 0), ("last", 0)]
    assert lane.hops({"nats": SURE}) == [("confident", 0)]


def test_a_server_that_rested_is_asked_again(lane: Lane) -> None:
    assert lane.hops({"fault": "429_second"})[0] == ("rate_limited", 0)
    until(lambda: lane.hops({"nats": SURE}) == [("confident", 0)])


def test_overload_is_shed_in_order_and_does_not_spill_onto_the_dear_tier(lane: Lane, upstream: Upstream) -> None:
    held = {"gate": "seats", "nats": SURE}
    with ThreadPoolExecutor(3) as pool:
        seated = [pool.submit(lane.ask, held) for _ in range(2)]
        until(lambda: len(upstream.asked("small")) == 2)
        waiting = pool.submit(lane.ask, held)
        until(lambda: lane.metric("tier_waiting", "cheap") == 1)
        refused = [lane.ask(held) for _ in range(3)]
        upstream.opened.add("seats")
        served = [one.result() for one in (*seated, waiting)]
    assert [one.status_code for one in (*served, *refused)] == [200, 200, 200, 503, 503, 503]
    assert refused[0].headers["retry-after"] == "1"
    assert refused[0].json()["error"]["type"] == "server_error"
    assert (len(upstream.asked("small")), len(upstream.asked("large"))) == (3, 0)
    assert lane.metric("shed_requests_total", "cheap") == 3
    assert lane.metric("tier_in_flight", "cheap") == lane.metric("tier_waiting", "cheap") == 0
    assert lane.hops({"nats": SURE}) == [("confident", 0)]
