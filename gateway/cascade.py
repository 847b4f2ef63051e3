"""answer(): the one loop over tiers, used by the HTTP endpoint and by offline replay alike."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np

from calibrators.base import CalibrationError
from gateway import confidence, policy
from gateway.attempts import Attempt, Stopped, as_due
from gateway.errors import (
    BadTrace,
    DeadlinePassed,
    EngineBarred,
    EngineError,
    EngineFull,
    EngineRefused,
    EngineSlow,
    EngineTooSmall,
    NoTierLeft,
)
from gateway.nouns import (
    HARMLESS,
    Answer,
    Ask,
    Completion,
    Cost,
    Earlier,
    Evidence,
    Hop,
    Mix,
    Policy,
    Prices,
    Reason,
    Source,
    Summary,
    Summed,
    Tier,
    TokenTrace,
    Verdict,
)
from gateway.resilience.guard import Call, Turn

Observer = Callable[[Hop], None]


def ignore(hop: Hop) -> None:
    """The observer of those who do not watch."""


async def answer(ask: Ask, route: Policy | Mix, note: Observer = ignore) -> Answer:
    """Ask the tiers in order; serve the first answer that is sure enough, or the last one.

    Of a mix, ask.decision draws the policy.

    Raises DeadlinePassed or NoTierLeft when no tier answered, EngineTooSmall when the prompt fits none of them,
    EngineFull when a tier has more to do than it may, and EngineRefused when one found the request itself at fault.
    """
    route = policy.drawn(route, ask.decision)
    hops: list[Hop] = []
    for position, tier in enumerate(route.tiers):
        last = position == len(route.tiers) - 1
        hop = await take_hop(ask, tier, earlier_answers(hops), last=last)
        hops.append(hop)
        note(hop)
        if hop.reason in (Reason.CONFIDENT, Reason.LAST):
            return Answer(tuple(hops), hop, served_reason(hop, route), route)
        if ends_the_request(hop):
            break
    return fall_back(hops, route)


async def with_siblings(found: Answer, ask: Ask, choices: int, note: Observer = ignore) -> Answer:
    """The answer with choices - 1 further samples of the tier that was served, each with its own confidence.

    A given seed is counted up, so that choices differ. Raises an engine's error when one of them fails, all of them
    noted.
    """
    tier = next(tier for tier in found.policy.tiers if tier.name == found.served.tier)
    earlier = earlier_answers(found.hops[: found.hops.index(found.served)])
    async with asyncio.TaskGroup() as group:
        turns = [
            group.create_task(take_hop(reseeded(ask, number), tier, earlier, last=True)) for number in range(1, choices)
        ]
    siblings = tuple(turn.result() for turn in turns)
    for hop in siblings:
        note(hop)
    for hop in siblings:
        if hop.error is not None:
            raise hop.error.bare()
    return replace(found, siblings=siblings)


def reseeded(ask: Ask, number: int) -> Ask:
    """The same ask for another sample."""
    if ask.sampling.seed is None:
        return ask
    seed = (ask.sampling.seed + number + 2**63) % 2**64 - 2**63  # counted on from the least after the largest
    return replace(ask, sampling=replace(ask.sampling, seed=seed))


async def take_hop(
    ask: Ask,
    tier: Tier,
    earlier: Sequence[Earlier],
    *,
    last: bool,
    must: bool | None = None,
    attempt: Attempt | None = None,
    judged: Judge | None = None,
) -> Hop:
    """One tier's turn: ask, measure, calibrate, decide.

    last: whatever it says is accepted.  must: nobody is left to ask after it; as `last` where that goes without saying.
    attempt: asks the engine, once or twice, and judged says what its answer is worth; where nothing is said, as_due and
    `judge`.
    """
    must = last if must is None else must
    now = asyncio.get_running_loop().time
    began = now()
    retried: list[EngineError] = []
    turns: list[Turn] = []
    call = Call(
        tier.engine.name,
        tier.patience_seconds,
        ask.deadline,
        must=must,
        retried=lambda error: retried.append(error.bare()),
    )
    needed = as_needed(ask, tier)
    put = attempt or as_due(tier, ask, last=last)

    def once(turn: Turn) -> Awaitable[Completion | Stopped]:
        turns.append(turn)
        return put(tier, replace(needed, fresh=True) if turn.fresh else needed, turn)

    def failed(reason: Reason, error: EngineError) -> Hop:
        cost = sum((charge(turn.prompt_tokens, turn.tokens, tier.prices) for turn in turns), Cost())
        return Hop(
            tier.name, reason, now() - began, tier.threshold, error=error.bare(), cost=cost, retried=tuple(retried)
        )

    try:
        completion = await tier.guard.take(once, call)
    except DeadlinePassed as error:
        return failed(Reason.DEADLINE, EngineSlow(tier.engine.name, error.waited_seconds))
    except EngineError as error:
        return failed(failure(error), error)
    threshold = None if last else tier.threshold
    first_at = turns[-1].first_at
    first_seconds = None if first_at is None else first_at - began
    if isinstance(completion, Stopped):
        hop = stopped(tier, completion)
        return replace(hop, seconds=now() - began, retried=tuple(retried), first_seconds=first_seconds)
    verdict = (judged or judge)(completion, tier, ask, earlier)
    other = None if judged is not None or tier.rival is None else tier.rival.tier
    return Hop(
        tier.name,
        policy.decide(verdict.p_correct, threshold, finish=completion.finish, null_reason=verdict.null_reason),
        now() - began,
        threshold,
        verdict.p_correct,
        verdict.features,
        completion,
        calibrator_id=tier.calibrator_id,
        cost=price(completion, tier.prices),
        note=verdict.note,
        null_reason=verdict.null_reason,
        retried=tuple(retried),
        rival_id="" if other is None else other.calibrator_id,
        rival_p=None if other is None else judge(completion, other, ask, earlier).p_correct,
        first_seconds=first_seconds,
        other_model=completion.other_model,
    )


def stopped(tier: Tier, given_up: Stopped) -> Hop:
    """The hop of an answer that was given up."""
    verdict = given_up.verdict or Verdict()
    because = f": {given_up.why}" if given_up.why else ""
    untold = "" if given_up.prompt_tokens else "; what the prompt took is not known"
    return Hop(
        tier.name,
        Reason.UNSURE if verdict.null_reason is None else verdict.null_reason,
        0.0,
        tier.threshold,
        verdict.p_correct,
        verdict.features,
        calibrator_id=tier.calibrator_id,
        cost=charge(given_up.prompt_tokens, given_up.tokens, tier.prices),
        note=verdict.note or f"given up after {given_up.tokens} tokens{because}{untold}",
        null_reason=verdict.null_reason,
        given_up=True,
        other_model=given_up.other_model,
    )


def as_needed(ask: Ask, tier: Tier) -> Ask:
    """The ask with the evidence that the tier's calibrators and the client need between them, and no more."""
    top_k, calibrated, window = tier.top_k, tier.calibrator is not None, tier.window
    if tier.rival is not None:
        other = tier.rival.tier
        top_k, calibrated = max(top_k, other.top_k), calibrated or other.calibrator is not None
        window = window if window == other.window else 0
    top_k, wanted = max(ask.top_k, top_k), ask.texts or calibrated
    if (top_k, wanted, window) == (ask.top_k, ask.evidence, ask.window):
        return ask
    return ask.wanting(top_k, evidence=wanted, window=window)


def judge(completion: Completion, tier: Tier, ask: Ask, earlier: Sequence[Earlier]) -> Verdict:
    """From a completion to a calibrated probability, or to the named reason why there is none."""
    if completion.finish.cut:
        return Verdict(null_reason=Reason.TRUNCATED, note=f"the answer was cut ({completion.finish})")
    if not completion.text.strip() and not completion.calls:
        return Verdict(null_reason=Reason.NO_EVIDENCE, note="the answer is empty")
    if tier.calibrator is None:
        return Verdict(null_reason=Reason.UNCALIBRATED, note="the tier has no valid calibrator")
    if strange := ask.needs and ask.needs - HARMLESS - tier.fitted_for:
        note = f"the calibrator was not fitted on requests with {', '.join(sorted(strange))}"
        return Verdict(null_reason=Reason.UNCALIBRATED, note=note)
    if not ask.sampling.draws_like(tier.sampling):
        return Verdict(null_reason=Reason.SAMPLER_CHANGED, note="the calibrator was fitted under another sampler")
    seen = completion.seen
    if seen is None:
        return Verdict(null_reason=Reason.NO_EVIDENCE, note=completion.no_trace)
    if tier.source is not None and not serves(seen.source, tier.source):
        note = f"the calibrator was fitted on {tier.source}, the engine sent {seen.source}"
        return Verdict(null_reason=Reason.NO_EVIDENCE, note=note)
    try:
        features = confidence.measure(tier.features, evidence(seen, completion.text, tier, earlier))
    except BadTrace as error:
        return Verdict(null_reason=Reason.NO_EVIDENCE, note=str(error))
    try:
        p_correct = float(tier.calibrator.predict(features.values[np.newaxis, :])[0])
    except CalibrationError as error:  # say, a feature that is undefined for this answer
        return Verdict(null_reason=Reason.NO_EVIDENCE, note=str(error), features=features)
    if not 0.0 <= p_correct <= 1.0:  # also catches NaN
        note = f"the calibrator gave {p_correct}"
        return Verdict(null_reason=Reason.NO_EVIDENCE, note=note, features=features)
    return Verdict(p_correct, features=features)


Judge = Callable[[Completion, Tier, Ask, Sequence[Earlier]], Verdict]


def evidence(seen: Summary | TokenTrace, text: str, tier: Tier, earlier: Sequence[Earlier]) -> Evidence | Summed:
    """What a tier's calibrator may look at. Raises BadTrace where that ends with a final number that is not found."""
    before = in_order(earlier, tier.after)
    if isinstance(seen, Summary):
        return Summed(seen, text, before)
    whole = Evidence(seen, text, before)
    return confidence.cut_after_answer(whole) if tier.cut else whole


def serves(sent: Source, fitted: Source) -> bool:
    """Whether evidence of one source may stand for another: candidates come with the very same chosen log-probs."""
    return sent is fitted or (sent is Source.TOP_LOGPROBS and fitted is Source.CHOSEN)


def failure(error: EngineError) -> Reason:
    """The hop's reason for an engine that did not deliver."""
    match error:
        case EngineTooSmall():
            return Reason.TOO_SMALL
        case EngineSlow():
            return Reason.SLOW
        case EngineRefused(status=429) | EngineFull():
            return Reason.RATE_LIMITED
        case EngineBarred():
            return Reason.BREAKER_OPEN
        case _:
            return Reason.FAILED


def price(completion: Completion, prices: Prices) -> Cost:
    """Tokens and money one completion cost."""
    return charge(completion.prompt_tokens, completion.completion_tokens, prices)


def charge(prompt_tokens: int, completion_tokens: int, prices: Prices) -> Cost:
    """So many tokens at these prices."""
    usd = prompt_tokens * prices.usd_per_mtok_in + completion_tokens * prices.usd_per_mtok_out
    return Cost(prompt_tokens, completion_tokens, usd / 1e6)


def ends_the_request(hop: Hop) -> bool:
    """Whether no further tier is asked: time is up, or this one is too busy, which is no reason to ask a dearer one.

    Raises the engine's error when it found the request itself at fault.
    """
    if isinstance(hop.error, EngineRefused) and hop.error.status in (400, 422):
        raise hop.error.bare()
    return hop.reason is Reason.DEADLINE or isinstance(hop.error, EngineFull)


def in_order(earlier: Sequence[Earlier], after: Sequence[str]) -> tuple[Earlier, ...]:
    """Earlier answers where a calibrator expects them: it counts tiers back, so one that was skipped or failed must not
    lend its place to another. It stands there silent. after: Tier.after; empty takes the answers as they are."""
    if not after:
        return tuple(earlier)
    said = {one.tier: one for one in earlier}
    return tuple(said.get(tier, Earlier(tier, "", None)) for tier in after)


def earlier_answers(hops: Sequence[Hop]) -> tuple[Earlier, ...]:
    """What the tiers before said, in the order they were asked; tiers that did not answer are left out."""
    return tuple([Earlier(hop.tier, hop.completion.text, hop.p_correct) for hop in hops if hop.completion is not None])


def served_reason(hop: Hop, route: Policy) -> Reason:
    """Why the client gets this answer: a bypass says so, and a last answer that is too unsure is flagged."""
    if route.bypass:
        return Reason.BYPASS
    if hop.reason is not Reason.LAST:
        return hop.reason
    if route.abstain_below is not None and (hop.p_correct is None or hop.p_correct < route.abstain_below):
        return Reason.ABSTAINED
    return Reason.BUDGET if route.curtailed else Reason.LAST


def fall_back(hops: Sequence[Hop], route: Policy) -> Answer:
    """No tier was sure and the last one failed: the surest earlier answer, marked as such, or the right error."""
    answered = [hop for hop in hops if hop.completion is not None]
    out_of_time = hops[-1].reason is Reason.DEADLINE
    if answered and route.serve_fallback:
        best = max(answered, key=lambda hop: (hop.p_correct is not None, hop.p_correct or 0.0))
        return Answer(tuple(hops), best, Reason.DEADLINE if out_of_time else Reason.FALLBACK, route)
    if isinstance(hops[-1].error, EngineFull):
        raise hops[-1].error.bare()
    if out_of_time:
        raise DeadlinePassed(sum(hop.seconds for hop in hops))
    too_small = [hop.error for hop in hops if isinstance(hop.error, EngineTooSmall)]
    if len(too_small) == len(hops):
        raise max(too_small, key=lambda error: error.window_tokens).bare()
    pauses = [hop.error.retry_after_seconds for hop in hops if isinstance(hop.error, EngineRefused | EngineBarred)]
    soonest = min((pause for pause in pauses if pause is not None), default=None)
    raise NoTierLeft([(hop.tier, hop.reason) for hop in hops], soonest, withheld=bool(answered))
