"""Objectives that an operator promises, how fast their budgets burn, and whether that is worth waking anybody.

A budget is the share that may go wrong. Its burn rate is the share that did, over that budget: at 1 it is used up just
at the end of the period. An alarm needs a long window, which says that it matters, and a short one, which says that it
still goes on (Google's SRE workbook, chapter 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil, sqrt
from statistics import NormalDist

from pydantic import Field

from gateway.monitor.drift import binomial_tail
from gateway.written import Written

MINUTE = 60.0


class Objective(StrEnum):
    """What is promised. Of events that are good or bad each; calibration is judged by labels.py instead."""

    LATENCY, AVAILABILITY, ESCALATION = "latency", "availability", "escalation"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two windows and the burn rate that both must reach. page: somebody has to come now, else a ticket."""

    long_seconds: float
    short_seconds: float
    burn: float
    page: bool


# Of a 30-day budget: 2 % in an hour, 5 % in six hours, 10 % in three days
PAIRS = (
    Pair(3600.0, 300.0, 14.4, True),
    Pair(6 * 3600.0, 1800.0, 6.0, True),
    Pair(72 * 3600.0, 6 * 3600.0, 1.0, False),
)
WINDOWS = sorted({seconds for pair in PAIRS for seconds in (pair.long_seconds, pair.short_seconds)})
MINUTES = int(max(pair.long_seconds for pair in PAIRS) / MINUTE)
MIN_EVENTS = 20  # in the short window: one bad request at night is no reason to wake anybody
CHANCE = 0.01  # and two of thirty are none either
EXACT = 1000  # events; with more the binomial is summed for nothing, the normal is as good


def sure(bad: int, total: int, share: float, chance: float = CHANCE) -> bool:
    """Whether chance alone gives so many bad events of so many with less than `chance`, when `share` of them may be."""
    if total <= EXACT:
        return binomial_tail(bad, total, share) < chance
    return bad - share * total > NormalDist().inv_cdf(1 - chance) * sqrt(share * (1 - share) * total)


class Slos(Written):
    """What people write under `monitors.slos`. Each share is of requests."""

    available: float = Field(default=0.995, gt=0, lt=1, description="share answered, and not with a 5xx")
    fast: float = Field(default=0.95, gt=0, lt=1, description="share answered within fast_seconds")
    fast_seconds: float = Field(default=10.0, gt=0, description="what fast means; a bucket of the latency histogram")
    escalated: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of each policy's that may need more than one tier; without it, twice the odds of what the "
        "reference says of the policy",
    )
    accepted_error: float = Field(default=0.05, gt=0, lt=1, description="share of wrong answers among accepted ones")
    calibration_gap: float = Field(
        default=0.0, ge=0, lt=0.5, description="by how much confidence may differ from the truth before it is an alarm"
    )
    min_labels: int = Field(default=300, ge=1, description="with fewer, calibration is unknown, not fine")

    @property
    def budgets(self) -> Mapping[Objective, float]:
        """Of all requests together; what may escalate is each policy's own (escalation.py)."""
        return {Objective.AVAILABILITY: 1 - self.available, Objective.LATENCY: 1 - self.fast}


class Calibration(StrEnum):
    """UNKNOWN: too few labels to say."""

    HOLDS, BROKEN, UNKNOWN = "holds", "broken", "unknown"


def calibration(*, labels: int, broken: bool, slos: Slos) -> Calibration:
    """What may be said. A proven breach needs no further labels: the test has seen to that."""
    if broken:
        return Calibration.BROKEN
    return Calibration.HOLDS if labels >= slos.min_labels else Calibration.UNKNOWN


@dataclass(slots=True)
class _Count:
    minute: int = -1
    bad: int = 0
    total: int = 0


@dataclass(slots=True)
class Budget:
    """Good and bad events of one objective by minute, for the longest window. Bounded. now: monotonic seconds."""

    share: float
    _minutes: list[_Count] = field(default_factory=lambda: [_Count() for _ in range(MINUTES)])

    def note(self, now: float, *, bad: bool) -> None:
        minute = int(now // MINUTE)
        count = self._minutes[minute % MINUTES]
        if count.minute != minute:
            count.minute, count.bad, count.total = minute, 0, 0
        count.bad += bad
        count.total += 1

    def seen(self, now: float, seconds: float) -> tuple[int, int]:
        """Bad events and all of the latest minutes."""
        latest = int(now // MINUTE)
        wanted = range(max(0, latest - ceil(seconds / MINUTE) + 1), latest + 1)
        found = ((self._minutes[minute % MINUTES], minute) for minute in wanted)
        kept = [count for count, minute in found if count.minute == minute]
        return sum(count.bad for count in kept), sum(count.total for count in kept)

    def burn(self, now: float, seconds: float) -> float:
        """The bad share over the budget; 0 without events."""
        bad, total = self.seen(now, seconds)
        return bad / total / self.share if total else 0.0

    def alarms(self, now: float, pairs: Sequence[Pair] = PAIRS) -> list[Pair]:
        return [
            pair
            for pair in pairs
            if self.seen(now, pair.short_seconds)[1] >= MIN_EVENTS
            and all(sure(*self.seen(now, seconds), self.share) for seconds in (pair.long_seconds, pair.short_seconds))
            and min(self.burn(now, pair.long_seconds), self.burn(now, pair.short_seconds)) >= min(pair.burn, self.most)
        ]

    @property
    def most(self) -> float:
        """No share is above 1, so a wide budget cannot burn at 14: there, 90 % of what is possible is as bad."""
        return 0.9 / self.share
