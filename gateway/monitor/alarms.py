"""What the monitors hold to be wrong now, and since when. Told once when it begins and once when it ends."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from gateway.store.base import AlarmRow
from gateway.store.telling import moment

log = logging.getLogger(__name__)


class Kind(StrEnum):
    """STORE: it cannot be written to, or was found broken.  UNREAD: labels cannot be read from it."""

    DRIFT = "drift"
    OVERCONFIDENT = "overconfident"
    UNDERCONFIDENT = "underconfident"
    ACCEPTED_ERROR = "accepted_error"
    CERTIFICATE = "certificate"
    CALIBRATOR = "calibrator"
    SLO = "slo"
    STORE = "store"
    UNREAD = "unread"


VOIDS = frozenset(
    {Kind.DRIFT, Kind.OVERCONFIDENT, Kind.ACCEPTED_ERROR, Kind.CALIBRATOR}
)  # what was claimed of a policy


About = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Alarm:
    """tier, slice: where; slice is the policy whose traffic it is, and either is "" where it is about all.

    what: the objective of an SLO, the slice that drifted, the trouble of a store, else "".
    page: somebody has to come now, else a ticket.
    """

    kind: Kind
    tier: str
    slice: str
    why: str
    what: str = ""
    page: bool = False

    @property
    def about(self) -> About:
        return self.kind, self.tier, self.slice, self.what


@dataclass(slots=True, eq=False)
class Alarms:
    """Those that are on, with the time of the look that first found each, seconds since 1970.

    With a store that time outlives the process, and alarms of other gateways on the same store are known as well.
    ended: those that the store has not been told of.
    """

    ended: set[About] = field(default_factory=set)
    _on: dict[About, tuple[float, Alarm]] = field(default_factory=dict)
    _elsewhere: list[tuple[float, Alarm]] = field(default_factory=list)

    def found(self, alarms: Iterable[Alarm], now: float) -> None:
        """Everything that is wrong as of now; what is not among it has ended. now: seconds since 1970."""
        before, self._on = self._on, {}
        for alarm in alarms:
            since, _ = before.get(alarm.about, (now, alarm))
            self._on.setdefault(alarm.about, (since, alarm))
            if alarm.about not in before:
                log.warning("alarm", extra=fields(alarm))
        for about, (_, alarm) in before.items():
            if about not in self._on:
                log.warning("alarm ended", extra=fields(alarm))
                self.ended.add(about)
        self.ended -= self._on.keys()

    def rows(self, now: float) -> list[AlarmRow]:
        """Those that are on here, for the store."""
        return [
            AlarmRow(str(alarm.kind), alarm.tier, alarm.slice, alarm.what, alarm.why, alarm.page, since, now)
            for since, alarm in self._on.values()
        ]

    def shared(self, rows: Iterable[AlarmRow], fresh: float) -> None:
        """What the store has, which knows of those that have ended here by now. fresh: seconds since 1970; of those
        that others found, the ones seen since then are still on."""
        self.ended.clear()
        self._elsewhere = []
        for row in rows:
            known = self._on.get(row.about)
            if known is not None:
                self._on[row.about] = (min(known[0], row.since), known[1])
            elif row.seen >= fresh and row.kind in tuple(Kind):
                alarm = Alarm(Kind(row.kind), row.tier, row.slice, row.why, row.what, row.page)
                self._elsewhere.append((row.since, alarm))

    def voiding(self, policy: str) -> list[str]:
        """Why what was claimed of a policy is not true now; [] where nothing speaks against it."""
        here = [(alarm, "") for _, alarm in self._on.values()]
        there = [(alarm, " (found by another gateway on this store)") for _, alarm in self._elsewhere]
        return [
            f"{alarm.tier}: {alarm.why}{by}" if alarm.tier else f"{alarm.why}{by}"
            for alarm, by in here + there
            if alarm.kind in VOIDS and alarm.slice == policy
        ]

    def told(self) -> list[Mapping[str, Any]]:
        """For JSON, the oldest first."""
        every = [(since, alarm, False) for since, alarm in self._on.values()]
        every += [(since, alarm, True) for since, alarm in self._elsewhere]
        return [
            {"since": moment(since), **asdict(alarm), "kind": str(alarm.kind), "elsewhere": elsewhere}
            for since, alarm, elsewhere in sorted(every, key=lambda one: one[0])
        ]


def fields(alarm: Alarm) -> dict[str, object]:
    """For the log."""
    return {"kind": str(alarm.kind), "tier": alarm.tier, "policy": alarm.slice, "what": alarm.what, "why": alarm.why}
