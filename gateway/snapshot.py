"""From a configuration to a cascade that can be asked: engines opened, calibrators loaded and held against them."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from calibrators import artifact as artifacts
from gateway import confidence, engines
from gateway.config import Config, PolicyEntry, TierEntry
from gateway.errors import ConfigError, EngineDown, EngineError
from gateway.nouns import Engine, Policy, Prices, Source, Tier
from gateway.resilience.guard import Guard

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.5  # between looks at a server that is still loading; vLLM takes minutes

# What no server can tell: the first three are compared with every answer instead, the prompt is the client's own.
TOLD_BY_OTHERS = frozenset({"source", "k", "sampling", "prompt_template"})


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """One configuration, opened. A request uses one snapshot from start to end.

    tiers: without a threshold, for asking one directly.  policies: by name, `default` always there.
    withheld: tiers that run without their calibrator, and why.
    """

    config: Config
    tiers: Mapping[str, Tier]
    policies: Mapping[str, Policy]
    withheld: Mapping[str, str]


@asynccontextmanager
async def open_cascade(config: Config) -> AsyncIterator[Snapshot]:
    """Open everything a configuration names; close it again at the end.

    Raises ConfigError for a model that does not exist, and, unless on_bad_artifact is escalate, for a calibrator that
    is missing, broken or fitted on something else than what its engine serves.
    """
    async with open_engines(config) as opened:
        patience_ends = asyncio.get_running_loop().time() + config.server.start_seconds
        tiers: dict[str, Tier] = {}
        withheld: dict[str, str] = {}
        for entry in config.tiers:
            tier = bare_tier(entry, opened[entry.name])
            try:
                tiers[entry.name] = await calibrated(tier, entry, patience_ends)
            except (artifacts.ArtifactError, EngineError, ConfigError) as error:
                if config.on_bad_artifact == "refuse":
                    advice = "fix it, or set on_bad_artifact: escalate to run the tier without a confidence"
                    raise ConfigError(f"tier {entry.name}: {error} ({advice})") from error
                tiers[entry.name], withheld[entry.name] = tier, str(error)
                log.error("calibrator withheld", extra={"tier": entry.name, "why": str(error)})
        policies = {name: policy(name, entry, tiers) for name, entry in config.policies.items()}
        yield Snapshot(config, tiers, policies, withheld)


@asynccontextmanager
async def open_engines(config: Config) -> AsyncIterator[Mapping[str, Engine]]:
    """The engines alone, by tier name: what collecting needs before any calibrator exists."""
    async with AsyncExitStack() as stack:
        opened: dict[str, Engine] = {}
        for entry in config.tiers:
            engine = await engines.find(entry.engine.kind).open_engine(entry.engine, name=entry.name)
            stack.push_async_callback(engine.close)
            opened[entry.name] = engine
        yield opened


def bare_tier(entry: TierEntry, engine: Engine) -> Tier:
    """A tier that can answer, but says nothing about how sure it is."""
    prices = Prices(entry.prices.usd_per_mtok_in, entry.prices.usd_per_mtok_out)
    guard = Guard(entry.limits.limits())
    return Tier(entry.name, engine, prices=prices, patience_seconds=entry.patience_seconds, guard=guard)


async def calibrated(tier: Tier, entry: TierEntry, patience_ends: float) -> Tier:
    """The tier with its calibrator, when the artefact belongs to what the engine serves.

    patience_ends: until when a server may stay away, seconds on the loop's clock.
    Raises ArtifactError naming the difference, EngineError when the engine is not there to be compared with, and
    ConfigError when the artefact wants a feature that we do not have.
    """
    if entry.calibrator is None:
        return tier
    artifact = artifacts.load(entry.calibrator)
    served = await identity(tier.engine, patience_ends)
    unverified = artifact.check(served, dt.datetime.now(dt.UTC).date())
    silent = [field for field in unverified if field not in TOLD_BY_OTHERS]
    if silent:
        log.warning("fingerprint incomplete", extra={"tier": tier.name, "unverified": silent})
    return replace(
        tier,
        features=artifact.features,
        calibrator=artifact.calibrator(),
        calibrator_id=artifact.label,
        source=source(artifact),
        top_k=confidence.needs(artifact.features).top_k,
    )


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


def source(artifact: artifacts.Artifact) -> Source:
    """The kind of evidence an artefact was fitted on, under the one sampler that we serve with."""
    sampling, told = artifact.fingerprint.get("sampling", "greedy"), artifact.fingerprint["source"]
    if sampling != "greedy":
        raise artifacts.ArtifactMismatch(f"{artifact.label} was fitted under the sampler {sampling!r}, we ask greedily")
    if told not in tuple(Source):
        raise artifacts.ArtifactMismatch(f"{artifact.label} was fitted on {told!r}; we know {', '.join(Source)}")
    return Source(told)


def policy(name: str, entry: PolicyEntry, tiers: Mapping[str, Tier]) -> Policy:
    """A policy over tiers that exist; its thresholds are the steps'."""
    chain = tuple(replace(tiers[step.tier], threshold=step.accept_at) for step in entry.steps)
    return Policy(name, chain, entry.serve_fallback, entry.abstain_below)
