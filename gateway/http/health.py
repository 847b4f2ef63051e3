"""Is the process alive, and can it answer? Neither says anything about hosts or models to whoever asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from fastapi import APIRouter
from starlette.responses import JSONResponse

from gateway.http.live import Live
from gateway.nouns import Tier

FRESH_SECONDS = 1.0  # asking often must not load the model servers


def router(live: Live) -> APIRouter:
    """Routes over what is live."""
    routes = APIRouter(tags=["health"])
    readiness = Readiness(lambda: [*live.snapshot.tiers.values()])

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @routes.get("/ready", responses={503: {"description": "no tier can answer, or the process is about to end"}})
    async def ready() -> JSONResponse:
        """200 when at least one tier can answer; `degraded` when not all of them can, `draining` before the end."""
        if live.draining:
            return JSONResponse({"status": "draining"}, 503)
        some, of = await readiness.look()
        word = "ready" if some == of else "degraded" if some else "unavailable"
        return JSONResponse({"status": word}, 200 if some else 503)

    return routes


class Readiness:
    """How many tiers can answer, looked up at most once a second and by one request at a time."""

    def __init__(self, tiers: Callable[[], Sequence[Tier]]) -> None:
        self._tiers = tiers
        self._lock = asyncio.Lock()
        self._until = 0.0
        self._able = self._of = 0

    async def look(self) -> tuple[int, int]:
        """(ready, all)."""
        now = asyncio.get_running_loop().time
        async with self._lock:
            if now() >= self._until:
                tiers = self._tiers()
                self._able, self._of = sum(await asyncio.gather(*(able(tier, now()) for tier in tiers))), len(tiers)
                self._until = now() + FRESH_SECONDS
        return self._able, self._of


async def able(tier: Tier, now: float) -> bool:
    """Whether questions of clients are answered, or may be again, and its server lists the model. now: the loop's s.

    A server that hangs over every question still lists its models, so clients' questions are believed first.
    """
    return not tier.guard.breaker.left(now) and await tier.engine.ready()
