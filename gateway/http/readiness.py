"""How many tiers can answer: by clients' questions first, and by what model servers said when they were last asked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from gateway.nouns import Engine, Tier

log = logging.getLogger(__name__)

FRESH_SECONDS = 1.0  # asking often must not load the model servers
PROMPT_SECONDS = 0.25  # who asks waits no longer for a server that hangs; Kubernetes gives up after a second


class Readiness:
    """tiers: those in service."""

    def __init__(self, tiers: Callable[[], Sequence[Tier]]) -> None:
        self._tiers = tiers
        self._listed: dict[Engine, bool] = {}  # whether its server listed the model
        self._wanted, self._fresh = asyncio.Event(), asyncio.Event()

    async def look(self) -> tuple[int, int]:
        """(able, all), by what is known within PROMPT_SECONDS."""
        self._wanted.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PROMPT_SECONDS):
                await self._fresh.wait()
        now, tiers = asyncio.get_running_loop().time(), self._tiers()
        return sum(self._able(tier, now) for tier in tiers), len(tiers)

    def _able(self, tier: Tier, now: float) -> bool:
        """Whether it answers questions, or may again. now: the loop's s.

        A server that hangs over every question still lists its models, and one that is busy with questions may not come
        to it. One that was not asked yet has just come into service, and is believed.
        """
        breaker = tier.guard.breaker
        return not breaker.left(now) and (breaker.answered(now) or self._listed.get(tier.engine, True))

    async def run(self) -> None:
        """For ever: ask all servers for their models when somebody wants to know, FRESH_SECONDS apart at least."""
        while True:
            await self._wanted.wait()
            engines = [tier.engine for tier in self._tiers()]
            self._listed = {engine: self._listed[engine] for engine in engines if engine in self._listed}
            await asyncio.gather(*map(self._ask, engines))
            self._fresh.set()
            await asyncio.sleep(FRESH_SECONDS)
            self._fresh.clear()
            self._wanted.clear()

    async def _ask(self, engine: Engine) -> None:
        try:
            self._listed[engine] = await engine.ready()
        except Exception:  # an engine's own mistake, which ends nobody else
            log.exception("an engine could not say whether it is ready")
            self._listed[engine] = False
