"""Whose requests escalate far more than their policy was chosen for: a prompt's suffix can move a router's score, and
then one key sends everything to the dearest tier, at somebody else's cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.monitor.slo import CHANCE, MIN_EVENTS, sure

HALF_SECONDS = 1800.0  # what is judged are this half hour and the one before

Place = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Excess:
    """Of one key. bad: requests of n that escalated, of which `limit` may."""

    policy: str
    client: str
    bad: int
    n: int
    limit: float


@dataclass(slots=True, eq=False)
class Clients:
    """Counts by (policy, name of the key), of the latest half to whole hour. As many as there are keys.

    Only the event loop notes, only a look judges.
    """

    _now: dict[Place, tuple[int, int]] = field(default_factory=dict)
    _before: dict[Place, tuple[int, int]] = field(default_factory=dict)
    _half: int = 0

    def note(self, policy: str, client: str, now: float, *, escalated: bool) -> None:
        """One request. client: "" for nobody's.  now: monotonic seconds."""
        self._turn(now)
        if client:
            bad, n = self._now.get((policy, client), (0, 0))
            self._now[policy, client] = bad + escalated, n + 1

    def excesses(self, limits: Mapping[str, float], now: float) -> list[Excess]:
        """Keys above their policy's limit by more than chance gives any of them. limits: by policy.

        A key that is its policy's only one is none: the policy's own objective is about it.
        """
        self._turn(now)
        now_, before = dict(self._now), dict(self._before)
        counts = dict(before)
        for place, (bad, n) in now_.items():
            bad_before, n_before = before.get(place, (0, 0))
            counts[place] = bad + bad_before, n + n_before
        keys = Counter(policy for policy, _ in counts)
        judged = {
            (policy, client): (bad, n)
            for (policy, client), (bad, n) in counts.items()
            if policy in limits and n >= MIN_EVENTS and keys[policy] > 1
        }
        return sorted(
            (
                Excess(policy, client, bad, n, limits[policy])
                for (policy, client), (bad, n) in judged.items()
                if sure(bad, n, limits[policy], CHANCE / len(judged))
            ),
            key=lambda one: (one.policy, one.client),
        )

    def _turn(self, now: float) -> None:
        half = int(now // HALF_SECONDS)
        if half != self._half:
            self._before = self._now if half == self._half + 1 else {}
            self._now, self._half = {}, half
