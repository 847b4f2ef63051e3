"""Hostile requests, some hundreds of them; `python -m tests.fuzz.http_cases` has 50,000."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.http_cases import attack


def test_no_hostile_request_is_answered_with_a_5xx(tmp_path: Path) -> None:
    found = attack(300, 7, tmp_path)
    assert found.wrong == []
    assert found.silent == []
    assert found.statuses[200] > 30  # sound ones come through, else nothing behind the door was reached
    assert found.statuses[400] + found.statuses[422] > 30
