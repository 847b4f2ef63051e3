"""Rows to store."""

from __future__ import annotations

from typing import Any

from gateway import ids
from gateway.store.base import DecisionRow, Entry, HopRow, LabelRow, Role, Source, Wish

HOSTILE = "a\0b \ud800 \U0001f600 %s ' \" \\ \r\n"


def numbers(count: int, at: float = 1_700_000_000.0) -> list[str]:
    return [ids.number(at + place) for place in range(count)]


def decision(number: str, **changes: Any) -> DecisionRow:
    told: dict[str, Any] = {
        "at": 1_700_000_000.0, "client": "alice", "policy": "default", "mode": "buffer", "status": 200,
        "reason": "confident", "tier": "cheap", "p_correct": 0.9, "threshold": 0.8, "calibrator": "cheap@0123456789ab",
        "seconds": 0.25, "usd": 0.001, "prompt_tokens": 10, "completion_tokens": 20, "prompt_sha256": "0" * 64,
    }  # fmt: skip
    return DecisionRow(number, **{**told, **changes})


def hop(number: str, position: int = 0, **changes: Any) -> HopRow:
    told: dict[str, Any] = {
        "role": Role.HOP, "tier": "cheap", "reason": "confident", "null_reason": "", "note": "", "p_correct": 0.9,
        "threshold": 0.8, "calibrator": "cheap@0123456789ab", "model": "small@1", "finish": "stop", "prompt_tokens": 10,
        "completion_tokens": 20, "seconds": 0.2, "usd": 0.001, "retries": 0, "error": "", "features": {"lp_mean": -0.1},
    }  # fmt: skip
    return HopRow(number, position, **{**told, **changes})


def entry(number: str, **changes: Any) -> Entry:
    return Entry(decision(number, **changes), (hop(number),))


def label(number: str, says: bool = True, source: Source = Source.USER, **changes: Any) -> LabelRow:
    told: dict[str, Any] = {
        "author": "alice", "comment": None, "at": 1_700_000_100.0, "decided_at": 1_700_000_000.0, "tier": "cheap",
        "calibrator": "0123456789ab", "p_correct": 0.9,
    }  # fmt: skip
    return LabelRow(number, source.channel, 0, says, source, **{**told, **changes})


def wish(number: str, says: bool = True, source: Source = Source.USER, *, revise: bool = False, **more: Any) -> Wish:
    return Wish(label(number, says, source, **more), revise)
