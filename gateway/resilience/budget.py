"""Retries must not double the load of a server that is failing because of it."""

from __future__ import annotations

SHARE, LEAST = 0.2, 3


class RetryBudget:
    """How many of the calls now in flight may be second attempts: a share of them, but always a few."""

    def __init__(self, share: float = SHARE, least: int = LEAST) -> None:
        self._share, self._least = share, least
        self.retrying = 0

    def take(self, live: int) -> bool:
        """Whether one more retry may begin. live: calls in flight. What was taken must be given back."""
        if self.retrying >= max(self._least, int(self._share * live)):
            return False
        self.retrying += 1
        return True

    def give_back(self) -> None:
        self.retrying -= 1
