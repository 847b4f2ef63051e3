"""A PostgreSQL that is restarted, stopped or paused: chat goes on, labels are refused, and all heals by itself."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from gateway.errors import ConfigError, StoreDown
from gateway.store.base import Outcome
from gateway.store.postgres import Postgres
from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, SURE, cascade, free_port, running, soonest, timed, until, write_artifact
from tests.faults.upstream import Upstream
from tests.store.conftest import Server, emptied
from tests.store.rows import entry, numbers, wish
from tests.store.test_feedback import SECRETS, bearer, minted, planned, said


def test_a_restart_costs_what_was_under_way_and_nothing_else(server: Server) -> None:
    store = Postgres(emptied(server), seconds=20.0)
    before, after = numbers(2)
    store.put([wish(before)])
    server.stop()
    with pytest.raises(StoreDown):
        store.put([wish(after)])
    server.start()
    assert [outcome for outcome, _ in store.put([wish(after)])] == [Outcome.CREATED]
    assert len(store.labels(before)) == 1
    store.close()


def test_while_it_is_away_one_is_told_within_the_time_that_a_label_may_take() -> None:
    store = Postgres(f"host=127.0.0.1 port={free_port()} user=nobody", seconds=0.5)

    def put() -> None:
        with pytest.raises(StoreDown):
            store.put([wish(numbers(1)[0])])

    assert soonest(lambda: timed(put), 5.0, tries=5) < 5.0
    store.close()


def test_what_is_no_connection_string_is_a_mistake_told_without_repeating_it() -> None:
    with pytest.raises(ConfigError) as told:
        Postgres("host=x passwort=geheim")
    assert "geheim" not in str(told.value)


def test_several_stores_start_at_once_and_label_the_same_decisions(server: Server) -> None:
    address = emptied(server)
    some, outcomes, errors = numbers(60), [], []

    def work(offset: int) -> None:
        try:
            store = Postgres(address, seconds=20.0)
            mixed = some[offset:] + some[:offset]  # each in another order: they must not wait for each other
            for start in range(0, 60, 20):
                outcomes.extend(outcome for outcome, _ in store.put([wish(one) for one in mixed[start : start + 20]]))
            store.write([entry(one) for one in mixed])
            store.close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in (0, 7, 30, 45)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert outcomes.count(Outcome.CREATED) == 60
    with psycopg.connect(address) as connection:
        counted = connection.execute("SELECT (SELECT count(*) FROM labels), (SELECT count(*) FROM hops)").fetchone()
    assert counted == (60, 60)


def test_a_commit_that_returned_is_on_the_disk_whatever_the_servers_default(server: Server) -> None:
    address = f"{emptied(server)} options='-c synchronous_commit=off'"
    store = Postgres(address)
    with store.reading() as at:
        assert at.rows("SHOW synchronous_commit") == [("on",)]
    store.close()


@pytest.mark.parametrize("how", ["stopped", "paused"])
def test_chat_goes_on_labels_are_refused_and_all_heals(how: str, server: Server, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    secrets = {**SECRETS, "STORE_URL": emptied(server)}
    with Upstream() as upstream:
        plan = planned(upstream.url, store={"postgres": "env:STORE_URL", "seconds": 1.0}, exploration={"share": 1.0})
        plan["monitors"] = {"every_seconds": 1}
        with (
            running(tmp_path, plan, **secrets) as gateway,
            httpx2.Client(base_url=gateway.url, headers=bearer("alice"), timeout=PATIENCE) as client,
        ):

            def alarms() -> set[str]:
                told = httpx2.get(
                    f"http://127.0.0.1:{plan['admin']['port']}/admin/monitors", headers=bearer("root"), timeout=PATIENCE
                ).json()
                unknown = told["monitors"]["labels"]["unknown"] or ""
                on = {alarm["kind"] for alarm in told["alarms"]}
                assert unknown.startswith("labels cannot be read") == ("unread" in on)
                assert told["policies"][0]["calibration"] == "unknown"
                return on

            until(lambda: alarms() == set())  # the first look may be slower than a store may be
            kept = minted()
            until(lambda: said(client, {"id": kept, "label": True}).status_code in (200, 201))
            paused = server.processes()
            if how == "stopped":
                server.stop()
            else:
                for pid in paused:
                    os.kill(pid, signal.SIGSTOP)
            try:
                answers = [client.post("/v1/chat/completions", json=ask(small={"nats": SURE})) for _ in range(5)]
                assert [answer.status_code for answer in answers] == [200] * 5
                assert min(answer.elapsed.total_seconds() for answer in answers) < 0.9, "nobody waits for the store"

                def refuse() -> None:
                    refused = said(client, {"id": minted(), "label": True})
                    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")

                assert soonest(lambda: timed(refuse), 4.0, tries=5) < 4.0
                until(lambda: "unread" in alarms())
                if how == "stopped":  # a paused one may hold the writer for long
                    until(lambda: "store" in alarms())
            finally:
                if how == "stopped":
                    server.start()
                else:
                    for pid in paused:
                        os.kill(pid, signal.SIGCONT)
            until(lambda: said(client, {"id": minted(), "label": True}).status_code == 201)
            assert client.get(f"/v1/feedback/{kept}").json()["data"][0]["label"] is True
            until(lambda: count(server) == 5)
            until(lambda: alarms() == set())


def count(server: Server) -> Any:
    with psycopg.connect(server.address) as connection:
        row = connection.execute("SELECT count(*) FROM decisions").fetchone()
        return row and row[0]


def test_two_workers_share_one_store(server: Server, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    secrets = {**SECRETS, "STORE_URL": emptied(server)}
    with Upstream() as upstream:
        plan = planned(
            upstream.url, store={"postgres": "env:STORE_URL", "seconds": PATIENCE}, monitors={"labels_of": "all"}
        )
        plan["server"] = cascade(upstream.url)["server"] | {"workers": 2}
        with running(tmp_path, plan, **secrets) as gateway:
            ids = []
            for _ in range(8):  # each over a connection of its own, so that both workers get some
                with httpx2.Client(base_url=gateway.url, headers=bearer("alice"), timeout=PATIENCE) as client:
                    answer = client.post("/v1/chat/completions", json=ask(small={"nats": SURE}))
                    ids.append(answer.headers["x-route-id"])
                with httpx2.Client(base_url=gateway.url, timeout=PATIENCE) as client:
                    assert said(client, {"id": ids[-1], "label": True}).status_code == 201
            until(lambda: count(server) == 8)
            admin = f"http://127.0.0.1:{plan['admin']['port']}/admin/decisions"
            told = httpx2.get(f"{admin}/{ids[0]}", headers=bearer("root"), timeout=PATIENCE).json()
            assert (told["truth"], told["decision"]["tier"]) == (True, "cheap")
            assert len(httpx2.get(admin, headers=bearer("root"), timeout=PATIENCE).json()["data"]) == 8
            beside = admin.replace("decisions", "")
            told = httpx2.get(f"{beside}monitors", headers=bearer("root"), timeout=PATIENCE).json()
            assert {place["worker"] for place in told["monitors"]["drift"]} == {0, 1}
            assert told["monitors"]["labels"]["read_at"]
            card = httpx2.get(f"{beside}card", params={"format": "json"}, headers=bearer("root"), timeout=PATIENCE)
            assert card.json()["standing"] == "NOT KNOWN NOW"
            assert card.json()["covers"]["workers"] == [0, 1]
            assert {place["worker"] for place in card.json()["drift"]} == {0, 1}
            assert httpx2.post(f"{beside}card", json=told, headers=bearer("root"), timeout=PATIENCE).status_code == 405
