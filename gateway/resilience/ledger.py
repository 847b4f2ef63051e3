"""What each client has used, in memory that all worker processes of one machine share: exact, however many there are.

A file that is mapped into memory: one slot of numbers per client, found by a hash of its name, and a lock of the
operating system's, which falls when its holder dies. Named in the configuration it outlives the process, and whatever
the kernel has not written yet is lost only with the machine. Times on the monotonic clock are the machine's own, so
they mean the same to every worker; after a restart of the machine they begin anew, which heals by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, MutableSequence
from pathlib import Path
from typing import Self, cast

from gateway.errors import ConfigError

MAGIC = b"confgate ledger1"
TAG_BYTES = 16
NUMBERS = 96  # per slot, 8 bytes each, the tag included
SLOTS = 4096
MAX_SEATS = 64  # worker processes

Numbers = MutableSequence[float]  # one client's slot

# Places in a slot.
REQUESTS, TOKENS = 2, 4  # each: owed, and at what time
DAYS, MONTHS = 6, 14  # each: two windows of WINDOW numbers
WINDOW = 4  # its number, tokens, usd, usd of the dearest tier
LABELS = 22  # owed, and at what time
IN_FLIGHT = 24  # one per worker


class Ledger:
    """Slots by client name. path: where to keep it; None: in memory that ends with the process.  seat: this worker's
    place among its fellows, from 0. Raises ConfigError."""

    def __init__(self, path: Path | None = None, seat: int = 0) -> None:
        if not 0 <= seat < MAX_SEATS:
            raise ConfigError(f"at most {MAX_SEATS} worker processes can share a ledger")
        self._seat = seat
        self._slots: dict[str, Numbers] = {}
        self._mine: dict[str, int] = {}  # what this process has in flight, whatever stands in its seat
        self._holds = 0  # how deep we are in `locked`
        size = len(MAGIC) + SLOTS * NUMBERS * 8
        try:
            self._file = nameless() if path is None else os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            weakref.finalize(self, os.close, self._file)
            with self.locked():
                if os.fstat(self._file).st_size == 0:
                    os.truncate(self._file, size)  # takes no room on the disk until it is written to
                    os.pwrite(self._file, MAGIC, 0)
                self._map = mmap.mmap(self._file, 0)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot keep the ledger {path}: {getattr(error, 'strerror', None) or error}") from None
        if len(self._map) != size or self._map[: len(MAGIC)] != MAGIC:
            raise ConfigError(f"{path} is no ledger of this version; move it away, and a new one is begun")

    def vacate(self, seats: Iterable[int] = range(MAX_SEATS)) -> Self:
        """Forget what dead processes had in flight in these seats. One that lives soon writes its own anew."""
        with self.locked():
            for slot in range(SLOTS):
                base = len(MAGIC) + slot * NUMBERS * 8
                if not any(self._map[base : base + TAG_BYTES]):
                    break
                numbers = self._numbers(base)
                for seat in seats:
                    numbers[IN_FLIGHT + seat] = 0.0
        return self

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """While this lasts, no other worker looks or writes. Nothing slow may happen in here. One inside another is the
        outer one's: the system's lock does not count."""
        if not self._holds:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            if not self._holds:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def numbers(self, name: str) -> Numbers:
        """A client's slot, all zeros at first. Raises ConfigError when all are taken."""
        known = self._slots.get(name)
        if known is not None:
            return known
        tag = hashlib.blake2s(name.encode(), digest_size=TAG_BYTES).digest()
        with self.locked():
            for slot in range(SLOTS):
                base = len(MAGIC) + slot * NUMBERS * 8
                found = self._map[base : base + TAG_BYTES]
                if found == tag or not any(found):
                    self._map[base : base + TAG_BYTES] = tag
                    return self._slots.setdefault(name, self._numbers(base))
        raise ConfigError(f"the ledger has room for {SLOTS} clients, ever; begin a new one")

    def in_flight(self, name: str, change: int = 0) -> int:
        """How many requests of a client all workers have at once, after changing this one's share. The whole share is
        written every time: a process that still drains may have the same seat."""
        numbers = self.numbers(name)
        if change:
            mine = self._mine.get(name, 0) + change
            self._mine[name] = mine
            numbers[IN_FLIGHT + self._seat] = mine
        return int(sum(share for share in numbers[IN_FLIGHT : IN_FLIGHT + MAX_SEATS] if 0 < share < math.inf))

    def _numbers(self, base: int) -> Numbers:
        return cast("Numbers", memoryview(self._map)[base : base + NUMBERS * 8].cast("d"))


def nameless() -> int:
    """A file that nobody else can open, and that goes with its last descriptor."""
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def finite(numbers: Numbers, place: int) -> float:
    """A number that a damaged file cannot make into nonsense."""
    value = float(numbers[place])
    return value if math.isfinite(value) else 0.0


class Bucket:
    """So much a minute, and a minute's worth at once. The slot holds what is owed, so that nothing is a full bucket and
    another rate after a reload needs no conversion. Call with the ledger locked. now: seconds, monotonic clock."""

    def __init__(self, numbers: Numbers, place: int, per_minute: float) -> None:
        self._numbers, self._place, self.per_minute = numbers, place, per_minute

    def owed(self, now: float) -> float:
        """Brought up to date. A time that lies ahead is of before the machine was started anew."""
        numbers, place = self._numbers, self._place
        passed = max(0.0, now - finite(numbers, place + 1))
        numbers[place] = max(0.0, finite(numbers, place) - passed * self.per_minute / 60)
        numbers[place + 1] = now
        return float(numbers[place])

    def take(self, amount: float, now: float) -> None:
        """Charge, or give back when negative; it may end up below empty."""
        self._numbers[self._place] = max(0.0, self.owed(now) + amount)

    def left(self, now: float) -> float:
        """What may be taken at once; negative when more was taken than there was."""
        return self.per_minute - self.owed(now)

    def wait_seconds(self, now: float, least: float = 1.0) -> float:
        """How long until `least` may be taken."""
        return max(0.0, least - self.left(now)) * 60 / self.per_minute

    def full_seconds(self, now: float) -> float:
        return self.owed(now) * 60 / self.per_minute


class Windows:
    """What was spent in a calendar window. Two are kept, the one in use last and another, so that a clock that jumps
    and comes back finds what it had counted. Call with the ledger locked."""

    TOKENS, USD, DEAREST = 1, 2, 3

    def __init__(self, numbers: Numbers, place: int) -> None:
        self._numbers, self._place = numbers, place

    def spent(self, window: int, what: int) -> float:
        """window: days or months since 1970, from 1 on.  what: one of the three above."""
        return finite(self._numbers, self._use(window) + what)

    def spend(self, window: int, what: int, amount: float) -> None:
        """Add, or give back when negative."""
        at = self._use(window) + what
        self._numbers[at] = max(0.0, finite(self._numbers, at) + amount)

    def _use(self, window: int) -> int:
        """Where this window's numbers begin: always in front, the other one behind."""
        numbers, first = self._numbers, self._place
        if numbers[first] != window:
            second = first + WINDOW
            front, back = list(numbers[first:second]), list(numbers[second : second + WINDOW])
            fresh = back if back[0] == window else [float(window), 0.0, 0.0, 0.0]
            for offset in range(WINDOW):
                numbers[first + offset], numbers[second + offset] = fresh[offset], front[offset]
        return first
