"""Seats, budget, pause, and the guard that holds them together."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from gateway.errors import DeadlinePassed, EngineDown, EngineError, EngineFull, EngineSlow
from gateway.resilience.breaker import Rules
from gateway.resilience.budget import RetryBudget
from gateway.resilience.bulkhead import Bulkhead, Full
from gateway.resilience.guard import Call, Guard, Limits, Turn
from gateway.resilience.pause import Pause


def test_a_fifth_of_the_live_calls_may_be_retries_and_always_three() -> None:
    for live, allowed in ((0, 3), (1, 3), (15, 3), (20, 4), (100, 20)):
        budget = RetryBudget()
        assert sum(budget.take(live) for _ in range(200)) == allowed
        budget.give_back()
        assert budget.take(live)


def test_a_pause_ends_by_itself_and_never_lasts_longer_than_a_minute() -> None:
    pause = Pause()
    assert pause.left(0.0) == 0
    pause.rest(None, 0.0)
    assert pause.left(0.0) == 1
    pause.rest(86400.0, 0.0)
    pause.rest(2.0, 0.0)
    assert pause.left(0.0) == 60
    assert pause.left(60.0) == 0


def test_seats_come_free_however_their_holders_leave() -> None:
    """Calls that end, fail, are cancelled while waiting and while seated; then all seats are free again."""

    async def work() -> None:
        chance = random.Random(1)
        bulkhead, most = Bulkhead(3, 4), 0

        async def turns(most: int) -> None:
            """Of the loop, which are the clock here: no machine is too slow for them."""
            for _ in range(chance.randrange(most)):
                await asyncio.sleep(0)

        async def sit() -> None:
            nonlocal most
            await bulkhead.take(asyncio.get_running_loop().time() + chance.choice((0.0, 60.0)))
            try:
                most = max(most, bulkhead.in_flight)
                await turns(40)
            finally:
                bulkhead.leave()

        tasks = []
        for _ in range(400):
            tasks.append(asyncio.create_task(sit()))
            await turns(8)
            if chance.random() < 0.3:
                chance.choice(tasks[-6:]).cancel()
            assert bulkhead.waiting <= 4
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(one) for one in ended} == {type(None), Full, TimeoutError, asyncio.CancelledError}
        assert (most, bulkhead.in_flight, bulkhead.waiting) == (3, 0, 0)
        for _ in range(3):
            await bulkhead.take(0.0)

    asyncio.run(work())


def call(deadline: float, *, patience: float = 60.0, must: bool = False) -> Call:
    return Call("e", patience, deadline, must=must, retried=lambda _: None)


async def hang(_: Turn) -> None:
    await asyncio.Event().wait()


async def break_off(_: Turn) -> None:
    raise EngineDown("e", "gone", again=True)


def take(guard: Guard, attempt: Callable[[Turn], Awaitable[None]], seconds: float, patience: float) -> Exception:
    async def work() -> Exception:
        try:
            await guard.take(attempt, call(asyncio.get_running_loop().time() + seconds, patience=patience))
        except (EngineError, DeadlinePassed) as error:
            return error
        raise AssertionError

    return asyncio.run(work())


def test_patience_is_the_tiers_and_the_deadline_the_requests() -> None:
    assert isinstance(take(Guard(), hang, 60.0, 0.02), EngineSlow)
    assert isinstance(take(Guard(), hang, 0.02, 60.0), DeadlinePassed)


def test_an_attempt_that_goes_on_is_bound_by_the_requests_deadline_alone() -> None:
    async def tell(turn: Turn) -> None:
        turn.go_on()
        await asyncio.Event().wait()

    assert isinstance(take(Guard(), tell, 0.5, 0.02), DeadlinePassed)


@pytest.mark.parametrize(("patience", "is_open"), [(0.3, True), (60.0, False)])
def test_a_hung_server_is_noticed_by_requests_that_had_the_time_and_not_by_hurried_ones(
    patience: float, is_open: bool
) -> None:
    guard = Guard()
    for _ in range(5):
        assert isinstance(take(guard, hang, 0.2, patience), DeadlinePassed)
    assert guard.breaker.is_open is is_open


def test_who_waits_for_a_seat_in_vain_is_told_to_come_back() -> None:
    guard = Guard(Limits(in_flight=1, waiting=1, waiting_seconds=0.02))

    async def work() -> None:
        deadline = asyncio.get_running_loop().time() + 60
        first = asyncio.create_task(guard.take(hang, call(deadline)))
        await asyncio.sleep(0)
        second = asyncio.create_task(guard.take(hang, call(deadline)))
        await asyncio.sleep(0)
        for _ in range(2):  # no place at all, then no patience
            with pytest.raises(EngineFull) as caught:
                await (guard.take(hang, call(deadline)) if not second.done() else second)
            assert caught.value.retry_after_seconds == 1.0
            await asyncio.sleep(0.04)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert guard.bulkhead.in_flight == 0

    asyncio.run(work())
    assert not guard.breaker.is_open


def test_in_an_outage_under_load_retries_stay_within_their_budget() -> None:
    guard = Guard(Limits(in_flight=40))
    attempts = [0, 0]

    async def slowly_broken(turn: Turn) -> None:
        attempts[turn.fresh] += 1
        await asyncio.sleep(0.01)
        raise EngineDown("e", "gone", again=True)

    async def work() -> None:
        deadline = asyncio.get_running_loop().time() + 60
        calls = [guard.take(slowly_broken, call(deadline, must=True)) for _ in range(40)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(error) for error in ended} == {EngineDown}

    asyncio.run(work())
    assert attempts == [40, 8]


def test_the_probe_of_an_open_breaker_is_one_attempt() -> None:
    guard = Guard()
    for _ in range(5):
        take(guard, break_off, 60.0, 60.0)
    attempts: list[bool] = []

    async def count(turn: Turn) -> None:
        attempts.append(turn.fresh)
        await break_off(turn)

    async def work() -> None:
        with pytest.raises(EngineDown):
            await guard.take(count, call(asyncio.get_running_loop().time() + 60, must=True))

    asyncio.run(work())
    assert attempts == [True]


def test_a_stream_that_probes_lets_others_in_with_its_first_piece_and_counts_as_any_other_from_then_on() -> None:
    guard = Guard(Limits(breaker=Rules(in_a_row=2, open_seconds=0.0)))
    for _ in range(2):
        take(guard, break_off, 60.0, 60.0)
    was_open: list[bool] = []

    async def breaks_later(turn: Turn) -> None:
        was_open.append(guard.breaker.is_open)
        turn.spent(0, 1)
        was_open.append(guard.breaker.is_open)
        await break_off(turn)

    take(guard, breaks_later, 60.0, 60.0)
    assert was_open == [True, False]
    assert not guard.breaker.is_open, "one failure is not two"
    take(guard, break_off, 60.0, 60.0)
    assert guard.breaker.is_open
