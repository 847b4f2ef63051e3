"""Leave a server that keeps failing alone for a while, then let one call find out whether it has healed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

JITTER = 0.2  # share by which an open time varies, so that gateways which saw one outage do not probe in step


@dataclass(frozen=True, slots=True)
class Rules:
    """When to open, and for how long.

    in_a_row: so many failures without a success between them.  share, least, window_seconds: or this share of at least
    so many calls within the window.  open_seconds doubles with every failed probe, up to open_max_seconds.
    """

    in_a_row: int = 5
    share: float = 0.5
    least: int = 10
    window_seconds: float = 10.0
    open_seconds: float = 5.0
    open_max_seconds: float = 60.0


class Entry(StrEnum):
    """How a call gets past the breaker."""

    FREE = "free"
    PROBE = "probe"  # the one call that finds out whether an open breaker may close
    BARRED = "barred"


class Breaker:
    """Closed until its rules are broken. chance: uniform in [0, 1). All times: seconds on one monotonic clock."""

    def __init__(self, rules: Rules, chance: Callable[[], float] = random.random) -> None:
        self._rules, self._chance = rules, chance
        self._recent: deque[tuple[float, bool]] = deque()  # (when, failed) within the window
        self._failed = 0  # of those
        self._in_a_row = 0
        self._trips = 0  # openings since it was last closed
        self._until = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether ordinary calls are barred; until a probe has succeeded, however long the open time is over."""
        return self._trips > 0

    def left(self, now: float) -> float:
        """Seconds until a probe may be sent; 0 when one may be, or when nothing is barred."""
        return max(0.0, self._until - now) if self.is_open else 0.0

    def lets_in(self, now: float) -> bool:
        """Whether a call that entered now would not be barred."""
        return not (self.is_open and (self._probing or now < self._until))

    def answered(self, now: float) -> bool:
        """Whether the latest call within the window went well."""
        if not self._recent:
            return False
        when, failed = self._recent[-1]
        return not failed and when >= now - self._rules.window_seconds

    def enter(self, now: float) -> Entry:
        """Claim a way in. Every entry must be left again."""
        if not self.is_open:
            return Entry.FREE
        if not self.lets_in(now):
            return Entry.BARRED
        self._probing = True
        return Entry.PROBE

    def proven(self, entry: Entry, now: float) -> Entry:
        """A call that was to find out, or was made all the same, hears its server, long before it may end: others need
        not wait for that. The entry that it has to leave from now on."""
        if entry is not Entry.FREE:
            self.leave(entry, good=True, now=now)
        return Entry.FREE

    def leave(self, entry: Entry, *, good: bool | None, now: float) -> None:
        """How the call went; None when it says nothing about the server (its client left).

        Calls that began before the breaker opened have no say in when it closes; a barred call that was made all the
        same (somebody has to answer) and went well has.
        """
        if entry is Entry.PROBE:
            self._probing = False
        if good is None:
            return
        if not self.is_open:
            self._count(good=good, now=now)
        elif entry is not Entry.FREE and good:
            self._close()
        elif entry is Entry.PROBE:
            self._open(now)

    def _count(self, *, good: bool, now: float) -> None:
        rules, recent = self._rules, self._recent
        self._in_a_row = 0 if good else self._in_a_row + 1
        recent.append((now, not good))
        self._failed += not good  # kept in step with the window: counting it anew would cost more than the call
        while recent[0][0] < now - rules.window_seconds:
            self._failed -= recent.popleft()[1]
        often = len(recent) >= rules.least and self._failed >= rules.share * len(recent)
        if not good and (self._in_a_row >= rules.in_a_row or often):
            self._open(now)

    def _open(self, now: float) -> None:
        rules = self._rules
        seconds = min(rules.open_max_seconds, rules.open_seconds * 2.0 ** min(self._trips, 32))
        self._until = now + seconds * (1 + JITTER * (2 * self._chance() - 1))
        self._trips += 1

    def _close(self) -> None:
        self._recent.clear()
        self._in_a_row = self._trips = self._failed = 0
