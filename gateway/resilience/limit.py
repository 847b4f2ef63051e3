"""A time limit on what one task does: asyncio.timeout for the path that every request takes, without the two coroutines
that enter and leave it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Limit:
    """Inside it the task is cancelled at `until`, s on the loop's clock, and TimeoutError comes out. Use as a context
    manager, once. A cancellation by somebody else stays one."""

    def __init__(self, until: float) -> None:
        self._until = until
        self._passed = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None, "a limit is for a task"
        self._task, self._cancelled_before = task, task.cancelling()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_at(self._until, self._end)
        return self

    def when(self) -> float:
        return self._until

    def reschedule(self, until: float) -> None:
        """Another time, unless this one has come."""
        self._until = until
        if not self._passed:
            self._timer.cancel()
            self._timer = self._loop.call_at(until, self._end)

    def _end(self) -> None:
        self._passed = True
        self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._timer.cancel()
        if self._passed and self._task.uncancel() <= self._cancelled_before and kind is asyncio.CancelledError:
            raise TimeoutError from error
