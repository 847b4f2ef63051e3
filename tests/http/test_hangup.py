"""A client that leaves frees the model server, in both modes, in under a second."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import ClientGone
from gateway.http.hangup import Line, or_hangup
from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, Gateway, soonest, until, whole
from tests.faults.upstream import SILENCE, Upstream


@pytest.mark.parametrize("stream", [False, True])
def test_the_upstream_is_freed(stream: bool, gateway: Gateway, upstream: Upstream) -> None:
    body = ask({"fault": "silent"}, {"fault": "silent"}, stream=stream) | {"model": "dear"}

    def leave() -> float:
        asked = len(upstream.asked("large"))
        with gateway.connect() as raw:
            raw.sendall(whole(body))
            until(lambda: len(upstream.asked("large")) > asked)
            assert upstream.asked("large")[asked].released_at is None
        return until(lambda: upstream.asked("large")[asked].released_at is not None, SILENCE / 2)

    assert soonest(leave, 1.0) < 1.0


def line() -> Line:
    return Line(lambda: None)


def test_the_work_has_ended_before_the_hang_up_is_told() -> None:
    ended: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async def client() -> None:
        here = line()
        asyncio.get_running_loop().call_soon(here.end)
        await or_hangup(work(), here)

    with pytest.raises(ClientGone):
        asyncio.run(client())
    assert ended == [True]


def test_nothing_is_begun_for_a_client_who_has_left() -> None:
    async def work() -> None:
        raise AssertionError

    here = line()
    here.end()
    with pytest.raises(ClientGone):
        asyncio.run(or_hangup(work(), here))


def test_the_works_own_error_comes_through_unwrapped() -> None:
    async def work() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(or_hangup(work(), line()))


def test_a_connection_that_was_not_read_from_is_read_on_to_hear_of_its_end() -> None:
    async def client() -> None:
        here = Line(lambda: asyncio.get_running_loop().call_soon(here.end))  # as of a client who has left long ago
        async with asyncio.timeout(PATIENCE):
            await or_hangup(asyncio.Event().wait(), here)

    with pytest.raises(ClientGone):
        asyncio.run(client())


def test_being_cancelled_cancels_the_work() -> None:
    async def outer() -> bool:
        cancelled = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        task = asyncio.ensure_future(or_hangup(work(), line()))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return cancelled.is_set()

    assert asyncio.run(outer())
