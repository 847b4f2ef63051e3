"""What SQLite's file has to bear: two writers, damage, a full disk, and every single write torn or failing once."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.errors import ConfigError, StoreDown
from gateway.store import sqlite
from gateway.store.sqlite import Sqlite, wal_is_safe
from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, ROOT, SURE, confgate_ends, running, until, write_artifact
from tests.faults.upstream import Upstream
from tests.store.rows import entry, numbers, wish
from tests.store.test_feedback import SECRETS, bearer, minted, planned, said

SHIM = Path(__file__).with_name("torn_writes.c")


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 52, 0), False),
        ((3, 53, 0), True),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 3), False),
        ((3, 40, 1), False),
        ((4, 0, 0), True),
    ],
)
def test_wal_is_used_only_where_its_reset_bug_is_fixed(version: tuple[int, int, int], safe: bool) -> None:
    assert wal_is_safe(version) is safe


@pytest.mark.parametrize("safe", [True, False])
def test_every_commit_is_synced_in_either_journal_mode(
    safe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "wal_is_safe", lambda _: safe)
    store = Sqlite(tmp_path / "s.db")
    [number] = numbers(1)
    store.put([wish(number)])
    assert store._connection is not None
    mode = store._connection.execute("PRAGMA journal_mode").fetchone()[0]
    assert (mode, store._connection.execute("PRAGMA synchronous").fetchone()[0]) == ("wal" if safe else "truncate", 2)
    store.close()
    monkeypatch.setattr(sqlite, "wal_is_safe", lambda _: not safe)
    store = Sqlite(tmp_path / "s.db")
    assert len(store.labels(number)) == 1, "the mode can change when SQLite does"
    store.close()


@pytest.mark.parametrize("wal", [True, False])
def test_what_is_kept_is_the_gateways_to_read_alone(wal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "wal_is_safe", lambda _: wal)
    path = tmp_path / "s.db"
    store = Sqlite(path)
    [number] = numbers(1)
    store.put([wish(number)])
    kept = {one.name: one.stat().st_mode & 0o777 for one in tmp_path.glob("s.db*") if one.suffix != ".lock"}
    assert kept == dict.fromkeys(["s.db", "s.db-wal", "s.db-shm"] if wal else ["s.db", "s.db-journal"], 0o600)
    store.close()
    path.chmod(0o640)  # as an operator wants it
    Sqlite(path).close()
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_second_writer_is_refused_and_told_whose_it_is(tmp_path: Path) -> None:
    store = Sqlite(tmp_path / "s.db")
    with pytest.raises(ConfigError, match=rf"written by another process.*{os.getpid()}"):
        Sqlite(tmp_path / "s.db")
    Sqlite(tmp_path / "s.db", read_only=True).close()
    store.close()
    Sqlite(tmp_path / "s.db").close()


def test_a_second_gateway_on_one_file_does_not_start(tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    with Upstream() as upstream:
        plan = planned(upstream.url)
        with running(tmp_path, plan, **SECRETS) as gateway:
            twin = tmp_path / "twin.yaml"
            twin.write_text(json.dumps({**plan, "admin": None, "keys": {**plan["keys"], "admins": []}}))
            code, _, err = confgate_ends("serve", "-c", str(twin), "--log-level", "error", **SECRETS)
            assert code == 1
            assert str(gateway.process.pid) in err
            assert "one worker, or use store.postgres" in err


def test_several_workers_on_one_file_are_refused_before_anything_starts(tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    path = tmp_path / "cascade.yaml"
    path.write_text(json.dumps(planned("http://127.0.0.1:1/v1")))
    code, _, err = confgate_ends("serve", "-c", str(path), "--workers", "2", **SECRETS)
    assert (code, "several workers need store.postgres" in err) == (1, True)


def test_a_broken_file_that_cannot_be_moved_is_a_store_that_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "decisions.sqlite"
    path.write_bytes(b"no database " * 1000)

    def read_only(*_: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(Path, "rename", read_only)
    store = Sqlite(path)
    for act in (lambda: store.write([entry(*numbers(1))]), lambda: store.purge(1.0, 1.0)):
        with pytest.raises(StoreDown, match="cannot be moved aside"):
            act()
    store.close()


@pytest.mark.parametrize("kind", ["not a database", "flipped bytes", "cut short", "broken while open"])
def test_a_broken_file_is_moved_aside_and_begun_anew(kind: str, tmp_path: Path) -> None:
    path, moved = tmp_path / "s.db", []
    store = Sqlite(path, moved_aside=moved.append)
    store.write([entry(one) for one in numbers(200)])
    if kind != "broken while open":
        store.close()
    raw = bytearray(path.read_bytes())
    if kind == "not a database":
        raw[:] = b"rubbish " * 1000
    elif kind == "cut short":
        del raw[len(raw) // 2 :]
    else:
        for at in range(4096, len(raw), 37):
            raw[at] ^= 0xFF
        raw[27] ^= 0xFF  # the change counter: whoever has the file open looks again
    path.write_bytes(raw)
    [number] = numbers(1)
    if kind == "broken while open":
        with pytest.raises(StoreDown):
            store.write([entry(one) for one in numbers(500)])
    else:
        store = Sqlite(path, moved_aside=moved.append)
    store.put([wish(number)])
    assert len(store.labels(number)) == 1
    store.close()
    assert len(moved) == 1
    assert moved[0].read_bytes()[4096:] == bytes(raw)[4096:], "what was there is kept for people to look at"


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    theirs = sqlite3.connect(path)
    theirs.execute("CREATE TABLE precious (x)")
    theirs.commit()
    theirs.close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="another program's"):
        Sqlite(path)
    assert path.read_bytes() == before


def test_a_store_in_no_folder_is_a_mistake_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot keep a store"):
        Sqlite(tmp_path / "gone" / "s.db")
    with pytest.raises(ConfigError, match="there is no store"):
        Sqlite(tmp_path / "s.db", read_only=True)


def test_on_a_full_disk_chat_goes_on_labels_are_refused_and_it_heals(tmp_path: Path) -> None:
    """The gateway's own file size limit stands for the disk: writes beyond it fail, in the gateway alone."""
    write_artifact(tmp_path / "cheap.json")
    with Upstream() as upstream:
        plan = planned(upstream.url, monitors={"every_seconds": 1}, store={"sqlite": "store.db"})
        with (
            running(tmp_path, plan, **SECRETS) as gateway,
            httpx2.Client(base_url=gateway.url, headers=bearer("alice"), timeout=PATIENCE) as client,
        ):
            stored = minted()
            until(lambda: said(client, {"id": stored, "label": True}).status_code in (200, 201))
            pid, hard = gateway.process.pid, resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (8192, hard))  # less than the file is long already
            refused = [minted() for _ in range(5)]
            assert {said(client, {"id": one, "label": True}).status_code for one in refused} == {503}
            assert client.post("/v1/chat/completions", json=ask(small={"nats": SURE})).status_code == 200
            for one in refused:
                assert client.get(f"/v1/feedback/{one}").status_code in (404, 503), "nothing was acknowledged"
            until(lambda: alarms(plan) == [("store", "unwritable")])
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
            until(lambda: said(client, {"id": refused[0], "label": True}).status_code in (200, 201))
            assert client.get(f"/v1/feedback/{stored}").json()["data"][0]["label"] is True
            rows = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
            until(lambda: rows.execute("SELECT count(*) FROM decisions").fetchone()[0] == 1)
            rows.close()
            until(lambda: alarms(plan) == [])
    assert not list(tmp_path.glob("*.broken-*"))


def alarms(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Kind of each alarm, and what it is about."""
    url = f"http://127.0.0.1:{plan['admin']['port']}/admin/monitors"
    told = httpx2.get(url, headers=bearer("root"), timeout=PATIENCE).json()
    return [(alarm["kind"], alarm["what"]) for alarm in told["alarms"]]


def test_a_gateway_starts_on_a_broken_store_and_while_it_serves_survives_another_and_alarms(tmp_path: Path) -> None:
    def laid_aside() -> int:
        return len([one for one in tmp_path.glob("store.db.broken-*") if one.name.count("-") == 2])

    def labelled(client: httpx2.Client) -> str:
        number = minted()
        until(lambda: said(client, {"id": number, "label": True}).status_code in (200, 201))
        return number

    write_artifact(tmp_path / "cheap.json")
    (tmp_path / "store.db").write_bytes(b"rubbish " * 1000)
    with Upstream() as upstream:
        plan = planned(upstream.url, monitors={"every_seconds": 1}, store={"sqlite": "store.db"})
        with (
            running(tmp_path, plan, **SECRETS) as gateway,
            httpx2.Client(base_url=gateway.url, headers=bearer("alice"), timeout=PATIENCE) as client,
        ):
            until(lambda: alarms(plan) == [("store", "broken")])
            labelled(client)
            while laid_aside() < 2:  # what SQLite has in its log or its cache it never looks for in the file
                with (tmp_path / "store.db").open("r+b") as file:
                    file.write(b"rubbish " * 1000)
                labelled(client)
            label = labelled(client)
            assert client.post("/v1/chat/completions", json=ask(small={"nats": SURE})).status_code == 200
            assert client.get(f"/v1/feedback/{label}").json()["data"][0]["label"] is True
            assert alarms(plan) == [("store", "broken")]
            assert gateway.process.poll() is None
    assert laid_aside() == 2


WRITES = 130  # six batches and the making of the tables take a little less; STORE_TORN_STEP=1 tries every one
CHILD = """
import os, sys
from pathlib import Path
from gateway.errors import StoreDown
from gateway.store.sqlite import Sqlite
from tests.store.rows import numbers, wish
import ctypes
shim = ctypes.CDLL(None)
folder, mode, last, step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
for nth in range(1, last, step):
    if os.fork():
        status = os.waitstatus_to_exitcode(os.wait()[1])
        assert status == 0 or (mode >= 2 and status == 137), status
        continue
    told = (folder / f"{nth}.acknowledged").open("w", buffering=1)
    path = folder / f"{nth}.db"
    shim.tear_write(nth, mode)
    store = Sqlite(path, seconds=0.1)
    for batch in range(6):
        some = numbers(3, 1.7e9 + batch)
        told.write("sent " + " ".join(some) + "\\n")
        try:
            store.put([wish(one) for one in some])
        except StoreDown:
            continue
        told.write("got " + " ".join(some) + "\\n")
    told.write("reached\\n" if shim.torn() else "")
    os._exit(0)
"""


@pytest.mark.parametrize(("mode", "name"), [(0, "fails"), (1, "fails half way"), (2, "kills half way"), (3, "kills")])
def test_whichever_single_write_or_sync_goes_wrong_no_acknowledged_label_is_lost(
    mode: int, name: str, tmp_path: Path
) -> None:
    """SQLite's own method, through a shim before the C library that counts pwrite, ftruncate and fsync."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    shim = tmp_path / "torn.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(shim), str(SHIM), "-ldl"], check=True)
    step = int(os.environ.get("STORE_TORN_STEP", "5"))
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(tmp_path), str(mode), str(WRITES), str(step)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "LD_PRELOAD": str(shim)}, timeout=200)
    reached = acknowledged = 0
    for nth in range(1, WRITES, step):
        lines = [line.split() for line in (tmp_path / f"{nth}.acknowledged").read_text().splitlines()]
        store = Sqlite(tmp_path / f"{nth}.db")
        there = {tuple(line[1:]): [bool(store.labels(one)) for one in line[1:]] for line in lines if line[0] == "sent"}
        store.close()
        assert all(len(set(found)) == 1 for found in there.values()), f"torn batch at write {nth}"
        for line in lines:
            if line[0] == "got":
                acknowledged += 1
                assert all(there[tuple(line[1:])]), f"lost at write {nth}"
        reached += ["reached"] in lines or len(lines) < 12
        assert not list(tmp_path.glob(f"{nth}.db.broken-*"))
    print(f"\n{name}: {reached} faults met, {acknowledged} batches acknowledged")
    assert reached > WRITES / step / 2, "the fault must have been met"
    assert acknowledged > 20, "and labels stored around it"
