"""The end: readiness first, then no new requests, then time for those in flight, then a word to the rest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway import ids
from gateway.http.chat import Out
from gateway.http.errors import Draining
from gateway.http.hangup import line
from gateway.store.story import Story
from tests.faults.ask import ask
from tests.faults.gateway import (
    PATIENCE,
    SURE,
    Gateway,
    cascade,
    confgate,
    free_port,
    running,
    soonest,
    timed,
    until,
    whole,
    write_artifact,
)
from tests.faults.upstream import SILENCE, Upstream


class Asked(threading.Thread):
    """A request in flight."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        super().__init__()
        self._url, self._body = url, body
        self.answer: httpx2.Response | None = None
        self.start()

    def run(self) -> None:
        self.answer = httpx2.post(f"{self._url}/v1/chat/completions", json=self._body, timeout=PATIENCE)

    def told(self) -> httpx2.Response:
        self.join(2 * PATIENCE)
        assert self.answer is not None
        return self.answer


def plan(url: str, **server: float) -> dict[str, Any]:
    told = cascade(url, admin={"port": free_port(), "allow_anonymous": True})
    told["server"] |= server
    return told


@pytest.mark.parametrize("how", ["signal", "endpoint"])
def test_readiness_goes_down_first_and_what_is_in_flight_ends_well(
    how: str, upstream: Upstream, tmp_path: Path
) -> None:
    write_artifact(tmp_path / "cheap.json")
    assert any(drained(how, upstream, tmp_path, linger) for linger in (2.5, 10.0, 40.0)), "never was there time to look"


def drained(how: str, upstream: Upstream, folder: Path, linger: float) -> bool:
    """Whether we could look at a gateway that drains before its time to be looked at was over."""
    upstream.seen.clear()
    upstream.opened.clear()
    told = plan(upstream.url, linger_seconds=linger, grace_seconds=linger + 60)
    admin = f"http://127.0.0.1:{told['admin']['port']}"
    with running(folder, told) as gateway, httpx2.Client(base_url=gateway.url, timeout=PATIENCE) as idle:

        def look() -> tuple[httpx2.Response, ...]:
            if how == "signal":
                gateway.process.send_signal(signal.SIGTERM)
            else:
                assert httpx2.post(f"{admin}/admin/drain", timeout=PATIENCE).status_code == 202
            until(lambda: httpx2.get(f"{gateway.url}/ready", timeout=PATIENCE).json() == {"status": "draining"})
            paths = (f"{gateway.url}/ready", f"{gateway.url}/health", f"{admin}/metrics")
            refused = idle.post("/v1/chat/completions", json=ask())
            return refused, *(httpx2.get(path, timeout=PATIENCE) for path in paths)

        until(lambda: idle.get("/ready").json() == {"status": "ready"})
        asked = ask({"nats": SURE, "gate": "end"})
        slow, stream = Asked(gateway.url, asked), Asked(gateway.url, asked | {"stream": True})
        until(lambda: len(upstream.asked("small")) == 2)
        began = time.monotonic()
        looks: tuple[httpx2.Response, ...] = ()
        with contextlib.suppress(httpx2.TransportError):
            looks = look()
        late = time.monotonic() - began > linger - 0.2
        upstream.opened.add("end")
        assert slow.told().status_code == 200
        assert stream.told().text.endswith("data: [DONE]\n\n")
        assert gateway.process.wait(timeout=PATIENCE) == 0
    if late:
        return False
    refused, ready, health, metrics = looks
    assert (refused.status_code, refused.headers["retry-after"], refused.headers["connection"]) == (503, "1", "close")
    assert refused.json()["error"]["type"] == "server_error"
    assert (ready.status_code, health.status_code) == (503, 200)
    assert "in_flight 2.0" in metrics.text, "the end can be watched"
    return True


GRACE, ROOM = 2.0, 8.0  # s; room for what ending takes on a busy machine. The requests would last a minute
BEYOND = 2.0  # s, in which all is closed when everything hangs


def test_what_does_not_end_is_told_so_inside_the_grace(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")

    def end() -> float:
        upstream.seen.clear()
        with running(tmp_path, plan(upstream.url, grace_seconds=GRACE)) as gateway:
            asked = [Asked(gateway.url, ask({"fault": "silent"}, stream=stream)) for stream in (False, True)]
            until(lambda: len(upstream.asked("small")) == 2)
            began = time.monotonic()
            gateway.process.send_signal(signal.SIGTERM)
            for one in asked:
                assert one.told().status_code == 503
                assert one.told().json()["error"]["type"] == "server_error"
                assert one.told().headers["x-route-id"]
            assert gateway.process.wait(timeout=PATIENCE) == 0
            took = time.monotonic() - began
        until(lambda: all(seen.released_at is not None for seen in upstream.asked("small")), SILENCE / 2)
        assert not any("traceback" in line for line in gateway.lines())
        return took

    assert soonest(end, GRACE + ROOM, tries=3) < GRACE + ROOM


def stored(folder: Path) -> sqlite3.Connection:
    """Decisions as another process finds them, which may lock them, too."""
    return sqlite3.connect(folder / "decisions.db", isolation_level=None)


def test_what_is_answered_while_the_process_ends_is_kept(upstream: Upstream, tmp_path: Path) -> None:
    """Where the machine does not stand still for as long as the store is waited for."""
    write_artifact(tmp_path / "cheap.json")

    def kept() -> bool:
        upstream.seen.clear()
        upstream.opened.clear()
        with running(tmp_path, plan(upstream.url) | {"store": {"sqlite": "decisions.db"}}) as gateway:
            body = ask({"nats": SURE, "gate": "end"})
            asked = [Asked(gateway.url, body | {"stream": stream}) for stream in (False, True)]
            until(lambda: len(upstream.asked("small")) == 2)
            gateway.process.send_signal(signal.SIGTERM)
            until(lambda: refused(gateway))
            upstream.opened.add("end")
            numbers = {ids.number_of(one.told().headers["x-route-id"]) for one in asked}
            assert gateway.process.wait(timeout=PATIENCE) == 0
        with contextlib.closing(stored(tmp_path)) as store:
            return numbers <= {number for (number,) in store.execute("SELECT number FROM decisions")}

    assert any(kept() for _ in range(3))


def refused(gateway: Gateway) -> bool:
    try:
        gateway.connect().close()
    except ConnectionRefusedError:
        return True
    return False


def test_neither_a_model_server_that_hangs_nor_a_store_holds_up_the_end_and_what_it_loses_is_told(
    upstream: Upstream, tmp_path: Path
) -> None:
    write_artifact(tmp_path / "cheap.json")
    told = plan(upstream.url, grace_seconds=GRACE) | {"store": {"sqlite": "decisions.db", "seconds": PATIENCE}}

    def end() -> float:
        upstream.seen.clear()
        with running(tmp_path, told) as gateway, contextlib.closing(stored(tmp_path)) as store:
            store.execute("BEGIN IMMEDIATE")
            assert Asked(gateway.url, ask({"nats": SURE})).told().status_code == 200
            asked = Asked(gateway.url, ask({"fault": "silent"}))
            until(lambda: len(upstream.asked("small")) == 2)
            gateway.process.send_signal(signal.SIGTERM)
            took = timed(lambda: gateway.process.wait(timeout=PATIENCE))
            assert asked.told().status_code == 503
            (line,) = gateway.logged(lambda line: line["event"] == "decisions were lost at the end")
            assert line["rows"] == 2
            return took

    assert soonest(end, GRACE + BEYOND) < GRACE + BEYOND


def test_a_stream_that_nobody_reads_does_not_hold_up_the_end(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    body = ask({"nats": SURE, "text": "word " * 40_000}, stream=True)

    def end() -> float:
        with running(tmp_path, plan(upstream.url, grace_seconds=GRACE)) as gateway, gateway.connect() as raw:
            raw.sendall(whole(body))
            assert raw.recv(15) == b"HTTP/1.1 200 OK"
            gateway.process.send_signal(signal.SIGTERM)
            return timed(lambda: gateway.process.wait(timeout=PATIENCE))

    assert soonest(end, GRACE + ROOM, tries=3) < GRACE + ROOM


def test_an_operator_who_waits_for_a_reload_does_not_hold_up_the_end(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")

    def end() -> float:
        told = plan(upstream.url, grace_seconds=GRACE)
        with running(tmp_path, told) as gateway, socket.create_server(("127.0.0.1", 0)) as silent:
            told["tiers"][0]["engine"]["url"] = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
            (tmp_path / "cascade.yaml").write_text(json.dumps(told))
            with socket.create_connection(("127.0.0.1", told["admin"]["port"])) as raw:
                raw.sendall(b"POST /admin/reload HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n")
                with silent.accept()[0] as asked:
                    assert asked.recv(1), "who it is, which it does not say"
                    gateway.process.send_signal(signal.SIGTERM)
                    took = timed(lambda: gateway.process.wait(timeout=PATIENCE))
                assert raw.recv(12) == b"HTTP/1.1 503"
            assert not any("traceback" in line for line in gateway.lines())
            return took

    assert soonest(end, GRACE + ROOM, tries=3) < GRACE + ROOM


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_another_signal_at_any_time_of_the_end_does_not_make_it_a_bad_one(
    again: signal.Signals, upstream: Upstream, tmp_path: Path
) -> None:
    write_artifact(tmp_path / "cheap.json")
    told = plan(upstream.url)
    with running(tmp_path, told | {"store": {"sqlite": "decisions.db"}}) as gateway:
        gateway.process.send_signal(signal.SIGTERM)
        while gateway.process.poll() is None:
            gateway.process.send_signal(again)
            time.sleep(0.001)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hang_up_signal_does_not_end_what_is_still_starting(workers: int, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    with socket.create_server(("127.0.0.1", 0)) as loading:
        port = loading.getsockname()[1]
        told = plan(f"http://127.0.0.1:{port}/v1", start_seconds=PATIENCE, workers=workers)
        (tmp_path / "cascade.yaml").write_text(json.dumps(told))
        process = confgate("serve", "--config", str(tmp_path / "cascade.yaml"))
        loading.accept()[0].close()
        process.send_signal(signal.SIGHUP)
    assert process.stdout is not None
    with process, Upstream(port=port):
        ready = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert (ready[:8], process.returncode) == ("ready on", 0)


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ([(b"content-type", b"text/event-stream")], b'data: {"error":'),
        ([(b"content-length", b"9")], None),  # nothing may be added to a body whose length is known
    ],
)
def test_an_answer_that_has_begun_is_not_passed_off_as_complete(headers: list[Any], told: bytes | None) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def work() -> None:
        out = Out(send, line({}))
        await out({"type": "http.response.start", "status": 200, "headers": headers})
        await out.end_with(Draining(), Story("id", 0.0))

    asyncio.run(work())
    bodies = [message["body"] for message in sent[1:]]
    assert [body[: len(told or b"")] for body in bodies] == ([told] if told else [])
    assert b"[DONE]" not in b"".join(bodies)
