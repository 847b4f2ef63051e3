"""The desk between the event loop and a store: nothing waits for a decision, labels wait for their commit."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from gateway.errors import StoreDown
from gateway.store.base import Entry, LabelRow, Outcome, Wish
from gateway.store.desk import WAITING, Desk
from gateway.store.sqlite import Sqlite
from tests.faults.gateway import PATIENCE
from tests.store.rows import entry, numbers, wish


class Seen:
    """What a desk tells its watch."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.up: list[bool] = []

    def dropped(self, rows: int) -> None:
        self.counts["dropped"] += rows

    def store_up(self, up: bool) -> None:
        self.up.append(up)

    def labelled(self, source: str, outcome: str) -> None:
        self.counts[outcome] += 1


class Moody(Sqlite):
    """A real file that can be told to be stuck, down, or to choke on a decision."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.free, self.down, self.chokes_on, self.purged = threading.Event(), False, "", False
        self.free.set()

    def write(self, entries: Sequence[Entry]) -> None:
        self.free.wait(20)
        if self.down:
            raise StoreDown("told to")
        if any(one.decision is not None and one.decision.number == self.chokes_on for one in entries):
            raise OverflowError("no store takes this")
        super().write(entries)

    def purge(self, before: float, labelled_before: float) -> int:
        self.purged = True
        raise OverflowError("nothing is forgotten here")

    def put(self, wishes: Sequence[Wish]) -> list[tuple[Outcome, LabelRow]]:
        self.free.wait(20)
        return super().put(wishes)


def at_work(
    tmp_path: Path, act: Callable[[Desk, Moody, Seen], Awaitable[None]], queue: int = 50, seconds: float = PATIENCE
) -> Seen:
    """Act on a desk; then it is closed, and what is on the disk can be looked at. seconds: what a label may take."""
    seen = Seen()

    async def work() -> None:
        store = Moody(tmp_path / "s.db")
        desk = Desk(store, seen, seconds=seconds, queue=queue, keep_seconds=(1e12, 1e12))
        job = asyncio.ensure_future(desk.run())
        try:
            await act(desk, store, seen)
        finally:
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)
            await desk.close(PATIENCE)

    asyncio.run(work())
    return seen


async def eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110  what it waits for happens in another thread
            await asyncio.sleep(0.01)


def stored(tmp_path: Path) -> int:
    store = Sqlite(tmp_path / "s.db", read_only=True)
    try:
        return len(store.recent(10_000))
    finally:
        store.close()


def test_what_waits_at_the_end_is_written(tmp_path: Path) -> None:
    async def act(desk: Desk, store: Moody, seen: Seen) -> None:
        for one in numbers(45):
            desk.write(entry(one))

    assert at_work(tmp_path, act).counts["dropped"] == 0
    assert stored(tmp_path) == 45


def test_what_the_queue_cannot_hold_is_dropped_and_counted_and_nobody_waits(tmp_path: Path) -> None:
    async def act(desk: Desk, store: Moody, seen: Seen) -> None:
        store.free.clear()
        began = asyncio.get_running_loop().time()
        for one in numbers(130):
            desk.write(entry(one))
            await asyncio.sleep(0)
        assert asyncio.get_running_loop().time() - began < 10, "seconds; the store is stuck for twenty"
        store.free.set()

    assert at_work(tmp_path, act).counts["dropped"] == 80
    assert stored(tmp_path) == 50


def test_a_store_that_was_down_gets_everything_once_it_is_back(tmp_path: Path) -> None:
    async def act(desk: Desk, store: Moody, seen: Seen) -> None:
        store.down = True
        for one in numbers(20):
            desk.write(entry(one))
        await eventually(lambda: False in seen.up)
        store.down = False
        await eventually(lambda: seen.up[-1])

    assert at_work(tmp_path, act).counts["dropped"] == 0
    assert stored(tmp_path) == 20


def test_a_row_that_no_store_takes_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def act(desk: Desk, store: Moody, seen: Seen) -> None:
        bad, good = numbers(2)
        store.chokes_on = bad
        desk.write(entry(bad))
        await eventually(lambda: seen.counts["dropped"] > 0)
        desk.write(entry(good))

    assert at_work(tmp_path, act).counts["dropped"] == 1
    assert stored(tmp_path) == 1


def test_a_label_that_waits_too_long_is_refused_and_sending_it_again_does_no_harm(tmp_path: Path) -> None:
    async def act(desk: Desk, store: Moody, seen: Seen) -> None:
        [number] = numbers(1)
        store.free.clear()
        with pytest.raises(StoreDown, match="no answer within"):
            await desk.put([wish(number)])
        store.free.set()
        [(outcome, row)] = await insisting(desk, wish(number))
        assert (outcome, row.revision) == (Outcome.UNCHANGED, 0), "the first was stored meanwhile"

    at_work(tmp_path, act, seconds=0.3)


async def insisting(desk: Desk, label: Wish) -> list[tuple[Outcome, LabelRow]]:
    """A label that is sent until a store that may be slow has told of it."""
    for _ in range(100):
        with contextlib.suppress(StoreDown):
            return await desk.put([label])
    raise AssertionError("it never told")


def test_more_labels_than_may_wait_are_refused_at_once(tmp_path: Path) -> None:
    async def act(desk: Desk, store: Moody, seen: Seen) -> None:
        store.free.clear()
        told = await asyncio.gather(*(desk.put([wish(one)]) for one in numbers(3 * WAITING)), return_exceptions=True)
        assert Counter(str(one).rpartition(": ")[2] for one in told) == {
            "too much is waiting for it": 2 * WAITING,
            "no answer within 0.3 s": WAITING,
        }
        store.free.set()

    at_work(tmp_path, act, seconds=0.3)


def test_a_purge_that_fails_ends_nothing(tmp_path: Path) -> None:
    async def act(desk: Desk, store: Moody, seen: Seen) -> None:
        await eventually(lambda: store.purged)
        desk.write(entry(*numbers(1)))
        await eventually(lambda: stored(tmp_path) == 1)

    assert all(at_work(tmp_path, act).up)


def test_old_decisions_are_forgotten_as_time_goes_by(tmp_path: Path) -> None:
    store = Sqlite(tmp_path / "s.db")
    store.write([entry(one, at=1000.0) for one in numbers(1200)])
    store.write([entry(one, at=9000.0) for one in numbers(3)])
    store.close()

    async def work() -> None:
        desk = Desk(
            Sqlite(tmp_path / "s.db"),
            Seen(),
            seconds=PATIENCE,
            queue=9,
            keep_seconds=(500.0, 500.0),
            wall=lambda: 9100.0,
        )
        job = asyncio.ensure_future(desk.run())
        until = asyncio.get_running_loop().time() + PATIENCE
        while await desk.ask(lambda store: len(store.recent(9999))) > 3:
            assert asyncio.get_running_loop().time() < until
            await asyncio.sleep(0.05)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        await desk.close(PATIENCE)

    asyncio.run(work())
    assert stored(tmp_path) == 3
