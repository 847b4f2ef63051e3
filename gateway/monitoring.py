"""The monitors of a gateway that serves: what the event loop tells them, and a thread that looks at it now and then.

What they find goes three ways: to metrics, to `report` for people, and back to what is served, where a certificate that
labels have broken is withdrawn. They decide nothing about any answer.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry

from gateway.certificate import Withdrawn
from gateway.config import Config
from gateway.errors import StoreDown
from gateway.monitor import telling
from gateway.monitor.alarms import Alarm, Alarms
from gateway.monitor.escalation import allowed
from gateway.monitor.evidence import DAY_SECONDS, STALE_LOOKS, Evidence, Served
from gateway.monitor.feed import Readable
from gateway.monitor.metrics import MonitorMetrics
from gateway.monitor.slo import WINDOWS
from gateway.monitor.telling import Json
from gateway.monitor.watch import Watch
from gateway.nouns import Policy
from gateway.refitting import Refitting
from gateway.snapshot import Snapshot, without
from gateway.store.base import AlarmRow
from gateway.store.story import Story

log = logging.getLogger(__name__)

REMEMBERED_SECONDS = DAY_SECONDS  # an alarm that is on again within a day of a restart is the same
LEAST_FRESH_SECONDS = 5.0  # gateways on one store may have clocks that differ


class Kept(Readable, Protocol):
    """What a store is to the monitors."""

    def alarms(
        self, on: Sequence[AlarmRow], ended: Sequence[tuple[str, str, str, str]], before: float
    ) -> list[AlarmRow]: ...


class Monitoring:
    """One process's. It looks only once it has something to `serve` and was told to `start`.

    store: to be read from in a thread, None where nothing is kept.  trouble: what is wrong with it, by name, as of now.
    wall: seconds since 1970; it may jump.  monotonic: seconds.
    changed: called in that thread when `amended` would say something else than before.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        store: Kept | None = None,
        *,
        trouble: Callable[[], Mapping[str, str]] = dict,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics, self._store, self._wall, self._monotonic = MonitorMetrics(registry), store, wall, monotonic
        self._trouble = trouble
        self._snapshot: Snapshot | None = None
        self._watch: Watch | None = None
        self._evidence: Evidence | None = None
        self._alarms, self._refitting = Alarms(), Refitting()
        self._withdrawn: dict[tuple[str, str], Withdrawn] = {}
        self._read = store is None
        self._requests, self._began = 0, wall()
        self.changed: Callable[[], object] = lambda: None
        self._wake, self._ending = threading.Event(), False
        self._looked = threading.Event()  # at least once
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self.report: Json = {}

    # On the event loop

    def serve(self, snapshot: Snapshot) -> None:
        """Watch over what comes into service. What is the same as before keeps what was learned about it."""
        before, self._snapshot = self._snapshot, snapshot
        wanted = snapshot.config.monitors
        known = None if before is None else before.config.monitors
        if (
            before is None
            or self._watch is None
            or before.reference.sha256 != snapshot.reference.sha256
            or (known and (known.rows, known.slos, known.slices)) != (wanted.rows, wanted.slos, wanted.slices)
        ):
            slicing = wanted.slices.slicing()
            used = None if known is None or known.slos != wanted.slos else self._watch
            self._watch = Watch(snapshot.reference, wanted.slos, rows=wanted.rows, slicing=slicing, used=used)
            self._metrics.forget()
        now_allowed = allowed(served(snapshot), snapshot.reference, wanted.slos)
        if self._watch.allowed != now_allowed:
            self._metrics.forget()
        self._watch.allow(now_allowed)
        share = explored(snapshot.config)
        if (
            before is None
            or self._evidence is None
            or known != wanted
            or served(before) != served(snapshot)
            or explored(before.config) != share
        ):
            since = self._wall() - wanted.look_back_days * DAY_SECONDS
            self._evidence = Evidence(self._store, wanted, served(snapshot), share=share, since=since)
            self._metrics.forget()
        self._wake.set()

    def ended(self, snapshot: Snapshot, story: Story, status: int, seconds: float) -> None:
        """A request has ended. snapshot: what it was served by. Microseconds."""
        watch, answer = self._watch, story.answer
        if watch is None:
            return
        self._requests += 1
        # by the policy as it stands: other thresholds and skipped tiers send later tiers what they otherwise never see
        as_it_stands = answer is not None and answer.policy is snapshot.policies.get(answer.policy.name)
        followed = answer.policy.name if answer is not None and as_it_stands else ""
        escalated = answer is not None and len(answer.hops) > 1
        now = self._monotonic()
        watch.ended(status, seconds, policy=followed, escalated=escalated, now=now, client=story.client)
        if answer is not None and followed:
            watch.note(followed, answer.hops, story.client, story.metadata)

    def amended(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot without the certificates that labels have broken, or that they have not been held against."""
        today = self._today()
        found = {}
        for name, entry in snapshot.config.policies.items():
            if entry.certificate is None:
                continue
            if not self._read:
                found[name] = Withdrawn(since=today, why="the labels that are kept were not read yet")
            elif (broken := self._withdrawn.get((name, entry.certificate.sha256))) is not None:
                found[name] = broken
        return without(snapshot, found)

    def start(self, seconds: float = 0.0) -> None:
        """Begin, and wait for the first look, but not for longer than this."""
        self._thread.start()
        self._looked.wait(seconds)

    def stop(self, seconds: float = 5.0) -> None:
        """Wait for a look that is under way, but not for long."""
        self._ending = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        self._refitting.stop()

    # In a thread

    def _run(self) -> None:
        while not self._ending:
            try:
                self.look()
            except Exception:  # a look that fails must not end all later ones; nothing was judged, and it is told
                log.exception("a look of the monitors failed")
            self._looked.set()
            assert self._snapshot is not None, "there is something to serve before the thread is started"
            self._wake.wait(self._snapshot.config.monitors.every_seconds)
            self._wake.clear()

    def look(self) -> None:
        """Judge what has come since the last time, and say what is wrong now."""
        snapshot, watch, evidence = self._snapshot, self._watch, self._evidence
        if snapshot is None or watch is None or evidence is None:
            return
        shifts = watch.look()
        now = self._wall()
        found = evidence.read(now)
        self._withdraw(snapshot, evidence, read=found.read_at is not None)
        seen = telling.Seen(
            served(snapshot),
            snapshot.config.monitors,
            watch,
            found,
            {name: one.why for name, one in snapshot.certificates.items()},
            snapshot.withheld,
            kept=self._store is not None,
            trouble=self._trouble(),
            requests=self._requests,
            began=self._began,
        )
        alarms: list[Alarm] = telling.alarms(seen, self._monotonic())
        self._alarms.found(alarms, now)
        self._share(now, snapshot.config.monitors.every_seconds)
        self._metrics.looked(shifts, watch.windows.missed)
        self._metrics.judged([place.verdict for place in found.places], found.states)
        for place in found.places:
            if place.rolling is not None:
                self._metrics.rolled(place.verdict.policy, place.verdict.tier, place.rolling)
        for error in found.errors:
            self._metrics.erred(error)
        self._metrics.burned(watch.promises(), self._monotonic(), WINDOWS)
        self._metrics.alarmed(alarms)
        rules = snapshot.config.monitors.refit
        if rules is not None:
            outcomes = self._refitting.look(snapshot, rules, found, watch.latest, now=now, monotonic=self._monotonic())
            self._metrics.refitted(outcomes)
        told = telling.report(seen, self._alarms, now, self._monotonic())
        self.report = told | {"refits": self._refitting.told()}

    def _share(self, now: float, every_seconds: float) -> None:
        """Tell the store what is on, and learn since when, and what other gateways have found."""
        if self._store is None:
            return
        try:
            rows = self._store.alarms(self._alarms.rows(now), list(self._alarms.ended), now - REMEMBERED_SECONDS)
        except StoreDown:  # it is told by an alarm of its own, and tried again with the next look
            return
        self._alarms.shared(rows, now - STALE_LOOKS * max(every_seconds, LEAST_FRESH_SECONDS))

    def _withdraw(self, snapshot: Snapshot, evidence: Evidence, *, read: bool) -> None:
        certificates = {
            name: entry.certificate for name, entry in snapshot.config.policies.items() if entry.certificate is not None
        }
        broken = evidence.withdrawn(certificates, self._today())
        found = {(name, certificates[name].sha256): why for name, why in broken.items()}
        found = {place: self._withdrawn.get(place, why) for place, why in found.items()}  # since when: the first look
        if not read:  # a new release's labels are still to come in; what is proven stays until then
            found = {**found, **self._withdrawn}
        fresh = read and not self._read
        if fresh or found != self._withdrawn:
            self._withdrawn, self._read = found, self._read or read
            self.changed()

    def _today(self) -> dt.date:
        return dt.datetime.fromtimestamp(self._wall(), dt.UTC).date()


def explored(config: Config) -> float | None:
    """The share of decisions that are explored."""
    return None if config.exploration is None else config.exploration.share


def served(snapshot: Snapshot) -> Served:
    """What decides, by policy and tier. Of a mix its parts count."""
    return {
        name: {tier.name: (tier.calibrator_id, tier.threshold) for tier in policy.tiers}
        for name, policy in snapshot.policies.items()
        if isinstance(policy, Policy)
    }
