"""Fits that the monitors start by themselves: `confgate refit` as a process of low priority, one at a time.

What comes of a fit is offered to the rollout, which puts it on trial; nothing here can put anything in service. Workers
and replicas that share the rollout's folder share the pause between fits as well, and the lock.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from calibrators.artifact import ArtifactError
from gateway.config import Config
from gateway.errors import GatewayError
from gateway.monitor.drift import Shift
from gateway.monitor.evidence import Findings
from gateway.monitor.rollouts import Rollouts, of
from gateway.monitor.settings import Refit
from gateway.monitor.triggers import Cause, FitWish, Labels, Schedule, Waiting, wanted
from gateway.snapshot import Snapshot
from gateway.store.telling import moment

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "gateway", "refit")
SIGNING_KEY = "CONFGATE_SIGNING_KEY"  # names the file of the private key, for `confgate sign` and `confgate refit`
UNSIGNED = (
    f"a key: `signers` takes signed calibrators alone, and {SIGNING_KEY} names none to this gateway; set it, or fit by "
    "hand with `confgate refit --out`, sign that elsewhere and offer it"
)
NICE = 19
OUT = "it was taken out of service"
MEASURE = (
    "answers of what is served now, of which nothing is known: name labelled questions under monitors.refit.questions, "
    "or `confgate collect` and `confgate fit`, then `confgate rollout offer`"
)
BY_QUESTIONS = "questions"  # how such a fit is made
Json = dict[str, Any]


@dataclass(slots=True)
class Running:
    """A fit under way. lock: held while it lasts."""

    wish: FitWish
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    lock: IO[bytes]
    ends: float


class Refitting:
    """Of one process. For one thread. command: what to run, without its options; environment: its variables."""

    def __init__(self, command: Sequence[str] = COMMAND, environment: Mapping[str, str] = os.environ) -> None:
        self._command, self._environment = command, environment
        self._running: Running | None = None
        self._fitted: dict[str, float] = {}
        self._withheld: dict[str, tuple[str, float]] = {}  # by tier: why, and since when, monotonic seconds
        self._told: dict[str, Json] = {}

    def look(
        self, snapshot: Snapshot, rules: Refit, found: Findings, latest: Mapping[tuple[str, str], list[Shift]],
        *, now: float, monotonic: float,
    ) -> list[str]:  # fmt: skip
        """Start a fit where one is wanted, and see what became of the one before; outcomes, for counting.

        now: seconds since 1970.  monotonic: seconds.
        """
        config = snapshot.config
        assert config.rollout is not None, "the configuration says so"
        rollouts = Rollouts(config.rollout.folder)
        outcomes = self._reap(rollouts, now, monotonic)
        for name, tier in snapshot.tiers.items():
            if tier.calibrator is None and name not in snapshot.withheld:
                continue
            try:
                wish = self._wanted(snapshot, name, rules, found, latest, rollouts, now, monotonic)
            except (GatewayError, ArtifactError, OSError) as error:
                self._say(name, "unknown", "", str(error), now)
                continue
            if isinstance(wish, FitWish) and config.signers and not self._environment.get(SIGNING_KEY):
                wish = Waiting(name, wish.cause, UNSIGNED)
            if wish is None:
                if self._told.get(name, {}).get("state") in ("waiting", "unknown"):
                    del self._told[name]
            elif isinstance(wish, Waiting):
                self._say(name, "waiting", wish.cause, f"for {wish.missing}", now)
            elif (
                self._running is None
                and wish.cause.name.lower() in rules.causes  # as the configuration calls them
                and self._start(config, wish, rules, now, monotonic)
            ):
                outcomes.append("started")
        return outcomes

    def told(self) -> list[Json]:
        """Of each tier, what its latest fit came to, or what one waits for."""
        return list(self._told.values())

    def stop(self) -> None:
        """A fit that is under way is not waited for."""
        if self._running is not None:
            self._running.process.kill()
            self._running.process.wait()
            self._close(self._running)

    def _wanted(
        self, snapshot: Snapshot, name: str, rules: Refit, found: Findings,
        latest: Mapping[tuple[str, str], list[Shift]], rollouts: Rollouts, now: float, monotonic: float,
    ) -> FitWish | Waiting | None:  # fmt: skip
        tier = snapshot.tiers[name]
        state = rollouts.state(name)
        if state is None or state.candidate is not None or name in snapshot.away:
            return None  # the gateway begins one at its start; one trial at a time; a server that is away comes back
        at = tried(rollouts.folder, name, now)
        rested = at is None or now - at >= rules.pause_hours * 3600.0
        if state.live is None and "metric" in rules.causes:  # labels of what was taken out are all there is
            return FitWish(name, Cause.METRIC, "auto", OUT) if rested else None
        if name in snapshot.withheld:
            return self._of_another(name, snapshot.withheld[name], rules, rested=rested, monotonic=monotonic)
        self._withheld.pop(name, None)
        right, wrong = found.tally.get((name, tier.calibrator_id), (0, 0))
        if tier.calibrator_id not in self._fitted:
            live = of(state.live, name) or ""
            sealed = rollouts.registry.get(live).artifact
            self._fitted[tier.calibrator_id] = dt.datetime.fromisoformat(sealed.created).timestamp()
        return wanted(
            name,
            verdicts=[
                one.verdict
                for one in found.places
                if "metric" in rules.causes and one.verdict.calibrator == tier.calibrator_id
            ],
            shifts=[
                shift
                for (_, place), shifts in latest.items()
                if "drift" in rules.causes and place == name
                for shift in shifts
            ],
            other_model=False,
            fitted_at=self._fitted[tier.calibrator_id] if "schedule" in rules.causes else now,
            tried_at=at,
            labels=Labels(min(right, wrong), found.counted),
            schedule=Schedule(rules.max_age_days * 86400.0, rules.pause_hours * 3600.0),
            now=now,
        )

    def _of_another(
        self, name: str, why: str, rules: Refit, *, rested: bool, monotonic: float
    ) -> FitWish | Waiting | None:
        """A tier's server is another than its calibrator's; while servers are being replaced, it is now this one and
        now that."""
        if rules.questions is None or "model" not in rules.causes:
            return Waiting(name, Cause.MODEL, MEASURE)
        known = self._withheld.get(name)
        if known is None or known[0] != why:
            known = self._withheld[name] = (why, monotonic)
        if monotonic - known[1] < rules.settle_minutes * 60.0:
            return Waiting(name, Cause.MODEL, f"its server to stay the same for {rules.settle_minutes:g} minutes")
        return FitWish(name, Cause.MODEL, BY_QUESTIONS, why) if rested else None

    def _start(self, config: Config, wish: FitWish, rules: Refit, now: float, monotonic: float) -> bool:
        """Whether it is under way; not while another process fits."""
        assert config.rollout is not None, "the configuration says so"
        assert config.file is not None, "a gateway serves by a file"
        folder = config.rollout.folder / "fits"
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return False
        note(config.rollout.folder, wish.tier, now)
        why = f"{wish.cause}: {wish.why}"
        output = tempfile.TemporaryFile()  # noqa: SIM115  it is read when the process has ended
        options = ("--tier", wish.tier, "--config", str(config.file), "--why", why, "--latest", str(rules.latest))
        asked = ("--questions",) if wish.how == BY_QUESTIONS else ()
        process = subprocess.Popen(  # noqa: S603  our own command
            (*self._command, *options, *asked, "--nice", str(NICE), "--offer", "--json"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**self._environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._running = Running(wish, process, output, lock, monotonic + rules.seconds)
        self._say(wish.tier, "running", wish.cause, wish.why, now)
        log.warning("fit started", extra={"tier": wish.tier, "cause": str(wish.cause), "why": wish.why})
        return True

    def _reap(self, rollouts: Rollouts, now: float, monotonic: float) -> list[str]:
        """What became of the fit under way; [] while it goes on."""
        running = self._running
        if running is None:
            return []
        code = running.process.poll()
        if code is None and monotonic < running.ends:
            return []
        if code is None:
            running.process.kill()
            running.process.wait()
        running.output.seek(0)
        lines = running.output.read().decode("utf-8", "replace").strip().splitlines()
        self._close(running)
        self._running = None
        note(rollouts.folder, running.wish.tier, now)
        state = {0: "offered", 1: "declined", None: "failed"}.get(code, "failed")
        why = lines[-1] if lines else "it said nothing"
        if code is None:
            why = "it took too long and was ended"
        elif state == "offered":
            try:
                made = json.loads(why)
                why = f"{made['artefact']} ({made['how']} on {made['labels']:,} labels): {running.wish.why}"
            except (ValueError, KeyError, TypeError):
                state = "failed"
        self._say(running.wish.tier, state, running.wish.cause, why, now)
        told = {"tier": running.wish.tier, "outcome": state, "why": why}
        log.log(logging.ERROR if state == "failed" else logging.WARNING, "fit ended", extra=told)
        return [state]

    def _close(self, running: Running) -> None:
        running.output.close()
        running.lock.close()

    def _say(self, tier: str, state: str, cause: str, why: str, now: float) -> None:
        known = self._told.get(tier, {})
        if (known.get("state"), known.get("why")) != (state, why):
            self._told[tier] = {"tier": tier, "state": state, "cause": str(cause), "why": why, "at": moment(now)}


def note(folder: Path, tier: str, now: float) -> None:
    """A fit was tried; for all who share the folder. now: seconds since 1970."""
    (folder / "fits" / f"{quote(tier, safe='')}.json").write_text(json.dumps({"at": now}), encoding="utf-8")


def tried(folder: Path, tier: str, now: float) -> float | None:
    """When a fit was tried last, seconds since 1970; None for never, or where it stands in the future."""
    try:
        at = float(json.loads((folder / "fits" / f"{quote(tier, safe='')}.json").read_bytes())["at"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return at if at <= now else None
