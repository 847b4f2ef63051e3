"""Who did what to the calibrators, when and why: lines of JSON, each sealed together with the one before it.

A line that was changed, taken out or put in between breaks the chain. Lines cut off the end leave a whole chain, so the
newest hash is told elsewhere too (log line and metric of every step): compare them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from gateway.errors import AuditBroken, RolloutRefused, StoreDown

NOTHING = "0" * 64  # the hash before the first line


@dataclass(frozen=True, slots=True)
class Event:
    """One line. number: from 0.  at: ISO 8601 with an offset.  who: a key's or a program's name.  facts: plain JSON.

    previous: the hash of the line before.  sha256: over all but itself.
    """

    number: int
    at: str
    who: str
    action: str
    facts: Mapping[str, object]
    previous: str
    sha256: str


def append(
    path: Path, *, at: str, who: str, action: str, facts: Mapping[str, object], number: int | None = None
) -> Event:
    """Add one line, durably when this returns; several processes take turns.

    number: that the line has to have; RolloutRefused when somebody was faster. None takes the next.

    Half a line that a dying process left is cut off: its step was never acknowledged. Raises AuditBroken when the chain
    is broken already, and StoreDown when the disk refuses; then nothing may be done, because nobody could tell of it.
    """
    try:
        with _held(path) as file:
            whole = file.read()
            kept = whole[: whole.rfind(b"\n") + 1]
            events = list(_events(kept, path))
            if number is not None and number != len(events):
                raise RolloutRefused("somebody took another step meanwhile; look at the rollout again")
            last = events[-1].sha256 if events else NOTHING
            event = _sealed(Event(len(events), at, who, action, dict(facts), last, ""))
            file.truncate(len(kept))
            file.seek(0, os.SEEK_END)
            file.write(_line(asdict(event)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
            return event
    except OSError as error:
        raise StoreDown(f"the audit log {path}: {error.strerror or error}") from error


def read(path: Path) -> list[Event]:
    """All whole lines, checked; [] without a file. Raises AuditBroken."""
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreDown(f"the audit log {path}: {error.strerror or error}") from error
    return list(_events(whole[: whole.rfind(b"\n") + 1], path))


def _events(whole: bytes, path: Path) -> Iterator[Event]:
    previous = NOTHING
    for number, line in enumerate(whole.splitlines()):
        try:
            event = Event(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise AuditBroken(str(path), number, f"no event ({error})") from None
        if event.number != number or event.previous != previous:
            raise AuditBroken(str(path), number, "it does not follow the line before")
        if _sealed(event).sha256 != event.sha256:
            raise AuditBroken(str(path), number, "it was changed")
        previous = event.sha256
        yield event


def _sealed(event: Event) -> Event:
    told = asdict(event)
    told.pop("sha256")
    return Event(**told, sha256=hashlib.sha256(_line(told)).hexdigest())


def _line(told: Mapping[str, object]) -> bytes:
    return json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


@contextmanager
def _held(path: Path) -> Iterator[BinaryIO]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(handle, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
