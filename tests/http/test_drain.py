"""The end: readiness first, then no new requests, then time for those in flight, then a word to the rest."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.http.chat import Out
from gateway.http.errors import Draining
from gateway.http.hangup import line
from tests.faults.ask import ask
from tests.faults.gateway import HEAD, SURE, cascade, free_port, running, until, write_artifact
from tests.faults.upstream import Upstream


class Asked(threading.Thread):
    """A request in flight."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        super().__init__()
        self._url, self._body = url, body
        self.answer: httpx2.Response | None = None
        self.start()

    def run(self) -> None:
        self.answer = httpx2.post(f"{self._url}/v1/chat/completions", json=self._body, timeout=20)

    def told(self) -> httpx2.Response:
        self.join(20)
        assert self.answer is not None
        return self.answer


LINGER = 2.5  # s, in which all is asked of a gateway that drains; this machine may stand still for one of them


def plan(url: str, **server: float) -> dict[str, Any]:
    told = cascade(url, admin={"port": free_port(), "allow_anonymous": True})
    told["server"] |= {"request_seconds": 60, **server}
    for tier in told["tiers"]:
        tier["patience_seconds"] = 60
    return told


@pytest.mark.parametrize("how", ["signal", "endpoint"])
def test_readiness_goes_down_first_and_what_is_in_flight_ends_well(
    how: str, upstream: Upstream, tmp_path: Path
) -> None:
    write_artifact(tmp_path / "cheap.json")
    told = plan(upstream.url, linger_seconds=LINGER, grace_seconds=20)
    admin = f"http://127.0.0.1:{told['admin']['port']}"
    with running(tmp_path, told) as gateway, httpx2.Client(base_url=gateway.url) as idle:
        assert idle.get("/ready").json() == {"status": "ready"}
        slow = Asked(gateway.url, ask({"nats": SURE, "seconds": LINGER + 0.6}))
        stream = Asked(gateway.url, ask({"nats": SURE, "seconds": LINGER + 0.6}, stream=True))
        until(lambda: len(upstream.asked("small")) == 2)
        if how == "signal":
            gateway.process.send_signal(signal.SIGTERM)
        else:
            assert httpx2.post(f"{admin}/admin/drain").status_code == 202
        until(lambda: httpx2.get(f"{gateway.url}/ready").json() == {"status": "draining"}, LINGER - 0.2)
        assert httpx2.get(f"{gateway.url}/ready").status_code == 503
        assert httpx2.get(f"{gateway.url}/health").status_code == 200
        refused = idle.post("/v1/chat/completions", json=ask())
        assert (refused.status_code, refused.headers["retry-after"], refused.headers["connection"]) == (
            503,
            "1",
            "close",
        )
        assert refused.json()["error"]["type"] == "server_error"
        assert "in_flight 2.0" in httpx2.get(f"{admin}/metrics").text, "the end can be watched"
        assert slow.told().status_code == 200
        assert stream.told().text.endswith("data: [DONE]\n\n")
        assert gateway.process.wait(timeout=20) == 0


def test_what_does_not_end_is_told_so_inside_the_grace(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    with running(tmp_path, plan(upstream.url, grace_seconds=2)) as gateway:
        asked = [Asked(gateway.url, ask({"fault": "silent"}, stream=stream)) for stream in (False, True)]
        until(lambda: len(upstream.asked("small")) == 2)
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        for one in asked:
            assert one.told().status_code == 503
            assert one.told().json()["error"]["type"] == "server_error"
            assert one.told().headers["x-route-id"]
        assert gateway.process.wait(timeout=20) == 0
        assert time.monotonic() - began < 2 + 8  # a busy machine may stand still for seconds; a request for a minute
        assert all(seen.released_at is not None for seen in upstream.asked("small"))
        assert not any("traceback" in line for line in gateway.lines())


def test_a_stream_that_nobody_reads_does_not_hold_up_the_end(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    with (
        running(tmp_path, plan(upstream.url, grace_seconds=2)) as gateway,
        gateway.connect() as raw,
    ):
        body = json.dumps(ask({"nats": SURE, "text": "word " * 40_000}, stream=True)).encode()
        raw.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert raw.recv(15) == b"HTTP/1.1 200 OK"
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(timeout=20) == 0
        assert time.monotonic() - began < 2 + 8  # a busy machine may stand still for seconds; a request for a minute


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
        await out.end_with(Draining(), "id")

    asyncio.run(work())
    bodies = [message["body"] for message in sent[1:]]
    assert [body[: len(told or b"")] for body in bodies] == ([told] if told else [])
    assert b"[DONE]" not in b"".join(bodies)
