"""`confgate doctor`: ask every model server what a cascade needs to know of it, before a client does.

Unlike `check`, which reads files, this sends questions: a few dozen tokens per server. What no server can tell is said
to be unverified, never taken to be well.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from calibrators import artifact as artifacts
from gateway import cascade, confidence
from gateway.config import Config, TierEntry
from gateway.engines._replicas import Replicas
from gateway.errors import BadTrace, ConfigError, EngineError, EngineRefused
from gateway.http.auth import Keyring
from gateway.nouns import GREEDY, Ask, Completion, Engine, Message, Sampling, Summary, Tier, TokenTrace
from gateway.resilience.ledger import Ledger
from gateway.snapshot import TOLD_BY_OTHERS, Snapshot, open_cascade

SECONDS = 30.0  # for all questions to one server together; a 32B model says 64 tokens in three
TESTED_VLLM = (0, 33)
QUESTION = (Message("user", "Say the word apple forty times, with spaces between, and nothing else."),)
TOKENS = 48
TINY = Sampling(temperature=1.0, top_p=1e-4, seed=1)  # cuts all candidates but one, where log-probs are processed
FLOOR_NATS = -9000.0  # vLLM writes -9999 for -infinity
TIE_NATS = 0.01  # a choice that is so near the best was rounding's, in 16 bits


class Verdict(StrEnum):
    """warn: it works, and may not do what you think. unknown: nobody can tell from here."""

    GOOD, WARN, BAD, UNKNOWN = "good", "warn", "bad", "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. server: its address where a tier has several, else ""."""

    tier: str
    server: str
    check: str
    verdict: Verdict
    told: str

    def row(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": str(self.verdict)}


async def examine_config(config: Config, seconds: float = SECONDS) -> list[Finding]:
    """Everything about a configuration, opened as serving would, except that nothing stops it half way.

    Raises ConfigError for what no server is needed to know: a key that is not set, a model folder that is not there.
    """
    Keyring.of(config.keys)
    Keyring.of_admins(config)
    config.ids.seal(b"")
    Ledger(config.keys.ledger)
    lenient = config.model_copy(update={"on_bad_artifact": "escalate", "on_bad_certificate": "withdraw"})
    async with open_cascade(lenient) as snapshot:
        return await examine(snapshot, seconds)


async def examine(snapshot: Snapshot, seconds: float = SECONDS) -> list[Finding]:
    """Every tier of what is open, all at once."""
    async with asyncio.TaskGroup() as group:
        looks = [
            group.create_task(tier_findings(entry, snapshot.tiers[entry.name], snapshot.withheld, seconds))
            for entry in snapshot.config.tiers
        ]
    return [finding for look in looks for finding in look.result()]


def faults(findings: Sequence[Finding]) -> list[str]:
    """What is wrong, a line each."""
    return [
        f"{one.tier}{f' ({one.server})' if one.server else ''}: {one.check}: {one.told}"
        for one in findings
        if one.verdict is Verdict.BAD
    ]


async def tier_findings(entry: TierEntry, tier: Tier, withheld: Mapping[str, str], seconds: float) -> list[Finding]:
    found = [await calibrator_finding(entry, tier, withheld.get(entry.name), seconds)]
    servers = tier.engine.members if isinstance(tier.engine, Replicas) else [("", tier.engine)]
    for server, engine in servers:
        look = Look(entry.name, server, engine, tier)
        try:
            async with asyncio.timeout(seconds):
                await look.all()
        except TimeoutError:
            look.say("time", Verdict.BAD, f"the questions were not all answered within {seconds:g} s")
        found += look.findings
    return found


async def calibrator_finding(entry: TierEntry, tier: Tier, why_withheld: str | None, seconds: float) -> Finding:
    """Whether the calibrator belongs to what the server says it is, which it has so many seconds for."""

    def found(verdict: Verdict, told: str) -> Finding:
        return Finding(entry.name, "", "calibrator", verdict, told)

    if entry.calibrator is None:
        return found(Verdict.GOOD, "none is configured")
    if why_withheld is not None:
        return found(Verdict.BAD, why_withheld)
    try:
        artifact = artifacts.load(entry.calibrator)
        async with asyncio.timeout(seconds):
            served = await tier.engine.fingerprint()
        unverified = artifact.check(served, dt.datetime.now(dt.UTC).date())
    except EngineError as error:
        return found(Verdict.UNKNOWN, f"the server no longer says who it is: {error}")
    except TimeoutError:
        return found(Verdict.UNKNOWN, f"the server did not say again who it is within {seconds:g} s")
    except (artifacts.ArtifactError, ConfigError) as error:  # it was right when the cascade was opened
        return found(Verdict.BAD, str(error))
    silent = [field for field in unverified if field not in TOLD_BY_OTHERS]
    if silent:
        return found(
            Verdict.UNKNOWN, f"{artifact.label} is bound to what the server does not tell: {', '.join(silent)}"
        )
    return found(Verdict.GOOD, f"{artifact.label} belongs to this server")


def short(value: str) -> str:
    """Of a hash, as much as people compare."""
    return value[:12] if re.fullmatch(r"[0-9a-f]{40,}", value) else value


class Look:
    """At one server."""

    def __init__(self, tier: str, server: str, engine: Engine, wanted: Tier) -> None:
        self._tier, self._server, self._engine, self._wanted = tier, server, engine, wanted
        self.findings: list[Finding] = []

    def say(self, check: str, verdict: Verdict, told: str) -> None:
        self.findings.append(Finding(self._tier, self._server, check, verdict, told))

    async def all(self) -> None:
        """One thing after another; what depends on a thing that is not there is left out."""
        if not await self._reachable():
            return
        answered = await self._log_probs()
        if answered is not None and answered.seen is not None:
            await self._choices(answered)
            await self._raw()

    async def _reachable(self) -> bool:
        try:
            told = await self._engine.fingerprint()
        except EngineError as error:
            self.say("reachable", Verdict.BAD, str(error))
            return False
        self.say("reachable", Verdict.GOOD, ", ".join(f"{name} {short(value)}" for name, value in sorted(told.items())))
        if told.get("engine") == "vllm":
            self._version(told.get("engine_version", ""))
        return True

    def _version(self, told: str) -> None:
        parts = re.match(r"(\d+)\.(\d+)", told)
        tested = ".".join(map(str, TESTED_VLLM))
        if parts is None:
            self.say("version", Verdict.UNKNOWN, "the server does not tell its version")
        elif (int(parts[1]), int(parts[2])) < TESTED_VLLM:
            self.say("version", Verdict.WARN, f"vLLM {told} is older than {tested}, which this gateway is tested with")
        else:
            self.say("version", Verdict.GOOD, told)

    async def _log_probs(self) -> Completion | None:
        """A greedy answer with the evidence that the calibrator needs."""
        k = self._wanted.top_k
        needed = Verdict.BAD if self._wanted.calibrator is not None else Verdict.WARN
        try:
            answered = await self._ask(GREEDY, k, window=self._wanted.window)
        except EngineRefused as error:
            try:
                await self._ask(GREEDY, 0, evidence=False)
            except EngineError as without:
                self.say("answers", Verdict.BAD, str(without))
                return None
            advice = f"start it with --max-logprobs {max(k, 1)} or more"
            self.say("log-probs", needed, f"{error}; without log-probs it answers: {advice}")
            return None
        except EngineError as error:
            self.say("answers", Verdict.BAD, str(error))
            return None
        self.say("answers", Verdict.GOOD, f"{answered.completion_tokens} tokens in {answered.seconds:.2f} s")
        if answered.seen is None:
            self.say("log-probs", needed, answered.no_trace)
        elif why := self._unmeasured(answered.seen, answered.text):
            self.say("log-probs", needed, why)
        else:
            summed = isinstance(answered.seen, Summary)
            told = "its summary of each answer" if summed else f"{k} candidates per token"
            self.say("log-probs", Verdict.GOOD, f"{answered.seen.source}, {told}")
        return answered

    def _unmeasured(self, seen: Summary | TokenTrace, text: str) -> str:
        """What the calibrator lacks in such evidence, "" for nothing."""
        if self._wanted.cut:  # what such a one needs is in an answer that comes to a number, which this need not
            return ""
        try:
            confidence.measure(self._wanted.features, cascade.evidence(seen, text, self._wanted, ()))
        except BadTrace as error:
            return str(error)
        return ""

    async def _choices(self, answered: Completion) -> None:
        """A greedy choice that is not the likeliest token was changed by a penalty that we did not ask for."""
        trace = answered.trace
        if trace is None or trace.top is None:
            try:
                trace = (await self._ask(GREEDY, 1, texts=True)).trace
            except EngineError as error:
                self.say("sampler", Verdict.UNKNOWN, str(error))
                return
        if trace is None or trace.top is None:
            self.say("sampler", Verdict.UNKNOWN, "the server tells no candidates")
            return
        bent = int((trace.chosen < trace.top[:, 0] - TIE_NATS).sum())
        if bent:
            told = f"{bent} of {trace.chosen.size} greedy choices are not the likeliest token: the model's own defaults"
            self.say("sampler", Verdict.BAD, f"{told} are at work; start vLLM with --generation-config vllm")
        else:
            self.say("sampler", Verdict.GOOD, "greedy choices are the likeliest tokens")

    async def _raw(self) -> None:
        """Under a tiny top_p, processed log-probs are 0 for the chosen token and -infinity for all others."""
        try:
            answered = await self._ask(TINY, max(self._wanted.top_k, 2), texts=True)
        except EngineError as error:
            self.say("raw", Verdict.UNKNOWN, str(error))
            return
        trace = answered.trace
        floored = answered.clamped_tokens > 0 or (
            trace is not None and trace.top is not None and bool((trace.top < FLOOR_NATS).any())
        )
        certain = trace is not None and trace.chosen.size > 1 and not bool(trace.chosen.any())
        if floored or certain or trace is None:
            why = answered.no_trace or "a tiny top_p shows in the log-probs"
            self.say("raw", Verdict.BAD, f"{why}: they are not raw; start vLLM with --logprobs-mode raw_logprobs")
        else:
            self.say("raw", Verdict.GOOD, "a tiny top_p does not show in the log-probs")

    async def _ask(
        self, sampling: Sampling, k: int, *, evidence: bool = True, texts: bool = False, window: int = 0
    ) -> Completion:
        deadline = asyncio.get_running_loop().time() + SECONDS
        ask = Ask(QUESTION, deadline, max_tokens=TOKENS, sampling=sampling, top_k=k, evidence=evidence, window=window)
        return await self._engine.complete(replace(ask, texts=texts))
