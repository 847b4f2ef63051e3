"""Between the event loop and the store: decisions are written behind, labels are waited for.

A decision never waits: what the queue cannot hold is dropped and counted. A label is acknowledged after its commit, or
refused; a refused one may still have been stored, and to send it again is harmless.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from queue import SimpleQueue
from random import Random
from typing import Protocol, TypeVar

from gateway.errors import StoreDown
from gateway.store.base import (
    AlarmRow,
    Cursor,
    DecisionRow,
    Entry,
    HopRow,
    Labelled,
    LabelRow,
    Outcome,
    Store,
    Whole,
    Wish,
)

log = logging.getLogger(__name__)

BATCH = 200  # entries in one transaction; labels wait behind it
PAUSE_SECONDS, PAUSE_MAX_SECONDS = 0.25, 5.0  # before a store that failed is tried again; doubles, with jitter
WAITING = 64  # labels and look-ups at once; more are refused
PURGE_SECONDS = 3600.0
ASIDE_SECONDS = 90.0  # longer than any store may be given; the desk gives up before
DAY_SECONDS = 86400.0

T = TypeVar("T")


class Watch(Protocol):
    """Who is told how the store is doing."""

    def dropped(self, rows: int) -> None: ...

    def store_up(self, up: bool) -> None: ...

    def labelled(self, source: str, outcome: str) -> None: ...


class Threads:
    """Threads for a store's work. Daemons: one that a dead server never lets go must not keep the process alive."""

    def __init__(self, count: int) -> None:
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"store-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[Store], T], store: Store) -> Future[T]:
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(work(store))
            except BaseException as error:
                future.set_exception(error)

        self._jobs.put(job)
        return future

    def end(self, seconds: float) -> bool:
        """Whether all have ended in time."""
        for _ in self._threads:
            self._jobs.put(None)
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class Desk:
    """One process's. seconds: how long a label may take.  queue: decisions that may wait.

    keep_seconds: of decisions without and with a label.  wall: the clock that decisions are dated by.
    """

    def __init__(
        self,
        store: Store,
        watch: Watch,
        *,
        seconds: float,
        queue: int,
        keep_seconds: tuple[float, float],
        wall: Callable[[], float] = time.time,
        chance: Random | None = None,
    ) -> None:
        self._store, self._watch, self._seconds, self._queue = store, watch, seconds, queue
        self._keep_seconds, self._wall, self._chance = keep_seconds, wall, chance or Random()
        self._threads = Threads(store.threads)
        self._entries: deque[Entry] = deque()
        self._under_way = 0
        self._something, self._ending = asyncio.Event(), False

    def write(self, entry: Entry) -> None:
        """Write it when there is time. Never waits, never raises."""
        if len(self._entries) >= self._queue or self._ending:
            self._watch.dropped(1)
            return
        self._entries.append(entry)
        self._something.set()

    async def put(self, wishes: Sequence[Wish]) -> list[tuple[Outcome, LabelRow]]:
        """All labels or none, durable when this returns. Raises LabelConflict, StoreDown."""
        done = await self.ask(lambda store: store.put(wishes))
        for outcome, row in done:
            self._watch.labelled(row.source, outcome)
        return done

    async def ask(self, question: Callable[[Store], T]) -> T:
        """What the store says, in its own thread. Raises what it raises, and StoreDown when that takes too long."""
        if self._under_way >= WAITING or self._ending:
            raise StoreDown("too much is waiting for it")
        self._under_way += 1
        job = self._threads.submit(question, self._store)
        answer = asyncio.wrap_future(job)
        answer.add_done_callback(self._answered)
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.shield(answer)  # what has begun is not taken back: nobody would count it
        except TimeoutError:
            raise StoreDown(f"no answer within {self._seconds:g} s") from None

    def _answered(self, answer: asyncio.Future[T]) -> None:
        self._under_way -= 1
        if not answer.cancelled():
            answer.exception()  # whoever asked may have left

    async def run(self) -> None:
        """For ever: write what waits, and forget what is too old."""
        now = asyncio.get_running_loop().time
        pause, purge_at = PAUSE_SECONDS, now() + PAUSE_SECONDS
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, purge_at - now())):
                    await self._something.wait()
            try:
                await self._write_some()
                if now() >= purge_at:
                    more = await self._in_thread(self._purge)
                    purge_at = now() + (PAUSE_SECONDS if more else PURGE_SECONDS)
            except StoreDown as error:
                self._watch.store_up(False)
                log.error("the store cannot be written to", extra={"why": error.why, "waiting": len(self._entries)})
                await asyncio.sleep(pause * self._chance.uniform(0.5, 1.5))
                pause = min(2 * pause, PAUSE_MAX_SECONDS)
                purge_at = max(purge_at, now() + pause)
            except Exception:  # of a purge, which comes again; nobody's answer hangs on it
                log.exception("what is too old could not be forgotten")
                purge_at = now() + PURGE_SECONDS
            else:
                self._watch.store_up(True)
                pause = PAUSE_SECONDS

    async def _write_some(self) -> None:
        """One batch. It stays in the queue until it is written; being written twice does it no harm."""
        batch = [self._entries[place] for place in range(min(BATCH, len(self._entries)))]
        if batch:
            try:
                await self._in_thread(lambda store: store.write(batch))
            except StoreDown:
                raise
            except Exception:
                log.exception("decisions that no store takes were dropped", extra={"rows": len(batch)})
                self._watch.dropped(len(batch))
            for _ in batch:
                self._entries.popleft()
        if not self._entries:
            self._something.clear()

    def _purge(self, store: Store) -> int:
        now = self._wall()
        return store.purge(now - self._keep_seconds[0], now - self._keep_seconds[1])

    async def _in_thread(self, work: Callable[[Store], T]) -> T:
        return await asyncio.shield(asyncio.wrap_future(self._threads.submit(work, self._store)))

    async def close(self, seconds: float) -> None:
        """Write what waits, for so long at most, and let go of the store; what is left is dropped and counted."""
        self._ending = True
        try:
            async with asyncio.timeout(seconds):
                while self._entries:
                    await self._write_some()
        except (TimeoutError, StoreDown) as error:
            log.error("decisions were lost at the end", extra={"rows": len(self._entries), "why": str(error)})
            self._watch.dropped(len(self._entries))
        if await asyncio.to_thread(self._threads.end, seconds):
            self._store.close()


class Aside:
    """A desk's store for a thread beside the event loop's: what is read waits for its turn as everything else does.

    Raises StoreDown, also when the loop has ended.
    """

    def __init__(self, desk: Desk, loop: asyncio.AbstractEventLoop) -> None:
        self._desk, self._loop = desk, loop

    def labelled(self, after: Cursor, limit: int) -> list[Labelled]:
        return self._ask(lambda store: store.labelled(after, limit))

    def decisions(self, after: Cursor, limit: int) -> list[tuple[DecisionRow, tuple[HopRow, ...]]]:
        return self._ask(lambda store: store.decisions(after, limit))

    def labels(self, number: str) -> tuple[LabelRow, ...]:
        return self._ask(lambda store: store.labels(number))

    def whole(self, number: str) -> Whole:
        return self._ask(lambda store: store.whole(number))

    def alarms(
        self, on: Sequence[AlarmRow], ended: Sequence[tuple[str, str, str, str]], before: float
    ) -> list[AlarmRow]:
        return self._ask(lambda store: store.alarms(on, ended, before))

    def _ask(self, question: Callable[[Store], T]) -> T:
        asking = self._desk.ask(question)
        try:
            job = asyncio.run_coroutine_threadsafe(asking, self._loop)
        except RuntimeError as error:
            asking.close()
            raise StoreDown("the process ends") from error
        try:
            return job.result(ASIDE_SECONDS)
        except (TimeoutError, CancelledError) as error:
            job.cancel()
            raise StoreDown("no answer") from error
