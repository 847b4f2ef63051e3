"""Ways of asking one engine once: for a whole answer, piece by piece, or for as long as it may still be accepted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from gateway import confidence
from gateway.errors import BadTrace
from gateway.nouns import (
    HARMLESS,
    TOLD_WHOLE,
    Ask,
    Completion,
    Evidence,
    Hear,
    Piece,
    Streaming,
    Tier,
    TokenTrace,
    Verdict,
)
from gateway.resilience.guard import Turn


@dataclass(frozen=True, slots=True, eq=False)
class Stopped:
    """An answer that was given up before its end. It is nobody's, but it was paid for.

    verdict: on what had come, None where no calibrator was asked.  tokens: how many had come.
    prompt_tokens: 0 where the engine had not told yet.  why: in words.  other_model: as in Completion.
    """

    verdict: Verdict | None
    tokens: int
    prompt_tokens: int
    why: str = ""
    other_model: bool = False


Attempt = Callable[[Tier, Ask, Turn], Awaitable[Completion | Stopped]]


class GivenUp(Exception):
    """What a listener raises who has heard that it is not worth while."""


def whole(tier: Tier, ask: Ask, _: Turn) -> Awaitable[Completion]:
    """One attempt for an answer that nobody hears before it is complete."""
    return tier.engine.complete(ask)


async def stream(tier: Tier, ask: Ask, turn: Turn, hear: Hear) -> Completion:
    """An engine's answer piece by piece; of one that cannot stream, all at once. The turn learns what was spent."""
    if isinstance(tier.engine, Streaming):

        async def count(piece: Piece) -> None:
            turn.spent(piece.prompt_tokens, piece.tokens)
            await hear(piece)

        return await tier.engine.stream(ask, count)
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

    tokens = 0 if trace is None else trace.chosen.size
    return Piece(completion.text, tokens, completion.model, part, no_evidence=completion.no_trace, ends=True)


def as_due(tier: Tier, ask: Ask, *, last: bool) -> Attempt:
    """How a tier is asked for an answer that nobody hears before it is decided on: whole, or watched where the policy
    gives up answers early and this one could be accepted at all."""
    if last or not tier.abort_epsilon or tier.early_abort is None or tier.threshold is None:
        return whole
    if ask.needs & TOLD_WHOLE:
        return whole
    bounds = tier.early_abort.at(tier.threshold, tier.abort_epsilon)
    able = isinstance(tier.engine, Streaming) and tier.calibrator is not None
    alike = ask.sampling.draws_like(tier.sampling) and not ask.needs - HARMLESS - tier.fitted_for
    if not bounds or not able or not alike:
        return whole
    return watched(tier.early_abort.feature, bounds)


def watched(feature: str, bounds: Mapping[int, float]) -> Attempt:
    """An attempt that ends as soon as the feature of the first tokens is at or under its bound.

    bounds: by number of tokens. An answer whose evidence cannot be read on the way is waited for, and one that is
    complete is decided on as it is.
    """

    async def attempt(tier: Tier, ask: Ask, turn: Turn) -> Completion | Stopped:
        due = sorted(bounds, reverse=True)
        given_up: list[Stopped] = []

        async def hear(piece: Piece) -> None:
            while due and not piece.ends and piece.tokens >= due[-1]:
                tokens = due.pop()
                value = running(feature, piece, tokens)
                if value is None:
                    due.clear()
                elif value <= bounds[tokens]:
                    why = f"{feature} of the first {tokens} tokens is {value:.4g}, given up at {bounds[tokens]:.4g}"
                    given_up.append(Stopped(None, piece.tokens, piece.prompt_tokens, why))
                    raise GivenUp

        try:
            return await stream(tier, ask, turn, hear)
        except GivenUp:
            return given_up[0]

    return attempt


def running(feature: str, piece: Piece, tokens: int) -> float | None:
    """The feature of so many first tokens; None where the engine does not tell their evidence."""
    try:
        trace = piece.evidence(tokens)
        return float(confidence.measure([feature], Evidence(trace, "")).values[0])
    except BadTrace:
        return None
