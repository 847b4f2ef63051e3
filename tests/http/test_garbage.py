"""Requests and connections leave nothing to the cyclic garbage collector, whose turns are pauses in which nobody is
answered."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, ROOT, Gateway, cascade, running, until, whole, write_artifact
from tests.faults.upstream import Upstream

REQUESTS = 60

# Runs at the start of the gateway's Python: on a signal, how many objects were found in cycles since the last time.
COUNTS = """
import gc, signal
found = []
gc.callbacks.append(lambda phase, told: phase == "stop" and found.append(told["collected"]))
def tell(*_):
    gc.collect()
    with open({path!r}, "a") as file:
        print(sum(found), file=file)
    found.clear()
signal.signal(signal.SIGUSR1, tell)
"""


@pytest.fixture(scope="module")
def counted(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Path]]:
    """A gateway, and where it tells."""
    folder = tmp_path_factory.mktemp("counted")
    write_artifact(folder / "cheap.json")
    told = folder / "collected"
    (folder / "sitecustomize.py").write_text(COUNTS.format(path=str(told)))
    path = os.pathsep.join((str(folder), str(ROOT)))
    with running(folder, cascade(upstream.url), PYTHONPATH=path) as gateway:
        yield gateway, told


def garbage(gateway: Gateway, told: Path) -> int:
    """How many objects were found in cycles since the last time."""
    before = told.read_text() if told.exists() else ""
    gateway.process.send_signal(signal.SIGUSR1)
    until(lambda: told.exists() and told.read_text() != before and told.read_text().endswith("\n"))
    return int(told.read_text().split()[-1])


@pytest.mark.parametrize(
    "body",
    [
        ask(),
        ask({"nats": -0.8}),
        ask({"fault": "500"}),
        ask({"fault": "500"}, {"fault": "500"}),
        ask({"fault": "bad_request"}),
        ask(stream=True),
        ask() | {"model": "dear"},
        ask() | {"model": "nobody"},
    ],
    ids=["whole", "escalated", "a tier broken", "all broken", "at fault", "stream", "bypass", "refused"],
)
def test_a_request_leaves_nothing_in_a_cycle(body: dict[str, Any], counted: tuple[Gateway, Path]) -> None:
    gateway, _ = counted
    with httpx2.Client(base_url=gateway.url, trust_env=False, timeout=PATIENCE) as client:
        for _ in range(5):
            client.post("/v1/chat/completions", json=body)
        garbage(*counted)
        for _ in range(REQUESTS):
            client.post("/v1/chat/completions", json=body)
        assert garbage(*counted) < REQUESTS, f"objects in cycles after {REQUESTS} requests"


@pytest.mark.parametrize(
    ("said", "answered"),
    [
        (b"", False),
        (b"GET /heal", False),
        (whole(ask()), True),
        (whole(ask()) * 2, True),
        (whole(ask({"seconds": 5})), False),
        (whole(ask({"seconds": 5})) * 2, False),
        (b"garbage\r\n\r\n", True),
    ],
    ids=["nothing", "part of a head", "one question", "two", "an answer not awaited", "nor a second", "garbage"],
)
def test_a_connection_leaves_nothing_in_a_cycle(said: bytes, answered: bool, counted: tuple[Gateway, Path]) -> None:
    gateway, _ = counted
    for last in (False, True):
        for _ in range(10):
            with gateway.connect() as raw:
                raw.sendall(said)
                if answered:
                    assert raw.recv(2**16).startswith(b"HTTP/1.1 ")
                else:
                    time.sleep(0.05)  # it is seen before its client leaves
        time.sleep(0.2)
        found = garbage(*counted)
        assert found < 10 or not last, f"{found} objects in cycles after 10 connections"
