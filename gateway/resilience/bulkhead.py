"""So many calls at once, so many waiting, and no more: a slow tier fills its own seats, not the whole gateway."""

from __future__ import annotations

import asyncio


class Full(Exception):
    """Every seat is taken, and every place to wait for one."""


class Bulkhead:
    """seats: calls in flight.  waiting_places: calls that may wait for a seat, served in the order they came."""

    def __init__(self, seats: int, waiting_places: int) -> None:
        self._free = asyncio.Semaphore(seats)
        self._places = waiting_places
        self.in_flight = self.waiting = 0

    async def take(self, until: float) -> None:
        """Sit down; `leave` gives the seat back. until: seconds on the loop's clock. Raises Full, or TimeoutError."""
        if not self._free.locked():
            await self._free.acquire()  # at once
            self.in_flight += 1
            return
        if self.waiting >= self._places:
            raise Full
        self.waiting += 1
        try:
            async with asyncio.timeout_at(until):
                await self._free.acquire()
        finally:
            self.waiting -= 1
        self.in_flight += 1

    def leave(self) -> None:
        self.in_flight -= 1
        self._free.release()
