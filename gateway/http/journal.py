"""What the door tells monitors, tracer and store: every request, once it has ended; some are then explored."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from gateway.errors import StoreDown
from gateway.exploration import Drawn, Explorer
from gateway.http.live import Generation
from gateway.monitoring import Monitoring
from gateway.store.desk import Desk
from gateway.store.story import Keep, Story

if TYPE_CHECKING:
    from gateway.tracing import Traces

EXPLORE = "explore"  # what the lot is for; see Seal.lot


class Journal:
    """desk: None where nothing is kept.  keep: how texts are kept; None: not at all.  traces: None: no spans.
    monitoring: None where nobody watches."""

    def __init__(
        self,
        desk: Desk | None = None,
        explorer: Explorer | None = None,
        keep: Keep | None = None,
        traces: Traces | None = None,
        monitoring: Monitoring | None = None,
    ) -> None:
        self._desk, self._explorer, self._keep = desk, explorer, keep
        self._traces, self._monitoring = traces, monitoring

    @property
    def keeps(self) -> bool:
        """Whether there is a store."""
        return self._desk is not None

    @property
    def desk(self) -> Desk:
        """Raises StoreDown where nothing is kept."""
        if self._desk is None:
            raise StoreDown("none is configured")
        return self._desk

    def begin(self, path: str, headers: Mapping[str, str], story: Story) -> None:
        """A request has come."""
        if self._traces is not None:
            self._traces.begin(path, headers, story)

    def end(self, held: Generation, story: Story, status: int, seconds: float) -> None:
        """A request has ended, however. Costs the event loop microseconds, and never fails a request."""
        if self._traces is not None:
            self._traces.end(story, status, seconds, held.kinds)
        if self._monitoring is not None:
            self._monitoring.ended(held.snapshot, story, status, seconds)
        if self._desk is None or story.ask is None:
            return
        rules = held.snapshot.config.exploration
        inclusion = rules.share if rules is not None and can_be_explored(story, status) else None
        explored = inclusion is not None and held.seal.lot(story.number, EXPLORE) < inclusion
        self._desk.write(story.entry(status, seconds, inclusion=inclusion, explored=explored, keep=self._keep))
        if explored and rules is not None and story.answer is not None and self._explorer is not None:
            holding = ExitStack()
            holding.enter_context(held)
            drawn = Drawn(story.number, story.ask, story.answer, len(story.hops), rules, holding)
            self._explorer.offer(drawn)


def can_be_explored(story: Story, status: int) -> bool:
    """An answer was served, and there was a choice of tiers."""
    answer = story.answer
    return status == 200 and answer is not None and not answer.policy.bypass and len(answer.policy.tiers) > 1
