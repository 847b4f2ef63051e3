"""A time limit behaves as asyncio.timeout does, whoever else cancels the task."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest
import uvloop

from gateway.resilience.limit import Limit


def soon(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def test_what_is_done_in_time_is_not_disturbed_and_no_timer_is_left() -> None:
    async def work() -> int:
        with Limit(soon(0.05)):
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        return 7

    assert asyncio.run(work()) == 7


@pytest.mark.parametrize("seconds", [0.05, -1.0])
def test_at_its_end_the_task_gets_a_timeout_and_goes_on_uncancelled(seconds: float) -> None:
    async def work() -> int:
        with pytest.raises(TimeoutError), Limit(soon(seconds)):
            await asyncio.sleep(60)
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)
        return task.cancelling()

    assert asyncio.run(work()) == 0


def test_an_error_of_the_work_is_not_taken_for_a_timeout() -> None:
    async def work() -> None:
        with Limit(soon(0.01)):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise ValueError("its own") from None

    with pytest.raises(ValueError, match="its own"):
        asyncio.run(work())


def test_a_cancellation_from_outside_stays_one_even_when_the_time_is_up_too() -> None:
    async def work() -> None:
        with Limit(soon(0.0)):
            await asyncio.sleep(60)

    async def both() -> None:
        task = asyncio.ensure_future(work())
        await asyncio.sleep(0)  # it waits now, and its time is up with the next turn of the loop
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(both())


def test_more_time_can_be_given_and_only_before_it_is_up() -> None:
    async def work() -> None:
        with Limit(soon(0.05)) as limit:
            later = soon(60)
            limit.reschedule(later)
            await asyncio.sleep(0.15)
            assert limit.when() == later
            limit.reschedule(soon(0.0))
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(60)
            limit.reschedule(soon(60))
            raise asyncio.CancelledError

    with pytest.raises(TimeoutError):
        asyncio.run(work())


def test_what_came_in_time_counts_though_the_loop_stood_still() -> None:
    async def work() -> bytes:
        loop = asyncio.get_running_loop()
        here, there = socket.socketpair()
        with here, there:
            here.setblocking(False)
            loop.call_soon(time.sleep, 0.5)
            threading.Timer(0.1, there.send, [b"in time"]).start()
            with Limit(soon(0.2)):
                return await loop.sock_recv(here, 7)

    assert uvloop.run(work()) == b"in time"


def test_a_loop_that_stood_still_makes_no_time_endless() -> None:
    async def work() -> float:
        began = soon(0)
        asyncio.get_running_loop().call_soon(time.sleep, 0.5)
        with pytest.raises(TimeoutError), Limit(soon(0.2)):
            await asyncio.sleep(60)
        return soon(0) - began

    assert uvloop.run(work()) < 5


def test_without_a_time_there_is_none_until_it_is_given() -> None:
    async def work() -> None:
        with Limit(soon(0.05)) as limit:
            limit.reschedule(None)
            await asyncio.sleep(0.15)
            limit.reschedule(soon(0.05))
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        asyncio.run(work())
