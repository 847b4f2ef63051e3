"""The way of a new calibrator: shadow, canary, live, and back. Decisions only; who acts on them is elsewhere.

In shadow it is computed and logged; as a canary it decides for a share of conversations; live, for all. Every step is
returned, so that it can be written to the audit log before anything is done. Criteria are those of science 7.4 and
failure-model 6: evidence for promotion comes from trusted labels, and so does evidence for going back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import log

from gateway.errors import ConfigError, RolloutRefused
from gateway.monitor.compare import MEASURES, Compared
from gateway.monitor.drift import binomial_tail
from gateway.monitor.labels import ErrorVerdict, Verdict

WEALTH_BACK = 100.0  # M_over; science 7.4
ESCALATION_BAND, ESCALATION_MINUTES = (0.5, 2.0), 15
CANARY_SHARE = 0.05  # of conversations, where nobody says otherwise
LEARNED = "it was on trial to be learned from; what is live stays"
RATE_ALPHA, RATE_ROWS = 1e-3, 200  # that a rate has doubled must be sure, too


class Stage(StrEnum):
    """Where the candidate stands."""

    NONE, SHADOW, CANARY = "none", "shadow", "canary"


class Action(StrEnum):
    """A step. SAFE: nothing is left to go back to, so all is put to the largest healthy tier."""

    SHADOW, CANARY, PROMOTE, REJECT, ROLLBACK, SAFE = "shadow", "canary", "promote", "reject", "rollback", "safe"


@dataclass(frozen=True, slots=True)
class Release:
    """What is put in service together: by tier, the hash of its artefact, and accept_at of all but the last tier."""

    artifacts: Mapping[str, str]
    thresholds: Mapping[str, float]

    @property
    def id(self) -> str:
        """12 hex digits."""
        told = repr((sorted(self.artifacts.items()), sorted(self.thresholds.items())))
        return hashlib.sha256(told.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class State:
    """live: in service, None in the safe state.  good: earlier ones that never had to go back, the newest last.

    candidate, stage: what is being tried.  since: when the stage, or without a candidate the live release, began;
    seconds since 1970.  share: of conversations that a canary decides for, 0 in every other stage.
    """

    live: Release | None
    good: tuple[Release, ...] = ()
    candidate: Release | None = None
    stage: Stage = Stage.NONE
    since: float = 0.0
    share: float = 0.0

    @property
    def deciding(self) -> Release | None:
        """The release that is to be judged: the candidate as a canary, else the live one."""
        return self.candidate if self.stage is Stage.CANARY else self.live


@dataclass(frozen=True, slots=True)
class Limits:
    """max_step: no promotion moves a threshold by more.  max_flips: share of decisions a canary may change in shadow.

    min_shadow: decisions seen in shadow before a canary.  min_labels: trusted ones, with both verdicts, before a
    promotion.  canary_share: of conversations.  max_seconds: a candidate that proves nothing for so long is rejected.
    """

    max_step: float = 0.05
    max_flips: float = 0.10
    min_shadow: int = 500
    min_labels: int = 200
    canary_share: float = CANARY_SHARE
    max_seconds: float = 14 * 86400.0
    alpha: float = 0.05

    def __post_init__(self) -> None:
        for name in ("max_step", "max_flips", "canary_share", "alpha"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} of a rollout lies in (0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Minute:
    """One minute of requests with evidence at their first tier. escalated: more than one tier was asked."""

    requests: int
    escalated: int


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something went without an answer or was cut, and how often it was forecast to."""

    name: str
    hits: int
    n: int
    forecast: float

    @property
    def doubled(self) -> bool:
        """At least twice the forecast, and sure not to be the forecast."""
        if self.n < RATE_ROWS or self.hits < 2 * self.forecast * self.n or self.hits == 0:
            return False
        return binomial_tail(self.hits, self.n, max(self.forecast, 1e-9)) < RATE_ALPHA


@dataclass(frozen=True, slots=True)
class Health:
    """What is known about the release that decides: the candidate as a canary, else the live one.

    honesty, errors: from trusted labels alone, of the release's own calibrators and of decisions made since it came: an
    alarm stays where it was raised, and must not bring down the next release as well.
    minutes: the latest ones, oldest first.  forecast: of the escalation share.
    mismatches: tiers whose server is another than their calibrator's.  Faulty hops are in none of it.
    """

    honesty: Sequence[Verdict] = ()
    errors: Sequence[ErrorVerdict] = ()
    minutes: Sequence[Minute] = ()
    forecast: float | None = None
    rates: Sequence[Rate] = ()
    mismatches: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Trial:
    """What the candidate showed. seen, flipped: decisions in shadow, and those it would have changed.

    paired: on trusted labels alone.  to_learn: what is compared is not to be promoted, whatever comes of it.
    """

    seen: int
    flipped: int
    paired: Compared
    to_learn: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done, and why, in words for the audit log. share: of conversations, of a step into canary."""

    action: Action
    why: tuple[str, ...]
    facts: Mapping[str, object] = field(default_factory=dict)
    share: float = CANARY_SHARE


def back(health: Health) -> tuple[str, ...]:
    """Every reason to go back now; () when there is none."""
    why = [
        f"{verdict.policy}/{verdict.tier} is over-confident: wealth e^{verdict.log_over:.1f} on {verdict.n:,} labels"
        for verdict in health.honesty
        if verdict.log_over >= log(WEALTH_BACK)
    ]
    why += [
        f"errors among accepted answers of {error.policy} are at least {error.low:.2%}, above {error.limit:.2%}"
        for error in health.errors
        if error.violated
    ]
    if health.forecast is not None and escalates_oddly(health.minutes, health.forecast):
        low, high = ESCALATION_BAND
        why.append(
            f"the escalated share was outside [{low:g}, {high:g}] times its forecast of {health.forecast:.1%} for "
            f"{ESCALATION_MINUTES} minutes"
        )
    why += [
        f"{rate.name}: {rate.hits} of {rate.n:,}, forecast {rate.forecast:.2%}" for rate in health.rates if rate.doubled
    ]
    why += [f"the server of {tier} is another than its calibrator's" for tier in health.mismatches]
    return tuple(why)


def escalates_oddly(minutes: Sequence[Minute], forecast: float) -> bool:
    """Each of the latest 15 minutes outside the band, with requests in each and 200 in all, and more than chance does:
    where one in a hundred escalates, none in a minute is below the band, and no news."""
    latest = minutes[-ESCALATION_MINUTES:]
    low, high = (factor * forecast for factor in ESCALATION_BAND)
    if len(latest) < ESCALATION_MINUTES or sum(minute.requests for minute in latest) < RATE_ROWS:
        return False
    shares = [minute.escalated / minute.requests for minute in latest if minute.requests]
    if len(shares) < len(latest):
        return False
    n, hits = sum(minute.requests for minute in latest), sum(minute.escalated for minute in latest)
    rate = min(max(forecast, 1e-9), 1 - 1e-9)
    few, many = binomial_tail(n - hits, n, 1 - rate) < RATE_ALPHA, binomial_tail(hits, n, rate) < RATE_ALPHA
    return (few and all(s < low for s in shares)) or (many and all(s > high for s in shares))


def next_step(state: State, *, health: Health, trial: Trial | None, limits: Limits, now: float) -> Step | None:
    """What the evidence asks for; None to go on as before. now: seconds since 1970."""
    why = back(health)
    if state.candidate is None or trial is None:
        return _away_from_live(state, why)
    if state.stage is Stage.CANARY and why:
        return Step(Action.REJECT, why)
    if state.stage is Stage.SHADOW and why and state.live is not None:
        return _away_from_live(state, why)
    harmful = trial.paired.harmful_in(limits.alpha)
    if trial.to_learn and state.stage is Stage.SHADOW:  # which does nobody harm, so it may take the labels it needs
        return _learned(trial, limits, late=now - state.since > limits.max_seconds)
    if harmful:
        return Step(Action.REJECT, (f"worse in {', '.join(harmful)}",), _facts(trial))
    if now - state.since > limits.max_seconds:
        return Step(Action.REJECT, (f"proved nothing in {limits.max_seconds / 86400:g} days",), _facts(trial))
    if state.stage is Stage.SHADOW:
        return _out_of_shadow(trial, limits)
    safe = trial.paired.safe_in(limits.alpha)
    if trial.to_learn:
        return _learned(trial, limits, late=False)
    if trial.paired.n >= limits.min_labels and len(safe) == 3:
        return Step(Action.PROMOTE, (f"no harm in {', '.join(safe)} on {trial.paired.n:,} labels",), _facts(trial))
    return None


def _learned(trial: Trial, limits: Limits, *, late: bool) -> Step | None:
    """The end of a trial that was to be learned from: it is proven worse, or no worse in anything, or time is up."""
    worse, safe = trial.paired.harmful_in(limits.alpha), trial.paired.safe_in(limits.alpha)
    known = trial.paired.n >= limits.min_labels and (bool(worse) or len(safe) == len(MEASURES))
    if not known and not late:
        return None
    unknown = [name for name in MEASURES if name not in (*worse, *safe)]
    kinds = (("worse in", worse), ("no worse in", safe), ("not known:", unknown))
    told = "; ".join(f"{words} {', '.join(names)}" for words, names in kinds if names)
    return Step(Action.REJECT, (f"{told}, on {trial.paired.n:,} labels", LEARNED), _facts(trial))


def _away_from_live(state: State, why: tuple[str, ...]) -> Step | None:
    if not why or state.live is None:
        return None
    return Step(Action.ROLLBACK if state.good else Action.SAFE, why)


def _out_of_shadow(trial: Trial, limits: Limits) -> Step | None:
    if trial.seen < limits.min_shadow:
        return None
    flips = trial.flipped / trial.seen
    if flips > limits.max_flips:
        told = f"it would change {flips:.1%} of decisions, more than {limits.max_flips:.1%}"
        return Step(Action.REJECT, (told,), _facts(trial))
    told = f"it changes {flips:.1%} of {trial.seen:,} decisions"
    return Step(Action.CANARY, (told,), _facts(trial), limits.canary_share)


def _facts(trial: Trial) -> dict[str, object]:
    widest = trial.paired.widest
    return {
        "seen": trial.seen,
        "flipped": trial.flipped,
        "labels": trial.paired.n,
        "mean": widest.mean,
        "interval": widest.interval,
    }


def offered(state: State, candidate: Release, limits: Limits) -> Step:
    """A new release for shadow. Raises RolloutRefused when another is under way, or a threshold would jump."""
    if state.candidate is not None:
        raise RolloutRefused(f"{state.candidate.id} is in {state.stage} already; promote, reject or wait for it")
    if state.live is not None:
        if candidate == state.live:
            raise RolloutRefused(f"{candidate.id} is what is live")
        jumps = moved(state.live, candidate, limits.max_step)
        if jumps:
            raise RolloutRefused(f"{'; '.join(jumps)}: more than {limits.max_step:g} in one release; go in steps")
    return Step(Action.SHADOW, (), {"candidate": candidate.id})


def moved(live: Release, candidate: Release, max_step: float) -> list[str]:
    """Thresholds that move by more than a step; one that comes or goes does."""
    found = []
    for tier in sorted(live.thresholds.keys() | candidate.thresholds.keys()):
        old, new = live.thresholds.get(tier), candidate.thresholds.get(tier)
        if old is None or new is None or abs(new - old) > max_step + 1e-12:
            found.append(f"accept_at of {tier} from {old} to {new}")
    return found


def after(state: State, step: Step, now: float, candidate: Release | None = None) -> State:
    """The state once a step is done. candidate: of a step into shadow.

    Raises RolloutRefused for a step that is not possible from here, such as one by hand that came too late.
    """
    trying = state.candidate is not None
    if step.action is Action.SHADOW and not trying and candidate is not None:
        return replace(state, candidate=candidate, stage=Stage.SHADOW, since=now)
    if step.action is Action.CANARY and trying and (state.stage, state.share) != (Stage.CANARY, step.share):
        if not 0 < step.share <= 1:
            raise RolloutRefused(f"a canary decides for a share in (0, 1] of conversations, got {step.share}")
        return replace(state, stage=Stage.CANARY, since=now, share=step.share)
    if step.action is Action.PROMOTE and trying:
        good = (*state.good, state.live) if state.live is not None else state.good
        return State(live=state.candidate, good=good, since=now)
    if step.action is Action.REJECT and trying:
        return replace(state, candidate=None, stage=Stage.NONE, since=now, share=0.0)
    if step.action is Action.ROLLBACK and state.good:
        return State(live=state.good[-1], good=state.good[:-1], since=now)
    if step.action is Action.SAFE:
        return State(live=None, good=state.good, since=now)
    raise RolloutRefused(
        f"{step.action} is not possible: the candidate is {state.candidate.id if state.candidate else 'none'} in stage "
        f"{state.stage}, and there are {len(state.good)} earlier releases"
    )
