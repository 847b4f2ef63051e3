"""The latest rows of every tier of every policy: what the serving path does for the monitors, and all it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.monitor.reference import Reference, TierReference, telling
from gateway.nouns import Floats, Hop

ROWS = 500  # of one look; science 7.1 and 7.2


@dataclass(slots=True, eq=False)
class _Ring:
    """rows: (ROWS, F + 1), filled up to `filled`, then waiting to be taken."""

    known: TierReference
    rows: Floats
    filled: int = 0


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

    def note(self, policy: str, hops: Sequence[Hop]) -> None:
        """One request, once it is over. Well under 50 microseconds. A hop of another calibrator is not compared."""
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
            ring.filled += 1

    def take(self) -> dict[tuple[str, str], Floats]:
        """Copies of all full blocks, by (policy, tier), which are empty again afterwards."""
        taken = {}
        for place, ring in self._rings.items():
            if ring.filled == self._size:
                taken[place] = ring.rows.copy()
                ring.filled = 0
        return taken

    def waiting(self) -> dict[tuple[str, str], int]:
        """Rows that each place has so far."""
        return {place: ring.filled for place, ring in self._rings.items()}
