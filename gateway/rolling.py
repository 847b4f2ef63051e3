"""Rollouts in a gateway that serves: it wears the calibrators that the shared folder names, and judges them.

Every worker reads the folder every few seconds and puts on what has changed, for the next request; one worker, whoever
holds the lock, reads labels and decides. A step is in the audit log before anybody acts on it. What cannot be read
leaves what runs running, and is told: in the log, the metrics and /admin/calibrators.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry

from calibrators import artifact as artifacts
from calibrators.artifact import Artifact, ArtifactError
from gateway import probing
from gateway.config import Config
from gateway.errors import EngineError, GatewayError, RolloutRefused, StoreDown
from gateway.monitor import course, rollout
from gateway.monitor.forecast import forecast
from gateway.monitor.reference import Reference
from gateway.monitor.renewal import renewed
from gateway.monitor.rollout import Action, Stage, State, Step
from gateway.monitor.rollout_metrics import RolloutMetrics
from gateway.monitor.rollout_settings import Rollout
from gateway.monitor.rollouts import Rollouts, Wish, of
from gateway.monitor.trials import Showing, Stories
from gateway.nouns import Policy, Rival, Tier
from gateway.places import Place, places
from gateway.snapshot import (
    Snapshot,
    bared,
    changed,
    check_early_abort,
    identity,
    learned,
    like,
    prefix_tokens,
    with_calibrator,
)

log = logging.getLogger(__name__)

SAFE = "the last calibrator was taken out of service and there is no earlier one: everything escalates"
OTHER = "the server is another than its calibrator's"
SHOWN = 50  # of a tier's history
Json = dict[str, Any]


class Rolling:
    """One process's. store: to be read from in a thread.  wall: seconds since 1970.

    redress: has `dress` applied to what is in service; set by whoever serves, before `run`.
    """

    def __init__(
        self,
        rules: Rollout,
        store: Stories,
        registry: CollectorRegistry,
        *,
        wall: Callable[[], float] = time.time,
        chance: Random | None = None,
    ) -> None:
        self._rules, self._store, self._wall, self._chance = rules, store, wall, chance or Random()
        self.rollouts, self._prints = Rollouts(rules.folder), probing.Prints(rules.folder)
        self._metrics = RolloutMetrics(registry)
        self._states: dict[str, State] = {}
        self._showings: dict[str, Showing] = {}
        self._artifacts: dict[str, Artifact] = {}
        self._renewed: tuple[Reference, tuple[str, ...], Reference] | None = None
        self._broken: dict[str, str] = {}
        self._unfit: dict[str, str] = {}
        self._in_file: dict[str, tuple[Path, int]] = {}
        self._mismatches: dict[tuple[str, str], str] = {}
        self._lock = DecidingLock(rules.folder)
        self._snapshot: Snapshot | None = None
        self.redress: Callable[[], Awaitable[None]] = nothing
        self._who = f"gateway@{socket.gethostname()}"

    # What is served

    async def dress(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with the calibrators that rollouts have come to; the very same one where it has them. What is
        not to be had stays as it was. Never raises."""
        self._rules = snapshot.config.rollout or self._rules
        tiers, withheld, away = dict(snapshot.tiers), dict(snapshot.withheld), set(snapshot.away)
        for place in places(snapshot.config):
            state = await self._state(place)
            if state is None:
                continue
            whole = tiers[place.tier]
            tier, tokens = place.seen(whole), 0
            try:
                tier, tokens, why = await self._dressed(place, tier, state, snapshot.config)
            except EngineError as error:
                tier, why = bared(tier), str(error)
                if not place.first:
                    away.add(place.tier)
            except (GatewayError, ArtifactError) as error:
                self._say(place.name, str(error))
                known = self._worn(place.tier)
                if known is None or known.engine is not whole.engine:
                    continue
                tokens = 0 if known.prefix is None else known.prefix.tokens
                known = place.seen(known)
                tier, why = replace(like(tier, known), rival=known.rival), withheld.get(place.name, "")
            else:
                if not place.first:
                    away.discard(place.tier)
            if not same(tier, place.seen(whole)):
                tiers[place.tier] = place.put(whole, tier, tokens)
                told = {"tier": place.name, "calibrator": tier.calibrator_id, "on_trial": tier.rival is not None}
                log.warning("calibrator put in service", extra=told)
            if why:
                withheld[place.name] = why
            else:
                withheld.pop(place.name, None)
        alike = all(tiers[name] is snapshot.tiers[name] for name in tiers)
        if not alike or withheld != snapshot.withheld or away != snapshot.away:
            snapshot = changed(snapshot, tiers, withheld, away)
        reference = await self._reference(snapshot)
        self._snapshot = snapshot if reference is snapshot.reference else replace(snapshot, reference=reference)
        return self._snapshot

    async def _reference(self, snapshot: Snapshot) -> Reference:
        """What drift of the calibrators in service is measured from."""
        live = {}
        for place in places(snapshot.config):
            state = self._states.get(place.name)
            sha256 = of(None if state is None else state.live, place.name)
            known = None if sha256 is None else self._artifacts.get(sha256)
            if not place.first and known is not None and snapshot.tiers[place.tier].calibrator_id == known.label:
                live[place.tier] = known
        written = snapshot.reference.written or snapshot.reference
        labels = tuple(artifact.label for artifact in live.values())
        if self._renewed is None or self._renewed[0] is not written or self._renewed[1] != labels:
            try:
                made = await asyncio.to_thread(renewed, written, live, self.rollouts.registry)
            except (GatewayError, ArtifactError, OSError) as error:
                log.error("drift of what rollouts put in service is not watched", extra={"why": str(error)})
                made = written
            self._renewed = written, labels, made
        return self._renewed[2]

    def _worn(self, tier: str) -> Tier | None:
        return None if self._snapshot is None else self._snapshot.tiers.get(tier)

    async def _state(self, place: Place) -> State | None:
        """The latest that could be read; None where there never was one."""
        name = place.name
        try:
            state = await asyncio.to_thread(self._read, place)
        except (GatewayError, ArtifactError, OSError) as error:
            self._say(name, str(error))
            return self._states.get(name)
        if self._states.get(name) != state:
            self._unfit.pop(name, None)
        if self._broken.pop(name, None) is not None:
            log.warning("rollout readable again", extra={"tier": name})
        self._metrics.broken(name, broken=False)
        self._metrics.at(name, state.stage)
        self._states[name] = state
        return state

    def _read(self, place: Place) -> State:
        """For a thread."""
        state = self.rollouts.state(place.name)
        if state is None:
            first = artifacts.load(place.calibrator)
            return self.rollouts.begin(place.name, first, who=self._who, at=self._wall())
        self._notice(place)
        return state

    def _notice(self, place: Place) -> None:
        """Says once when the file names a calibrator that no rollout has seen, since that serves it to nobody; or puts
        it on trial."""
        with contextlib.suppress(ArtifactError, OSError):  # what is wrong with it is said where it is loaded
            now = (place.calibrator, place.calibrator.stat().st_mtime_ns)
            if self._in_file.get(place.name) == now:
                return
            self._in_file[place.name] = now
            artifact = artifacts.load(place.calibrator)
            if artifact.sha256 in self.rollouts.registry.hashes():
                return
            if self._rules.new_in_file == "shadow":
                self._offer(place, artifact)
            else:
                offer = f"confgate rollout offer {place.name} FILE --why ..."
                told = f"its rollouts say what is; `{offer}` puts this one on trial"
                facts = {"tier": place.name, "calibrator": artifact.label, "why": told}
                log.warning("the file's calibrator is not in service", extra=facts)

    def _offer(self, place: Place, artifact: Artifact) -> None:
        told = {"tier": place.name, "calibrator": artifact.label}
        try:
            place.check(artifact)
            self.rollouts.offer(place.name, artifact, who=self._who, at=self._wall(), why="the configuration names it")
        except (RolloutRefused, ArtifactError) as error:
            log.warning("the file's calibrator is not put on trial", extra=told | {"why": str(error)})
        else:
            log.warning("the file's calibrator is on trial", extra=told)

    async def _dressed(self, place: Place, tier: Tier, state: State, config: Config) -> tuple[Tier, int, str]:
        """The tier as a place's rollout wants it, how many first tokens it judges, and why it runs without a
        calibrator, "" where it has one."""
        why, tokens, name = "", 0, place.name
        live = of(state.live, name)
        if live is None:
            found, why = bared(tier), SAFE
        elif (name, live) in self._mismatches:
            found, why = bared(tier), f"{OTHER}: {self._mismatches[name, live]}"
        else:
            artifact = await self._artifact(live)
            found, tokens = await self._wearing(place, tier, artifact, config), prefix_tokens(artifact)
        candidate = of(state.candidate, name)
        if candidate is None or name in self._unfit or (name, candidate) in self._mismatches:
            return found, tokens, why
        try:
            artifact = await self._artifact(candidate)
            rival = await self._wearing(place, tier, artifact, config)
            if tokens not in (0, prefix_tokens(artifact)):
                told = (
                    f"{artifact.label} was fitted on {prefix_tokens(artifact)} first tokens, the live one on {tokens}"
                )
                raise artifacts.ArtifactMismatch(f"{told}: they cannot be compared; fit on as many")
        except ArtifactError as error:
            self._unfit[name] = str(error)
            return found, tokens, why
        return replace(found, rival=Rival(rival, state.share)), tokens or prefix_tokens(artifact), why

    async def _wearing(self, place: Place, tier: Tier, artifact: Artifact, config: Config) -> Tier:
        """Raises what `with_calibrator` does, and EngineError when the server is not there to be compared with."""
        whole = self._worn(place.tier)
        known = None if whole is None else place.seen(whole)
        for worn in (tier, known, *(one.rival.tier for one in (tier, known) if one is not None and one.rival)):
            if worn is not None and worn.calibrator_id == artifact.label and worn.engine is tier.engine:
                return like(tier, worn)
        if config.signers:
            artifacts.verify(artifact, *map(bytes.fromhex, config.signers))
        place.check(artifact)
        served = await identity(tier.engine, 0.0)
        found = with_calibrator(bared(tier), artifact, served)
        if not place.first:
            check_early_abort(config, *learned(found))
        return found

    async def _artifact(self, sha256: str) -> Artifact:
        """Once read, it is kept: what becomes of the file later changes nothing here."""
        if sha256 not in self._artifacts:
            self._artifacts[sha256] = (await asyncio.to_thread(self.rollouts.registry.get, sha256)).artifact
        return self._artifacts[sha256]

    def _say(self, tier: str, why: str) -> None:
        self._metrics.broken(tier, broken=True)
        if self._broken.get(tier) != why:
            log.error("rollout cannot be followed; what ran before runs on", extra={"tier": tier, "why": why})
        self._broken[tier] = why

    # What is decided

    async def run(self) -> None:
        """For ever."""
        try:
            await self._run()
        finally:
            self._lock.release()

    async def _run(self) -> None:
        self._metrics.start(place.name for place in self._places())
        async with asyncio.TaskGroup() as group:
            group.create_task(self._probe_all())
            while True:
                await asyncio.sleep(self._rules.poll_seconds)
                try:
                    await self.turn()
                except Exception:  # what fails once must not end all later turns; nothing was changed, and it is told
                    log.exception("a turn of the rollouts failed")

    async def turn(self) -> None:
        """Put on what others have decided, and decide what is to be decided here."""
        await self.redress()
        if not self._lock.ours():
            return
        for place in self._places():
            state = self._states.get(place.name)
            if state is not None and place.name not in self._broken:
                await self._judge(place, state)

    def _places(self) -> Sequence[Place]:
        return () if self._snapshot is None else places(self._snapshot.config)

    @property
    def names(self) -> list[str]:
        """Of all that has a rollout."""
        return [place.name for place in self._places()]

    async def _judge(self, place: Place, state: State) -> None:
        tier, now = place.name, self._wall()
        try:
            showing = await self._showing(place, state)
        except StoreDown as error:
            log.warning("a rollout has no evidence yet", extra={"tier": tier, "why": error.why})
            return
        try:
            await asyncio.to_thread(showing.read, self._store, now)
        except StoreDown as error:
            log.warning("a rollout has no news of its evidence", extra={"tier": tier, "why": error.why})
        step = self._wanted(tier, state, showing, now)
        wants = None if step is None else {"action": str(step.action), "why": list(step.why)}
        shown = {"evidence": showing.evidence(now), "wants": wants}
        await asyncio.to_thread(self.rollouts.show, tier, state, shown)
        if step is None:
            return
        if showing.candidate:
            step = replace(step, facts={**step.facts, "tried": showing.candidate, "against": showing.live or "none"})
        if step.action in (Action.CANARY, Action.PROMOTE):
            if not self._rules.advance:
                return
            assert state.candidate is not None, "nobody else can go on"
            told = {"forecast": showing.promised(), "forecast_of": state.candidate.id}
            step = replace(step, facts={**step.facts, **told})
        with contextlib.suppress(RolloutRefused):  # somebody was faster: the next turn sees what is then
            await asyncio.to_thread(lambda: self.rollouts.take(tier, state, step, who=self._who, at=self._wall()))
            await self._stepped(tier, step.action, step.why)

    def _wanted(self, tier: str, state: State, showing: Showing, now: float) -> Step | None:
        if tier in self._unfit and state.candidate is not None:
            return Step(Action.REJECT, (self._unfit[tier],))
        limits = self._rules.limits()
        return rollout.next_step(state, health=showing.health(now), trial=showing.trial(), limits=limits, now=now)

    async def _showing(self, place: Place, state: State) -> Showing:
        tier = place.name
        known = self._showings.get(tier)
        assert self._snapshot is not None, "it was dressed before"
        thresholds = accepted_at(self._snapshot, place.tier)
        if known is not None and (known.state, known.thresholds) == (state, thresholds):
            return known
        live, candidate = of(state.live, tier), of(state.candidate, tier)
        config = self._snapshot.config
        made = Showing(
            place.tier,
            state,
            live="" if live is None else (await self._artifact(live)).label,
            candidate="" if candidate is None else (await self._artifact(candidate)).label,
            margins=self._rules.margins(),
            explored_only=self._rules.labels_of == "explored",
            thresholds=thresholds,
            forecast=await self._forecast(place, state, thresholds),
            accepted_error=self._rules.accepted_error,
            least_inclusion=None if config.exploration is None else config.exploration.share,
            settle_seconds=self._rules.settle_seconds,
            alpha=self._rules.alpha,
            policies=[name for name, policy in self._snapshot.policies.items() if isinstance(policy, Policy)],
        )
        self._showings[tier] = made
        return made

    async def _forecast(self, place: Place, state: State, thresholds: Mapping[str, float]) -> Mapping[str, float]:
        """What the deciding release would have done before it came, or else what its trial promised; {} for neither."""
        sha256 = of(state.deciding, place.name)
        if sha256 is None:
            return {}
        artifact = await self._artifact(sha256)

        def foreseen() -> Mapping[str, float]:
            alike = self.rollouts.registry.alike(artifact)
            told = forecast(self._store, place.tier, artifact, thresholds, alike=alike, until=state.since)
            return told or self.rollouts.forecast(place.name, state.deciding)

        return await asyncio.to_thread(foreseen)

    async def _stepped(self, tier: str, action: Action, why: tuple[str, ...]) -> None:
        head = (await asyncio.to_thread(self.rollouts.history, tier))[-1]
        told = {"tier": tier, "action": str(action), "why": list(why), "who": head.who, "audit_sha256": head.sha256}
        log.warning("rollout step", extra=told)
        self._metrics.stepped(tier, action)
        await self.redress()

    # What people ask

    async def act(self, tier: str, wish: Wish, *, who: str, why: str, artefact: str, share: float | None) -> None:
        """A step by hand, in service here when this returns. Raises what Rollouts.act does."""
        share = self._rules.share if share is None else share
        await asyncio.to_thread(
            lambda: self.rollouts.act(tier, wish, who=who, at=self._wall(), why=why, artefact=artefact, share=share)
        )
        done = {Wish.PROMOTE: Action.PROMOTE, Wish.ROLLBACK: Action.ROLLBACK, Wish.STOP: Action.REJECT,
                Wish.CANARY: Action.CANARY}.get(wish, Action.SHADOW)  # fmt: skip
        await self._stepped(tier, done, (why,))

    async def told(self) -> Json:
        """Every tier's rollout, and what there is to choose from."""
        return await asyncio.to_thread(self._told)

    def _told(self) -> Json:
        tiers = {place.name: self._place_told(place) for place in self._places()}
        return {"tiers": tiers, "artefacts": listed(self.rollouts)}

    def _place_told(self, place: Place) -> Json:
        name = place.name
        told = told_of(self.rollouts, name, self._states.get(name))
        worn = self._worn(place.tier)
        told["serving"] = None if worn is None else place.seen(worn).calibrator_id
        told["mismatch"] = next((why for (known, _), why in self._mismatches.items() if known == name), None)
        if name in self._broken:
            told["error"] = self._broken[name]
        return told

    # Whether servers are what they were

    async def _probe_all(self) -> None:
        """Tier after tier, each once a period, whichever worker comes to it."""
        while True:
            rules = self._rules.probe
            if rules is None:
                await asyncio.sleep(self._rules.poll_seconds)
                continue
            for place in self._places():
                try:
                    await self.probe(place)
                except Exception:
                    log.exception("a fingerprint could not be looked at", extra={"tier": place.name})
            await asyncio.sleep(rules.seconds * self._chance.uniform(0.5, 1.5))

    async def probe(self, place: Place) -> None:
        """Ask a tier's servers the one question, and compare with what was seen first under each of its calibrators."""
        name = place.name
        rules, tier, state = self._rules.probe, self._worn(place.tier), self._states.get(name)
        if rules is None or tier is None or state is None:
            return
        if not probing.may_ask(tier, asyncio.get_running_loop().time()):
            self._metrics.probed(name, "skipped")
            return
        shas = [sha for sha in (of(state.live, name), of(state.candidate, name)) if sha is not None]
        found = dict.fromkeys(shas, "")
        for server, engine in probing.servers(tier):
            try:
                seen = await probing.ask(engine, rules.tokens)
                if any([await self._differs(place.tier, server, sha, seen, rules.tolerance_nats) for sha in shas]):
                    seen = await probing.ask(engine, rules.tokens)  # one odd answer is no other model
            except (EngineError, TimeoutError):
                self._metrics.probed(name, "away")
                return
            for sha in shas:
                why = await self._differs(place.tier, server, sha, seen, rules.tolerance_nats)
                found[sha] = found[sha] or (f"{server}: {why}" if why and server else why)
        self._metrics.probed(name, "other" if any(found.values()) else "same")
        await self._matched(name, state, found)

    async def _differs(self, tier: str, server: str, sha256: str, seen: probing.Print, tolerance: float) -> str:
        first = await asyncio.to_thread(self._prints.first, tier, server, sha256, seen)
        return probing.difference(first, seen, tolerance)

    async def _matched(self, tier: str, state: State, found: Mapping[str, str]) -> None:
        """What a look at a tier's servers says of each of its calibrators, "" where they belong together."""
        before = {sha: self._mismatches.get((tier, sha), "") for sha in found}
        for sha, why in found.items():
            if why:
                self._mismatches[tier, sha] = why
            else:
                self._mismatches.pop((tier, sha), None)
        live = of(state.live, tier)
        self._metrics.mismatched(tier, mismatch=bool(live and found.get(live)))
        for sha, why in found.items():
            if bool(why) != bool(before[sha]):
                label = (await self._artifact(sha)).label
                event = "fingerprint mismatch" if why else "fingerprint matches again"
                (log.error if why else log.warning)(event, extra={"tier": tier, "calibrator": label, "why": why})
                await asyncio.to_thread(self._note_match, tier, state, sha, why)
        if any(bool(why) != bool(before[sha]) for sha, why in found.items()):
            await self.redress()

    def _note_match(self, tier: str, state: State, sha256: str, why: str) -> None:
        """In the audit log once, whichever worker saw it first."""
        action = "mismatch" if why else "match"
        latest = next(
            (
                event.action
                for event in reversed(self.rollouts.history(tier))
                if event.action in ("mismatch", "match") and event.facts.get("artefact") == sha256
            ),
            "match",
        )
        if latest != action:
            facts = {"artefact": sha256}
            with contextlib.suppress(RolloutRefused):
                course.note(
                    self.rollouts.course(tier), state, action, who=self._who, at=self._wall(),
                    why=(why or "it answers as it did at first",), facts=facts,
                )  # fmt: skip


class DecidingLock:
    """Held by the one process that reads labels and decides; the system lets go of it when that ends."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._handle = folder, -1

    def ours(self) -> bool:
        if self._handle >= 0:
            return True
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._folder / "deciding.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return False
        self._handle = handle
        return True

    def release(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def accepted_at(snapshot: Snapshot, tier: str) -> dict[str, float]:
    """By policy, at what p a tier's answers are served; without policies that it has the last word in."""
    return {
        name: one.threshold
        for name, policy in snapshot.policies.items()
        if isinstance(policy, Policy)
        for one in policy.tiers
        if one.name == tier and one.threshold is not None
    }


async def nothing() -> None:
    """What is done where nothing is served yet."""


def same(one: Tier, other: Tier) -> bool:
    """Whether two tiers of one engine have the same calibrators in the same parts."""

    def worn(tier: Tier) -> tuple[object, ...]:
        rival = tier.rival
        beside = (None, 0.0) if rival is None else (rival.tier.calibrator_id, rival.share)
        return (tier.calibrator_id, tier.calibrator is None, *beside)

    return worn(one) == worn(other)


def told_of(rollouts: Rollouts, tier: str, state: State | None) -> Json:
    """A tier's rollout as its log has it."""

    def label(sha256: str | None) -> str | None:
        if sha256 is None:
            return None
        try:
            return rollouts.registry.get(sha256).artifact.label
        except ArtifactError:
            return sha256[:12]

    state = state or State(live=None)
    try:
        events = rollouts.history(tier)[-SHOWN:]
        history = [
            {"at": event.at, "who": event.who, "action": event.action, "why": event.facts.get("why", [])}
            | {name: value for name, value in event.facts.items() if name not in ("why", "state")}
            for event in events
        ]
    except GatewayError as error:
        history = [{"error": str(error)}]
    told: Json = {
        "live": label(of(state.live, tier)),
        "stage": str(state.stage),
        "candidate": label(of(state.candidate, tier)),
        "share": state.share if state.stage is Stage.CANARY else None,
        "since": state.since,
        "earlier": [label(of(release, tier)) for release in reversed(state.good)],
        "evidence": {},
        "wants": None,
        "history": history,
    }
    return told | dict(rollouts.shown(tier, state))


def listed(rollouts: Rollouts) -> list[Json]:
    """Every artefact, one that is broken too."""
    rows: list[Json] = []
    for sha256 in rollouts.registry.hashes():
        try:
            kept = rollouts.registry.get(sha256)
        except ArtifactError as error:
            rows.append({"sha256": sha256, "error": str(error)})
            continue
        known = kept.lineage
        told = {"parent": known.parent, "who": known.who, "at": known.at, "why": known.why}
        rows.append({"sha256": sha256, "label": kept.artifact.label, "kind": kept.artifact.kind, **told})
    return rows
