"""What the door tells the store: every request that was put to the tiers, once it has ended."""

from __future__ import annotations

from gateway.errors import StoreDown
from gateway.store.desk import Desk
from gateway.store.story import Keep, Story


class Journal:
    """desk: None where nothing is kept.  keep: how texts are kept; None: not at all."""

    def __init__(self, desk: Desk | None = None, keep: Keep | None = None) -> None:
        self._desk, self._keep = desk, keep

    @property
    def desk(self) -> Desk:
        """Raises StoreDown where nothing is kept."""
        if self._desk is None:
            raise StoreDown("none is configured")
        return self._desk

    def end(self, story: Story, status: int, seconds: float) -> None:
        """A request has ended, however. Costs the event loop microseconds, and never fails a request."""
        if self._desk is None or story.ask is None:
            return
        self._desk.write(story.entry(status, seconds, inclusion=None, explored=False, keep=self._keep))
