"""From a configuration to a cascade that can be asked: engines opened, calibrators loaded and held against them."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

from calibrators import artifact as artifacts
from gateway import confidence, engines
from gateway.certificate import Standing, Withdrawn, standing
from gateway.config import Config, PolicyEntry, TierEntry
from gateway.errors import ConfigError, EngineDown, EngineError
from gateway.monitor import reference as references
from gateway.monitor import tested
from gateway.monitor.reference import Reference
from gateway.nouns import Ability, EarlyAbort, Engine, Mix, Mode, Policy, Prefix, Prices, Source, Tier
from gateway.resilience.guard import Guard

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.5  # between looks at a server that is still loading; vLLM takes minutes

# What no server can tell: the first three are compared with every answer instead, the prompt is the client's own, and
# how much of an answer is measured is up to us.
PREFIX = "prefix"  # the span of artefacts fitted on the first k tokens is written prefix-k
NONE: Mapping[str, Withdrawn] = {}
TOLD_BY_OTHERS = frozenset({"source", "k", "sampling", "prompt_template", "span", "fields"})


# What of a tier comes with its calibrator; see with_calibrator
BROUGHT = (
    "features",
    "calibrator",
    "calibrator_id",
    "source",
    "top_k",
    "window",
    "after",
    "cut",
    "fitted_for",
    "early_abort",
)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """One configuration, opened. A request uses one snapshot from start to end.

    tiers: without a threshold, for asking one directly.  policies: by name, `default` always there.
    withheld: tiers that run without their calibrator, and why.  away: those of them whose server could not be asked
    who it is, which are looked at again.  engines: by tier, shared with the snapshot that comes after where it wants
    the same.
    certificates: of the policies that carry one, and whether it holds.  withdrawn: those of them that hold no longer
    since they were loaded.  reference: what drift is measured from.  tested: what a card measured offline.
    """

    config: Config
    tiers: Mapping[str, Tier]
    policies: Mapping[str, Policy | Mix]
    withheld: Mapping[str, str]
    away: frozenset[str] = frozenset()
    engines: Mapping[str, Shared] = field(default_factory=dict)
    certificates: Mapping[str, Standing] = field(default_factory=dict)
    withdrawn: Mapping[str, Withdrawn] = field(default_factory=dict)
    reference: Reference = references.NOTHING
    tested: Mapping[str, Any] | None = None


@dataclass(slots=True, eq=False)
class Shared:
    """An engine, and how many snapshots ask it. It is closed when the last one is."""

    engine: Engine
    options: engines.Options
    users: int = 0

    async def close(self) -> None:
        self.users -= 1
        if not self.users:
            await self.engine.close()


@asynccontextmanager
async def open_cascade(config: Config, before: Snapshot | None = None) -> AsyncIterator[Snapshot]:
    """Open everything a configuration names; close it again at the end.

    before: what is in service now. A tier that is the same in both keeps its engine, and its guard what it has learnt;
    a server that is away is not waited for.
    Raises ConfigError for a model that does not exist, and, unless on_bad_artifact is escalate, for a calibrator that
    is missing, broken or fitted on something else than what its engine serves; and for a certificate of another
    policy, when on_bad_certificate is refuse; and for a reference or a card that cannot be read.
    """
    path = config.monitors.reference
    reference = references.NOTHING if path is None else references.load(path)
    offline = None if config.monitors.card is None else tested.load(config.monitors.card)
    async with open_shared(config, before) as opened:
        patience_seconds = config.server.start_seconds if before is None else 0.0  # what is in service need not wait
        patience_ends = asyncio.get_running_loop().time() + patience_seconds
        tiers: dict[str, Tier] = {}
        withheld: dict[str, str] = {}
        away: set[str] = set()
        for entry in config.tiers:
            tier = bare_tier(entry, opened[entry.name].engine, before, config.server.workers)
            try:
                tiers[entry.name] = await calibrated(tier, entry, patience_ends, config.signers)
                check_early_abort(config, *learned(tiers[entry.name]))
            except (artifacts.ArtifactError, EngineError, ConfigError) as error:
                if config.on_bad_artifact == "refuse":
                    advice = "fix it, or set on_bad_artifact: escalate to run the tier without a confidence"
                    raise ConfigError(f"tier {entry.name}: {error} ({advice})") from error
                tiers[entry.name], withheld[entry.name] = tier, str(error)
                if isinstance(error, EngineError):
                    away.add(entry.name)
                log.error("calibrator withheld", extra={"tier": entry.name, "why": str(error)})
        policies, certificates = certified(config, tiers)
        for name, found in certificates.items():
            # a calibrator that is withheld, say while its server is away, is on_bad_artifact's to judge
            ours = found.holds or not withheld.keys().isdisjoint(step.tier for step in config.policies[name].steps)
            if config.on_bad_certificate == "refuse" and not ours:
                advice = "or set on_bad_certificate: withdraw to serve without it"
                raise ConfigError(f"the certificate of policy {name}: {found.why} ({advice})")
        yield Snapshot(config, tiers, policies, withheld, frozenset(away), opened, certificates, {}, reference, offline)


async def healed(snapshot: Snapshot) -> Snapshot:
    """The snapshot with the calibrators of servers that have come back; the very same one when nothing has changed. A
    file that cannot be read just then, say for want of descriptors, is looked for again like a server."""
    tiers, withheld, away = dict(snapshot.tiers), dict(snapshot.withheld), set(snapshot.away)
    for entry in snapshot.config.tiers:
        if entry.name in snapshot.away:
            try:
                better = await calibrated(tiers[entry.name], entry, 0.0, snapshot.config.signers)
                check_early_abort(snapshot.config, *learned(better))
            except (artifacts.ArtifactError, EngineError, ConfigError) as error:
                if withheld[entry.name] != str(error):
                    withheld[entry.name] = str(error)
                    log.error("calibrator withheld", extra={"tier": entry.name, "why": str(error)})
                if isinstance(error, EngineError | artifacts.ArtifactMissing):
                    continue  # else it is back, and another one
            else:
                tiers[entry.name] = better
                del withheld[entry.name]
                log.warning("calibrator no longer withheld", extra={"tier": entry.name})
            away.remove(entry.name)
    same = away == snapshot.away and withheld == snapshot.withheld
    return snapshot if same else changed(snapshot, tiers, withheld, away)


def changed(
    snapshot: Snapshot, tiers: Mapping[str, Tier], withheld: Mapping[str, str], away: Collection[str]
) -> Snapshot:
    """The snapshot with other tiers; policies and certificates are made anew from them."""
    policies, certificates = certified(snapshot.config, tiers, snapshot.withdrawn)
    return replace(
        snapshot, tiers=tiers, policies=policies, withheld=withheld, away=frozenset(away), certificates=certificates
    )


def without(snapshot: Snapshot, withdrawn: Mapping[str, Withdrawn]) -> Snapshot:
    """The snapshot with the certificates of these policies withdrawn, and no others but those that never held; the very
    same one when it is so already."""
    if withdrawn == snapshot.withdrawn:
        return snapshot
    policies, certificates = certified(snapshot.config, snapshot.tiers, withdrawn)
    return replace(snapshot, policies=policies, certificates=certificates, withdrawn=withdrawn)


@asynccontextmanager
async def open_shared(config: Config, before: Snapshot | None) -> AsyncIterator[Mapping[str, Shared]]:
    """Engines by tier name; those that `before` has under the same name and options are taken along."""
    async with AsyncExitStack() as stack:
        opened: dict[str, Shared] = {}
        for entry in config.tiers:
            known = before.engines.get(entry.name) if before is not None else None
            if known is None or known.options != entry.engine:
                engine = await engines.find(entry.engine.kind).open_engine(entry.engine, name=entry.name)
                known = Shared(engine, entry.engine)
            known.users += 1
            stack.push_async_callback(known.close)
            opened[entry.name] = known
        yield opened


@asynccontextmanager
async def open_engines(config: Config) -> AsyncIterator[Mapping[str, Engine]]:
    """The engines alone, by tier name: what collecting needs before any calibrator exists."""
    async with open_shared(config, None) as opened:
        yield {name: shared.engine for name, shared in opened.items()}


def bare_tier(entry: TierEntry, engine: Engine, before: Snapshot | None = None, workers: int = 1) -> Tier:
    """A tier that can answer, but says nothing about how sure it is. workers: that share its seats."""
    known = before.tiers.get(entry.name) if before is not None else None
    limits = entry.limits.limits(workers)
    same = known is not None and known.engine is engine and known.guard.limits == limits
    guard = known.guard if known is not None and same else Guard(limits)
    prices = Prices(entry.prices.usd_per_mtok_in, entry.prices.usd_per_mtok_out)
    abilities = entry.engine.abilities | {Ability(name) for name in entry.allows}
    return Tier(
        entry.name,
        engine,
        prices=prices,
        patience_seconds=entry.patience_seconds,
        guard=guard,
        abilities=abilities,
    )


def bared(tier: Tier) -> Tier:
    """The tier without what its calibrator of whole answers brought; it says nothing about how sure it is."""
    return like(tier, Tier(tier.name, tier.engine))


def like(tier: Tier, other: Tier) -> Tier:
    """The tier with the calibrator of whole answers that another one has."""
    return replace(tier, rival=None, **{name: getattr(other, name) for name in BROUGHT})


async def calibrated(tier: Tier, entry: TierEntry, patience_ends: float, signers: Sequence[str] = ()) -> Tier:
    """The tier with its calibrator, when the artefact belongs to what the engine serves.

    patience_ends: until when a server may stay away, seconds on the loop's clock.  signers: Config.signers.
    Raises ArtifactError naming the difference, EngineError when the engine is not there to be compared with, and
    ConfigError when the artefact wants a feature that we do not have.
    """
    paths = [path for path in (entry.calibrator, entry.prefix_calibrator) if path is not None]
    if not paths:
        return tier
    found = [artifacts.load(path, signers) for path in paths]
    served = await identity(tier.engine, patience_ends)
    if entry.calibrator is not None:
        artifact = found.pop(0)
        if artifact.fingerprint.get("span", "answer") != "answer":
            raise artifacts.ArtifactMismatch(f"{artifact.label} was fitted on first tokens: it is a prefix_calibrator")
        tier = with_calibrator(tier, artifact, served)
    if entry.prefix_calibrator is not None:
        [artifact] = found
        tokens = prefix_tokens(artifact)
        if not tokens:
            told = f"{artifact.label} was fitted on whole answers; `confgate fit --prefix` fits on first tokens"
            raise artifacts.ArtifactMismatch(told)
        tier = replace(tier, prefix=Prefix(tokens, with_calibrator(replace(tier, prefix=None), artifact, served)))
    return tier


def prefix_tokens(artifact: artifacts.Artifact) -> int:
    """How many first tokens an artefact was fitted on; 0 for whole answers."""
    span, _, tokens = artifact.fingerprint.get("span", "").partition("-")
    return int(tokens) if span == PREFIX and tokens.isdecimal() else 0


def with_calibrator(tier: Tier, artifact: artifacts.Artifact, served: Mapping[str, str]) -> Tier:
    """Raises what `calibrated` does."""
    unverified = artifact.check(served, dt.datetime.now(dt.UTC).date())
    silent = [field for field in unverified if field not in TOLD_BY_OTHERS]
    if silent:
        log.warning("fingerprint incomplete", extra={"tier": tier.name, "unverified": silent})
    seen, cut = source(artifact), artifact.fingerprint.get("span") == "answer"
    return replace(
        tier,
        features=artifact.features,
        calibrator=artifact.calibrator(),
        calibrator_id=artifact.label,
        source=seen,
        top_k=confidence.needs(artifact.features).top_k,
        window=confidence.window(artifact.features) if seen is Source.PLUGIN and not cut else 0,
        after=after(artifact),
        cut=cut,
        fitted_for=fitted_for(artifact),
        early_abort=early_abort(artifact),
    )


def fitted_for(artifact: artifacts.Artifact) -> frozenset[Ability]:
    """What beyond plain chat was in the requests that an artefact was fitted on: `fields`, with commas between."""
    told = [name for name in artifact.fingerprint.get("fields", "").split(",") if name]
    unknown = sorted(set(told) - set(Ability))
    if unknown:
        raise artifacts.ArtifactMismatch(f"{artifact.label} was fitted on requests with {', '.join(unknown)}")
    return frozenset(map(Ability, told))


def early_abort(artifact: artifacts.Artifact) -> EarlyAbort | None:
    """What an artefact says about giving answers up early; None where that was not learned."""
    if artifact.early_abort is None:
        return None
    told = cast(Mapping[str, Any], artifact.early_abort)
    confidence.find(told["feature"])
    return EarlyAbort(
        told["feature"],
        {
            (level["threshold"], level["epsilon"]): {row["tokens"]: row["at_most"] for row in level["bounds"]}
            for level in told["levels"]
            if level["bounds"]
        },
    )


def learned(tier: Tier) -> tuple[str, str, EarlyAbort | None, Source | None]:
    return tier.name, tier.calibrator_id, tier.early_abort, tier.source


def check_early_abort(config: Config, tier: str, label: str, known: EarlyAbort | None, sent: Source | None) -> None:
    """Raises ConfigError for a policy that gives up the tier's answers early where nothing says when.

    label, known, sent: of its artefact.
    """
    for name, entry in config.policies.items():
        for position, step in enumerate(entry.steps):
            if step.tier == tier and step.early_abort is not None and step.accept_at is not None:
                where = f"policies.{name}.steps[{position}].early_abort"
                if known is None:
                    told = f"{label} has not learned it; fit it with `confgate fit --early-abort`"
                    raise ConfigError(f"{where}: {told}")
                if sent is Source.PLUGIN:
                    raise ConfigError(f"{where}: an engine that computes confidence itself tells it at the end only")
                if not known.at(step.accept_at, step.early_abort):
                    have = ", ".join(f"{least:g} at {learned:g}" for learned, least in sorted(known.bounds))
                    told = f"nothing was learned for {step.early_abort:g} at {step.accept_at:g} or below"
                    raise ConfigError(f"{where}: {told}; {label} has {have or 'nothing at all'}")


async def identity(engine: Engine, patience_ends: float) -> Mapping[str, str]:
    """The engine's fingerprint, asked for until it can be had. Raises EngineError when patience ends."""
    now = asyncio.get_running_loop().time
    while True:
        try:
            return await engine.fingerprint()
        except EngineDown:
            if now() >= patience_ends:
                raise
        await asyncio.sleep(RETRY_SECONDS)


def after(artifact: artifacts.Artifact) -> tuple[str, ...]:
    """The earlier tiers that an artefact was fitted after; an older artefact does not say."""
    told = artifact.fit.get("after")
    return tuple(str(tier) for tier in told) if isinstance(told, list | tuple) else ()


def source(artifact: artifacts.Artifact) -> Source:
    """The kind of evidence an artefact was fitted on, under the one sampler that we serve with."""
    sampling, told = artifact.fingerprint.get("sampling", "greedy"), artifact.fingerprint["source"]
    if sampling != "greedy":
        raise artifacts.ArtifactMismatch(f"{artifact.label} was fitted under the sampler {sampling!r}, we ask greedily")
    if told not in tuple(Source):
        raise artifacts.ArtifactMismatch(f"{artifact.label} was fitted on {told!r}; we know {', '.join(Source)}")
    return Source(told)


def certified(
    config: Config, tiers: Mapping[str, Tier], withdrawn: Mapping[str, Withdrawn] = NONE
) -> tuple[dict[str, Policy | Mix], dict[str, Standing]]:
    """Every policy, and how the certificates stand of those that carry one; one that does not hold is logged.

    withdrawn: by policy, what has been found since the configuration was written.
    """
    plain: dict[str, Policy] = {}
    standings: dict[str, Standing] = {}
    for name, entry in config.policies.items():
        if entry.mix:
            continue
        plain[name] = policy(name, entry, tiers)
        if entry.certificate is not None:
            certificate = entry.certificate
            if certificate.withdrawn is None and name in withdrawn:
                certificate = certificate.model_copy(update={"withdrawn": withdrawn[name]})
            standings[name] = found = standing(certificate, plain[name])
            plain[name] = replace(plain[name], certified=found.holds)
            if not found.holds:
                log.warning("certificate withdrawn", extra={"policy": name, "why": found.why})
    return {name: plain[name] if name in plain else mixed(name, entry, plain) for name, entry in
            config.policies.items()}, standings  # fmt: skip


def policy(name: str, entry: PolicyEntry, tiers: Mapping[str, Tier]) -> Policy:
    """A policy over tiers that exist; its thresholds are the steps'."""
    chain = tuple(
        replace(tiers[step.tier], threshold=step.accept_at, abort_epsilon=step.early_abort or 0.0)
        for step in entry.steps
    )
    return Policy(
        name,
        chain,
        entry.serve_fallback,
        entry.abstain_below,
        stream_mode=Mode(entry.stream_mode),
        commit_to=entry.commit_to or "",
    )


def mixed(name: str, entry: PolicyEntry, plain: Mapping[str, Policy]) -> Mix:
    """A mix of policies that exist."""
    parts = tuple(plain[part.policy] for part in entry.mix)
    return Mix(name, parts, tuple(part.share for part in entry.mix), entry.mix_key)
