"""A client that leaves stops the engine. Servers do not do this for whole answers, so we watch the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from gateway.errors import ClientGone

T = TypeVar("T")


async def or_hangup(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The work's result, or ClientGone as soon as the client hangs up; the work has ended in either case.

    The request's body must have been received. A TaskGroup would wrap the work's error, and the status table would not
    know it.
    """
    here = asyncio.current_task()
    assert here is not None, "a coroutine runs in a task"
    working, left = True, False

    def stop(_: object) -> None:
        nonlocal left
        if working and not gone.cancelled():
            left = True
            here.cancel()

    gone = asyncio.ensure_future(hung_up(receive))
    gone.add_done_callback(stop)
    try:
        return await work  # in this very task: a second one would cost as much as all of the HTTP
    except asyncio.CancelledError:
        if left and here.uncancel() == 0:  # else somebody wants the whole task to end, client or no client
            raise ClientGone from None
        raise
    finally:
        working = False
        gone.cancel()
        await asyncio.wait({gone})


async def hung_up(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def beside(work: Coroutine[Any, Any, T], helper: Coroutine[Any, Any, None]) -> T:
    """The work's result; the helper runs as long as it does."""
    helping = asyncio.ensure_future(helper)
    try:
        return await work
    finally:
        helping.cancel()
        await asyncio.gather(helping, return_exceptions=True)
