"""The admin listener, reload and healing, of real gateways with real keys."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest

from gateway import config as configs
from gateway.errors import ConfigError, ForeignId
from gateway.http.live import Live
from gateway.ids import Seal
from gateway.serving import on_hangup_signal
from tests.faults.ask import ask
from tests.faults.gateway import (
    P_SURE,
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

ADMIN = {"authorization": "Bearer sk-root"}
CLIENT = {"authorization": "Bearer sk-alice"}
SECRETS = {"ROOT_KEY": "sk-root", "ALICE_KEY": "sk-alice", "ROUTE_SECRET": "of sixteen characters"}


class Run:
    """A gateway with an admin listener, and the file it reads."""

    def __init__(self, folder: Path, gateway: Gateway, plan: dict[str, Any]) -> None:
        self.path, self.gateway, self.plan = folder / "cascade.yaml", gateway, plan
        self.admin = httpx2.Client(
            base_url=f"http://127.0.0.1:{plan['admin']['port']}", headers=ADMIN, timeout=PATIENCE
        )
        self.public = httpx2.Client(base_url=gateway.url, headers=CLIENT, timeout=PATIENCE)

    def write(self, plan: dict[str, Any]) -> None:
        self.path.write_text(json.dumps(plan, indent=1))

    def reload(self) -> httpx2.Response:
        return self.admin.post("/admin/reload")

    def ask(self, **plans: Any) -> httpx2.Response:
        return self.public.post("/v1/chat/completions", json=ask(**plans))


def planned(url: str, **changes: Any) -> dict[str, Any]:
    keys = {"clients": [{"name": "alice", "key": "env:ALICE_KEY"}], "admins": [{"name": "root", "key": "env:ROOT_KEY"}]}
    return cascade(url, keys=keys, admin={"port": free_port()}, ids={"secret": "env:ROUTE_SECRET"}, **changes)


@pytest.fixture(scope="module")
def run(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("admin")
    write_artifact(folder / "cheap.json")
    plan = planned(upstream.url)
    with running(folder, plan, **SECRETS) as gateway:
        made = Run(folder, gateway, plan)
        with made.admin, made.public:
            yield made


@pytest.fixture(autouse=True)
def as_it_was(run: Run) -> Iterator[None]:
    yield
    run.write(run.plan)
    assert run.reload().status_code == 200


ROUTES = [
    ("GET", "/metrics"),
    ("GET", "/admin/config"),
    ("GET", "/admin/tiers"),
    ("GET", "/admin/monitors"),
    ("GET", "/admin/card"),
    ("GET", "/admin/decisions"),
    ("GET", "/admin/decisions/AQGX"),
    ("GET", "/admin/console/data"),
    ("GET", "/admin/console/decisions"),
    ("GET", "/admin/console/replay?policy=default&tier=cheap"),
    ("POST", "/admin/reload"),
    ("POST", "/admin/drain"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("key", ["", "Bearer sk-alice", "Bearer sk-mallory", "sk-root", "Basic sk-root"])
def test_nothing_private_opens_without_an_admin_key(method: str, path: str, key: str, run: Run) -> None:
    told = run.admin.request(method, path, headers={"authorization": key})
    assert told.status_code == 401
    assert told.json()["error"]["type"] == "authentication_error"
    assert told.headers["x-request-id"]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_nothing_private_is_on_the_public_listener(method: str, path: str, run: Run) -> None:
    assert run.public.request(method, path, headers=ADMIN).status_code == 404


def test_an_admins_key_asks_no_model_and_the_admin_listener_answers_no_client(run: Run) -> None:
    assert run.public.post("/v1/chat/completions", json=ask(), headers=ADMIN).status_code == 401
    assert run.admin.post("/v1/chat/completions", json=ask()).status_code == 404
    assert run.admin.get("/metrics", headers={"host": "evil.example"}).status_code == 400


OTHER_PAGES = [
    {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
    {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:1"},
    {"origin": "https://evil.example"},
    {"origin": "http://127.0.0.1:1"},
    {"origin": "null"},
]


@pytest.mark.parametrize("page", OTHER_PAGES)
@pytest.mark.parametrize("path", ["/admin/reload", "/admin/drain", "/admin/calibrators/cheap/promote"])
def test_a_page_of_another_site_changes_nothing(page: dict[str, str], path: str, run: Run) -> None:
    """Where admins need no key, any page that the operator looks at could."""
    told = run.admin.post(path, headers={"content-type": "text/plain", **page})
    assert told.status_code == 403
    assert told.json()["error"]["type"] == "permission_error"
    assert told.headers["x-request-id"]
    assert run.admin.get("/metrics", headers=page).status_code == 200, "what is only read, the browser keeps from it"


def test_a_page_of_ours_may_do_what_its_key_may(run: Run) -> None:
    ours = str(run.admin.base_url).rstrip("/")
    for page in (
        {"sec-fetch-site": "same-origin", "origin": ours},
        {"sec-fetch-site": "same-origin", "origin": "https://tls.example"},  # somebody before us takes TLS off
        {"sec-fetch-site": "none"},
        {"origin": ours},
    ):
        assert run.admin.post("/admin/reload", headers=page).status_code == 200


def test_operators_see_what_runs_and_no_secret(run: Run) -> None:
    run.ask(small={"nats": SURE})
    assert 'confidence_gateway_hops_total{reason="confident",tier="cheap"}' in run.admin.get("/metrics").text
    told = run.admin.get("/admin/config")
    assert told.json()["policies"]["default"]["steps"][0] == {"tier": "cheap", "accept_at": 0.8}
    assert "sk-" not in told.text
    tiers = run.admin.get("/admin/tiers").json()
    assert [(tier["tier"], tier["breaker"], tier["in_flight"]) for tier in tiers] == [
        ("cheap", "closed", 0),
        ("dear", "closed", 0),
    ]


def test_a_name_that_we_do_not_go_by_can_be_listed_for_its_own_listener(run: Run) -> None:
    for client, setting in ((run.public, "server.hosts"), (run.admin, "admin.hosts")):
        told = client.get("/metrics", headers={"host": "evil.example"})
        assert (told.status_code, f"under {setting}." in told.json()["error"]["message"]) == (400, True)


def test_an_answers_id_says_who_was_served_by_what_and_how_sure_it_was(run: Run) -> None:
    seal = Seal(SECRETS["ROUTE_SECRET"].encode())
    answer = run.ask(small={"nats": SURE})
    told = answer.json()["id"]
    assert told == f"chatcmpl-{answer.headers['x-route-id']}"
    found = seal.open(told, "alice")
    assert (found.tier, f"cheap@{found.calibrator}") == ("cheap", answer.headers["x-route-calibrator"])
    assert found.p_correct == pytest.approx(P_SURE)
    assert found.unix_seconds == pytest.approx(time.time(), abs=60)
    with pytest.raises(ForeignId):
        seal.open(told, "root")
    last = seal.open(run.ask(small={"nats": UNSURE}).json()["id"], "alice")
    assert (last.tier, last.calibrator, last.p_correct) == ("dear", "", None)


def test_a_reload_changes_thresholds_for_the_next_request(run: Run) -> None:
    assert run.ask(small={"nats": SURE}).headers["x-route-tier"] == "cheap"
    stricter = json.loads(json.dumps(run.plan))
    stricter["policies"]["default"]["steps"][0]["accept_at"] = 0.99
    stricter["policies"]["new"] = {"steps": [{"tier": "dear"}]}
    run.write(stricter)
    assert run.ask(small={"nats": SURE}).headers["x-route-tier"] == "cheap", "not before it is told to"
    assert run.reload().json() == {"status": "reloaded", "withheld": {}}
    assert run.ask(small={"nats": SURE}).headers["x-route-tier"] == "dear"
    assert "auto:new" in run.public.get("/v1/models").text


def test_a_hang_up_signal_reloads_too(run: Run) -> None:
    stricter = json.loads(json.dumps(run.plan))
    stricter["policies"]["default"]["steps"][0]["accept_at"] = 0.99
    run.write(stricter)
    run.gateway.process.send_signal(signal.SIGHUP)
    until(lambda: run.ask(small={"nats": SURE}).headers["x-route-tier"] == "dear")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"accept_at": 0.8', '"acept_at": 0.8', "did you mean 'accept_at'"),
        ('"calibrator": "cheap.json"', '"calibrator": "gone.json"', "gone.json"),
        ('"calibrator": "cheap.json"', '"calibrator": "~nosuchuser/x.json"', "cascade.yaml:"),
        ('"request_seconds": 90', '"request_seconds": -5', "server.request_seconds"),
        ('"receive_seconds": 45', '"receive_seconds": 3', "restart"),
        ("{", "{{", "cascade.yaml"),
        ('"default"', "2026-02-30", "cascade.yaml"),
        ("env:ALICE_KEY", "env:NO_SUCH_KEY", "NO_SUCH_KEY"),
    ],
)
def test_a_bad_configuration_is_refused_and_the_old_one_goes_on(old: str, new: str, words: str, run: Run) -> None:
    text = json.dumps(run.plan, indent=1)
    assert old in text
    run.path.write_text(text.replace(old, new, 1))
    told = run.reload()
    assert told.status_code == 400
    assert words in told.json()["error"]["message"]
    if "did you mean" in words:
        line = next(number for number, row in enumerate(run.path.read_text().splitlines(), 1) if new in row)
        assert f"cascade.yaml:{line}: " in told.json()["error"]["message"]
    before = [line for line in run.gateway.lines() if line["event"] == "not reloaded"]
    run.gateway.process.send_signal(signal.SIGHUP)
    refused = run.gateway.logged(lambda line: line["event"] == "not reloaded", len(before) + 1)
    assert words in refused[-1]["why"]
    assert run.ask(small={"nats": SURE}).headers["x-route-tier"] == "cheap"


@contextlib.contextmanager
def short_of_memory(pid: int, bytes_left: int) -> Iterator[None]:
    """A process that may have so much more than it has now."""
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (used + bytes_left, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)


def test_what_a_reload_did_not_foresee_is_told_as_our_mistake_and_the_old_configuration_goes_on(run: Run) -> None:
    """A file that there is no memory for is one such thing."""
    with short_of_memory(run.gateway.process.pid, 2**29):
        os.truncate(run.path, 2**34)
        told = run.reload()
    assert told.status_code == 500
    assert (told.json()["error"]["type"], told.json()["error"]["code"]) == ("server_error", "not_reloaded")
    (line,) = run.gateway.logged(lambda line: line["event"] == "not reloaded" and "MemoryError" in str(line))
    assert "gateway/config.py" in line["traceback"]
    assert run.ask(small={"nats": SURE}).headers["x-route-tier"] == "cheap"


def test_whatever_a_reload_stumbles_over_ends_no_process(caplog: pytest.LogCaptureFixture) -> None:
    class Stumbling:
        def __init__(self) -> None:
            self.tries = asyncio.Queue[None]()

        async def reload(self, _: asyncio.TaskGroup) -> None:
            self.tries.put_nowait(None)
            raise ZeroDivisionError

    async def hang_up_twice() -> None:
        live = Stumbling()
        async with asyncio.TaskGroup() as group, asyncio.timeout(PATIENCE):
            listening = group.create_task(on_hangup_signal(cast(Live, live), group))
            for _ in range(2):
                await asyncio.sleep(0)
                os.kill(os.getpid(), signal.SIGHUP)
                await live.tries.get()
            listening.cancel()

    asyncio.run(hang_up_twice())
    assert [record.message for record in caplog.records if record.exc_info] == 2 * ["not reloaded"]


def test_a_request_keeps_the_snapshot_it_began_with(run: Run, upstream: Upstream) -> None:
    """A reload takes the tier it is asking out of service; its connection must live until the answer is in."""
    answers: list[httpx2.Response] = []

    def post() -> None:
        answers.append(
            httpx2.post(f"{run.gateway.url}/v1/chat/completions", headers=CLIENT, json=slow, timeout=PATIENCE)
        )

    slow = ask({"nats": UNSURE, "gate": "reloaded"}, {"text": "43"}, route={"debug": True})
    asking = threading.Thread(target=post)
    asking.start()
    until(lambda: upstream.asked("small"))
    alone = json.loads(json.dumps(run.plan))
    alone["tiers"][0]["engine"]["connect_seconds"] = 19.9  # another engine under the same name
    del alone["tiers"][1]
    alone["policies"] = {"default": {"steps": [{"tier": "cheap"}]}}
    run.write(alone)
    assert run.reload().status_code == 200
    assert [tier["tier"] for tier in run.admin.get("/admin/tiers").json()] == ["cheap"]
    upstream.opened.add("reloaded")
    asking.join()
    told = answers[0].json()
    assert told["choices"][0]["message"]["content"] == "43"
    assert [hop["reason"] for hop in told["route"]["hops"]] == ["unsure", "last"]
    assert 'tier="dear"' not in "".join(row for row in run.admin.get("/metrics").text.splitlines() if "breaker" in row)


def test_a_reload_closes_what_only_the_configuration_before_it_needed(run: Run, upstream: Upstream) -> None:
    other = json.loads(json.dumps(run.plan))

    def let_go() -> float:
        """How long it took; an idle connection is closed after 15 s in any case."""
        assert run.ask(small={"nats": SURE}).headers["x-route-tier"] == "cheap"
        other["tiers"][0]["engine"]["connect_seconds"] += 1
        run.write(other)
        assert run.reload().status_code == 200
        return until(lambda: upstream.asked("small")[-1].connection in upstream.closed)

    assert soonest(let_go, 5.0, tries=3) < 5.0


def test_no_request_is_lost_when_reloading_under_load(run: Run) -> None:
    statuses: list[int] = []
    stop = threading.Event()

    def load() -> None:
        with httpx2.Client(base_url=run.gateway.url, headers=CLIENT, timeout=PATIENCE) as mine:
            while not stop.is_set():
                body = ask({"nats": SURE, "seconds": 0.01})
                statuses.append(mine.post("/v1/chat/completions", json=body).status_code)

    loads = [threading.Thread(target=load) for _ in range(4)]
    for one in loads:
        one.start()
    for number in range(8):
        other = json.loads(json.dumps(run.plan))
        other["tiers"][0]["engine"]["connect_seconds"] = 15 + number
        run.write(other)
        assert run.reload().status_code == 200
        served = len(statuses)
        until(lambda served=served: len(statuses) > served + 4)
    stop.set()
    for one in loads:
        one.join()
    assert set(statuses) == {200}


def test_what_a_tier_has_learnt_outlives_a_reload_that_does_not_touch_it(run: Run, upstream: Upstream) -> None:
    def asked(**large: Any) -> int:
        body = ask({}, large) | {"model": "dear"}
        return run.public.post("/v1/chat/completions", json=body).status_code

    def rests() -> float:
        """How long it took to see it, of the second in which it can be seen."""
        until(lambda: asked() == 200)
        return timed(lambda: told.append((asked(fault="429_second"), run.reload().status_code, asked())))

    told: list[tuple[int, int, int]] = []
    assert soonest(rests, 0.9) < 0.9
    assert told[-1] == (429, 200, 429)
    until(lambda: asked() == 200)


def test_a_calibrator_comes_into_service_once_its_server_is_there(tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    port = free_port()
    plan = planned(f"http://127.0.0.1:{port}/v1", on_bad_artifact="escalate")
    with running(tmp_path, plan, **SECRETS) as gateway:
        late = Run(tmp_path, gateway, plan)
        with late.admin, late.public:
            assert "nobody answers" in late.admin.get("/admin/tiers").json()[0]["withheld"]
            with Upstream(port=port):
                until(lambda: late.admin.get("/admin/tiers").json()[0]["withheld"] is None)
                assert late.ask(small={"nats": SURE}).headers["x-route-tier"] == "cheap"
                assert 'calibrator_withheld{tier="cheap"} 0.0' in late.admin.get("/metrics").text


def test_a_reload_does_not_wait_for_a_server_that_is_away_as_a_start_does(run: Run) -> None:
    away = json.loads(json.dumps(run.plan))
    away["server"]["start_seconds"] = 10 * PATIENCE
    away["tiers"][0]["engine"]["url"] = "http://127.0.0.1:1/v1"
    run.write(away)
    assert run.reload().status_code == 400
    run.write(away | {"on_bad_artifact": "escalate"})
    assert "nobody answers" in run.reload().json()["withheld"]["cheap"]


def test_an_admin_listener_that_nobody_could_open_is_a_mistake(tmp_path: Path) -> None:
    plan = cascade("http://127.0.0.1:1/v1", admin={})
    with pytest.raises(ConfigError, match=r"cascade.yaml:\d+: admin: nobody may administer"):
        configs.parse(json.dumps(plan, indent=1), tmp_path / "cascade.yaml")
    assert configs.parse(json.dumps(plan | {"admin": {"allow_anonymous": True}}), tmp_path / "c.yaml").admin
