"""The folder that all workers and the command line share: artefacts, and for each tier the log of its rollout.

Nothing else is state. A step is in the log before anybody acts on it, and whoever reads the log serves by it; so a
restart, a second worker and a person at a terminal all take up the same stage.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import tempfile
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote, unquote

from calibrators.artifact import Artifact
from gateway.errors import ConfigError, RolloutRefused
from gateway.monitor import audit, course, rollout
from gateway.monitor.audit import Event
from gateway.monitor.reference import NOTHING, Reference
from gateway.monitor.registry import Kept, Registry
from gateway.monitor.rollout import Action, Limits, Release, State, Step

LEAST_DIGITS = 6  # of a hash, that people may write instead of all 64


class Wish(StrEnum):
    """What a person may ask for. PROMOTE makes live, an artefact that is not on trial yet without any; STOP ends a
    trial."""

    SHADOW, CANARY, PROMOTE, ROLLBACK, STOP = "shadow", "canary", "promote", "rollback", "stop"


class Rollouts:
    """Everything raises StoreDown when the disk refuses, and AuditBroken for a log that is not what was written."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.registry = folder, Registry(folder / "artefacts")

    def course(self, tier: str) -> Path:
        """The log of a tier's rollout. Tiers' names may hold slashes."""
        return self.folder / "courses" / f"{quote(tier, safe='')}.jsonl"

    def tiers(self) -> list[str]:
        """Those that have a rollout, sorted."""
        return sorted(unquote(path.stem) for path in (self.folder / "courses").glob("*.jsonl"))

    def state(self, tier: str) -> State | None:
        """None before the first step."""
        return course.now(self.course(tier))

    def history(self, tier: str) -> list[Event]:
        return audit.read(self.course(tier))

    def last_live(self, tier: str) -> str | None:
        """The hash of what is in service; in the safe state of what was, before it was taken out. None for nothing."""
        for event in reversed(self.history(tier)):
            live = event.facts.get(course.STATE, {}).get("live")  # type: ignore[attr-defined]
            if live is not None:
                return str(live["artifacts"][tier])
        return None

    def begin(self, tier: str, artifact: Artifact, *, who: str, at: float) -> State:
        """The state, made with the calibrator that is configured when there is none. at: seconds since 1970."""
        known = self.state(tier)
        if known is not None:
            return known
        self.registry.put(artifact, parent=None, who=who, at=moment(at), why="configured")
        self.course(tier).parent.mkdir(parents=True, exist_ok=True)
        try:
            return course.begin(self.course(tier), Release({tier: artifact.sha256}, {}), who=who, at=at)
        except RolloutRefused:  # another worker was faster
            return self._known(tier)

    def offer(
        self, tier: str, artifact: Artifact, *, who: str, at: float, why: str, labels: tuple[str, ...] = (),
        reference: Reference = NOTHING,
    ) -> State:  # fmt: skip
        """Keep a new artefact and put it on trial, as the child of what is live. labels: numbers of the decisions whose
        labels went into it.  reference: of the traffic that these are of.  Raises RolloutRefused while another is on
        trial."""
        live = self._known(tier).live
        parent = None if live is None else live.artifacts[tier]
        kept = self.registry.put(artifact, parent=parent, who=who, at=moment(at), why=why, labels=labels,
                                 reference=reference)  # fmt: skip
        return self.act(tier, Wish.SHADOW, artefact=kept.artifact.sha256, who=who, at=at, why=why)

    def act(
        self, tier: str, wish: Wish, *, who: str, at: float, why: str, artefact: str = "", share: float | None = None
    ) -> State:
        """Do what a person wants, if it is possible now. artefact: its hash, the first digits of it, or its label; of a
        rollback the one to be taken out of service, else the one to be tried or on trial.

        Raises RolloutRefused when it is not possible, ConfigError for an artefact that is not there.
        """
        state, wish = self._known(tier), Wish(wish)
        if not why.strip():
            raise RolloutRefused("say why: it stands in the audit log for whoever has to understand it later")
        meant, where = (state.live, "in service") if wish is Wish.ROLLBACK else (state.candidate, "on trial")
        if wish is Wish.SHADOW or (wish is Wish.PROMOTE and state.candidate is None):
            state = self._on_trial(tier, state, artefact, who=who, at=at, why=why)
            if wish is Wish.SHADOW:
                return state
        elif artefact and self.find(artefact).artifact.sha256 != of(meant, tier):
            raise RolloutRefused(f"{artefact} is not the one {where} now; look again before you take a step")
        step = {
            Wish.CANARY: Step(Action.CANARY, (why,), share=rollout.CANARY_SHARE if share is None else share),
            Wish.PROMOTE: Step(Action.PROMOTE, (why,)),
            Wish.ROLLBACK: Step(Action.ROLLBACK, (why,)),
            Wish.STOP: Step(Action.REJECT, (why,)),
        }[wish]
        return self.take(tier, state, step, who=who, at=at)

    def take(self, tier: str, state: State, step: Step, *, who: str, at: float) -> State:
        """Write a step down. Raises RolloutRefused where somebody took another one meanwhile."""
        return course.take(self.course(tier), state, step, who=who, at=at)

    def find(self, told: str) -> Kept:
        """By hash, its first digits, or label. Raises ConfigError that lists what there is, ArtifactError."""
        digits = told.rpartition("@")[2].lower()
        all_of = self.registry.hashes()
        found = [sha256 for sha256 in all_of if len(digits) >= LEAST_DIGITS and sha256.startswith(digits)]
        if len(found) != 1:
            have = ", ".join(sha256[:12] for sha256 in all_of) or "nothing"
            raise ConfigError(
                f"{len(found) or 'no'} artefact{'s' if len(found) != 1 else ''} {told!r} in the registry; "
                f"write at least {LEAST_DIGITS} digits of one of: {have}"
            )
        return self.registry.get(found[0])

    def show(self, tier: str, state: State, told: Mapping[str, object]) -> None:
        """Let everybody see what the evidence in a state is by now. Nothing is decided by it, so it may be lost."""
        path = self._shown(tier)
        with contextlib.suppress(OSError), tempfile.NamedTemporaryFile("w", dir=self.folder, delete=False) as draft:
            json.dump({"since": state.since, **told}, draft)
            draft.close()
            path.parent.mkdir(exist_ok=True)
            os.replace(draft.name, path)

    def shown(self, tier: str, state: State) -> Mapping[str, object]:
        """What was shown last; {} where it was of another state."""
        try:
            told: dict[str, object] = json.loads(self._shown(tier).read_bytes())
            return told if told.pop("since") == state.since else {}
        except (OSError, ValueError, KeyError, AttributeError):
            return {}

    def _shown(self, tier: str) -> Path:
        return self.folder / "evidence" / f"{quote(tier, safe='')}.json"

    def forecast(self, tier: str, release: Release | None) -> Mapping[str, float]:
        """What the trial of a release promised of its traffic; {} where it had none."""
        wanted = None if release is None else release.id
        for event in reversed(self.history(tier)):
            told = event.facts.get("forecast")
            if isinstance(told, dict) and event.facts.get("forecast_of") == wanted:
                return {str(name): float(value) for name, value in told.items()}
        return {}

    def _known(self, tier: str) -> State:
        state = self.state(tier)
        if state is None:
            raise RolloutRefused(f"tier {tier!r} has no rollout yet; a gateway that serves it begins one")
        return state

    def _on_trial(self, tier: str, state: State, artefact: str, *, who: str, at: float, why: str) -> State:
        if not artefact:
            raise RolloutRefused("say which artefact is to be put on trial")
        release = Release({tier: self.find(artefact).artifact.sha256}, {})
        told = rollout.offered(state, release, Limits())
        step = Step(told.action, (why,), told.facts)
        return course.take(self.course(tier), state, step, who=who, at=at, candidate=release)


def moment(at: float) -> str:
    """ISO 8601. at: seconds since 1970."""
    return dt.datetime.fromtimestamp(at, dt.UTC).isoformat()


def of(release: Release | None, tier: str) -> str | None:
    """The hash of a release's artefact; None without a release."""
    return None if release is None else release.artifacts[tier]
