"""Answers that are passed on while they are made. Escalating and passing on at once exclude each other: see Mode.

What a client has seen binds: after an answer's first piece there is no retry, no other tier and no mixing. Until then
all is as for whole answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from gateway.attempts import GivenUp, Stopped, stream
from gateway.cascade import (
    Observer,
    ends_the_request,
    fall_back,
    ignore,
    judge,
    served_reason,
    take_hop,
)
from gateway.errors import BadTrace
from gateway.nouns import (
    Answer,
    Ask,
    Completion,
    Earlier,
    Finish,
    Hop,
    Mode,
    Opening,
    Piece,
    Policy,
    Reason,
    Tier,
    Verdict,
)
from gateway.policy import decide
from gateway.resilience.guard import Turn


class Listener(Protocol):
    """Whom an answer is passed on to. `begin` is awaited once, before the first piece."""

    @property
    def begun(self) -> bool: ...

    async def begin(self, opening: Opening) -> None: ...

    async def hear(self, piece: Piece) -> None: ...


async def commit(ask: Ask, route: Policy, listener: Listener, note: Observer = ignore) -> Answer:
    """The policy's chosen tier, passed on from its first piece; its confidence comes at the end and changes nothing.

    Until the first piece, a tier that fails is followed by another: first the later ones, then, where the policy serves
    fallbacks, the earlier ones, dearest first. Raises as cascade.answer does; after the first piece, what went wrong.
    """
    hops: list[Hop] = []
    tiers = in_turn(route)
    for position, tier in enumerate(tiers):
        told = Opening(tier.name, "", opening_reason(route, tier), position + 1, None, None, tier.calibrator_id)
        hop = await pass_on(ask, tier, told, listener, must=position == len(tiers) - 1)
        hops.append(hop)
        note(hop)
        answer = passed(hops, route, listener, told.reason)
        if answer is not None:
            return answer
        if ends_the_request(hop):
            break
    return fall_back(hops, route)


async def prefix(ask: Ask, route: Policy, listener: Listener, note: Observer = ignore) -> Answer:
    """Each tier's first tokens are held and decided on; the first that is sure enough, or the last tier, is passed on.

    A tier without a calibrator for first tokens is not asked, unless it is the last: it could not be accepted. An
    answer that was complete before its decision may still be the fallback, and is then left to the caller to tell.
    Raises as `commit` does.
    """
    hops: list[Hop] = []
    for position, tier in enumerate(route.tiers):
        tried = position + 1
        if position == len(route.tiers) - 1:
            told = Opening(tier.name, "", last_reason(route), tried, None, None, tier.calibrator_id)
            hop = await pass_on(ask, tier, told, listener, must=True)
        elif tier.prefix is None:
            why = "the tier has no calibrator for first tokens"
            hop = Hop(tier.name, Reason.UNCALIBRATED, 0.0, tier.threshold, note=why, null_reason=Reason.UNCALIBRATED)
        else:
            judge_tier = replace(tier.prefix.tier, threshold=tier.threshold)
            hop = await Held(listener, tier.prefix.tokens, tried).take(ask, judge_tier)
        hops.append(hop)
        note(hop)
        answer = passed(hops, route, listener, served_reason(hop, route))
        if answer is not None:
            return answer
        if ends_the_request(hop):
            break
    return fall_back(hops, route)


def in_turn(route: Policy) -> Sequence[Tier]:
    """The tiers of commit mode, the chosen one first."""
    names = [tier.name for tier in route.tiers]
    chosen = names.index(route.commit_to) if route.commit_to in names else len(names) - 1
    earlier = route.tiers[:chosen][::-1] if route.serve_fallback else ()
    return (*route.tiers[chosen:], *earlier)


def opening_reason(route: Policy, tier: Tier) -> Reason:
    """Why a committed tier answers: it was asked alone, it was chosen or is the last that there is money for, or those
    that come before it failed."""
    if route.bypass:
        return Reason.BYPASS
    if tier is not in_turn(route)[0]:
        return Reason.FALLBACK
    return Reason.LAST if tier.name == route.commit_to else last_reason(route)


def last_reason(route: Policy) -> Reason:
    """Why the last tier answers, as far as that is known before it does."""
    if route.bypass:
        return Reason.BYPASS
    return Reason.BUDGET if route.curtailed else Reason.LAST


def passed(hops: Sequence[Hop], route: Policy, listener: Listener, reason: Reason) -> Answer | None:
    """The answer, when the last hop's was passed on. Raises its error when it broke off in the midst."""
    if not listener.begun:
        return None
    hop = hops[-1]
    if hop.error is not None:
        raise hop.error.bare()
    told = served_reason(hop, route)
    return Answer(tuple(hops), hop, told if told is Reason.ABSTAINED else reason, route)


async def pass_on(ask: Ask, tier: Tier, told: Opening, listener: Listener, *, must: bool) -> Hop:
    """One tier's turn, passed on whatever it says. told: without the model, which the first piece names."""

    async def attempt(tier: Tier, ask: Ask, turn: Turn) -> Completion:
        async def hear(piece: Piece) -> None:
            if not listener.begun:
                turn.go_on()
                await listener.begin(replace(told, model=piece.model))
            await listener.hear(piece)

        completion = await stream(tier, ask, turn, hear)
        if not listener.begun:  # an empty answer is one, too
            turn.go_on()
            await listener.begin(replace(told, model=completion.model))
        return completion

    return await take_hop(ask, tier, (), last=True, must=must, attempt=attempt)


class Held:
    """One tier's turn, of which the first tokens are held until they are decided on.

    tier, in `take`: with the calibrator of first tokens, and the threshold of the policy's step.
    """

    def __init__(self, listener: Listener, tokens: int, tried: int) -> None:
        self._listener, self._tokens, self._tried = listener, tokens, tried
        self._pieces: list[Piece] = []
        self._verdict: Verdict | None = None
        self._rival_p: float | None = None

    async def take(self, ask: Ask, tier: Tier) -> Hop:
        hop = await take_hop(ask, tier, (), last=False, attempt=self._attempt, judged=self._judged)
        if tier.rival is not None and hop.error is None:
            hop = replace(hop, rival_id=tier.rival.tier.calibrator_id, rival_p=self._rival_p)
        if hop.completion is None or (hop.reason is not Reason.CONFIDENT and not self._listener.begun):
            return hop
        if not self._listener.begun:  # it was complete before so many tokens had come
            await self._tell(hop.completion.model, tier, hop.p_correct)
        return replace(hop, reason=Reason.CONFIDENT, null_reason=None)  # whatever became of the rest

    async def _attempt(self, tier: Tier, ask: Ask, turn: Turn) -> Completion | Stopped:
        self._pieces, self._verdict, self._rival_p = [], None, None

        async def hear(piece: Piece) -> None:
            if self._verdict is not None:
                await self._listener.hear(piece)
                return
            self._pieces.append(piece)
            if piece.ends or piece.tokens < self._tokens:
                return
            self._verdict = verdict = self._judge_first(piece, tier, ask, Finish.STOP)
            p_correct, threshold = verdict.p_correct, tier.threshold
            if (
                decide(p_correct, threshold, finish=Finish.STOP, null_reason=verdict.null_reason)
                is not Reason.CONFIDENT
            ):
                raise GivenUp
            turn.go_on()
            await self._tell(piece.model, tier, p_correct)

        try:
            return await stream(tier, ask, turn, hear)
        except GivenUp:
            assert self._verdict is not None, "nobody gives up before he has decided"
            last = self._pieces[-1]
            return Stopped(self._verdict, last.tokens, last.prompt_tokens, other_model=last.other_model)

    def _judge_first(self, piece: Piece, tier: Tier, ask: Ask, finish: Finish) -> Verdict:
        """On the first tokens, as if nothing came after them but the end."""
        try:
            trace, why = piece.evidence(self._tokens), ""
        except BadTrace as error:
            trace, why = None, str(error)
        text = "" if trace is None else b"".join(trace.tokens).decode("utf-8", "replace")
        held = Completion(text or "?", finish, 0, self._tokens, tier.name, piece.model, 0.0, trace, why)
        return self._judge_both(held, tier, ask, ())

    def _judged(self, completion: Completion, tier: Tier, ask: Ask, earlier: Sequence[Earlier]) -> Verdict:
        """Of an answer that was passed on, the verdict that it was passed on by; of one that was complete before, on as
        much of it as the calibrator was fitted on."""
        if self._verdict is not None:
            return self._verdict
        if self._pieces and self._pieces[-1].tokens >= self._tokens:
            return self._judge_first(self._pieces[-1], tier, ask, completion.finish)
        return self._judge_both(completion, tier, ask, earlier)

    def _judge_both(self, completion: Completion, tier: Tier, ask: Ask, earlier: Sequence[Earlier]) -> Verdict:
        """What is decided on; and what the rival makes of it is kept."""
        if tier.rival is not None:
            self._rival_p = judge(completion, tier.rival.tier, ask, earlier).p_correct
        return judge(completion, tier, ask, earlier)

    async def _tell(self, model: str, tier: Tier, p_correct: float | None) -> None:
        """What was held, and from now on everything."""
        opening = Opening(
            tier.name, model, Reason.CONFIDENT, self._tried, p_correct, tier.threshold, tier.calibrator_id
        )
        await self._listener.begin(opening)
        for piece in self._pieces:
            await self._listener.hear(piece)
        self._pieces.clear()


MODES = {Mode.COMMIT: commit, Mode.PREFIX: prefix}
