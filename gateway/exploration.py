"""Asking all tiers in shadow, after an answer was served, for decisions drawn by a keyed hash.

Labels come for what was served, and mostly for what went wrong; thresholds and drift can be judged without bias only
where every tier was asked and a label is wanted whatever the answer was (the project's science card, 7.3). No client
waits for it: it begins when the answer is out, and takes a tier's seats only while half of them are free.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

from gateway import cascade
from gateway.nouns import Answer, Ask, Hop, Tier
from gateway.store.base import Entry, Role
from gateway.store.desk import Desk
from gateway.store.settings import Exploration
from gateway.store.story import hop_rows

log = logging.getLogger(__name__)


class Watch(Protocol):
    """Who is told how exploring goes."""

    def shadowed(self, hop: Hop) -> None: ...

    def unexplored(self, why: str) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A decision that was drawn. first: the position of its first shadow.  holding: keeps its engines open."""

    number: str
    ask: Ask
    answer: Answer
    first: int
    rules: Exploration
    holding: ExitStack


class Explorer:
    """One process's."""

    def __init__(self, desk: Desk, watch: Watch) -> None:
        self._desk, self._watch = desk, watch
        self._drawn: deque[Drawn] = deque()
        self._active, self._changed, self._ended = 0, asyncio.Event(), False

    def offer(self, drawn: Drawn) -> None:
        """Explore it when there is room. Never waits; what is too much is left out, and counted."""
        if self._ended or len(self._drawn) >= drawn.rules.waiting:
            drawn.holding.close()
            self._watch.unexplored("ending" if self._ended else "queue_full")
            return
        self._drawn.append(drawn)
        self._changed.set()

    async def run(self) -> None:
        """For ever; what waits at the end is let go."""
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._changed.wait()
                    self._changed.clear()
                    while self._drawn and self._active < self._drawn[0].rules.in_flight:
                        self._active += 1
                        group.create_task(self._one(self._drawn.popleft()))
        finally:
            self._ended = True
            for drawn in self._drawn:
                drawn.holding.close()
                self._watch.unexplored("ending")
            self._drawn.clear()

    async def _one(self, drawn: Drawn) -> None:
        shadows: list[Hop] = []
        try:
            async with asyncio.timeout(drawn.rules.seconds):
                await self._ask_all(drawn, shadows)
        except TimeoutError:
            self._watch.unexplored("slow")
        except Exception:
            log.exception("a decision could not be explored", extra={"route_id": drawn.number})
            self._watch.unexplored("failed")
        finally:
            drawn.holding.close()
            self._active -= 1
            self._changed.set()
        if shadows:
            rows = hop_rows(drawn.number, shadows, [Role.SHADOW] * len(shadows), drawn.first, beside=drawn.answer)
            self._desk.write(Entry(None, rows))

    async def _ask_all(self, drawn: Drawn, shadows: list[Hop]) -> None:
        """Every tier of the policy that did not answer, each after what those before it said."""
        now = asyncio.get_running_loop().time
        ask = replace(drawn.ask, deadline=now() + drawn.rules.seconds, texts=False, top_k=0)
        known = {hop.tier: hop for hop in drawn.answer.hops if hop.completion is not None}
        path: list[Hop] = []
        tiers = drawn.answer.policy.tiers
        for tier in tiers:
            hop = known.get(tier.name)
            if hop is None:
                if not has_room(tier, now()):
                    self._watch.unexplored("tier_busy")
                    continue
                hop = await cascade.take_hop(ask, tier, cascade.earlier_answers(path), last=tier is tiers[-1])
                shadows.append(hop)
                self._watch.shadowed(hop)
            path.append(hop)


def has_room(tier: Tier, now: float) -> bool:
    """Whether half of the seats stay free for clients, and nothing speaks against asking it. now: loop's clock."""
    guard = tier.guard
    seats = 2 * (guard.bulkhead.in_flight + 1) <= guard.limits.in_flight and not guard.bulkhead.waiting
    return seats and not guard.breaker.is_open and not guard.pause.left(now)
