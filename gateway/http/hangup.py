"""A client that leaves stops the engine. Servers do not do this for whole answers, so the connection itself tells."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from starlette.types import Scope

from gateway.errors import ClientGone

T = TypeVar("T")

LINE = "gateway.line"  # among a scope's extensions
WHOLE = "gateway.whole"  # in the message that begins an answer: more headers and a body, and that is all there is

Headers = Sequence[tuple[bytes, bytes]]


class Line:
    """One request's connection, as far as it can end. read_on: what makes the end be seen, called before it is waited
    for."""

    free = False  # whether it takes a whole answer at once

    def __init__(self, read_on: Callable[[], object]) -> None:
        self._read_on, self.gone = read_on, False
        self._told: Callable[[], object] | None = None

    def whole(self, status: int, headers: Headers, more: Mapping[str, str], body: bytes) -> None:
        """Say an answer, head and body, without waiting for the client to take it. Only where the line is free.
        more: headers, too."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing will be said to this request: end the connection behind what was said before."""

    def end(self) -> None:
        """The client has left."""
        self.gone = True
        if self._told is not None:
            self._told()

    def listen(self, told: Callable[[], object]) -> None:
        """told: called when the client leaves."""
        self._read_on()
        self._told = told

    def forget(self) -> None:
        """Nobody listens any more."""
        self._told = None


def line(scope: Scope) -> Line:
    """What our protocol has put there; under another server, where nobody would tell, one that lasts."""
    found: Line | None = (scope.get("extensions") or {}).get(LINE)
    return found or Line(lambda: None)


async def or_hangup(work: Coroutine[Any, Any, T], line: Line) -> T:
    """The work's result, or ClientGone as soon as the client hangs up; the work has ended in either case.

    The request's body must have been received. The work runs in this very task: a second one would cost as much as all
    of the HTTP, and a TaskGroup would wrap the work's error, which the status table would not know.
    """
    here = asyncio.current_task()
    assert here is not None, "a coroutine runs in a task"
    left = False

    def stop() -> None:
        nonlocal left
        left = True
        here.cancel()

    if line.gone:
        work.close()
        raise ClientGone
    line.listen(stop)
    try:
        return await work
    except asyncio.CancelledError:
        if left and here.uncancel() == 0:  # else somebody wants the whole task to end, client or no client
            raise ClientGone from None
        raise
    finally:
        line.forget()


async def beside(work: Coroutine[Any, Any, T], helper: Coroutine[Any, Any, None]) -> T:
    """The work's result; the helper runs as long as it does."""
    helping = asyncio.ensure_future(helper)
    try:
        return await work
    finally:
        helping.cancel()
        await asyncio.gather(helping, return_exceptions=True)
