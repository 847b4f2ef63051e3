"""A time limit on what one task does: asyncio.timeout for the path that every request takes, without the two coroutines
that enter and leave it, and for a process that may itself stand still."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

LATE_SECONDS = 0.05


class Limit:
    """Inside it the task is cancelled at `until`, s on the loop's clock, and TimeoutError comes out. Use as a context
    manager, once. A cancellation by somebody else stays one. None: no limit for now.

    A loop that stood still, because the machine did, runs its timers before it reads what has come in the meantime: who
    is late gets another turn of the loop first, so that a server that was in time is not called slow.
    """

    def __init__(self, until: float | None) -> None:
        self._until = until
        self._passed = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None, "a limit is for a task"
        self._task, self._cancelled_before = task, task.cancelling()
        self._loop = asyncio.get_running_loop()
        self._set()
        return self

    def when(self) -> float | None:
        return self._until

    def reschedule(self, until: float | None) -> None:
        """Another time, unless this one has come."""
        self._until = until
        if not self._passed:
            self._unset()
            self._set()

    def _set(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        if self._until is not None:
            self._due = max(self._until, self._loop.time())
            self._timer = self._loop.call_at(self._due, self._end)

    def _unset(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        now = self._loop.time()
        if now - self._due > LATE_SECONDS:
            self._due = now + LATE_SECONDS
            self._timer = self._loop.call_at(self._due, self._end)
            return
        self._passed = True
        self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._unset()
        if self._passed and self._task.uncancel() <= self._cancelled_before and kind is asyncio.CancelledError:
            raise TimeoutError from error
