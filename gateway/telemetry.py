"""What operators see: one JSON log line per hop, and Prometheus metrics. Never a prompt, never an answer's text.

Label values come from the configuration and from our own words only, so no client can grow the number of series.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple, TextIO

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gateway.errors import EngineFull, EngineRefused
from gateway.nouns import Answer, Hop, Tier
from gateway.tally import Count, Counts, Spread, Spreads

log = logging.getLogger("gateway.hop")

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SHARES = tuple(step / 20 for step in range(1, 21))
PREFIX = "confidence_gateway"
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FLUSH_SECONDS = 0.1  # for so long a log line may wait for others to be written with
SETTLE_SECONDS = 0.02  # for so long a hop may wait for others to be counted and logged with
TOGETHER = 32  # hops and ends of requests that are told at once, in less than a millisecond

# What every log record carries anyway, uvicorn's in colour too; the rest of its fields are ours.
USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName", "color_message"}
ENCODER = msgspec.json.Encoder(enc_hook=str)
BLANK = vars(logging.makeLogRecord({"name": log.name, "msg": "hop"}))  # what every hop's record has in common


class TierSeries(NamedTuple):
    """What every hop of a tier adds to."""

    seconds: Spread
    confidence: Spread
    prompt_tokens: Count
    completion_tokens: Count
    usd: Count
    retries: Count


class Telemetry:
    """Counters of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", told, labels, registry=registry)

        def histogram(name: str, told: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", told, labels, registry=registry, buckets=buckets)

        def counts(name: str, told: str, *labels: str) -> Counts:
            return Counts(f"{PREFIX}_{name}", told, labels, registry)

        def spreads(name: str, told: str, bounds: tuple[float, ...], *labels: str) -> Spreads:
            return Spreads(f"{PREFIX}_{name}", told, bounds, labels, registry)

        self._due: list[tuple[Callable[..., None], tuple[object, ...]]] = []
        self._waiting = False  # whether a loop will settle it
        self._tiers: dict[str, TierSeries] = {}
        self._requests = counts("requests", "requests by HTTP status and why the answer was served", "status", "reason")
        self._hops = counts("hops", "turns of tiers by how they ended", "tier", "reason")
        self._escalated = counter("escalated_requests", "requests that more than one tier was asked for")
        self._nulls = counter("null_confidence", "answers without a confidence, by why", "tier", "reason")
        self._other_model = counter("other_model_hops", "answers of another model than the tier's, by its name", "tier")
        self._clamped = counter("clamped_tokens", "tokens whose log-prob was the engine's floor", "tier")
        self._tokens = counts("tokens", "tokens by tier, rejected answers too", "tier", "kind")
        self._usd = counts("cost_usd", "money by tier, rejected answers too", "tier")
        self._confidence = spreads("confidence", "calibrated probability of each answer", SHARES, "tier")
        self._hop_seconds = spreads("hop_seconds", "duration of one tier's turn", SECONDS, "tier")
        self._seconds = spreads("request_seconds", "duration of one request", SECONDS).of()
        self._given_up = counter("given_up_hops", "answers given up before their end", "tier")
        self._first = histogram(
            "first_token_seconds", "of a stream, from the request to the first piece passed on", SECONDS, "mode"
        )
        self._retries = counts("retries", "second attempts, on a new connection or at another server", "tier")
        self._shed = counter("shed_requests", "turns refused because every seat of the tier was taken", "tier")
        self._guards = {
            name: Gauge(f"{PREFIX}_{name}", told, ["tier"], registry=registry)
            for name, told in {
                "breaker_open": "1 while a tier is left alone because it kept failing",
                "tier_in_flight": "questions with the tier",
                "tier_waiting": "questions waiting for a seat at the tier",
            }.items()
        }
        self.in_flight = 0  # whoever answers a request counts it here
        gauge = Gauge(f"{PREFIX}_in_flight", "requests being answered", registry=registry)
        gauge.set_function(lambda: self.in_flight)
        self._withheld = Gauge(
            f"{PREFIX}_calibrator_withheld", "1 where a tier runs without its calibrator", ["tier"], registry=registry
        )
        self._dropped = counter("dropped_decisions", "decisions that were never written to the store")
        self._labels = counter(
            "labels", "labels acknowledged, by who says so and what became of them", "source", "outcome"
        )
        self._store_up = Gauge(
            f"{PREFIX}_store_up", "0 while decisions cannot be written to the store", registry=registry
        )
        self._store_up.set(1)  # also where there is none
        self.store_trouble: Mapping[str, str] = {}
        self._store_broken = counter("store_broken", "times the store's file was found broken and moved aside")
        self._shadows = counter("shadow_hops", "turns of tiers asked in shadow by how they ended", "tier", "reason")
        self._shadow_usd = counter("shadow_cost_usd", "money for tiers asked in shadow, in no other figure", "tier")
        self._unexplored = counter(
            "unexplored_decisions", "decisions drawn to be explored that were not, by why", "why"
        )
        self._certificate_holds = Gauge(
            f"{PREFIX}_certificate_holds",
            "1 where a policy's certificate holds, 0 where it was withdrawn; no series without one",
            ["policy"],
            registry=registry,
        )

    def start(
        self, tiers: Mapping[str, Tier], withheld: Mapping[str, str], certificates: Mapping[str, bool] | None = None
    ) -> None:
        """Called whenever a snapshot comes into service; tiers it no longer has are forgotten.

        certificates: of the policies that carry one, whether it holds.
        """
        for gauge in (self._withheld, self._certificate_holds, *self._guards.values()):
            gauge.clear()
        for policy, holds in (certificates or {}).items():
            self._certificate_holds.labels(policy).set(holds)
        for name, tier in tiers.items():
            self._withheld.labels(name).set(name in withheld)
            self._watch("breaker_open", name, partial(getattr, tier.guard.breaker, "is_open"))
            self._watch("tier_in_flight", name, partial(getattr, tier.guard.bulkhead, "in_flight"))
            self._watch("tier_waiting", name, partial(getattr, tier.guard.bulkhead, "waiting"))

    def _watch(self, gauge: str, tier: str, look: Callable[[], float]) -> None:
        self._guards[gauge].labels(tier).set_function(look)

    def _of(self, tier: str) -> TierSeries:
        """A tier's, remembered."""
        known = self._tiers.get(tier)
        if known is None:
            known = self._tiers[tier] = TierSeries(
                self._hop_seconds.of(tier),
                self._confidence.of(tier),
                self._tokens.of(tier, "prompt"),
                self._tokens.of(tier, "completion"),
                self._usd.of(tier),
                self._retries.of(tier),
            )
        return known

    def note(self, hop: Hop, route_id: str) -> None:
        """One tier's turn. Told a moment later, together with others; of one that failed, now."""
        self._later(self._note, hop, route_id, time.time())
        if hop.error is not None:
            self.settle()

    def ended(self, status: int, reason: str, seconds: float) -> None:
        """One request, answered, refused or abandoned (499). reason: why the answer was served, "" for an error."""
        self._later(self._ended, status, reason, seconds)

    def _later(self, what: Callable[..., None], *facts: object) -> None:
        """Do it with others, a moment later, where an event loop runs: what is done together costs a third, as the
        processor need not fetch the same code for each request anew."""
        self._due.append((what, facts))
        if len(self._due) >= TOGETHER:
            self.settle()
        elif not self._waiting:
            try:
                asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._in_time)
                self._waiting = True
            except RuntimeError:  # no loop runs in this thread
                self.settle()

    def _in_time(self) -> None:
        self._waiting = False
        self.settle()

    def settle(self) -> None:
        """Count and log what has been noted; before anybody looks, and at the end."""
        due, self._due = self._due, []
        for what, facts in due:
            what(*facts)

    def _note(self, hop: Hop, route_id: str, at: float) -> None:
        of = self._of(hop.tier)
        self._hops.of(hop.tier, hop.reason).total += 1
        of.seconds.observe(hop.seconds)
        of.prompt_tokens.total += hop.cost.prompt_tokens
        of.completion_tokens.total += hop.cost.completion_tokens
        of.usd.total += hop.cost.usd
        if hop.retried:
            of.retries.total += len(hop.retried)
        if hop.given_up:
            self._given_up.labels(hop.tier).inc()
        if isinstance(hop.error, EngineFull):
            self._shed.labels(hop.tier).inc()
        if hop.p_correct is not None:
            of.confidence.observe(hop.p_correct)
        if hop.null_reason is not None:
            self._nulls.labels(hop.tier, hop.null_reason).inc()
        if hop.other_model:
            self._other_model.labels(hop.tier).inc()
        if hop.completion is not None and hop.completion.clamped_tokens:
            self._clamped.labels(hop.tier).inc(hop.completion.clamped_tokens)
        level = urgency(hop)
        if log.isEnabledFor(level):
            log.handle(record(level, at, fields(hop, route_id)))

    def served(self, answer: Answer) -> None:
        """How a request that got an answer went."""
        if len(answer.hops) > 1:
            self._escalated.inc()

    def _ended(self, status: int, reason: str, seconds: float) -> None:
        self._requests.of(str(status), reason).total += 1
        self._seconds.observe(seconds)

    def first_token(self, mode: str, seconds: float) -> None:
        """A stream has begun."""
        self._first.labels(mode).observe(seconds)

    def dropped(self, rows: int) -> None:
        """Decisions that no store will ever know."""
        self._dropped.inc(rows)

    def store_up(self, up: bool) -> None:
        """Whether the last write went well."""
        self._store_up.set(up)
        others = {name: why for name, why in self.store_trouble.items() if name != "unwritable"}
        self.store_trouble = others if up else others | {"unwritable": "decisions and labels cannot be kept"}

    def store_moved_aside(self, aside: Path) -> None:
        """The store's file was broken, and is kept under this name."""
        self._store_broken.inc()
        told = f"the store was broken and begun anew, without what it knew; it is kept as {aside.name}"
        self.store_trouble = {**self.store_trouble, "broken": told}

    def labelled(self, source: str, outcome: str) -> None:
        """One label, acknowledged."""
        self._labels.labels(source, outcome).inc()

    def shadowed(self, hop: Hop) -> None:
        """One tier's turn in shadow."""
        self._shadows.labels(hop.tier, hop.reason).inc()
        self._shadow_usd.labels(hop.tier).inc(hop.cost.usd)

    def unexplored(self, why: str) -> None:
        """A decision that was drawn, and not explored."""
        self._unexplored.labels(why).inc()

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        self.settle()
        return generate_latest(self.registry)


def urgency(hop: Hop) -> int:
    """A server that does not let us in is our own mistake and will not heal by itself, even where another one does."""
    errors = (hop.error, *hop.retried)
    if any(isinstance(error, EngineRefused) and error.status in (401, 403, 404) for error in errors):
        return logging.ERROR
    return logging.INFO if hop.error is None else logging.WARNING


def fields(hop: Hop, route_id: str) -> dict[str, object]:
    """What the log says about one hop."""
    told: dict[str, object] = {
        "route_id": route_id,
        "tier": hop.tier,
        "reason": str(hop.reason),
        "p_correct": hop.p_correct,
        "threshold": hop.threshold,
        "seconds": round(hop.seconds, 4),
        "prompt_tokens": hop.cost.prompt_tokens,
        "completion_tokens": hop.cost.completion_tokens,
        "calibrator": hop.calibrator_id,
    }
    if hop.null_reason is not None:
        told |= {"null_reason": str(hop.null_reason), "why": hop.note}
    if hop.rival_id:
        told |= {"rival": hop.rival_id, "rival_p": hop.rival_p}
    if hop.given_up:
        told |= {"given_up": True, "why": hop.note}
    if hop.retried:
        told["retried"] = [str(error) for error in hop.retried]
    if hop.error is not None:
        told["error"] = str(hop.error)
    return told


def record(level: int, at: float, told: Mapping[str, object]) -> logging.LogRecord:
    """A hop's log record, past a constructor that looks for threads, processes and source lines nobody is told of.

    at: seconds since 1970.
    """
    made = logging.LogRecord.__new__(logging.LogRecord)
    name = logging.getLevelName(level)
    vars(made).update(BLANK, levelno=level, levelname=name, created=at, told=told)
    return made


@lru_cache(maxsize=4)
def to_the_second(unix_seconds: int) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="seconds").removesuffix("+00:00")


class JsonLines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": f"{to_the_second(int(record.created))}.{int(record.created % 1 * 1000):03d}+00:00",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        fields = vars(record)
        told = fields.get("told")
        line |= told if isinstance(told, dict) else {name: fields[name] for name in fields if name not in USUAL}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        try:
            return ENCODER.encode(line).decode()
        except (UnicodeEncodeError, TypeError, ValueError, OverflowError):  # half a character, a key that is no word
            return json.dumps(line, default=str, skipkeys=True)


class Together(logging.StreamHandler[TextIO]):
    """Lines below a warning are written together where an event loop runs: the call to the system for each one would
    cost more than the line. What waits is written before a warning, by `flush`, and when the process ends."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._waiting: list[str] = []
        self._due = False  # whether a loop will write them

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._waiting.append(self.format(record))
            if record.levelno >= logging.WARNING or not self._can_wait():
                self.flush()
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)

    def _can_wait(self) -> bool:
        if not self._due:
            try:
                asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._in_time)
            except RuntimeError:  # no loop runs in this thread
                return False
            self._due = True
        return True

    def _in_time(self) -> None:
        self._due = False
        try:
            self.flush()
        except (OSError, ValueError):  # nobody reads us any more; as at the end of a process, nobody is told
            self._waiting.clear()

    def flush(self) -> None:
        with self.lock or nullcontext():
            waiting, self._waiting = self._waiting, []
            if waiting:
                self.stream.write("\n".join(waiting) + "\n")
            super().flush()


def log_to_stderr(level: str) -> None:
    """For a process that is ours alone: everything logged goes to stderr as JSON lines."""
    lines = Together(sys.stderr)
    lines.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[lines], force=True)
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # a line a second; that the store is gone is told by us
