"""Several servers of one model as one engine: the one with the least to do is asked, and a server that fails is left
alone for a while.

Each question goes to one server. Where that fails and another may do better, the error says so: a second attempt is
the guard's to make, out of the tier's retry budget. Health is judged by real traffic; a server that was away is asked
who it is before it is used again, because it may have come back as another one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from gateway.errors import ConfigError, EngineDown, EngineError, EngineGarbled, EngineRefused, EngineSlow
from gateway.nouns import Ask, Completion, Engine
from gateway.resilience.breaker import Breaker, Entry, Rules
from gateway.resilience.pause import Pause

log = logging.getLogger(__name__)

# One failure is enough where others can take over; then soon another look, ever later.
RULES = Rules(in_a_row=1, open_seconds=1.0, open_max_seconds=30.0)
ELSEWHERE = (401, 403, 404, 429)  # refusals that another server of the same model need not share

Json = dict[str, Any]


class Replica:
    """One server and what is known about it. verified: it has told who it is since it was last away."""

    def __init__(self, address: str, engine: Engine) -> None:
        self.address, self.engine = address, engine
        self.breaker, self.pause = Breaker(RULES), Pause()
        self.in_flight = 0
        self.verified = False
        self.fault = ""  # the last one, until it does well again

    def able(self, now: float) -> bool:
        """Whether nothing speaks against asking it. All times: seconds on the loop's clock."""
        return self.breaker.lets_in(now) and not self.pause.left(now)

    def left(self, now: float) -> float:
        """Seconds until it may be asked."""
        return max(self.breaker.left(now), self.pause.left(now))

    def state(self, now: float) -> Json:
        return {
            "url": self.address,
            "breaker": "open" if self.breaker.is_open else "closed",
            "barred_seconds": round(self.breaker.left(now), 3),
            "resting_seconds": round(self.pause.left(now), 3),
            "in_flight": self.in_flight,
            "verified": self.verified,
            "fault": self.fault or None,
        }


Put = Callable[[Replica, Callable[[], object]], Awaitable[Completion]]  # who is told when it begins to be heard


class Replicas:
    """An engine over engines. replicas: at least one; all with the same model behind.

    hung_seconds: given up after so long, a server counts as failing; sooner, its client may just have left.
    """

    def __init__(self, name: str, replicas: Sequence[Replica], hung_seconds: float) -> None:
        self.name, self._replicas, self._hung_seconds = name, tuple(replicas), hung_seconds
        self._agreed: Mapping[str, str] | None = None
        self._turn = 0

    @property
    def members(self) -> list[tuple[str, Engine]]:
        """Every server with its address."""
        return [(one.address, one.engine) for one in self._replicas]

    async def complete(self, ask: Ask) -> Completion:
        """One answer of one of them. Raises EngineError leaves only."""
        return await self._ask(lambda one, _: one.engine.complete(ask), ask)

    async def stream(self, ask: Ask, hear: Callable[[Any], Awaitable[None]]) -> Completion:
        """The same piece by piece; once a piece was heard, there is no other server."""

        def put(one: Replica, begun: Callable[[], object]) -> Awaitable[Completion]:
            async def listen(piece: Any) -> None:
                begun()
                await hear(piece)

            return cast(Awaitable[Completion], cast(Any, one.engine).stream(ask, listen))

        return await self._ask(put, ask)

    async def _ask(self, put: Put, ask: Ask) -> Completion:
        now = asyncio.get_running_loop().time
        one, entry = self._choose(now(), fresh=ask.fresh)
        began = now()
        heard = False
        good: bool | None = None

        def begun() -> None:
            nonlocal heard, entry
            if not heard:
                heard, entry = True, one.breaker.proven(entry, now())

        one.in_flight += 1
        try:
            if not one.verified:
                await self._verify(one)
            answer = await put(one, begun)
            good, one.fault = True, ""
            return answer
        except EngineError as error:
            good = True
            if isinstance(error, EngineRefused) and error.status == 429:
                one.pause.rest(error.retry_after_seconds or None, now())  # at once: others may still be better
                entry = one.breaker.proven(entry, now())  # it is well
                error.retry_after_seconds = min(one.left(now()) for one in self._replicas)
            elif its_own(error):
                good, one.fault = False, str(error)
                one.verified = False
            if its_own(error) and not heard:  # what a stream has begun, nobody else can end
                error.elsewhere = self._others(one, now())
                log.warning("a replica failed", extra={"tier": self.name, "url": one.address, "why": str(error)})
            raise
        except asyncio.CancelledError:
            if now() - began >= self._hung_seconds and not heard:
                good, one.fault = False, f"{self.name}: silent for {now() - began:.1f} s"
            raise
        finally:
            one.in_flight -= 1
            one.breaker.leave(entry, good=good, now=now())

    def _others(self, failed: Replica, now: float) -> bool:
        """Whether there are others that may be asked."""
        return any(one.able(now) for one in self._replicas if one is not failed)

    def _choose(self, now: float, *, fresh: bool) -> tuple[Replica, Entry]:
        """The one with the least to do of those that may be asked, one that is due for a look before all others; where
        none may, the one that may be soonest. fresh: others have failed, so those due for a look come last. Its breaker
        has been entered. Raises EngineRefused while it rests: only one that failed is asked all the same.
        """
        self._turn += 1
        offset = self._turn % len(self._replicas)
        around = (*self._replicas[offset:], *self._replicas[:offset])
        able = [one for one in around if one.able(now)]
        if able:
            chosen = min(able, key=lambda one: (one.breaker.is_open is fresh, one.in_flight))
        else:
            chosen = min(around, key=lambda one: one.left(now))
            if chosen.pause.left(now):
                raise EngineRefused(self.name, 429, "its servers want to be left alone", chosen.left(now))
        return chosen, chosen.breaker.enter(now)

    async def _verify(self, one: Replica) -> None:
        """Raises EngineGarbled for a server that is another than the rest."""
        told = await one.engine.fingerprint()
        if self._agreed is None:
            self._agreed = told
        difference = differs(self._agreed, told)
        if difference:
            log.error("replica is another", extra={"tier": self.name, "url": one.address, "why": difference})
            raise EngineGarbled(self.name, f"this replica is not like the others: {difference}")
        one.verified = True

    async def ready(self) -> bool:
        """Whether one of them is."""
        return any(await asyncio.gather(*(one.engine.ready() for one in self._replicas)))

    async def fingerprint(self) -> Mapping[str, str]:
        """What all that are there agree on. Raises ConfigError when they do not, EngineError when none is there."""
        told = await asyncio.gather(*(one.engine.fingerprint() for one in self._replicas), return_exceptions=True)
        there: list[tuple[Replica, Mapping[str, str]]] = []
        for one, found in zip(self._replicas, told, strict=True):
            if isinstance(found, EngineError):
                one.verified, one.fault = False, str(found)
            elif isinstance(found, BaseException):
                raise found
            else:
                there.append((one, found))
        if not there:
            raise next(found for found in told if isinstance(found, EngineError))
        first, agreed = there[0]
        for one, found in there[1:]:
            difference = differs(agreed, found)
            if difference:
                raise ConfigError(f"{self.name}: {one.address} is not like {first.address}: {difference}")
        self._agreed = agreed
        for one, _ in there:
            one.verified, one.fault = True, ""
        return agreed

    def states(self, now: float) -> list[Json]:
        """Every server as it is. now: seconds on the loop's clock."""
        return [one.state(now) for one in self._replicas]

    async def close(self) -> None:
        for one in self._replicas:
            await one.engine.close()


def its_own(error: EngineError) -> bool:
    """Whether a server failed in a way that others of the same model need not share."""
    refused = isinstance(error, EngineRefused) and error.status in ELSEWHERE
    return refused or isinstance(error, EngineDown | EngineGarbled | EngineSlow)


def differs(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """The first thing that both tell and tell differently, "" where there is none."""
    for field in sorted(one.keys() & other.keys()):
        if one[field] != other[field]:
            return f"{field} is {other[field]!r}, not {one[field]!r}"
    return ""
