"""Exploring, on a real gateway: all tiers are asked once the answer is out, and no client notices."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway import ids
from gateway.store.base import Role, Whole
from gateway.store.sqlite import Sqlite
from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, SURE, UNSURE, running, until, write_artifact
from tests.faults.upstream import Upstream
from tests.store.test_feedback import SEAL, SECRETS, bearer, planned


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


class Run:
    def __init__(self, folder: Path, client: httpx2.Client, admin: str) -> None:
        self.folder, self.client, self._admin = folder, client, admin

    def ask(self, *plans: Any, **fields: Any) -> tuple[httpx2.Response, str]:
        answer = self.client.post("/v1/chat/completions", json=ask(*plans, **fields))
        return answer, answer.headers["x-route-id"][: ids.NUMBER]

    def whole(self, number: str) -> Whole:
        store = Sqlite(self.folder / "store.db", read_only=True)
        try:
            return store.whole(number)
        finally:
            store.close()

    def metrics(self) -> str:
        return httpx2.get(self._admin, headers=bearer("root"), timeout=PATIENCE).text


@pytest.fixture(scope="module")
def run(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("exploring")
    write_artifact(folder / "cheap.json")
    plan = planned(upstream.url, exploration={"share": 1.0, "in_flight": 2, "waiting": 2})
    with (
        running(folder, plan, **SECRETS) as gateway,
        httpx2.Client(base_url=gateway.url, headers=bearer("alice"), timeout=PATIENCE) as client,
    ):
        yield Run(folder, client, f"http://127.0.0.1:{plan['admin']['port']}/metrics")


def test_the_tiers_that_did_not_answer_are_asked_afterwards_and_cost_nothing(run: Run, upstream: Upstream) -> None:
    answer, number = run.ask({"nats": SURE}, {"gate": "shadow", "text": "43"})  # the client waits for no shadow
    assert (answer.status_code, answer.headers["x-route-tier"]) == (200, "cheap")
    upstream.opened.add("shadow")
    until(lambda: len(run.whole(number).hops) == 2)
    served, shadow = run.whole(number).hops
    assert [(hop.tier, hop.role) for hop in (served, shadow)] == [("cheap", Role.HOP), ("dear", Role.SHADOW)]
    assert (shadow.reason, shadow.usd > 0) == ("last", True)
    assert (served.agrees, shadow.agrees) == (True, None), "43 alone points at nothing"
    decision = run.whole(number).decision
    assert decision is not None
    assert decision.usd == pytest.approx(served.usd)
    assert (decision.inclusion, decision.explored) == (1.0, True)
    assert 'shadow_hops_total{reason="last",tier="dear"} 1.0' in run.metrics()
    assert 'confidence_gateway_hops_total{reason="last",tier="dear"}' not in run.metrics()


@pytest.mark.parametrize(("text", "agrees"), [("The answer is 42", True), ("It is 41. The answer is 41", False)])
def test_a_shadow_is_told_to_come_to_the_same_as_what_was_served_or_not(text: str, agrees: bool, run: Run) -> None:
    _, number = run.ask({"nats": SURE}, {"text": text})
    until(lambda: len(run.whole(number).hops) == 2)
    assert [hop.agrees for hop in run.whole(number).hops] == [True, agrees]


def test_a_tier_that_answered_already_is_not_asked_again(run: Run, upstream: Upstream) -> None:
    upstream.seen.clear()
    _, number = run.ask({"nats": UNSURE})
    until(lambda: run.whole(number).decision)
    assert [hop.role for hop in run.whole(number).hops] == [Role.HOP, Role.HOP]
    assert (len(upstream.asked("small")), len(upstream.asked("large"))) == (1, 1)


def test_a_shadow_that_fails_is_logged_and_harms_nobody(run: Run) -> None:
    answer, number = run.ask({"nats": SURE}, {"fault": "reset"})
    assert answer.status_code == 200
    until(lambda: len(run.whole(number).hops) == 2)
    shadow = run.whole(number).hops[1]
    assert (shadow.role, shadow.reason, shadow.p_correct) == (Role.SHADOW, "failed", None)
    assert shadow.error


def test_more_than_may_wait_is_left_out_and_counted(run: Run, upstream: Upstream) -> None:
    for _ in range(8):
        assert run.ask({"nats": SURE}, {"gate": "full"})[0].status_code == 200
    until(lambda: 'unexplored_decisions_total{why="queue_full"}' in run.metrics())
    upstream.opened.add("full")


def test_asking_one_tier_directly_explores_nothing(run: Run) -> None:
    _, number = run.ask(model="dear")
    until(lambda: run.whole(number).decision)
    decision = run.whole(number).decision
    assert decision is not None
    assert (decision.inclusion, decision.explored) == (None, False)


def test_the_lot_is_the_servers_alone_and_falls_as_often_as_it_should() -> None:
    numbers = [ids.number(1_700_000_000.0 + place) for place in range(20_000)]
    share = sum(SEAL.lot(one, "explore") < 0.02 for one in numbers) / 20_000
    assert share == pytest.approx(0.02, abs=5 * (0.02 * 0.98 / 20_000) ** 0.5)
    other = ids.Seal(b"another secret altogether")
    assert SEAL.lot(numbers[0], "explore") != other.lot(numbers[0], "explore")
    assert SEAL.lot(numbers[0], "explore") != SEAL.lot(numbers[0], "canary")


def test_what_waits_to_be_explored_keeps_no_process_alive(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    plan = planned(upstream.url, exploration={"share": 1.0, "in_flight": 1})
    with (
        running(tmp_path, plan, **SECRETS) as gateway,
        httpx2.Client(base_url=gateway.url, headers=bearer("alice"), timeout=PATIENCE) as client,
    ):
        for _ in range(3):
            client.post("/v1/chat/completions", json=ask({"nats": SURE}, {"gate": "never"}))
        ending = time.monotonic()
    assert time.monotonic() - ending < PATIENCE / 2, "of a minute that they would have taken"
    rows = sqlite3.connect(tmp_path / "store.db")
    assert rows.execute("SELECT count(*) FROM decisions").fetchone()[0] == 3, "flushed before the end"
    rows.close()
