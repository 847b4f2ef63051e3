"""What the door tells the store: every request that was put to the tiers, once it has ended; some are then explored."""

from __future__ import annotations

from contextlib import ExitStack

from gateway.errors import StoreDown
from gateway.exploration import Drawn, Explorer
from gateway.http.live import Generation
from gateway.store.desk import Desk
from gateway.store.story import Keep, Story

EXPLORE = "explore"  # what the lot is for; see Seal.lot


class Journal:
    """desk: None where nothing is kept.  keep: how texts are kept; None: not at all."""

    def __init__(self, desk: Desk | None = None, explorer: Explorer | None = None, keep: Keep | None = None) -> None:
        self._desk, self._explorer, self._keep = desk, explorer, keep

    @property
    def desk(self) -> Desk:
        """Raises StoreDown where nothing is kept."""
        if self._desk is None:
            raise StoreDown("none is configured")
        return self._desk

    def end(self, held: Generation, story: Story, status: int, seconds: float) -> None:
        """A request has ended, however. Costs the event loop microseconds, and never fails a request."""
        if self._desk is None or story.ask is None:
            return
        rules = held.snapshot.config.exploration
        inclusion = rules.share if rules is not None and can_be_explored(story, status) else None
        explored = inclusion is not None and held.seal.lot(story.number, EXPLORE) < inclusion
        self._desk.write(story.entry(status, seconds, inclusion=inclusion, explored=explored, keep=self._keep))
        if explored and rules is not None and story.answer is not None and self._explorer is not None:
            holding = ExitStack()
            holding.enter_context(held.held())
            drawn = Drawn(story.number, story.ask, story.answer, len(story.hops), rules, holding)
            self._explorer.offer(drawn)


def can_be_explored(story: Story, status: int) -> bool:
    """An answer was served, and there was a choice of tiers."""
    answer = story.answer
    return status == 200 and answer is not None and not answer.policy.bypass and len(answer.policy.tiers) > 1
