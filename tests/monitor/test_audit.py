from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from gateway.errors import AuditBroken, StoreDown
from gateway.monitor import audit

AT = "2026-11-22T09:00:00+00:00"


def three(path: Path) -> list[audit.Event]:
    return [audit.append(path, at=AT, who="ops", action="promote", facts={"n": n}) for n in range(3)]


def _many(path: Path) -> None:
    for n in range(20):
        audit.append(path, at=AT, who="ops", action="shadow", facts={"n": n})


def test_what_is_appended_is_read_back_in_a_chain(tmp_path: Path) -> None:
    written = three(tmp_path / "audit.jsonl")
    assert audit.read(tmp_path / "audit.jsonl") == written
    assert [event.previous for event in written] == [audit.NOTHING, written[0].sha256, written[1].sha256]


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert audit.read(tmp_path / "audit.jsonl") == []


def test_a_changed_a_missing_and_a_swapped_line_are_found(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    three(path)
    lines = path.read_bytes().splitlines(keepends=True)
    changed = json.loads(lines[1]) | {"who": "somebody else"}
    for forged in (
        [lines[0], json.dumps(changed).encode() + b"\n", lines[2]],
        [lines[0], lines[2]],
        [lines[1], lines[0], lines[2]],
        [lines[0], b"{}\n"],
        [b"rubbish\n"],
    ):
        path.write_bytes(b"".join(forged))
        with pytest.raises(AuditBroken, match="restore a copy"):
            audit.read(path)
        with pytest.raises(AuditBroken):
            audit.append(path, at=AT, who="ops", action="promote", facts={})


def test_half_a_line_of_a_dying_process_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    three(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number": 3, "at"')
    assert len(audit.read(path)) == 3
    audit.append(path, at=AT, who="ops", action="rollback", facts={})
    assert [event.action for event in audit.read(path)][2:] == ["promote", "rollback"]


def test_processes_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    spawn = multiprocessing.get_context("fork")
    both = [spawn.Process(target=_many, args=(path,)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(audit.read(path)) == 40


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreDown, match="audit log"):
        audit.append(tmp_path / "no folder" / "audit.jsonl", at=AT, who="ops", action="promote", facts={})
