"""Answers that are passed on while they are made. Escalating and passing on at once exclude each other: see Mode.

What a client has seen binds: after an answer's first piece there is no retry, no other tier and no mixing. Until then
all is as for whole answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.cascade import (
    Observer,
    ends_the_request,
    fall_back,
    ignore,
    served_reason,
    take_hop,
)
from gateway.errors import BadTrace
from gateway.nouns import (
    Answer,
    Ask,
    Completion,
    Hear,
    Hop,
    Opening,
    Piece,
    Policy,
    Reason,
    Streaming,
    Tier,
    TokenTrace,
)
from gateway.resilience.guard import Turn


class Listener(Protocol):
    """Whom an answer is passed on to. `begin` is awaited once, before the first piece. Both raise GatewayError only."""

    async def begin(self, opening: Opening) -> None: ...

    async def hear(self, piece: Piece) -> None: ...


async def stream(tier: Tier, ask: Ask, hear: Hear) -> Completion:
    """An engine's answer piece by piece; of one that cannot stream, all at once."""
    if isinstance(tier.engine, Streaming):
        return await tier.engine.stream(ask, hear)
    completion = await tier.engine.complete(ask)
    if completion.text:
        await hear(all_of(completion))
    return completion


def all_of(completion: Completion) -> Piece:
    """A finished answer as one piece."""
    trace = completion.trace

    def part(start: int, stop: int) -> TokenTrace:
        if trace is None:
            raise BadTrace(completion.no_trace)
        return trace.part(start, stop)

    return Piece(completion.text, 0 if trace is None else trace.chosen.size, completion.model, part)


async def commit(ask: Ask, route: Policy, listener: Listener, note: Observer = ignore) -> Answer:
    """The policy's chosen tier, passed on from its first piece; its confidence comes at the end and changes nothing.

    Until the first piece, a tier that fails is followed by another: first the later ones, then, where the policy serves
    fallbacks, the earlier ones, dearest first. Raises as cascade.answer does; after the first piece, what went wrong.
    """
    hops: list[Hop] = []
    tiers = in_turn(route)
    for position, tier in enumerate(tiers):
        reason = opening_reason(route, tier)
        said = Said(listener, tier, reason, position + 1)
        hop = await take_hop(ask, tier, (), last=True, must=position == len(tiers) - 1, attempt=said.attempt)
        hops.append(hop)
        note(hop)
        if hop.error is not None and said.begun:
            raise hop.error
        if hop.completion is not None:
            if not said.begun:  # an empty answer is one, too
                await said.begin(hop.completion.model)
            told = served_reason(hop, route)
            return Answer(tuple(hops), hop, told if told is Reason.ABSTAINED else reason, route)
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
    """Why a committed tier answers: it was asked alone, it was chosen, or those that were chosen before it failed."""
    if route.bypass:
        return Reason.BYPASS
    return Reason.LAST if tier is in_turn(route)[0] else Reason.FALLBACK


class Said:
    """What one tier has told a listener."""

    def __init__(self, listener: Listener, tier: Tier, reason: Reason, tried: int) -> None:
        self._listener, self._tier, self._reason, self._tried = listener, tier, reason, tried
        self.begun = False

    async def attempt(self, tier: Tier, ask: Ask, turn: Turn) -> Completion:
        """Ask, and pass on what comes."""

        async def hear(piece: Piece) -> None:
            if not self.begun:
                await self.begin(piece.model)
                turn.go_on()
            await self._listener.hear(piece)

        return await stream(tier, ask, hear)

    async def begin(self, model: str) -> None:
        self.begun = True
        tier = self._tier
        await self._listener.begin(Opening(tier.name, model, self._reason, self._tried, None, None, tier.calibrator_id))
