"""POST and GET /v1/feedback of a real gateway: who may say what, and what is kept of it."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway import ids
from gateway.ids import Seal
from gateway.store.sqlite import Sqlite
from tests.faults.ask import ask
from tests.faults.gateway import P_SURE, PATIENCE, SURE, UNSURE, cascade, free_port, running, until, write_artifact
from tests.faults.upstream import Upstream

SECRETS = {"ROOT_KEY": "sk-root", "ALICE_KEY": "sk-alice", "BOB_KEY": "sk-bob", "ROUTE_SECRET": "of sixteen characters"}
SEAL = Seal(SECRETS["ROUTE_SECRET"].encode())


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer sk-{name}"}


def planned(url: str, **changes: Any) -> dict[str, Any]:
    clients = [{"name": name, "key": f"env:{name.upper()}_KEY"} for name in ("alice", "bob")]
    keys = {"clients": clients, "admins": [{"name": "root", "key": "env:ROOT_KEY"}]}
    plan = {"keys": keys, "admin": {"port": free_port()}, "ids": {"secret": "env:ROUTE_SECRET"}}
    return cascade(url, **(plan | {"store": {"sqlite": "store.db", "seconds": PATIENCE}} | changes))


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("feedback")
    write_artifact(made / "cheap.json")
    return made


@pytest.fixture(scope="module")
def alice(upstream: Upstream, folder: Path) -> Iterator[httpx2.Client]:
    with (
        running(folder, planned(upstream.url), **SECRETS) as gateway,
        httpx2.Client(base_url=gateway.url, headers=bearer("alice"), timeout=PATIENCE) as client,
    ):
        yield client


def minted(client: str = "alice", **facts: Any) -> str:
    """The id of a decision whose row was lost; a label for it counts all the same."""
    return SEAL.seal(ids.number(1_700_000_000.0), client, **facts)


def said(client: httpx2.Client, body: Any, as_: str = "alice") -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body)
    headers = bearer(as_) | {"content-type": "application/json"}
    return client.post("/v1/feedback", content=content, headers=headers)


def test_a_label_joins_the_decision_it_is_about(alice: httpx2.Client, folder: Path) -> None:
    answer = alice.post("/v1/chat/completions", json=ask(small={"nats": UNSURE}))
    told = said(alice, {"id": answer.json()["id"], "label": True, "comment": "right"})
    assert told.status_code == 201
    assert (told.json()["label"], told.json()["tier"], told.json()["status"]) == (True, "dear", "created")
    number = answer.headers["x-route-id"][: ids.NUMBER]

    def whole() -> Any:
        store = Sqlite(folder / "store.db", read_only=True)
        try:
            return store.whole(number)
        finally:
            store.close()

    until(lambda: whole().decision)
    found = whole()
    assert (found.decision.client, found.decision.status, found.decision.tier) == ("alice", 200, "dear")
    assert [(hop.tier, hop.reason) for hop in found.hops] == [("cheap", "unsure"), ("dear", "last")]
    assert found.hops[0].features["lp_mean"] == pytest.approx(UNSURE)
    assert found.hops[0].calibrator.startswith("cheap@")
    assert found.decision.usd == pytest.approx(sum(hop.usd for hop in found.hops))
    assert (found.decision.prompt, found.decision.answer) == (None, None), "texts are off unless asked for"
    assert len(found.decision.prompt_sha256) == 64
    assert [(row.label, row.comment, row.author) for row in found.labels] == [(True, "right", "alice")]


def test_it_says_which_calibrator_decided_however_late_it_comes(alice: httpx2.Client) -> None:
    late = minted(tier="cheap", calibrator="old@00112233aabb", p_correct=0.75)
    assert said(alice, {"id": late, "label": False}).status_code == 201
    [label] = alice.get(f"/v1/feedback/{late}").json()["data"]
    assert (label["calibrator"], label["confidence"], label["label"]) == ("00112233aabb", 0.75, False)
    answer = alice.post("/v1/chat/completions", json=ask(small={"nats": SURE}))
    told = said(alice, {"id": answer.headers["x-route-id"], "label": True}).json()
    assert told["confidence"] == pytest.approx(P_SURE)
    assert told["calibrator"] == answer.headers["x-route-calibrator"].partition("@")[2]


def test_a_repeat_is_200_a_contradiction_409_and_a_revision_201(alice: httpx2.Client) -> None:
    one = minted()
    assert said(alice, {"id": one, "label": True}).status_code == 201
    assert said(alice, {"id": f"chatcmpl-{one}", "label": True}).status_code == 200
    told = said(alice, {"id": one, "label": False})
    assert (told.status_code, told.json()["error"]["code"]) == (409, "conflicting_label")
    revised = said(alice, {"id": one, "label": False, "revise": True})
    assert (revised.status_code, revised.json()["revision"]) == (201, 1)
    assert [row["label"] for row in alice.get(f"/v1/feedback/{one}").json()["data"]] == [True, False]


def test_a_refusal_names_the_field_as_it_was_sent_and_the_item_of_several(alice: httpx2.Client) -> None:
    fresh, known = minted(), minted()
    assert said(alice, {"id": known, "label": True}).status_code == 201
    refused = [
        ({"id": forged(), "label": True}, 404, "id"),
        ({"id": minted("bob"), "label": True}, 403, "id"),
        ({"id": fresh, "label": True, "source": "operator"}, 403, "source"),
        ({"id": known, "label": False}, 409, "id"),
        ({"id": fresh, "label": 1}, 422, "label"),
    ]
    for item, status, param in refused:
        for body, place in ((item, ""), ({"items": [{"id": fresh, "label": True}, item]}, "items.1.")):
            told = said(alice, body)
            assert (told.status_code, told.json()["error"]["param"]) == (status, f"{place}{param}")
    both = [{"id": fresh, "label": label} for label in (True, True, False)]
    assert said(alice, {"items": both}).json()["error"]["param"] == "items.2.id", "they contradict each other"


def test_of_a_name_that_nobody_knows_a_refusal_repeats_no_more_than_its_beginning(alice: httpx2.Client) -> None:
    told = said(alice, {"id": minted(), "label": True, "\n\u00e4" + "x" * 10**6: 1})
    assert told.status_code == 422
    assert len(told.content) < 500
    assert told.json()["error"]["param"].startswith("??xxx")


def test_another_comment_on_the_same_label_is_a_revision_where_one_is_wanted(alice: httpx2.Client) -> None:
    one = minted()
    assert said(alice, {"id": one, "label": True, "comment": "first"}).status_code == 201
    kept = said(alice, {"id": one, "label": True, "comment": "second"})
    assert (kept.status_code, kept.json()["status"], kept.json()["comment"]) == (200, "unchanged", "first")
    revised = said(alice, {"id": one, "label": True, "comment": "second", "revise": True})
    assert (revised.status_code, revised.json()["revision"], revised.json()["comment"]) == (201, 1, "second")
    for more in ({"comment": "second"}, {}):
        again = said(alice, {"id": one, "label": True, "revise": True, **more})
        assert (again.status_code, again.json()["comment"]) == (200, "second")


def test_many_copies_at_once_make_one_label(alice: httpx2.Client) -> None:
    one, statuses = minted(), []

    def send() -> None:
        statuses.append(said(alice, {"id": one, "label": True}).status_code)

    threads = [threading.Thread(target=send) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 19 + [201]
    assert len(alice.get(f"/v1/feedback/{one}").json()["data"]) == 1


def forged() -> str:
    true = minted()
    return true[:-1] + ("A" if true[-1] != "A" else "Q")


@pytest.mark.parametrize("id_", ["never-was", "", "\0", "é", "x" * 1000, forged()])
def test_an_invented_id_is_404_for_posting_and_reading(id_: str, alice: httpx2.Client) -> None:
    assert said(alice, {"id": id_, "label": True}).status_code == 404
    if id_.isascii() and id_.isprintable() and id_:
        assert alice.get(f"/v1/feedback/{id_}").status_code == 404


def test_another_clients_id_is_403_and_an_unlabelled_one_404(alice: httpx2.Client) -> None:
    theirs = minted("bob")
    assert said(alice, {"id": theirs, "label": True}).status_code == 403
    assert alice.get(f"/v1/feedback/{theirs}").status_code == 403
    assert alice.get(f"/v1/feedback/{minted()}").status_code == 404


def test_nobody_labels_without_a_key(alice: httpx2.Client) -> None:
    assert said(alice, {"id": minted(), "label": True}, as_="mallory").status_code == 401
    assert alice.get(f"/v1/feedback/{minted()}", headers=bearer("mallory")).status_code == 401


def test_operators_label_for_anybody_and_nobody_else_in_their_name(alice: httpx2.Client) -> None:
    one = minted("bob")
    assert said(alice, {"id": one, "label": True, "source": "operator"}, as_="bob").status_code == 403
    assert said(alice, {"id": one, "label": True}, as_="bob").status_code == 201
    assert said(alice, {"id": one, "label": False, "source": "operator"}, as_="root").status_code == 201
    seen = alice.get(f"/v1/feedback/{one}", headers=bearer("root")).json()["data"]
    assert {(row["source"], row["label"]) for row in seen} == {("user", True), ("operator", False)}
    theirs = alice.get(f"/v1/feedback/{one}", headers=bearer("bob")).json()["data"]
    assert [row["source"] for row in theirs] == ["user"]


def test_a_proxys_label_is_kept_apart(alice: httpx2.Client) -> None:
    one = minted()
    assert said(alice, {"id": one, "label": False, "source": "proxy"}).status_code == 201
    assert said(alice, {"id": one, "label": True}).status_code == 201


IMPOSSIBLE = [
    b'{"id": "%s", "label": NaN}',
    b'{"id": "%s", "label": 1e400}',
    b'{"id": "%s", "label": 1}',
    b'{"id": "%s", "label": "true"}',
    b'{"id": "%s", "label": {}}',
    b'{"id": "%s", "label": null}',
    b'{"id": "%s"}',
    b'{"id": "%s", "label": true, "source": "god"}',
    b'{"id": "%s", "label": true, "more": 1}',
    b'{"id": "%s", "label": true, "comment": "' + b"x" * 1025 + b'"}',
    b'{"id": 7, "label": true}',
    b'{"items": []}',
    b'{"items": null}',
    b'{"items": {"id": "%s", "label": true}}',
]


@pytest.mark.parametrize("body", IMPOSSIBLE)
def test_an_impossible_value_is_422(body: bytes, alice: httpx2.Client) -> None:
    told = said(alice, body.replace(b"%s", minted().encode()))
    assert told.status_code == 422
    assert told.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"\xff", b'{"id": "\\ud800", "label": true}', b"[" * 100])
def test_what_is_no_json_object_is_400(body: bytes, alice: httpx2.Client) -> None:
    assert said(alice, body).status_code in (400, 404)


def test_nul_in_a_comment_survives(alice: httpx2.Client) -> None:
    one = minted()
    assert said(alice, {"id": one, "label": True, "comment": "a\0b"}).status_code == 201
    assert alice.get(f"/v1/feedback/{one}").json()["data"][0]["comment"] == "a\0b"


def test_a_thousand_labels_are_one_transaction_and_one_more_is_too_many(alice: httpx2.Client) -> None:
    items = [{"id": minted(), "label": place % 2 == 0} for place in range(1000)]
    spoilt = [*items[:999], {"id": forged(), "label": True}]
    told = said(alice, {"items": spoilt})
    assert (told.status_code, told.json()["error"]["param"]) == (404, "items.999.id")
    assert alice.get(f"/v1/feedback/{items[0]['id']}").status_code == 404, "all or none"
    told = said(alice, {"items": items})
    assert told.status_code == 201
    assert [row["label"] for row in told.json()["data"]] == [item["label"] for item in items]
    assert said(alice, {"items": items[:2]}).status_code == 200
    assert said(alice, {"items": [*items, items[0]]}).status_code == 422


def test_a_key_labels_so_many_a_minute_and_others_go_on(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    plan = planned(upstream.url)
    plan["keys"]["clients"][0]["limits"] = {"labels_per_minute": 5}
    with (
        running(tmp_path, plan, **SECRETS) as gateway,
        httpx2.Client(base_url=gateway.url, timeout=PATIENCE) as client,
    ):
        statuses = [said(client, {"id": minted(), "label": True}).status_code for _ in range(7)]
        assert statuses[:5] == [201] * 5
        refused = said(client, {"items": [{"id": minted(), "label": True}] * 3})
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
        assert int(refused.headers["retry-after"]) > 10
        assert said(client, {"id": minted("bob"), "label": True}, as_="bob").status_code == 201
        chat = client.post("/v1/chat/completions", json=ask(small={"nats": SURE}), headers=bearer("alice"))
        assert chat.status_code == 200


def test_without_a_store_labels_are_refused_and_chat_goes_on(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    with (
        running(tmp_path, planned(upstream.url, store=None), **SECRETS) as gateway,
        httpx2.Client(base_url=gateway.url, headers=bearer("alice"), timeout=PATIENCE) as client,
    ):
        told = said(client, {"id": minted(), "label": True})
        assert (told.status_code, told.json()["error"]["type"]) == (503, "server_error")
        assert client.post("/v1/chat/completions", json=ask(small={"nats": SURE})).status_code == 200


def test_chat_goes_on_while_the_store_is_locked_and_it_heals_by_itself(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    plan = planned(upstream.url, store={"sqlite": "store.db", "seconds": 0.4, "queue": 3})
    with (
        running(tmp_path, plan, **SECRETS) as gateway,
        httpx2.Client(base_url=gateway.url, headers=bearer("alice"), timeout=PATIENCE) as client,
    ):
        admin = f"http://127.0.0.1:{plan['admin']['port']}/metrics"

        def metric(line: str) -> bool:
            return f"\nconfidence_gateway_{line}" in httpx2.get(admin, headers=bearer("root"), timeout=PATIENCE).text

        foreign = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        foreign.execute("BEGIN IMMEDIATE")
        answers = [client.post("/v1/chat/completions", json=ask(small={"nats": SURE})) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 6
        assert said(client, {"id": minted(), "label": True}).status_code == 503
        until(lambda: metric("dropped_decisions_total 3.0"))
        until(lambda: metric("store_up 0.0"))
        foreign.execute("ROLLBACK")
        until(lambda: said(client, {"id": minted(), "label": True}).status_code == 201)
        until(lambda: metric("store_up 1.0"))
        count = "SELECT count(*) FROM decisions"
        until(lambda: foreign.execute(count).fetchone()[0] == 3)
        foreign.close()
