"""A server that says "not before" is left alone until then, and nobody sleeps meanwhile."""

from __future__ import annotations

UNTOLD_SECONDS = 1.0  # it said to slow down, but not for how long
MAX_SECONDS = 60.0  # a server that says "in a day" is asked again in a minute


class Pause:
    """Not paused at first. All times: seconds on one monotonic clock."""

    def __init__(self) -> None:
        self._until = float("-inf")

    def rest(self, seconds: float | None, now: float) -> None:
        """Begin or prolong it. seconds: None when the server did not say."""
        wanted = UNTOLD_SECONDS if seconds is None else min(max(seconds, 0.0), MAX_SECONDS)
        self._until = max(self._until, now + wanted)

    def left(self, now: float) -> float:
        """Seconds until the server may be asked again; 0 when it may be."""
        return max(0.0, self._until - now)
