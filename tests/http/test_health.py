"""What a load balancer is told: by questions that clients have asked, and by whether model servers are there at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, Gateway, cascade, running, soonest, timed, until, write_artifact
from tests.faults.upstream import Upstream

OPEN_SECONDS = 600  # longer than any machine takes for these tests


@pytest.fixture
def server() -> Iterator[Upstream]:
    with Upstream() as own:
        yield own


@pytest.fixture
def brittle(server: Upstream, tmp_path: Path) -> Iterator[Gateway]:
    """Each tier is left alone after its first failure."""
    write_artifact(tmp_path / "cheap.json")
    config = cascade(server.url)
    for tier in config["tiers"]:
        tier["limits"] = {"breaker": {"in_a_row": 1, "open_seconds": OPEN_SECONDS, "open_max_seconds": OPEN_SECONDS}}
    with running(tmp_path, config) as process:
        yield process


def posted(gateway: Gateway, body: dict[str, Any]) -> int:
    return httpx2.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=PATIENCE).status_code


def ready(gateway: Gateway) -> tuple[int, str]:
    told = httpx2.get(f"{gateway.url}/ready", timeout=PATIENCE)
    assert set(told.json()) == {"status"}  # and nothing about hosts or models
    return told.status_code, told.json()["status"]


def test_a_tier_that_fails_its_questions_is_not_ready_though_its_server_lists_the_model(brittle: Gateway) -> None:
    until(lambda: ready(brittle) == (200, "ready"))
    assert posted(brittle, ask({"fault": "500"})) == 200
    until(lambda: ready(brittle) == (200, "degraded"))
    assert posted(brittle, ask({}, {"fault": "500"})) == 502
    until(lambda: ready(brittle) == (503, "unavailable"))
    assert httpx2.get(f"{brittle.url}/health", timeout=PATIENCE).json() == {"status": "ok"}


def test_a_tier_that_hangs_keeps_nobody_who_asks_waiting(server: Upstream, tmp_path: Path) -> None:
    """Kubernetes gives up after a second, and would take a gateway out of service of which one tier hangs."""
    write_artifact(tmp_path / "cheap.json")
    with Upstream(forgets="silent") as hanging:
        config = cascade(server.url)
        config["tiers"][1]["engine"]["url"] = hanging.url
        with running(tmp_path, config) as gateway:
            until(lambda: ready(gateway) == (200, "degraded"))

            def longest() -> float:
                seconds, looks = 0.0, len(hanging.seen)
                while len(hanging.seen) < looks + 2:
                    seconds = max(seconds, timed(lambda: ready(gateway)))
                return seconds

            assert soonest(longest, 1.0, tries=3) < 1.0
            assert ready(gateway) == (200, "degraded")


def test_a_server_that_answers_questions_is_there_though_it_does_not_come_to_its_list(
    server: Upstream, brittle: Gateway
) -> None:
    server.forgets = "silent"
    until(lambda: ready(brittle) == (503, "unavailable"))
    until(lambda: posted(brittle, ask()) == 200 and ready(brittle) == (200, "degraded"))


def test_without_model_servers_nobody_is_sent_here_and_the_process_lives(brittle: Gateway, server: Upstream) -> None:
    server.__exit__()
    until(lambda: ready(brittle) == (503, "unavailable"))
    assert httpx2.get(f"{brittle.url}/health", timeout=PATIENCE).status_code == 200
    server.__enter__()
    until(lambda: ready(brittle) == (200, "ready"))
