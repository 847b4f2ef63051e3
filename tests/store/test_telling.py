"""`confgate route-log` and the admin's endpoint: one decision's whole story."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from gateway import ids
from gateway.errors import BadId
from gateway.monitor.outlying import distances
from gateway.monitor.reference import Reference, tier_reference
from gateway.store import telling
from gateway.store.base import Entry, Role, Source, Whole
from gateway.store.sqlite import Sqlite
from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, UNSURE, confgate_ends, running, until, write_artifact
from tests.faults.upstream import Upstream
from tests.store.rows import HOSTILE, decision, hop, numbers, wish
from tests.store.test_feedback import SECRETS, bearer, planned, said


@pytest.fixture(scope="module")
def plan() -> Iterator[dict[str, Any]]:
    with Upstream() as upstream:
        texts = {"redact": "gateway.store.redact:contacts"}
        yield planned(upstream.url, store={"sqlite": "store.db", "seconds": PATIENCE, "texts": texts})


def test_operators_see_a_decision_with_its_hops_features_labels_and_redacted_texts(
    plan: dict[str, Any], tmp_path: Path
) -> None:
    write_artifact(tmp_path / "cheap.json")
    with (
        running(tmp_path, plan, **SECRETS) as gateway,
        httpx2.Client(base_url=gateway.url, headers=bearer("alice"), timeout=PATIENCE) as client,
    ):
        admin = httpx2.Client(
            base_url=f"http://127.0.0.1:{plan['admin']['port']}", headers=bearer("root"), timeout=PATIENCE
        )
        body = ask({"nats": UNSURE}, {"text": "43, write to mia@example.org"})
        id_ = client.post("/v1/chat/completions", json=body).json()["id"]
        until(lambda: admin.get(f"/admin/decisions/{id_}").status_code == 200)
        assert said(client, {"id": id_, "label": False, "comment": "it was 42"}).status_code == 201
        told = admin.get(f"/admin/decisions/{id_}").json()
        assert [(row["tier"], row["reason"], row["position"]) for row in told["hops"]] == [
            ("cheap", "unsure", 0),
            ("dear", "last", 1),
        ]
        assert told["hops"][0]["features"]["lp_mean"] == pytest.approx(UNSURE)
        assert (told["truth"], told["labels"][0]["comment"]) == (False, "it was 42")
        assert told["decision"]["answer"] == "43, write to [address]"
        assert "nats" in told["decision"]["prompt"]
        by_number = admin.get(f"/admin/decisions/{told['decision']['number']}")
        assert by_number.json() == told
        listed = admin.get("/admin/decisions", params={"limit": 1}).json()["data"]
        assert listed == [{"id": ids.bare(id_)} | told["decision"]]
        assert admin.get("/admin/decisions", params={"wanting": True}).json()["data"] == []
        assert admin.get(f"/admin/decisions/{numbers(1)[0]}").status_code == 404
        assert admin.get("/admin/decisions/never-was").status_code == 404
        assert (
            httpx2.get(
                admin.base_url.join(f"/admin/decisions/{id_}"), headers=bearer("alice"), timeout=PATIENCE
            ).status_code
            == 401
        )
        assert client.get(f"/admin/decisions/{id_}").status_code == 404, "not on the public listener"
        config = str(tmp_path / "cascade.yaml")
        code, out, _ = confgate_ends("route-log", id_, "-c", config, "--json", **SECRETS)
        assert (code, json.loads(out)) == (0, told), "beside a gateway that writes"
        code, out, _ = confgate_ends("route-log", id_, "-c", config, **SECRETS)
        assert code == 0
        for words in ("served by dear: last", "unsure", "lp_mean", "it was 42", "alice", "[address]", "wrong"):
            assert words in out, words
        code, _, err = confgate_ends("route-log", numbers(1)[0], "-c", config, **SECRETS)
        assert (code, "nothing is known" in err) == (1, True)
        code, _, err = confgate_ends("route-log", "rubbish", "-c", config, **SECRETS)
        assert (code, err) == (1, "there is no such decision\n")
        admin.close()


def test_what_models_and_clients_wrote_cannot_move_an_operators_cursor(tmp_path: Path) -> None:
    [number] = numbers(1)
    store = Sqlite(tmp_path / "s.db")
    evil = "\x1b[2J" + HOSTILE
    store.write([Entry(decision(number, prompt=evil, answer=evil), (hop(number, note=evil, model=evil, error=evil),))])
    store.put([wish(number, comment=evil)])
    whole = store.whole(number)
    store.close()
    text = telling.as_text(whole)
    assert not any(not one.isprintable() and one != "\n" for one in text)
    json.dumps(telling.as_json(whole)).encode()
    json.dumps(telling.as_json(whole), ensure_ascii=False).encode()


def test_an_operators_word_counts_before_a_clients_and_a_proxys_never(tmp_path: Path) -> None:
    [number] = numbers(1)
    store = Sqlite(tmp_path / "s.db")
    store.put([wish(number, says=False, source=Source.PROXY)])
    assert telling.truth(store.labels(number)) is None
    store.put([wish(number, says=True)])
    assert telling.truth(store.labels(number)) is True
    store.put([wish(number, says=False, source=Source.OPERATOR)])
    assert telling.truth(store.labels(number)) is False
    store.close()


def test_a_story_without_its_decision_row_is_still_told(tmp_path: Path) -> None:
    [number] = numbers(1)
    store = Sqlite(tmp_path / "s.db")
    store.write([Entry(None, (hop(number, 3, role=Role.SHADOW, p_correct=None, features={}),))])
    text = telling.as_text(store.whole(number))
    store.close()
    assert "not there" in text
    assert "shadow" in text


@pytest.mark.parametrize("given", ["", "x", "\0" * 20, "é" * 20, "A" * 19, "chatcmpl-", "B" * 20])
def test_what_is_no_number_is_told_from_one_that_is(given: str) -> None:
    with pytest.raises(BadId):
        ids.number_of(given)


def test_each_answer_says_how_far_out_it_lies_where_the_reference_knows_its_calibrator() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 1)) / 10
    label = hop("n").calibrator
    known = Reference({("default", "cheap"): tier_reference(label, ("lp_mean",), np.column_stack([X, X]))})
    [number] = numbers(1)
    hops = (
        hop(number, 0, features={"lp_mean": -0.1}), hop(number, 1, features={"lp_mean": -3.0}),
        hop(number, 2, calibrator="cheap@another"), hop(number, 3, features={}),
    )  # fmt: skip
    whole = Whole(decision(number), hops, ())
    found = distances(known, whole)
    assert {place: one.far for place, one in found.items()} == {0: False, 1: True}
    assert found[1].squared == pytest.approx(known.tiers["default", "cheap"].distance(np.array([-3.0])))
    told = telling.as_json(whole, found)["hops"]
    assert [row["out_of_distribution"] and row["out_of_distribution"]["far"] for row in told] == [
        False, True, None, None
    ]  # fmt: skip
    assert "features of 1 cheap   far out: squared distance" in telling.as_text(whole, found)
    assert distances(known, Whole(None, hops, ())) == {}
