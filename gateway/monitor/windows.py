"""The latest rows of every tier of every policy: what the serving path does for the monitors, and all it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gateway.monitor.reference import NO_METADATA, Marks, Reference, TierReference, tagged, telling
from gateway.nouns import Floats, Hop

ROWS = 500  # of one look; science 7.1 and 7.2


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """rows: (n, F + 1), p_correct last.  marks: of the same."""

    rows: Floats
    marks: Marks


@dataclass(slots=True, eq=False)
class _Ring:
    """rows: (ROWS, F + 1), filled up to `filled`, then waiting to be taken; prompt_tokens, clients and metadata beside
    them."""

    known: TierReference
    rows: Floats
    prompt_tokens: list[int] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    filled: int = 0

    def taken(self) -> Block:
        tokens = np.array(self.prompt_tokens, dtype=np.float64)
        clients, metadata = (np.array(told, dtype=np.str_) for told in (self.clients, self.metadata))
        block = Block(self.rows.copy(), Marks(tokens, clients, metadata))
        self.prompt_tokens, self.clients, self.metadata, self.filled = [], [], [], 0
        return block


class Windows:
    """Bounded: one block of rows per place of the reference. Only the event loop adds, only a look takes.

    missed: rows that came while a full block waited to be looked at; they are left out, not queued.
    """

    def __init__(self, reference: Reference, rows: int = ROWS) -> None:
        self._size = rows
        self._rings = {
            place: _Ring(known, np.empty((rows, len(known.names) + 1))) for place, known in reference.tiers.items()
        }
        self.missed = 0

    def note(
        self, policy: str, hops: Sequence[Hop], client: str = "", metadata: Mapping[str, str] = NO_METADATA
    ) -> None:
        """One request, once it is over. Well under 50 microseconds. A hop of another calibrator is not compared.

        client: the name of its key.  metadata: what it says of itself.
        """
        for hop in telling(hops):
            ring = self._rings.get((policy, hop.tier))
            if ring is None or ring.known.calibrator != hop.calibrator_id:
                continue
            assert hop.features is not None
            assert hop.p_correct is not None
            if ring.filled == self._size:
                self.missed += 1
                continue
            row = ring.rows[ring.filled]
            row[:-1] = hop.features.values
            row[-1] = hop.p_correct
            ring.prompt_tokens.append(hops[0].cost.prompt_tokens)
            ring.clients.append(client)
            ring.metadata.append(tagged(metadata) if metadata else "")
            ring.filled += 1

    def take(self) -> dict[tuple[str, str], Block]:
        """Copies of all full blocks, by (policy, tier), which are empty again afterwards."""
        return {place: ring.taken() for place, ring in self._rings.items() if ring.filled == self._size}

    def waiting(self) -> dict[tuple[str, str], int]:
        """Rows that each place has so far."""
        return {place: ring.filled for place, ring in self._rings.items()}
