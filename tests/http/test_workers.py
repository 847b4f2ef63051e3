"""Several workers as one gateway: what they share, a death among them, reload, drain and the admin listener."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.http import console
from gateway.workers import summed
from tests.faults.ask import ask
from tests.faults.gateway import (
    NEVER_OPEN,
    PATIENCE,
    SURE,
    Gateway,
    cascade,
    confgate,
    confgate_ends,
    free_port,
    running,
    until,
    write_artifact,
)
from tests.faults.upstream import Upstream

Json = dict[str, Any]
ADMIN = {"authorization": "Bearer sk-root"}


def key(name: str, **more: Json) -> Json:
    return {"name": name, "sha256": hashlib.sha256(f"sk-{name}".encode()).hexdigest(), **more}


class Fleet:
    def __init__(self, folder: Path, gateway: Gateway, plan: Json) -> None:
        self.path, self.gateway, self.plan = folder / "cascade.yaml", gateway, plan
        self.admin = httpx2.Client(
            base_url=f"http://127.0.0.1:{plan['admin']['port']}", headers=ADMIN, timeout=PATIENCE
        )

    def ask(self, name: str = "free", **more: Any) -> httpx2.Response:
        """On a connection of its own, so that any worker may get it."""
        headers = {"authorization": f"Bearer sk-{name}"}
        body = ask({"nats": SURE, **more})
        return httpx2.post(f"{self.gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=PATIENCE)

    def many(self, n: int, name: str = "free", **more: Any) -> list[httpx2.Response]:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda _: self.ask(name, **more), range(n)))

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        pid = self.gateway.process.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def fleet(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    write_artifact(folder / "cheap.json")
    clients = [key("free"), key("slow", limits={"requests_per_minute": 7})]
    plan = cascade(upstream.url, keys={"clients": clients, "admins": [key("root")]}, admin={"port": free_port()})
    plan["server"]["workers"] = 2
    plan["tiers"][1]["limits"] = {**NEVER_OPEN, "in_flight": 2, "waiting": 1}
    with running(folder, plan) as gateway:
        made = Fleet(folder, gateway, plan)
        with made.admin:
            yield made


def counted(fleet: Fleet, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(fleet.admin.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return 0.0


def test_metrics_and_lists_are_those_of_all_workers(fleet: Fleet) -> None:
    before = counted(fleet, "confidence_gateway_hops_total", tier="cheap", reason="confident")
    assert {answer.status_code for answer in fleet.many(24)} == {200}
    assert counted(fleet, "confidence_gateway_hops_total", tier="cheap", reason="confident") == before + 24
    tiers = fleet.admin.get("/admin/tiers").json()
    assert sorted((row["worker"], row["tier"]) for row in tiers) == [
        (0, "cheap"), (0, "dear"), (1, "cheap"), (1, "dear"),
    ]  # fmt: skip
    assert fleet.admin.get("/admin/config").json()["server"]["workers"] == 2


@pytest.mark.parametrize("method", ["PATCH", "OPTIONS", "TRACE"])
def test_what_no_worker_is_asked_is_refused_in_the_one_shape(method: str, fleet: Fleet) -> None:
    told = fleet.admin.request(method, "/metrics", headers={"x-request-id": "mine"})
    assert (told.status_code, told.headers["x-request-id"]) == (405, "mine")
    assert told.json()["error"]["type"] == "invalid_request_error"
    for path in ("/metrics%0a/more", "/metrics%0a"):
        nowhere = fleet.admin.get(path)
        assert nowhere.status_code == 404
        assert nowhere.json()["error"]["message"] == "There is nothing here."


@pytest.mark.parametrize("path", ["/metrics", "/admin/tiers", "/admin/config", "/admin/console/data", "/admin/nothing"])
def test_every_answer_carries_one_request_id(path: str, fleet: Fleet) -> None:
    assert len(fleet.admin.get(path).headers.get_list("x-request-id")) == 1
    assert fleet.admin.get(path, headers={"x-request-id": "mine"}).headers.get_list("x-request-id") == ["mine"]


def test_a_page_of_another_site_changes_nothing_in_any_worker(fleet: Fleet) -> None:
    for page in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}):
        assert fleet.admin.post("/admin/drain", headers=page).status_code == 403
        assert fleet.admin.get("/admin/card", headers=page).status_code == 200
    ours = {"sec-fetch-site": "same-origin", "origin": str(fleet.admin.base_url).rstrip("/")}
    assert fleet.admin.post("/admin/reload", headers=ours).status_code == 200


def test_the_console_is_passed_on_with_the_policy_that_guards_it_and_refusals_say_how_to_go_on(fleet: Fleet) -> None:
    page = fleet.admin.get("/admin/console", follow_redirects=True)
    assert (page.status_code, page.headers["content-security-policy"]) == (200, console.POLICY)
    script = fleet.admin.get("/admin/console/page/console.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.headers["x-content-type-options"] == "nosniff"
    told = fleet.admin.get("/admin/console/data", headers={"authorization": ""})
    assert (told.status_code, told.headers["www-authenticate"]) == (401, "Bearer")
    assert fleet.admin.get("/admin/console/data").json()["kept"] is False


@pytest.mark.parametrize("path", ["/metrics", "/admin/tiers", "/admin/config"])
def test_the_admin_listener_is_as_locked_as_that_of_one(path: str, fleet: Fleet) -> None:
    assert fleet.admin.get(path, headers={"authorization": "Bearer sk-free"}).status_code == 401
    assert fleet.admin.get(path, headers={"authorization": ""}).status_code == 401
    assert fleet.admin.get(path, headers={"host": "evil.example"}).status_code == 400


def test_a_limit_is_one_for_all_workers(fleet: Fleet) -> None:
    began = time.monotonic()
    statuses = [answer.status_code for answer in fleet.many(30, "slow")]
    came = 7 * (time.monotonic() - began) / 60
    assert 7 <= statuses.count(200) <= 7 + came + 1, "7, and what came in the meantime"
    assert set(statuses) == {200, 429}


def test_workers_share_the_seats_of_a_tier(fleet: Fleet, upstream: Upstream) -> None:
    """The dear tier has two, and one place to wait, which two cannot share."""
    body = ask(None, {"gate": "seats"}) | {"model": "dear"}
    headers = {"authorization": "Bearer sk-free"}
    url = f"{fleet.gateway.url}/v1/chat/completions"
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(httpx2.post, url, json=body, headers=headers, timeout=PATIENCE) for _ in range(12)]
        until(lambda: sum(one.done() for one in asked) + len(upstream.asked("large")) == len(asked))
        seated = len(upstream.asked("large"))
        upstream.opened.add("seats")
        statuses = [one.result().status_code for one in asked]
    assert 1 <= seated <= 2, "one of each worker"
    assert (statuses.count(200), statuses.count(503)) == (seated, 12 - seated)


def test_a_worker_that_is_killed_is_replaced_and_the_others_serve_on(fleet: Fleet) -> None:
    before = fleet.workers()
    assert len(before) == 2
    replace_one(fleet)
    assert before[1] in fleet.workers()
    assert {answer.status_code for answer in fleet.many(16)} == {200}
    assert fleet.gateway.logged(lambda line: line["event"] == "a worker died")


def replace_one(fleet: Fleet) -> None:
    """Kill a worker, and wait for the one that takes its place."""
    before = fleet.workers()
    os.kill(before[0], signal.SIGKILL)
    until(lambda: len(set(fleet.workers()) - set(before)) == 1)
    until(lambda: len({row["worker"] for row in fleet.admin.get("/admin/tiers").json()}) == 2)


def test_a_supervisor_that_can_open_nothing_more_replaces_a_worker_once_it_can(fleet: Fleet) -> None:
    supervisor, before = fleet.gateway.process.pid, fleet.workers()
    few, many = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (3, many))
    os.kill(before[0], signal.SIGKILL)
    try:
        fleet.gateway.logged(lambda line: line["event"] == "a worker could not be started")
        assert fleet.workers() == before[1:]
        assert fleet.ask().status_code == 200
    finally:
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (few, many))
    until(lambda: len(fleet.workers()) == 2)
    until(lambda: len({row["worker"] for row in fleet.admin.get("/admin/tiers").json()}) == 2)


def more(plan: Json, policy: str) -> Json:
    """A copy with one policy more."""
    copy: Json = json.loads(json.dumps(plan))
    copy["policies"][policy] = {"steps": [{"tier": "dear"}]}
    return copy


def serves(fleet: Fleet, policy: str) -> bool:
    """Whether one of the workers, any of them, has this policy."""
    headers = {"authorization": "Bearer sk-free"}
    told = httpx2.get(f"{fleet.gateway.url}/v1/models", headers=headers, timeout=PATIENCE)
    return f'"auto:{policy}"' in told.text


def reload(fleet: Fleet, plan: Json, how: str = "endpoint") -> None:
    fleet.path.write_text(json.dumps(plan))
    if how == "signal":
        fleet.gateway.process.send_signal(signal.SIGHUP)
    else:
        assert fleet.admin.post("/admin/reload").json()["status"] == "reloaded"


@pytest.mark.parametrize("how", ["signal", "endpoint"])
def test_a_reload_reaches_every_worker(how: str, fleet: Fleet) -> None:
    reload(fleet, more(fleet.plan, f"new-{how}"), how)
    until(lambda: all(serves(fleet, f"new-{how}") for _ in range(8)))
    fleet.path.write_text("{")
    refused = fleet.admin.post("/admin/reload")
    assert refused.status_code == 400
    assert "cascade.yaml" in refused.json()["error"]["message"]
    assert all(serves(fleet, f"new-{how}") for _ in range(4))
    reload(fleet, fleet.plan)


@pytest.mark.parametrize(
    ("wrong", "how"), [("broken", "endpoint"), ("no calibrator", "signal"), ("not meant yet", None)]
)
def test_who_takes_a_workers_place_serves_by_what_the_others_serve_by(
    wrong: str, how: str | None, fleet: Fleet
) -> None:
    """Not by what is in the file: that may have been refused, by the workers alone even, or be half an edit."""
    served = more(fleet.plan, "served")
    reload(fleet, served)
    edited = more(served, "edited")
    if wrong == "no calibrator":
        edited["tiers"][0]["calibrator"] = "gone.json"
    fleet.path.write_text("{" if wrong == "broken" else json.dumps(edited))
    if how == "signal":
        fleet.gateway.process.send_signal(signal.SIGHUP)
        fleet.gateway.logged(lambda line: "gone.json" in line.get("why", ""), 2)
    elif how == "endpoint":
        assert fleet.admin.post("/admin/reload").status_code == 400
    replace_one(fleet)
    for _ in range(8):
        assert (serves(fleet, "served"), serves(fleet, "edited")) == (True, False)
    reload(fleet, fleet.plan)


def test_a_drain_lets_every_worker_end_what_it_has_begun(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    plan = cascade(upstream.url, keys={"clients": [key("free")], "admins": [key("root")]}, admin={"port": free_port()})
    plan["server"]["workers"] = 2
    with running(tmp_path, plan) as gateway:
        one = Fleet(tmp_path, gateway, plan)
        pids = one.workers()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(one.ask, gate="end") for _ in range(8)]
            until(lambda: len(upstream.asked("small")) == 8)
            assert one.admin.post("/admin/drain").status_code == 202
            upstream.opened.add("end")
            statuses = {answer.result().status_code for answer in asked}
        assert statuses == {200}
        assert gateway.process.wait(PATIENCE) == 0
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        one.admin.close()


def test_a_worker_that_hangs_is_killed_after_its_time(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    plan = cascade(upstream.url, admin={"port": free_port(), "allow_anonymous": True})
    plan["server"] |= {"workers": 2, "grace_seconds": 1}
    with running(tmp_path, plan) as gateway:
        hung, _ = Fleet(tmp_path, gateway, plan).workers()
        os.kill(hung, signal.SIGSTOP)
        gateway.process.send_signal(signal.SIGTERM)
        try:
            assert gateway.process.wait(PATIENCE / 2) == 0
            assert not alive(hung)
        finally:
            if alive(hung):
                os.kill(hung, signal.SIGKILL)


def test_a_drain_reaches_a_worker_that_is_being_replaced(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    plan = cascade(upstream.url, admin={"port": free_port(), "allow_anonymous": True})
    plan["server"]["workers"] = 2
    with running(tmp_path, plan) as gateway, Fleet(tmp_path, gateway, plan).admin as admin:
        os.kill(Fleet(tmp_path, gateway, plan).workers()[0], signal.SIGKILL)
        gateway.logged(lambda line: line["event"] == "a worker died")
        assert admin.post("/admin/drain").status_code == 202
        assert gateway.process.wait(PATIENCE) == 0


SLOW = """
import sys
if "gateway.workers" not in sys.orig_argv:
    import asyncio, uvicorn
    startup = uvicorn.Server.startup
    async def late(self, sockets=None):
        await asyncio.sleep(1)
        await startup(self, sockets)
    uvicorn.Server.startup = late
"""


def test_who_is_told_that_workers_are_ready_reaches_their_admin_listener(upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    write_artifact(tmp_path / "cheap.json")
    plan = cascade(upstream.url, admin={"port": free_port(), "allow_anonymous": True})
    plan["server"]["workers"] = 2
    with running(tmp_path, plan, PYTHONPATH=str(tmp_path)):
        socket.create_connection(("127.0.0.1", plan["admin"]["port"])).close()


def test_workers_that_die_before_they_are_let_loose_end_nothing_but_themselves(
    upstream: Upstream, tmp_path: Path
) -> None:
    """As both do here, which are told to end while they load."""
    write_artifact(tmp_path / "cheap.json")
    plan = cascade(upstream.url, admin={"port": free_port(), "allow_anonymous": True})
    plan["server"]["workers"] = 2
    (tmp_path / "cascade.yaml").write_text(json.dumps(plan))
    process = confgate("serve", "--config", str(tmp_path / "cascade.yaml"))
    fleet = Fleet(tmp_path, Gateway(process, "", tmp_path), plan)
    with fleet.admin:
        until(lambda: len(fleet.workers()) == 2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, "Traceback" in err) == (0, "", False)


def test_workers_end_when_their_supervisor_is_killed(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    plan = cascade(upstream.url, keys={"clients": [key("free")], "admins": [key("root")]}, admin={"port": free_port()})
    plan["server"]["workers"] = 2
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(running(tmp_path, plan))
        pids = Fleet(tmp_path, gateway, plan).workers()
        gateway.process.kill()
        gateway.process.wait()
        until(lambda: not [pid for pid in pids if alive(pid)])
        with pytest.raises(AssertionError):  # it did not end well, and should not have
            stack.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


LATE = """
import contextlib, os, sys, time
if "gateway.workers" in sys.orig_argv:
    with contextlib.suppress(FileExistsError):
        os.mkdir({folder!r})
        time.sleep({seconds})
"""


def test_nobody_is_let_in_before_all_workers_can_let_him_in(upstream: Upstream, tmp_path: Path) -> None:
    """Else the first to listen gets all who have waited, more than its part of the seats."""
    late = tmp_path / "late"
    late.mkdir()
    (late / "sitecustomize.py").write_text(LATE.format(folder=str(tmp_path / "one"), seconds=3))
    write_artifact(tmp_path / "cheap.json")
    plan = cascade(upstream.url, admin={"port": free_port(), "allow_anonymous": True})
    plan["server"] |= {"workers": 2, "port": free_port()}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        listening = pool.submit(listeners_when_first_let_in, plan["server"]["port"])
        with running(tmp_path, plan, PYTHONPATH=str(late)):
            assert listening.result(PATIENCE) == 2


def listeners_when_first_let_in(port: int) -> int:
    """How many sockets listen there a moment after the first connection was taken."""
    until(lambda: taken(port))
    time.sleep(0.5)
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


def taken(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_workers_need_an_admin_listener_and_a_good_start(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    (tmp_path / "cascade.yaml").write_text(json.dumps(cascade(upstream.url)))
    code, _, told = confgate_ends("serve", "--config", str(tmp_path / "cascade.yaml"), "--workers", "2")
    assert (code, "need an admin listener" in told) == (1, True)
    gone = cascade(upstream.url, admin={"port": free_port(), "allow_anonymous": True})
    gone["tiers"][0]["calibrator"] = "gone.json"
    (tmp_path / "cascade.yaml").write_text(json.dumps(gone))
    code, _, told = confgate_ends("serve", "--config", str(tmp_path / "cascade.yaml"), "--workers", "2")
    assert (code, "gone.json" in told) == (1, True)


def test_sums_of_metrics_are_sums_where_that_means_something() -> None:
    text = (
        '# TYPE a_total counter\na_total{t="x"} 2.0\n'
        "# TYPE confidence_gateway_in_flight gauge\nconfidence_gateway_in_flight 3.0\n"
        '# TYPE confidence_gateway_breaker_open gauge\nconfidence_gateway_breaker_open{tier="x"} 1.0\n'
        '# TYPE h histogram\nh_bucket{le="1.0"} 1.0\nh_bucket{le="+Inf"} 2.0\nh_count 2.0\nh_sum 4.0\n'
    )
    other = text.replace('breaker_open{tier="x"} 1.0', 'breaker_open{tier="x"} 0.0').replace('{t="x"}', '{t="y\\"z"}')
    lines = summed([text, text, other]).decode().splitlines()
    for line in (
        'a_total{t="x"} 4.0',
        'a_total{t="y\\"z"} 2.0',
        "confidence_gateway_in_flight 9.0",
        'confidence_gateway_breaker_open{tier="x"} 1.0',
        'h_bucket{le="1.0"} 3.0',
        "h_sum 12.0",
    ):
        assert line in lines
