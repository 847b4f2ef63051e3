"""What a key may use: rates, budgets, models and overrides; through a real gateway, and with clocks that jump."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import config as configs
from gateway.config import Allowance
from gateway.errors import ConfigError, EngineDown, EngineSlow, OverBudget, RateLimited
from gateway.http.auth import Caller
from gateway.http.quota import Estimate, Visit, dearest, duration
from gateway.nouns import Completion, Cost, Finish, Hop, Policy, Prices, Reason, Tier, ToolCall
from gateway.resilience.ledger import DAYS, IN_FLIGHT, REQUESTS, Bucket, Ledger, Windows
from tests.faults.ask import ask
from tests.faults.gateway import (
    HEAD,
    PATIENCE,
    SURE,
    UNSURE,
    Gateway,
    cascade,
    free_port,
    running,
    soonest,
    timed,
    until,
    write_artifact,
)
from tests.faults.upstream import Upstream

Json = dict[str, Any]

KEYS: dict[str, Json] = {
    "free": {},
    "slow": {"limits": {"requests_per_minute": 3}},
    "terse": {"limits": {"tokens_per_minute": 1000}},
    "single": {"limits": {"in_flight": 1}},
    "frugal": {"limits": {"dearest_usd_per_day": 0.0001}},
    "poor": {"limits": {"usd_per_month": 0.00002}},
    "short": {"limits": {"tokens_per_day": 20}},
    "strict": {"models": ["auto:strict", "cheap"]},
    "flood": {"limits": {"requests_per_minute": 20}},
    "aborts": {"limits": {"tokens_per_day": 600}},
    "hasty": {"limits": {"tokens_per_day": 600}},
    "untold": {"limits": {"tokens_per_day": 600}},
    "caller": {"limits": {"tokens_per_minute": 1000}},
}


def client(name: str, **more: Json) -> Json:
    return {"name": name, "sha256": hashlib.sha256(f"sk-{name}".encode()).hexdigest(), **more}


def planned(url: str) -> Json:
    plan = cascade(
        url,
        keys={"clients": [client(name, **more) for name, more in KEYS.items()], "ledger": "used.ledger"},
        admin={"port": free_port(), "allow_anonymous": True},
        overrides={"threshold": [0.5, 0.99]},
    )
    plan["tiers"][0]["engine"]["prefix_cache"] = "client"
    plan["tiers"][1]["allows"] = ["tools"]
    return plan


class Run:
    def __init__(self, gateway: Gateway, plan: Json) -> None:
        self.gateway = gateway
        self.http = httpx2.Client(base_url=gateway.url, timeout=PATIENCE)
        self.admin = httpx2.Client(base_url=f"http://127.0.0.1:{plan['admin']['port']}", timeout=PATIENCE)

    def ask(self, name: str, small: Json | None = None, large: Json | None = None, **fields: Any) -> httpx2.Response:
        return self.put(name, ask(small or {"nats": SURE}, large) | fields)

    def put(self, name: str, body: Json) -> httpx2.Response:
        return self.http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer sk-{name}"})


@pytest.fixture(scope="module")
def run(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("quota")
    write_artifact(folder / "cheap.json")
    plan = planned(upstream.url)
    with running(folder, plan) as gateway:
        made = Run(gateway, plan)
        with made.http, made.admin:
            yield made


def error(answer: httpx2.Response) -> Json:
    return answer.json()["error"]  # type: ignore[no-any-return]


def test_a_server_can_be_told_to_keep_each_clients_cached_prompts_apart(run: Run, upstream: Upstream) -> None:
    for name in ("free", "free", "single"):
        assert run.ask(name, {"nats": UNSURE}).is_success
    mine, again, other = (seen.body["cache_salt"] for seen in upstream.asked("small"))
    assert mine == again != other
    assert len({mine, other, "free", "single"}) == 4, "a name that anybody can guess keeps nobody apart"
    assert all("cache_salt" not in seen.body for seen in upstream.asked("large")), "this server shares"
    forged = run.ask("free", cache_salt=other)
    assert upstream.asked("small")[-1].body["cache_salt"] == mine, forged.text


def test_a_key_is_told_what_it_has_left_and_refused_when_that_is_nothing(run: Run, upstream: Upstream) -> None:
    left = [run.ask("slow").headers["x-ratelimit-remaining-requests"] for _ in range(3)]
    assert left == ["2", "1", "0"]
    refused = run.ask("slow")
    assert refused.status_code == 429
    assert error(refused)["type"] == "rate_limit_error"
    assert error(refused)["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert refused.headers["x-ratelimit-limit-requests"] == "3"
    assert re.fullmatch(r"1m0s|[1-5]?\ds", refused.headers["x-ratelimit-reset-requests"])
    assert refused.headers["x-route-id"]
    assert len(upstream.asked("small")) == 3
    assert not [name for name in run.ask("free").headers if name.startswith("x-ratelimit")]


def test_a_reload_does_not_give_a_key_anything_back(run: Run) -> None:
    while run.ask("slow").status_code == 200:
        pass
    assert run.admin.post("/admin/reload").status_code == 200
    assert run.ask("slow").status_code == 429


def test_a_key_is_replaced_without_a_gap_and_the_old_one_is_nobodys_at_once(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    plan = planned(upstream.url)
    old, new = (client("slow", limits={"requests_per_minute": 3}), client("new", limits={"requests_per_minute": 3}))
    new["name"] = "slow"
    plan["keys"]["clients"] = [old]
    with running(tmp_path, plan) as gateway:
        run = Run(gateway, plan)

        def now(*clients: Json) -> None:
            plan["keys"]["clients"] = list(clients)
            (tmp_path / "cascade.yaml").write_text(json.dumps(plan))
            assert run.admin.post("/admin/reload").status_code == 200

        with run.http, run.admin:
            assert [run.ask(name).status_code for name in ("slow", "new")] == [200, 401]
            now(old, new)
            assert [run.ask(name).headers["x-ratelimit-remaining-requests"] for name in ("slow", "new")] == ["1", "0"]
            now(new)
            assert [run.ask(name).status_code for name in ("slow", "new")] == [401, 429]


def test_tokens_are_reserved_before_and_counted_after(run: Run, upstream: Upstream) -> None:
    first = run.ask("terse", max_tokens=600)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-tokens"] == "1000"
    again = run.ask("terse", {"nats": SURE, "seconds": 0}, max_tokens=600)
    assert again.status_code == 200, "what was reserved and not used came back"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(run.ask, "terse", {"nats": SURE, "gate": "slow"}, max_tokens=600)
        until(lambda: len(upstream.asked("small")) == 3)
        refused = run.ask("terse", max_tokens=600)
        upstream.opened.add("slow")
        assert refused.status_code == 429
        assert "tokens per minute" in error(refused)["message"]
        assert slow.result().status_code == 200


@pytest.mark.parametrize("fault", ["500", "overflow"])
def test_an_error_tells_what_is_left_once_its_reservation_has_come_back(fault: str, run: Run) -> None:
    failed = run.ask("terse", {"fault": fault}, {"fault": fault}, max_tokens=600)
    assert failed.status_code in (400, 502)
    assert int(failed.headers["x-ratelimit-remaining-tokens"]) > 900


def test_a_key_may_have_so_many_requests_at_once_and_again_when_they_have_ended(run: Run, upstream: Upstream) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(run.ask, "single", {"nats": SURE, "gate": "slow"})
        until(lambda: upstream.asked("small"))
        refused = run.ask("single")
        upstream.opened.add("slow")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert run.ask("free").status_code == 200
        assert slow.result().status_code == 200
    assert run.ask("single", {"fault": "reset"}, {"fault": "reset"}).status_code == 502
    assert run.ask("single").status_code == 200


def test_over_the_cap_on_the_dearest_tier_a_policy_stops_at_the_tier_below(run: Run, upstream: Upstream) -> None:
    first = run.ask("frugal", {"nats": UNSURE})
    assert first.headers["x-route-tier"] == "dear"
    run.ask("frugal", {"nats": UNSURE})
    upstream.seen.clear()
    capped = run.ask("frugal", {"nats": UNSURE})
    assert capped.status_code == 200
    assert capped.headers["x-route-tier"] == "cheap"
    assert capped.headers["x-route-reason"] == "budget"
    assert not upstream.asked("large")
    sure = run.ask("frugal", {"nats": SURE})
    assert sure.headers["x-route-tier"] == "cheap"
    alone = run.ask("frugal", model="dear")
    assert alone.status_code == 429, "nothing else is possible"
    assert error(alone)["code"] == "insufficient_quota"
    assert int(alone.headers["retry-after"]) <= 86400
    assert run.ask("frugal", model="cheap").status_code == 200


@pytest.mark.parametrize(("key", "words"), [("poor", "dollars per month"), ("short", "tokens per day")])
def test_a_budget_that_is_used_up_is_a_429_that_says_so(key: str, words: str, run: Run) -> None:
    answers = [run.ask(key, max_tokens=8) for _ in range(4)]
    assert answers[0].status_code == 200
    assert answers[-1].status_code == 429
    assert words in error(answers[-1])["message"]


def test_a_key_asks_for_its_own_models_only(run: Run) -> None:
    assert run.ask("strict", model="auto:strict").status_code == 200
    assert run.ask("strict", model="cheap").status_code == 200
    for model, more in (("auto", {}), ("dear", {}), ("auto", {"route": {"policy": "default"}})):
        refused = run.ask("strict", model=model, **more)
        assert refused.status_code == 403
        assert error(refused)["type"] == "permission_error"
        assert error(refused)["param"] == "model"
    assert run.ask("strict", route={"policy": "strict"}).status_code == 200


def test_a_flood_over_many_connections_gets_exactly_what_the_key_may_have(run: Run) -> None:
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda _: run.ask("flood").status_code, range(80)))
    refilled = 20 * (time.monotonic() - began) / 60
    assert set(statuses) == {200, 429}
    assert 20 <= statuses.count(200) <= 20 + refilled + 1
    assert run.ask("free").status_code == 200


def test_who_leaves_before_the_answer_has_paid_for_it(run: Run, upstream: Upstream) -> None:
    """Else a key with a budget could use a model as much as it likes, by hanging up just before the end."""
    body = json.dumps(ask({"nats": SURE, "gate": "never"}) | {"max_tokens": 400}).encode()
    asked = HEAD + b"authorization: Bearer sk-aborts\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    for n in range(2):
        with contextlib.ExitStack() as leaving:
            raw = leaving.enter_context(run.gateway.connect())
            raw.sendall(asked)
            until(lambda n=n: len(upstream.asked("small")) > n)
    until(lambda: all(seen.released_at for seen in upstream.asked("small")))
    until(lambda: run.ask("aborts", max_tokens=8).status_code == 429)


def test_who_sets_a_deadline_that_no_answer_can_meet_has_paid_for_it(run: Run, upstream: Upstream) -> None:
    """As who leaves. What waited for a seat and never was put to a server costs nothing, on a slow machine."""
    fields: Json = {"max_tokens": 400, "model": "cheap", "route": {"deadline_seconds": 0.5}}
    told = [run.ask("hasty", {"gate": "never"}, **fields).status_code for _ in range(9)]
    assert set(told) == {504, 429}
    assert told[-1] == 429
    assert len(upstream.asked("small")) == 2


def test_what_a_server_does_not_tell_of_tokens_is_charged_by_the_length_of_texts(run: Run, upstream: Upstream) -> None:
    said = {"fault": "no_usage", "text": "word ", "repeat": 200}
    told = [run.ask("untold", {}, said, model="dear") for _ in range(4)]
    assert [one.status_code for one in told] == [200, 200, 200, 429]
    assert told[0].json()["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert len(run.gateway.logged(lambda line: "how many tokens" in line["event"])) == 1


def test_tools_and_what_was_called_before_count_as_prompt(run: Run, upstream: Upstream) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "x" * 3000}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "y" * 3000}}
    made = {"role": "assistant", "content": "", "tool_calls": [call]}
    spoken = [made, {"role": "tool", "tool_call_id": "1", "content": "z"}]
    asked = ask(large={"gate": "slow"}, model="dear", max_tokens=5)
    for more in ({"tools": [tool]}, {"messages": [*spoken, *asked["messages"]]}):
        upstream.opened.clear()
        upstream.seen.clear()
        body = asked | more
        with concurrent.futures.ThreadPoolExecutor() as pool:
            slow = pool.submit(run.put, "caller", body)
            until(lambda: upstream.asked("large"))
            refused = run.put("caller", body)
            upstream.opened.add("slow")
        assert refused.status_code == 429
        assert slow.result().status_code == 200


@pytest.mark.parametrize(
    ("route", "param"),
    [
        ({"threshold": 0.3}, "route.threshold"),
        ({"threshold": 0.995}, "route.threshold"),
        ({"threshold": 2}, "route.threshold"),
        ({"max_tier": "huge"}, "route.max_tier"),
        ({"deadline_seconds": 91}, "route.deadline_seconds"),
        ({"deadline_seconds": 0}, "route.deadline_seconds"),
        ({"budget_usd": 1e-9}, "route.budget_usd"),
        ({"budget_usd": -1}, "route.budget_usd"),
        ({"policy": "nope"}, "route.policy"),
        ({"threshhold": 0.9}, "route.threshhold"),
    ],
)
def test_an_override_outside_its_bounds_is_a_400_that_names_it(route: Json, param: str, run: Run) -> None:
    refused = run.ask("free", route=route)
    assert refused.status_code == (404 if param == "route.policy" else 400)
    assert error(refused)["param"] == param


def test_a_request_may_change_its_route_within_bounds(run: Run) -> None:
    assert run.ask("free", route={"threshold": 0.97}).headers["x-route-tier"] == "dear"
    lenient = run.ask("free", route={"threshold": 0.9}).headers
    assert (lenient["x-route-tier"], lenient["x-route-threshold"]) == ("cheap", "0.9")
    stopped = run.ask("free", {"nats": UNSURE}, route={"max_tier": "cheap"}).headers
    assert (stopped["x-route-tier"], stopped["x-route-reason"]) == ("cheap", "last")
    frugal = run.ask("free", {"nats": UNSURE}, route={"budget_usd": 0.0001}, max_tokens=10).headers
    assert (frugal["x-route-tier"], frugal["x-route-reason"]) == ("cheap", "budget")

    def late() -> None:
        held = {"gate": "never"}
        assert run.ask("free", held, held, route={"deadline_seconds": 0.3}).status_code == 504

    assert soonest(lambda: timed(late), 2.5) < 2.5
    with_tier = run.ask("free", model="dear", route={"threshold": 0.9})
    assert error(with_tier)["param"] == "route.threshold"


# Edges, with clocks that jump.


class Clocks:
    def __init__(self) -> None:
        self.wall, self.monotonic = 1.8e9, 1000.0


TIERS = (Tier("cheap", None, prices=Prices(1, 2)), Tier("dear", None, prices=Prices(10, 20)))  # type: ignore[arg-type]
ROUTE = Policy("default", TIERS)


def visit(ledger: Ledger, clocks: Clocks, *, cost: Cost | None = None, tier: str = "cheap", **limits: float) -> str:
    """One whole request; why its route ended where it did."""
    with Visit(ledger, dearest(TIERS), lambda: clocks.wall, lambda: clocks.monotonic) as one:
        one.enter(Caller("alice", Allowance.model_validate(limits)))
        route = one.reserve(ROUTE, Estimate(10, 10))
        one.note(Hop(tier, Reason.LAST, 0.0, cost=cost or Cost(5, 5, 0.01)))
        return route.tiers[-1].name


SAID = Completion("x" * 400, Finish.STOP, 0, 0, "e", "m", 1.0, calls=(ToolCall("1", "f", "y" * 40),))


@pytest.mark.parametrize(
    ("hop", "tokens"),
    [
        (Hop("cheap", Reason.DEADLINE, 1.0, error=EngineSlow("e", 1.0)), 10 + 20),
        (Hop("cheap", Reason.SLOW, 1.0, error=EngineSlow("e", 1.0), cost=Cost(0, 7)), 10 + 7),
        (Hop("cheap", Reason.SLOW, 1.0, error=EngineSlow("e", 1.0), cost=Cost(6, 7)), 13),
        (Hop("cheap", Reason.DEADLINE, 1.0, error=EngineSlow("e", 0.0)), 0),
        (Hop("cheap", Reason.FAILED, 1.0, error=EngineDown("e", "gone")), 0),
        (Hop("cheap", Reason.UNCALIBRATED, 0.0), 0),
        (Hop("cheap", Reason.UNSURE, 1.0, given_up=True, cost=Cost(0, 7)), 10 + 7),
        (Hop("cheap", Reason.LAST, 1.0, completion=SAID), 10 + 110),
        (Hop("cheap", Reason.LAST, 1.0, completion=SAID, cost=Cost(0, 7)), 10 + 7),
        (Hop("cheap", Reason.LAST, 1.0, completion=SAID, cost=Cost(6, 0)), 6 + 110),
        (Hop("cheap", Reason.LAST, 1.0, completion=SAID, cost=Cost(6, 7)), 13),
    ],
)
def test_what_a_hop_took_and_nobody_told_is_estimated(hop: Hop, tokens: int) -> None:
    """Of three choices each has a third of what was reserved for their tokens, and the whole prompt."""
    ledger, clocks = Ledger(), Clocks()
    with Visit(ledger, dearest(TIERS), lambda: clocks.wall, lambda: clocks.monotonic) as one:
        one.enter(Caller("alice", Allowance(tokens_per_day=10**6)))
        one.reserve(ROUTE, Estimate(10, 60, 3))
        one.note(hop)
        one.note(Hop("dear", Reason.LAST, 1.0, completion=SAID, cost=Cost(5, 5, 0.5)))
    assert Windows(ledger.numbers("alice"), DAYS).spent(int(clocks.wall // 86400) + 1, Windows.TOKENS) == tokens + 10


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(-1e6, 1e6)), min_size=1, max_size=60))
def test_however_the_wall_clock_jumps_no_more_than_the_rate_gets_through(steps: list[tuple[float, float]]) -> None:
    ledger, clocks, through = Ledger(), Clocks(), 0
    began = clocks.monotonic
    for passed, jump in steps:
        clocks.monotonic += passed
        clocks.wall += jump
        with contextlib.suppress(RateLimited):
            visit(ledger, clocks, requests_per_minute=6)
            through += 1
    assert through <= 6 + (clocks.monotonic - began) / 10 + 1e-6


@pytest.mark.parametrize("jump", [86400, -86400, 40 * 86400])
def test_a_clock_that_jumps_and_comes_back_finds_what_was_spent(jump: float) -> None:
    ledger, clocks = Ledger(), Clocks()

    def spend_all() -> int:
        for count in range(10):
            try:
                visit(ledger, clocks, tokens_per_day=50)
            except OverBudget:
                return count
        raise AssertionError("no end to it")

    assert spend_all() == 5
    clocks.wall += jump
    assert spend_all() == 5, "another day"
    clocks.wall -= jump
    assert spend_all() == 0
    clocks.wall += jump
    assert spend_all() == 0


def test_a_month_ends_with_the_month() -> None:
    ledger, clocks = Ledger(), Clocks()
    clocks.wall = 1_798_761_599.0  # 2026-12-31 23:59:59
    visit(ledger, clocks, tokens_per_month=10)
    with pytest.raises(OverBudget) as over:
        visit(ledger, clocks, tokens_per_month=10)
    assert over.value.retry_after_seconds == 1
    clocks.wall += 1
    assert visit(ledger, clocks, tokens_per_month=10) == "dear"


def test_the_dearest_tiers_spend_is_its_own() -> None:
    ledger, clocks = Ledger(), Clocks()
    assert visit(ledger, clocks, tier="cheap", dearest_usd_per_day=0.005) == "dear"
    assert visit(ledger, clocks, tier="dear", dearest_usd_per_day=0.005) == "dear"
    assert visit(ledger, clocks, tier="cheap", dearest_usd_per_day=0.005) == "cheap"
    clocks.wall += 86400
    assert visit(ledger, clocks, dearest_usd_per_day=0.005) == "dear"


def test_a_ledger_is_one_for_all_who_open_it_and_outlives_them(tmp_path: Path) -> None:
    path, clocks = tmp_path / "used", Clocks()
    first, second = Ledger(path, seat=0), Ledger(path, seat=1)
    assert path.stat().st_mode & 0o777 == 0o600
    for ledger in (first, second, first):
        visit(ledger, clocks, requests_per_minute=3)
    for ledger in (second, Ledger(path, seat=0)):
        with pytest.raises(RateLimited):
            visit(ledger, clocks, requests_per_minute=3)


def test_what_a_killed_worker_had_in_flight_is_forgotten_when_its_seat_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "used"
    killed, other = Ledger(path, seat=0), Ledger(path, seat=1)
    killed.in_flight("alice", +5)
    assert other.in_flight("alice", +1) == 6
    assert Ledger(path).in_flight("alice") == 6, "who only looks, as the doctor does, changes nothing"
    assert Ledger(path, seat=0).vacate([0]).in_flight("alice") == 1


def test_nothing_stays_in_flight_in_seats_that_nobody_takes_again(tmp_path: Path) -> None:
    path = tmp_path / "used"
    for seat in range(4):
        Ledger(path, seat=seat).in_flight("alice", +1)
    assert Ledger(path).vacate().in_flight("alice") == 0


def test_a_process_that_drains_beside_its_successor_takes_nothing_from_it(tmp_path: Path) -> None:
    path = tmp_path / "used"
    old = Ledger(path)
    for _ in range(3):
        old.in_flight("alice", +1)
    new = Ledger(path).vacate()
    assert new.in_flight("alice", +1) == 1
    for left in (2, 1, 0):
        assert old.in_flight("alice", -1) == left
    assert new.in_flight("alice", +1) == 2
    assert new.in_flight("alice", -1) == 1
    assert new.in_flight("alice", -1) == 0


@pytest.mark.parametrize("number", [-3.0, float("nan"), float("inf")])
def test_a_seat_that_holds_no_count_is_an_empty_one(number: float) -> None:
    ledger = Ledger()
    ledger.numbers("alice")[IN_FLIGHT + 7] = number
    assert ledger.in_flight("alice", +2) == 2


def test_a_client_who_is_new_does_not_let_others_in_before_its_turn_is_over(tmp_path: Path) -> None:
    path = tmp_path / "used"
    ledger = Ledger(path)
    look = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def free() -> bool:
        return subprocess.call([sys.executable, "-c", look, path], stderr=subprocess.DEVNULL) == 0

    for _ in range(2):
        with ledger.locked():
            ledger.in_flight("alice")
            assert not free()
        assert free()


def test_concurrent_workers_lose_no_charge(tmp_path: Path) -> None:
    path = tmp_path / "used"
    ledgers = [Ledger(path, seat=seat) for seat in range(4)]

    def charge(ledger: Ledger) -> None:
        for _ in range(300):
            with GIL, ledger.locked():
                Windows(ledger.numbers("alice"), 6).spend(1, Windows.TOKENS, 1)

    GIL = threading.Lock()  # the file's lock is a process's, not a thread's
    threads = [threading.Thread(target=charge, args=(ledger,)) for ledger in ledgers]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert Windows(ledgers[0].numbers("alice"), 6).spent(1, Windows.TOKENS) == 1200


def test_a_machine_that_was_started_anew_and_a_damaged_number_do_no_lasting_harm() -> None:
    numbers = [0.0] * 96
    numbers[REQUESTS], numbers[REQUESTS + 1] = 10.0, 1e9  # a clock of before
    bucket = Bucket(numbers, REQUESTS, 60)
    assert bucket.left(5.0) == 50
    assert bucket.left(15.0) == 60
    numbers[REQUESTS] = float("nan")
    assert bucket.left(15.0) == 60


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"something else")
    with pytest.raises(ConfigError, match="no ledger"):
        Ledger(tmp_path / "other")
    with pytest.raises(ConfigError, match="cannot keep"):
        Ledger(tmp_path / "no" / "such")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"limits": {"requests_per_minut": 3}},
            r"cascade.yaml:\d+: keys.clients\[0\].limits.requests_per_minut: .*mean",
        ),
        ({"limits": {"in_flight": 0}}, r"cascade.yaml:\d+: keys.clients\[0\].limits.in_flight"),
        ({"models": ["auto:nope"]}, r"cascade.yaml:\d+: keys.clients\[0\].models\[0\]: no model 'auto:nope'"),
    ],
)
def test_a_limit_that_cannot_be_meant_is_told_with_its_line(keys: Json, words: str, tmp_path: Path) -> None:
    plan = cascade("http://127.0.0.1:1/v1", keys={"clients": [client("a", **keys)]})
    with pytest.raises(ConfigError, match=words):
        configs.parse(json.dumps(plan, indent=1), tmp_path / "cascade.yaml")


def test_money_needs_prices_and_twins_the_same_rights(tmp_path: Path) -> None:
    plan = cascade("http://127.0.0.1:1/v1", keys={"clients": [client("a", limits={"usd_per_day": 1})]})
    for tier in plan["tiers"]:
        del tier["prices"]
    with pytest.raises(ConfigError, match="needs tiers with prices"):
        configs.parse(json.dumps(plan, indent=1), tmp_path / "c.yaml")
    twins = cascade("http://127.0.0.1:1/v1", keys={"clients": [client("a"), client("a", limits={"in_flight": 1})]})
    with pytest.raises(ConfigError, match="same limits"):
        configs.parse(json.dumps(twins, indent=1), tmp_path / "c.yaml")


def test_durations_read_as_openai_writes_them() -> None:
    assert [duration(seconds) for seconds in (0.0, 0.0201, 1, 59.2, 360, 3661)] == [
        "0ms", "21ms", "1s", "1m0s", "6m0s", "61m1s",
    ]  # fmt: skip
