"""The label-based half: what labels have shown of every policy, how fresh that is, and what is unknown."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from gateway.certificate import Certificate, Withdrawn
from gateway.errors import ConfigError, StoreDown
from gateway.monitor import labels
from gateway.monitor.feed import Book, Readable
from gateway.monitor.labels import ROUTED, ErrorVerdict, Rolling, Seen, Verdict
from gateway.monitor.settings import Monitors
from gateway.monitor.slo import Calibration, calibration
from gateway.store.base import DecisionRow

log = logging.getLogger(__name__)

DAY_SECONDS = 86400.0
STALE_LOOKS = 3  # failed ones in a row, after which what is known is no longer called current

# By policy and tier, what is served now: (label of the calibrator, accept_at; None for the last tier).
Served = Mapping[str, Mapping[str, tuple[str, float | None]]]


@dataclass(frozen=True, slots=True)
class Place:
    """One tier, or the routed whole. rolling: None without SciPy, or with a single label."""

    verdict: Verdict
    seen: Seen
    rolling: Rolling | None


@dataclass(frozen=True, slots=True)
class Findings:
    """As of `read_at`, seconds since 1970; None before the first reading.

    states: by policy.  unknown: why nothing current can be said, "" where it can.  newest_at: of the labels counted.
    first_at: of the answers that they are about.  tally: by tier and calibrator, labels of right and of wrong answers.
    """

    states: Mapping[str, Calibration] = field(default_factory=dict)
    places: tuple[Place, ...] = ()
    errors: tuple[ErrorVerdict, ...] = ()
    read_at: float | None = None
    newest_at: float | None = None
    first_at: float | None = None
    revised: int = 0
    unknown: str = ""
    tally: Mapping[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    @property
    def counted(self) -> int:
        return sum(right + wrong for right, wrong in self.tally.values())


class Evidence:
    """Of one release: another threshold or calibrator of any policy takes a new one. For one thread.

    store: None where nothing is kept.  share: of decisions that are explored, None for none.
    since: seconds since 1970 from which decisions count.
    """

    def __init__(
        self, store: Readable | None, wanted: Monitors, served: Served, *, share: float | None, since: float
    ) -> None:
        self._store, self._wanted, self.served = store, wanted, served
        explored = share is not None
        self._book = Book(
            trusted_only=wanted.labels_by == "operators",
            drawn_only=wanted.labels_of == "explored",
            since=max(0.0, since),
            tolerance=wanted.slos.calibration_gap,
            limits=dict.fromkeys(served, wanted.slos.accepted_error) if explored else {},
            least_inclusion=share,
            counts=self._ours,
        )
        self._impossible = ""
        if store is None:
            self._impossible = "no store is configured, so labels are not kept"
        elif wanted.labels_of == "explored" and not explored:
            self._impossible = "nothing is explored, and labels of other answers do not count: see monitors.labels_of"
        self._rng = np.random.default_rng(0)
        self._failed = 0
        self._places: dict[tuple[str, str, str], Place] = {}
        self.findings = Findings(self._states(unknown=True), unknown=self._impossible or "labels were not read yet")

    def _ours(self, decision: DecisionRow) -> bool:
        """Whether it was made by what is served now, and by nothing that the request asked for instead."""
        tiers = self.served.get(decision.policy, {})
        return tiers.get(decision.tier) == (decision.calibrator, decision.threshold)

    def read(self, now: float) -> Findings:
        """Take in what is new. now: seconds since 1970. A store that is away makes what is known old, then unknown."""
        if self._store is None or self._impossible:
            return self.findings
        read_at, unknown = self.findings.read_at, ""
        try:
            self._book.read(self._store, now)
            read_at, self._failed = now, 0
        except StoreDown as error:
            self._failed += 1
            if read_at is None or self._failed >= STALE_LOOKS:
                unknown = f"labels cannot be read: {error.why}"
        places = tuple(self._place(verdict) for verdict in self._book.verdicts())
        self.findings = Findings(
            self._states(unknown=bool(unknown)),
            places,
            tuple(self._book.errors()),
            read_at,
            self._book.newest_at or None,
            self._book.first_at or None,
            self._book.revised,
            unknown,
            dict(self._book.tally),
        )
        return self.findings

    def _place(self, verdict: Verdict) -> Place:
        """Measured anew only when there are new labels: the limits of rolling figures are simulated."""
        about = (verdict.policy, verdict.tier, verdict.calibrator)
        known = self._places.get(about)
        if known is None or known.verdict.n != verdict.n:
            known = self._places[about] = self._measured(verdict)
        return known

    def _measured(self, verdict: Verdict) -> Place:
        p, right = self._book.honesties.recent(verdict.policy, verdict.tier, verdict.calibrator)
        try:
            rolling = labels.rolling(p, right, self._rng) if p.size > 1 else None
        except ConfigError:  # SciPy is not installed here; the tests above do without
            rolling = None
        return Place(verdict, labels.seen(p, right), rolling)

    def _states(self, *, unknown: bool) -> dict[str, Calibration]:
        verdicts, errors = self._book.verdicts(), self._book.errors()
        found = {}
        for policy in self.served:
            mine = [verdict for verdict in verdicts if verdict.policy == policy]
            broken = any(verdict.overconfident for verdict in mine) or any(
                error.violated for error in errors if error.policy == policy
            )
            counted = 0 if unknown else sum(verdict.n for verdict in mine if verdict.tier == ROUTED)
            found[policy] = calibration(labels=counted, broken=broken, slos=self._wanted.slos)
        return found

    def withdrawn(self, certificates: Mapping[str, Certificate], today: dt.date) -> dict[str, Withdrawn]:
        """By policy, of the certificates that labels have broken. What is proven stays so until the next release."""
        places = [place.verdict for place in self.findings.places]
        found = labels.withdrawn(certificates, self.findings.errors, places, today)
        return {policy: one.withdrawn for policy, one in found.items() if one.withdrawn is not None}
