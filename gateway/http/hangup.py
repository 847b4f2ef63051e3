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
    job = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(hung_up(receive))
    try:
        await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientGone
        return job.result()
    finally:
        job.cancel()
        gone.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)


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
