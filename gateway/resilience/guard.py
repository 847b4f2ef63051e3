"""One tier's guard: who may ask it now, for how long, and what becomes of an attempt that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from gateway.errors import (
    DeadlinePassed,
    EngineBarred,
    EngineDown,
    EngineError,
    EngineFull,
    EngineGarbled,
    EngineRefused,
    EngineSlow,
)
from gateway.noun import noun
from gateway.resilience.breaker import Breaker, Entry, Rules
from gateway.resilience.budget import RetryBudget
from gateway.resilience.bulkhead import Bulkhead, Full
from gateway.resilience.limit import Limit
from gateway.resilience.pause import Pause

T = TypeVar("T")

SICK = (EngineDown, EngineGarbled, EngineSlow)
RETRY_AFTER_SECONDS = 1.0  # what to tell a client who found every seat taken


@dataclass(frozen=True, slots=True)
class Limits:
    """What one tier may bear. waiting_seconds: how long a call may wait for a seat."""

    in_flight: int = 64
    waiting: int = 32
    waiting_seconds: float = 5.0
    breaker: Rules = field(default_factory=Rules)


@noun(frozen=True, slots=True)
class Call:
    """One turn of a tier.

    engine: for messages.  patience_seconds: for both attempts together, counted from the seat.
    deadline: the request's own, seconds on the loop's clock.  must: nobody comes after this tier, so it is asked
    even when it is known to be failing, but each of its servers once.  retried: is told why a second attempt is made.
    """

    engine: str
    patience_seconds: float
    deadline: float
    must: bool
    retried: Callable[[EngineError], object]


class Turn:
    """One attempt. fresh: whether it must take a new connection; always so for a second one.

    prompt_tokens, tokens: of an answer that is heard piece by piece, so far; an attempt that fails was paid for, too.
    first_at: when its first piece came, seconds on the loop's clock; begun: is told then.
    """

    def __init__(self, limit: Limit, deadline: float, begun: Callable[[], object], *, fresh: bool) -> None:
        self.fresh = fresh
        self._limit, self._deadline, self._begun = limit, deadline, begun
        self.prompt_tokens = self.tokens = 0
        self.first_at: float | None = None

    def spent(self, prompt_tokens: int, tokens: int) -> None:
        """So much by now. prompt_tokens: 0 where the engine has not told."""
        if self.first_at is None:
            self.first_at = asyncio.get_running_loop().time()
            self._begun()
        self.prompt_tokens, self.tokens = max(self.prompt_tokens, prompt_tokens), tokens

    def go_on(self) -> None:
        """From now on the request's own deadline alone counts: somebody is reading along, at his own pace."""
        self._limit.reschedule(self._deadline)


class Guard:
    """Breaker, bulkhead, retry budget and pause of one tier; shared by every policy that asks it."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.breaker = Breaker(self.limits.breaker)
        self.bulkhead = Bulkhead(self.limits.in_flight, self.limits.waiting)
        self.budget = RetryBudget()
        self.pause = Pause()

    async def take(self, attempt: Callable[[Turn], Awaitable[T]], call: Call) -> T:
        """What an attempt gives. attempt: called twice at most.

        Raises the attempt's error; EngineRefused with 429 while the server wants to be left alone, EngineBarred while
        the breaker is open, EngineFull when no seat came free, EngineSlow when patience ended, and DeadlinePassed when
        the request's own deadline did.
        """
        now = asyncio.get_running_loop().time
        resting = self.pause.left(now())
        if resting:
            raise EngineRefused(call.engine, 429, "it wants to be left alone", resting)
        entry = self.breaker.enter(now())
        good: bool | None = None

        def begun() -> None:
            nonlocal entry
            entry = self.breaker.proven(entry, now())

        try:
            if entry is Entry.BARRED and not call.must:
                raise EngineBarred(call.engine, self.breaker.left(now()))
            answer = await self._seated(attempt, call, begun, once=entry is not Entry.FREE)
            good = True
            return answer
        except (EngineError, DeadlinePassed) as error:
            if isinstance(error, EngineRefused) and error.status == 429:
                self.pause.rest(error.retry_after_seconds, now())
            good = speaks_for(error, call)
            raise
        finally:
            self.breaker.leave(entry, good=good, now=now())

    async def _seated(
        self, attempt: Callable[[Turn], Awaitable[T]], call: Call, begun: Callable[[], object], *, once: bool
    ) -> T:
        """Wait for a seat, then ask, each for as long as is allowed."""
        now = asyncio.get_running_loop().time
        waits_until = now() + self.limits.waiting_seconds
        try:
            await self.bulkhead.take(min(waits_until, call.deadline))
        except Full:
            raise EngineFull(call.engine, RETRY_AFTER_SECONDS) from None
        except TimeoutError:
            if call.deadline <= waits_until:
                raise DeadlinePassed(0.0) from None
            raise EngineFull(call.engine, RETRY_AFTER_SECONDS) from None
        began = now()
        patience_ends = began + call.patience_seconds
        try:
            with Limit(min(patience_ends, call.deadline)) as limit:
                return await self._twice(attempt, call, partial(Turn, limit, call.deadline, begun), once=once)
        except TimeoutError:
            waited = now() - began
            if limit.when() != call.deadline:
                raise EngineSlow(call.engine, waited) from None
            raise DeadlinePassed(waited) from None
        finally:
            self.bulkhead.leave()

    async def _twice(
        self, attempt: Callable[[Turn], Awaitable[T]], call: Call, turn: Callable[..., Turn], *, once: bool
    ) -> T:
        """One attempt, and a second one when the connection was to blame, or one server of several, and the budget
        allows. This is the one place where anything is asked again.

        once: not over another connection. A single attempt takes a new one at once: an old one's death would be held
        against a healed server.
        """
        try:
            return await attempt(turn(fresh=once))
        except EngineError as error:
            again = error.elsewhere or (isinstance(error, EngineDown) and error.again and not once)
            if not again or not self.budget.take(self.bulkhead.in_flight):
                raise
            call.retried(error)
        try:
            return await attempt(turn(fresh=True))
        finally:
            self.budget.give_back()


def speaks_for(error: EngineError | DeadlinePassed, call: Call) -> bool | None:
    """Whether an error says that the server is well; None when it says nothing about it.

    One that refuses or limits is well: it answered as it should. A request whose time was nearly up when it came here
    says nothing, one that had half the tier's patience does: else a hung server would never be noticed where requests
    have less time than it.
    """
    if isinstance(error, DeadlinePassed):
        return False if error.waited_seconds >= call.patience_seconds / 2 else None
    if isinstance(error, EngineBarred | EngineFull):
        return None
    return not isinstance(error, SICK)
