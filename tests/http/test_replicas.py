"""A tier of several servers: who is asked, and that nobody notices when one of them dies, flaps or is another."""

from __future__ import annotations

import json
import select
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway import config as configs
from gateway.errors import ConfigError
from tests.faults.ask import ask
from tests.faults.gateway import (
    PATIENCE,
    SURE,
    cascade,
    confgate_ends,
    free_port,
    running,
    soonest,
    timed,
    until,
    whole,
    write_artifact,
)
from tests.faults.upstream import Upstream

Json = dict[str, Any]


class Fleet:
    """Three servers of the small model behind one gateway."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.servers = [stack.enter_context(Upstream()) for _ in range(3)]
        write_artifact(folder / "cheap.json")
        self.plan = cascade(self.servers[0].url, admin={"port": free_port(), "allow_anonymous": True})
        engine = self.plan["tiers"][0]["engine"]
        del engine["url"]
        engine["urls"] = [server.url for server in self.servers]
        self.plan["policies"] = {"default": {"steps": [{"tier": "cheap"}]}}  # nobody stands behind it
        self.gateway = stack.enter_context(running(folder, self.plan))
        self.admin = stack.enter_context(
            httpx2.Client(base_url=f"http://127.0.0.1:{self.plan['admin']['port']}", timeout=PATIENCE)
        )
        self.http = stack.enter_context(httpx2.Client(base_url=self.gateway.url, timeout=PATIENCE))

    def ask(self, **plan: Any) -> int:
        return self.http.post("/v1/chat/completions", json=ask({"nats": SURE, **plan})).status_code

    def shares(self) -> list[int]:
        return [len(server.asked("small")) for server in self.servers]

    def states(self) -> list[Json]:
        return self.admin.get("/admin/tiers").json()[0]["replicas"]  # type: ignore[no-any-return]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(tmp_path, stack)


def test_the_one_with_the_least_to_do_is_asked(fleet: Fleet) -> None:
    assert {fleet.ask() for _ in range(9)} == {200}
    assert fleet.shares() == [3, 3, 3]
    slow = [threading.Thread(target=fleet.ask, kwargs={"gate": "end"}) for _ in range(2)]
    for one in slow:
        one.start()
    until(lambda: sum(fleet.shares()) == 11)
    before = fleet.shares()
    busy = [state["in_flight"] for state in fleet.states()]
    assert sorted(busy) == [0, 1, 1]
    for _ in range(4):
        fleet.ask()
    idle = busy.index(0)
    assert fleet.shares()[idle] == before[idle] + 4
    for server in fleet.servers:
        server.opened.add("end")
    for one in slow:
        one.join()


def test_a_server_that_dies_and_comes_back_is_noticed_by_nobody_but_the_operator(fleet: Fleet) -> None:
    statuses: list[int] = []
    stop = threading.Event()

    def load() -> None:
        with httpx2.Client(base_url=fleet.gateway.url, timeout=PATIENCE) as mine:
            while not stop.is_set():
                body = ask({"nats": SURE, "seconds": 0.01})
                statuses.append(mine.post("/v1/chat/completions", json=body).status_code)

    loads = [threading.Thread(target=load) for _ in range(6)]
    for one in loads:
        one.start()
    dead = fleet.servers[1]
    for _ in range(2):  # it flaps
        until(lambda: len(dead.asked("small")) > 8)
        dead.__exit__()
        until(lambda: fleet.states()[1]["breaker"] == "open")
        assert [state["breaker"] for state in fleet.states()] == ["closed", "open", "closed"]
        assert fleet.states()[1]["fault"]
        dead.seen.clear()
        dead.__enter__()
        until(lambda: fleet.states()[1]["breaker"] == "closed")
    stop.set()
    for one in loads:
        one.join()
    assert set(statuses) == {200}


@pytest.mark.parametrize("fault", ["reset", "unauthorized", "429_second"])
def test_a_fault_that_another_server_does_not_share_is_hidden(fault: str, fleet: Fleet) -> None:
    fleet.servers[0].breaks = fleet.servers[1].breaks = fault
    fleet.servers[2].breaks = ""
    for _ in range(4):
        assert fleet.ask() == 200
    assert fleet.shares()[2] >= 3
    hidden = fleet.gateway.logged(lambda line: line["event"] == "hop" and line.get("retried"))
    assert {line["level"] for line in hidden} == {"error" if fault == "unauthorized" else "info"}
    fleet.servers[2].breaks = fault
    for server in fleet.servers:
        server.seen.clear()
    assert fleet.ask() >= 429, "now they all share it"
    assert sum(fleet.shares()) <= 2, "two attempts, and no more"


def test_a_server_whose_look_ended_with_its_client_is_looked_at_again(fleet: Fleet) -> None:
    healed = fleet.servers[0]
    healed.breaks = "reset"
    until(lambda: fleet.ask() == 200 and fleet.states()[0]["breaker"] == "open")
    healed.breaks = ""
    for server in fleet.servers[1:]:
        server.opened.add("looked at")
    healed.seen.clear()

    def looks() -> bool:
        with fleet.gateway.connect() as raw:
            raw.sendall(whole(ask({"nats": SURE, "gate": "looked at"})))
            until(lambda: healed.asked("small") or select.select([raw], [], [], 0)[0])
            return bool(healed.asked("small"))

    until(looks)
    until(lambda: healed.asked("small")[0].released_at is not None)
    assert fleet.states()[0]["breaker"] == "open"
    until(lambda: fleet.ask() == 200 and fleet.states()[0]["breaker"] == "closed")


def test_a_stream_that_has_not_begun_goes_to_another_server_too(fleet: Fleet) -> None:
    fleet.servers[0].breaks = fleet.servers[1].breaks = "reset"
    for _ in range(3):
        body = ask({"nats": SURE}, stream=True) | {"model": "cheap"}
        told = fleet.http.post("/v1/chat/completions", json=body)
        assert told.status_code == 200
        assert told.headers["x-route-stream-mode"] == "commit"
        assert told.text.endswith("data: [DONE]\n\n")
        assert '"error"' not in told.text


def test_a_server_that_is_back_is_used_by_others_before_a_long_stream_of_it_has_ended(fleet: Fleet) -> None:
    healed = fleet.servers[2]
    healed.breaks = "503"
    until(lambda: fleet.ask() == 200 and fleet.states()[2]["breaker"] == "open")
    healed.breaks = ""
    healed.seen.clear()
    body = ask({"nats": SURE, "gate": "end", "before": 2}, stream=True) | {"model": "cheap"}
    with ExitStack() as streams:

        def stream_reaches_it() -> bool:
            streams.enter_context(fleet.http.stream("POST", "/v1/chat/completions", json=body))
            return bool(healed.asked("small"))

        until(stream_reaches_it)
        until(lambda: fleet.states()[2]["breaker"] == "closed")
        for server in fleet.servers:
            server.opened.add("end")


def test_a_tier_takes_two_attempts_and_no_third_whichever_of_its_servers_come_free_meanwhile(fleet: Fleet) -> None:
    dies, *others = fleet.servers
    for server in others:
        server.breaks = "503"
    until(lambda: fleet.ask() == 200 and [state["breaker"] for state in fleet.states()[1:]] == ["open"] * 2)
    for server in others:
        server.breaks = ""
    dies.opened |= {"probe", "late"}
    with ThreadPoolExecutor(8) as pool:

        def probed() -> bool:
            """Each of the others is found out about by a question that hangs."""
            return all(state["in_flight"] for state in fleet.states()[1:])

        until(lambda: probed() or (pool.submit(fleet.ask, gate="probe") and time.sleep(0.1)))
        for server in fleet.servers:
            server.seen.clear()
            server.breaks = "reset"
        asked = pool.submit(fleet.ask, gate="late")
        until(lambda: any(server.asked("small") for server in others))
        second, free = sorted(others, key=lambda server: not server.asked("small"))
        free.breaks = ""
        free.opened |= {"probe", "late"}
        until(lambda: fleet.states()[fleet.servers.index(free)]["breaker"] == "closed")
        second.opened |= {"probe", "late"}
        assert asked.result() == 502
    assert sorted(fleet.shares()) == [0, 1, 1]


def test_another_server_is_asked_out_of_the_retry_budget(fleet: Fleet) -> None:
    dies, *others = fleet.servers
    dies.breaks = "reset"
    with ThreadPoolExecutor(12) as pool:
        body = ask({"nats": SURE, "gate": "end"}) | {"route": {"debug": True}}
        asked = [pool.submit(fleet.http.post, "/v1/chat/completions", json=body) for _ in range(12)]
        until(lambda: fleet.shares() == [4, 4, 4])
        dies.opened.add("end")
        until(lambda: any(one.done() for one in asked))
        for server in others:
            server.opened.add("end")
        answers = [one.result() for one in asked]
    assert sorted(answer.status_code for answer in answers) == [200] * 11 + [502]
    assert sum(answer.json()["route"]["hops"][0]["retries"] for answer in answers if answer.status_code == 200) == 3
    assert sum(fleet.shares()) == 12 + 3


@pytest.mark.parametrize("first_back", range(3))
def test_servers_that_rest_are_left_alone_and_clients_told_when_the_first_of_them_is_back(
    first_back: int, fleet: Fleet
) -> None:
    for server in fleet.servers:
        server.breaks = "429_day"
    soon = fleet.servers[first_back]
    soon.breaks = "429_second"

    def told() -> str:
        answer = fleet.http.post("/v1/chat/completions", json=ask({"nats": SURE}))
        assert answer.status_code == 429
        return answer.headers["retry-after"]

    assert [told() for _ in range(4)] == ["1"] * 4
    soon.breaks = ""
    until(lambda: fleet.ask() == 200)
    for _ in range(3):
        assert fleet.ask() == 200
    assert [len(server.asked("small")) for server in fleet.servers if server is not soon] == [1, 1]


def test_a_server_that_comes_back_as_another_is_not_used(fleet: Fleet) -> None:
    changed = fleet.servers[2]
    changed.__exit__()
    for _ in range(6):
        assert fleet.ask() == 200
    assert fleet.states()[2]["verified"] is False
    changed.seen.clear()
    changed.version = "0.34.0"
    changed.__enter__()
    until(lambda: fleet.ask() == 200 and "not like the others" in (fleet.states()[2]["fault"] or ""))
    assert not changed.asked("small")
    changed.version = "0.33.0"
    until(lambda: fleet.ask() == 200 and fleet.states()[2]["verified"])
    until(lambda: fleet.ask() == 200 and changed.asked("small"))


def test_all_of_them_gone_is_an_error_soon_and_healed_when_one_is_back(fleet: Fleet) -> None:
    for server in fleet.servers:
        server.__exit__()
    try:

        def fail() -> None:
            assert {fleet.ask() for _ in range(5)} <= {502, 503}

        assert soonest(lambda: timed(fail), 4.0) < 4.0
    finally:
        for server in fleet.servers:
            server.__enter__()
    until(lambda: fleet.ask() == 200)


def test_servers_that_are_not_alike_are_refused_at_the_start(tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    with Upstream() as one, Upstream(version="0.32.0") as other:
        plan = cascade(one.url)
        plan["tiers"][0]["engine"] |= {"urls": [one.url, other.url]}
        del plan["tiers"][0]["engine"]["url"]
        (tmp_path / "cascade.yaml").write_text(json.dumps(plan))
        code, _, told = confgate_ends("serve", "--config", str(tmp_path / "cascade.yaml"))
    assert code == 1
    assert "engine_version is '0.32.0', not '0.33.0'" in told


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"url": "http://a/v1", "urls": ["http://b/v1"]}, "either url or urls"),
        ({}, "either url or urls"),
        ({"urls": ["http://a/v1", "http://a/v1"]}, "named twice"),
        ({"urls": ["a"]}, r"engine.urls\[0\]"),
    ],
)
def test_a_mistake_in_the_addresses_is_told_with_its_line(engine: Json, words: str, tmp_path: Path) -> None:
    plan = cascade("http://a/v1")
    plan["tiers"][1]["engine"] = {"kind": "openai_http", "model": "large", **engine}
    with pytest.raises(ConfigError, match=rf"cascade.yaml:\d+: .*{words}"):
        configs.parse(json.dumps(plan, indent=1), tmp_path / "cascade.yaml")


def test_a_server_that_hangs_before_its_first_token_is_left_alone_and_another_asked(tmp_path: Path) -> None:
    assert any(hidden(tmp_path, seconds) for seconds in (0.5, 5.0, 30.0)), "a slow machine may hang as well"


def hidden(folder: Path, seconds: float) -> bool:
    """Whether a server that hangs was told from one that does not by so many seconds, and all were served."""
    with ExitStack() as stack:
        hung, well = stack.enter_context(Upstream()), stack.enter_context(Upstream())
        write_artifact(folder / "cheap.json")
        plan = cascade(well.url, admin={"port": free_port(), "allow_anonymous": True})
        plan["tiers"][0]["engine"] |= {"urls": [hung.url, well.url], "first_byte_seconds": seconds}
        del plan["tiers"][0]["engine"]["url"]
        hung.breaks = "silent"
        gateway = stack.enter_context(running(folder, plan))
        admin = f"http://127.0.0.1:{plan['admin']['port']}/admin/tiers"
        body = ask({"nats": SURE}, stream=True) | {"model": "cheap"}
        url = f"{gateway.url}/v1/chat/completions"
        told = [httpx2.post(url, json=body, timeout=PATIENCE) for _ in range(3)]
        first, second = httpx2.get(admin, timeout=PATIENCE).json()[0]["replicas"]
    served = [one.status_code == 200 and one.text.endswith("data: [DONE]\n\n") for one in told]
    alone = f"sent nothing for {seconds:g} s" in (first["fault"] or "") and second["fault"] is None
    return bool(hung.asked("small")) and alone and all(served)
