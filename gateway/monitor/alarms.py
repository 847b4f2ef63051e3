"""What the monitors hold to be wrong now, and since when. Told once when it begins and once when it ends."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from gateway.store.telling import moment

log = logging.getLogger(__name__)


class Kind(StrEnum):
    """UNREAD: there is a store, and labels cannot be read from it."""

    DRIFT = "drift"
    OVERCONFIDENT = "overconfident"
    UNDERCONFIDENT = "underconfident"
    ACCEPTED_ERROR = "accepted_error"
    CERTIFICATE = "certificate"
    CALIBRATOR = "calibrator"
    SLO = "slo"
    UNREAD = "unread"


VOIDS = frozenset(
    {Kind.DRIFT, Kind.OVERCONFIDENT, Kind.ACCEPTED_ERROR, Kind.CALIBRATOR}
)  # what was claimed of a policy


About = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Alarm:
    """tier, slice: where; slice is the policy whose traffic it is, and either is "" where it is about all.

    what: the objective of an SLO, else "".  page: somebody has to come now, else a ticket.
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
    """Those that are on, with the time of the look that first found each, seconds since 1970."""

    _on: dict[About, tuple[float, Alarm]] = field(default_factory=dict)

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

    def voiding(self, policy: str) -> list[str]:
        """Why what was claimed of a policy is not true now; [] where nothing speaks against it."""
        return [
            f"{alarm.tier}: {alarm.why}" if alarm.tier else alarm.why
            for _, alarm in self._on.values()
            if alarm.kind in VOIDS and alarm.slice == policy
        ]

    def told(self) -> list[Mapping[str, Any]]:
        """For JSON, the oldest first."""
        return [
            {"since": moment(since), **asdict(alarm), "kind": str(alarm.kind)}
            for since, alarm in sorted(self._on.values(), key=lambda one: one[0])
        ]


def fields(alarm: Alarm) -> dict[str, object]:
    """For the log."""
    return {"kind": str(alarm.kind), "tier": alarm.tier, "policy": alarm.slice, "what": alarm.what, "why": alarm.why}
