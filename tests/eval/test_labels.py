"""Labels from files, and labelled decisions as a table that is fitted on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from eval import labels, labels_cli, tables
from gateway.errors import ConfigError, GatewayError
from gateway.ids import Seal
from gateway.store.base import Entry, Outcome, Role, Source
from gateway.store.sqlite import Sqlite
from tests.faults.gateway import cascade, confgate_ends, running, write_artifact
from tests.faults.upstream import Upstream
from tests.store.rows import HOSTILE, decision, entry, hop, numbers, wish
from tests.store.test_feedback import SECRETS, planned

SECRET = "sixteen characters and more"
SEAL = Seal(SECRET.encode())


def ran(*words: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and the error's words of a command, in this process: starting one takes seconds here."""
    result = CliRunner().invoke(labels_cli.app, words, env=environment)
    assert result.exception is None or isinstance(result.exception, GatewayError | SystemExit), result.exception
    return result.exit_code, result.stdout, str(result.exception or "")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_artifact(tmp_path / "cheap.json")
    path = tmp_path / "cascade.yaml"
    told = cascade("http://127.0.0.1:1/v1", store={"sqlite": "s.db"}, ids={"secret": "env:ROUTE_SECRET"})
    path.write_text(json.dumps(told))
    return path


def test_labels_come_in_from_every_kind_of_file_by_id_or_number(config: Path, tmp_path: Path) -> None:
    some = numbers(4)
    store = Sqlite(tmp_path / "s.db")
    store.write([entry(some[3])])
    store.close()
    sealed = [SEAL.seal(one, "alice", tier="cheap", calibrator="c@0123456789ab", p_correct=0.5) for one in some[:3]]
    (tmp_path / "a.csv").write_text(f"id,label,comment\nchatcmpl-{sealed[0]},1,good\n{some[3]},false,\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"id": sealed[1], "label": False, "source": "proxy"}))
    pq.write_table(pa.table({"id": [sealed[2]], "label": [True]}), tmp_path / "c.parquet")
    for name, rows in (("a.csv", 2), ("b.jsonl", 1), ("c.parquet", 1)):
        for outcome in ("created", "unchanged"):
            line = ["labels", "import", str(tmp_path / name), "-c", str(config), "--json"]
            code, out, err = ran(*line, ROUTE_SECRET=SECRET)
            assert code == 0, err
            assert json.loads(out)[outcome] == rows
    store = Sqlite(tmp_path / "s.db")
    found = [store.labels(one)[0] for one in some]
    store.close()
    assert [(row.label, row.source) for row in found] == [
        (True, Source.OPERATOR),
        (False, Source.PROXY),
        (True, Source.OPERATOR),
        (False, Source.OPERATOR),
    ]
    assert (found[0].comment, found[0].calibrator, found[0].p_correct) == ("good", "0123456789ab", 0.5)
    assert (found[3].tier, found[3].calibrator) == ("cheap", "0123456789ab")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,label\n%s,maybe\n", "row 1: label must be"),
        ("id,label\nnever-was,1\n", "row 1: no id of this"),
        ("id\n%s\n", "row 1: need the columns id and label"),
        ("id,label,source\n%s,1,god\n", "row 1: source must be"),
        ("id,label,weight\n%s,1,1\n", "row 1: need the columns"),
        ("id,label,comment\n%s,1," + "x" * 2000 + "\n", "row 1: a comment may"),
        ("id,label\n%s,1\n%s,0\n", "row 1, 2: the contrary"),
        ("", "no rows"),
    ],
)
def test_a_bad_file_is_refused_with_its_row_and_nothing_is_stored(text: str, words: str, tmp_path: Path) -> None:
    [number] = numbers(1)
    path = tmp_path / "bad.csv"
    path.write_text(text.replace("%s", SEAL.seal(number, "alice")))
    store = Sqlite(tmp_path / "s.db")

    def come_in() -> None:
        items = labels.read(path, Source.USER)
        labels.put(path, store, labels.wishes(path, items, SEAL, store, author="me", now=0.0, revise=False))

    with pytest.raises(GatewayError, match=words):
        come_in()
    assert store.labels(number) == ()
    store.close()


def test_beside_a_running_gateway_labels_are_sent_to_it(tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    made = Seal(SECRETS["ROUTE_SECRET"].encode()).seal(numbers(1)[0], "alice")
    file = tmp_path / "a.csv"
    file.write_text(f"id,label\n{made},1\n")
    with Upstream() as upstream, running(tmp_path, planned(upstream.url), **SECRETS) as gateway:
        line = ["labels", "import", str(file), "-c", str(tmp_path / "cascade.yaml"), "--json"]
        code, _, err = ran(*line, **SECRETS)
        assert (code, "is written by another process" in err) == (1, True)
        assert str(gateway.process.pid) in err
        code, out, err = ran(*line, "--url", gateway.url, "--key", "env:ROOT_KEY", **SECRETS)
        assert (code, json.loads(out)["created"]) == (0, 1), err
        code, _, err = confgate_ends(*line, "--url", gateway.url, "--key", "env:ALICE_KEY", **SECRETS)
        assert (code, "403" in err) == (1, True)
        code, _, err = ran(*line, "--url", gateway.url, "--key", "sk-pasted")
        assert (code, "--key wants env:NAME or file:PATH" in err, "sk-pasted" in err) == (1, True, False)


def filled(path: Path, count: int = 80) -> None:
    """Decisions of the first tier whose feature tells whether they were right."""
    chance = np.random.default_rng(3)
    store = Sqlite(path)
    for place, one in enumerate(numbers(count)):
        right = bool(chance.random() < 0.5)
        features = {"lp_mean": -0.1 - 0.5 * (not right) + float(chance.normal(0, 0.2)), "length": float(place)}
        store.write([Entry(decision(one, prompt_sha256=f"{place:064x}"), (hop(one, features=features),))])
        store.put([wish(one, says=right, source=Source.OPERATOR if place % 2 else Source.USER)])
    store.close()


def test_what_is_exported_can_be_fitted_on(config: Path, tmp_path: Path) -> None:
    filled(tmp_path / "s.db")
    out = tmp_path / "live.parquet"
    export = ["labels", "export", "-c", str(config), "--out", str(out), "--json"]
    code, told, err = ran(*export, "--key-share", "1", ROUTE_SECRET=SECRET)
    assert (code, json.loads(told)["rows"]) == (0, 80), err
    [table] = tables.from_user(out).values()
    assert (table.tier, table.names, table.X.shape) == ("cheap", ("lp_mean", "length"), (80, 2))
    fit = ["fit", "-r", str(out), "--features", "lp_mean", "--family", "platt", "--out", str(tmp_path / "fitted")]
    code, _, err = confgate_ends(*fit)
    assert code == 0, err
    assert list((tmp_path / "fitted").glob("*.json"))
    code, told, _ = ran(*export, "--trusted", ROUTE_SECRET=SECRET)
    assert json.loads(told)["rows"] == 40


def test_only_answers_with_evidence_and_the_label_that_counts_are_exported(tmp_path: Path) -> None:
    both, proxied, cut, lost, escalated = numbers(5)
    store = Sqlite(tmp_path / "s.db")
    store.write([entry(both), entry(proxied)])
    store.write([Entry(decision(cut), (hop(cut, p_correct=None, features={}),))])
    store.write([Entry(decision(escalated, tier="dear"), (hop(escalated), hop(escalated, 1, tier="dear")))])
    store.put([wish(both, says=True), wish(both, says=False, source=Source.OPERATOR)])
    store.put([wish(proxied, source=Source.PROXY), wish(cut), wish(lost), wish(escalated, tier="dear")])
    rows, left_out = labels.usable(labels.everything(store, 0.0))
    assert {(row.question, row.correct, row.key, row.tier) for row in rows} == {
        (both, False, "", "cheap"),
        (escalated, True, "alice", "dear"),
    }
    assert left_out == {"a proxy's label": 1, "without evidence": 1, "its decision is not in the log": 1}
    told = left_out
    rows, left_out = labels.usable(labels.everything(store, 0.0), without=["alice"])
    assert (rows, left_out) == ([], {"of alice": 5, "a proxy's label": 1})
    labels.check_cut(["alice"], left_out)
    with pytest.raises(ConfigError, match="no label that would count is of a key 'alise'"):
        labels.check_cut(["alise"], told)
    store.close()


def live(key: str, count: int, start: float = 0.0) -> list[labels.Live]:
    return [labels.Live("t", f"{key}{place}", True, "f", key, start + place, {"x": 1.0}) for place in range(count)]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_no_key_makes_up_more_than_its_share_and_its_newest_rows_stay(share: float) -> None:
    rows = [*live("", 100), *live("loud", 500), *live("a", 7), *live("b", 3)]
    kept = labels.capped(rows, share)
    counts = {key: sum(row.key == key for row in kept) for key in ("", "loud", "a", "b")}
    assert counts[""] == 100
    assert counts["loud"] <= share * len(kept) < counts["loud"] + 1 + share
    newest = sorted((row.at for row in kept if row.key == "loud"), reverse=True)
    assert newest == [499.0 - place for place in range(counts["loud"])]


def test_a_single_untrusted_key_alone_is_nothing_to_fit_on_unless_it_is_said(tmp_path: Path) -> None:
    assert labels.capped(live("only", 100), 0.05) == []
    assert len(labels.capped(live("only", 100), 1.0)) == 100


def test_tiers_with_different_features_need_a_file_each(tmp_path: Path) -> None:
    rows = [*live("a", 2), labels.Live("other", "q", True, "f", "", 0.0, {"y": 1.0})]
    with pytest.raises(GatewayError, match="--tier"):
        labels.write_table(rows, tmp_path / "x.parquet")


def test_the_log_is_exported_hop_by_hop_whatever_texts_say(tmp_path: Path) -> None:
    one, none, late = numbers(3)
    store = Sqlite(tmp_path / "s.db")
    shadow = hop(one, 1, role=Role.SHADOW, tier="dear", p_correct=None, features={HOSTILE: None}, note=HOSTILE)
    store.write(
        [
            Entry(decision(one, at=10.0, metadata={"lang": "de"}), (hop(one), shadow)),
            Entry(decision(none, at=20.0, status=502), ()),
        ]
    )
    store.write([entry(late, at=30.0)])
    assert store.put([wish(one, says=False)])[0][0] is Outcome.CREATED
    out = tmp_path / "log.parquet"
    assert labels.write_log(store, out, since=0.0, until=30.0) == 2
    store.close()
    rows = pq.read_table(out).to_pylist()
    assert [(row["number"], row["hop_role"], row["truth"]) for row in rows] == [
        (one, "hop", False),
        (one, "shadow", False),
        (none, None, None),
    ]
    assert rows[0]["hop_features"] == [("lp_mean", -0.1)]
    assert (rows[0]["metadata"], rows[2]["metadata"]) == ([("lang", "de")], [])
    assert (rows[0]["usd"], rows[0]["hop_tier"], rows[2]["status"]) == (0.001, "cheap", 502)


def test_what_wants_a_label_is_listed(config: Path, tmp_path: Path) -> None:
    wanted, labelled = numbers(2)
    store = Sqlite(tmp_path / "s.db")
    store.write([entry(wanted, explored=True, inclusion=0.01), entry(labelled, explored=True, inclusion=0.01)])
    store.put([wish(labelled)])
    store.close()
    code, out, _ = ran("labels", "wanted", "-c", str(config), "--json", ROUTE_SECRET=SECRET)
    assert (code, [row["number"] for row in json.loads(out)]) == (0, [wanted])
    code, out, _ = ran("labels", "wanted", "-c", str(config), ROUTE_SECRET=SECRET)
    assert wanted in out
