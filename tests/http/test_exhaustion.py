"""What runs out: descriptors, memory, patience with those who only sit there."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, Gateway, cascade, running, until, write_artifact
from tests.faults.upstream import Upstream
from tests.soak.soak import memory_mb

IDLE = 300  # make bench has 10,000


@pytest.fixture
def own(upstream: Upstream, tmp_path: Path) -> Iterator[Gateway]:
    """A gateway that nobody else uses."""
    write_artifact(tmp_path / "cheap.json")
    with running(tmp_path, cascade(upstream.url)) as gateway:
        yield gateway


def answers(gateway: Gateway) -> bool:
    with contextlib.suppress(httpx2.HTTPError):
        return httpx2.post(f"{gateway.url}/v1/chat/completions", json=ask(), timeout=10).status_code == 200
    return False


def test_out_of_descriptors_it_survives_and_recovers(own: Gateway) -> None:
    until(lambda: answers(own))
    pid = own.process.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 20, hard))
    with contextlib.ExitStack() as held:
        for _ in range(60):
            held.enter_context(own.connect())
        until(lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())) >= used + 20)  # it has been reached
        assert own.process.poll() is None
    until(lambda: answers(own))


def test_failing_requests_leave_no_memory_behind(own: Gateway) -> None:
    def fail(times: int) -> None:
        with httpx2.Client(base_url=own.url, timeout=PATIENCE) as http:
            for _ in range(times):
                told = http.post("/v1/chat/completions", json=ask({"fault": "500"}, {"fault": "cut_json"}))
                assert told.status_code == 502

    fail(300)
    before = memory_mb(own)
    fail(300)
    assert memory_mb(own) - before < 16


def test_idle_connections_harm_nobody(own: Gateway) -> None:
    with contextlib.ExitStack() as held:
        silent: list[socket.socket] = [held.enter_context(own.connect()) for _ in range(IDLE)]
        for _ in range(5):
            until(lambda: answers(own))
        assert len(silent) == IDLE
