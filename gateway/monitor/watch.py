"""The label-free half: what the event loop notes of every request, and a look at it now and then."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from gateway.monitor import drift
from gateway.monitor.clients import Clients
from gateway.monitor.drift import Shift
from gateway.monitor.escalation import Allowed
from gateway.monitor.reference import NO_METADATA, Reference
from gateway.monitor.slices import Part, Slices, Slicing
from gateway.monitor.slo import Budget, Objective, Slos
from gateway.monitor.windows import Block, Windows
from gateway.nouns import Hop

log = logging.getLogger(__name__)

ALL = Slicing()
ODD_P = 0.01  # of the permutation test over all features at once; told in the log, no alarm by itself


class Watch:
    """Of one process. `note` and `ended` are called on the event loop, `look` in a thread.

    Windows belong to a reference, and so does the count of looks. used: the one before, whose budgets it goes on with,
    of the same objectives; None for new ones.
    latest: by (policy, tier), what the latest look at it found.  latest_of_slices: the same by slice.
    together: by (policy, tier), squared MMD of all features at once, and its p-value.
    budgets: of all requests.  escalations: by policy, of those that followed it as it stands; none where no share is
    allowed.  allowed: by policy, why it is that share, or why there is none.  clients: the same by key.
    """

    def __init__(
        self, reference: Reference, slos: Slos, *, rows: int, slicing: Slicing = ALL, seed: int = 0,
        used: Watch | None = None,
    ) -> None:  # fmt: skip
        self.windows, self.slices = Windows(reference, rows), Slices(reference, slicing, rows)
        fresh = {name: Budget(share) for name, share in slos.budgets.items()}
        self.budgets: Mapping[Objective, Budget] = fresh if used is None else used.budgets
        self.latest: dict[tuple[str, str], list[Shift]] = {}
        self.latest_of_slices: dict[Part, list[Shift]] = {}
        self.together: dict[tuple[str, str], tuple[float, float]] = {}
        self.reference, self.looks = reference, 0
        self.allowed: Mapping[str, Allowed] = {}
        self.escalations: Mapping[str, Budget] = {} if used is None else used.escalations
        self.clients: Clients = Clients() if used is None else used.clients
        self._slos = slos
        self._rng = np.random.default_rng(seed)

    def note(
        self, policy: str, hops: Sequence[Hop], client: str = "", metadata: Mapping[str, str] = NO_METADATA
    ) -> None:
        """One answered request's hops in order, without shadows and siblings. client: the name of its key.  metadata:
        what it says of itself."""
        self.windows.note(policy, hops, client, metadata)

    def allow(self, allowed: Mapping[str, Allowed]) -> None:
        """What may escalate from now on. A policy of which the same is allowed as before keeps its count."""
        before, self.allowed = self.escalations, allowed
        wanted = {policy: one.limit for policy, one in allowed.items() if one.limit is not None}
        self.escalations = {
            policy: known if (known := before.get(policy)) is not None and known.share == limit else Budget(limit)
            for policy, limit in wanted.items()
        }

    def ended(self, status: int, seconds: float, *, policy: str, escalated: bool, now: float, client: str = "") -> None:
        """One request, however it ended. status: HTTP's; a client's own mistakes and hang-ups are not ours.

        policy: that it followed as it stands, "" for none.  now: monotonic seconds.  client: the name of its key.
        """
        if 400 <= status < 500:
            return
        self.budgets[Objective.AVAILABILITY].note(now, bad=status >= 500)
        if status < 400:
            self.budgets[Objective.LATENCY].note(now, bad=seconds > self._slos.fast_seconds)
            if policy in self.escalations:
                self.escalations[policy].note(now, bad=escalated)
                self.clients.note(policy, client, now, escalated=escalated)

    def promises(self) -> list[tuple[Objective, str, Budget]]:
        """Every objective with the policy it is of, "" for all, and its budget."""
        of_all = [(objective, "", budget) for objective, budget in self.budgets.items()]
        return of_all + [(Objective.ESCALATION, policy, budget) for policy, budget in self.escalations.items()]

    def look(self) -> list[Shift]:
        """Judge what windows are full; [] when none is. Tenths of a second: not for the event loop."""
        taken = self.windows.take()
        if not taken:
            return []
        self.looks += 1
        parts = self.slices.take(taken)
        wholes = {place: block.rows for place, block in taken.items()}
        found = drift.shifts(self.reference, wholes, parts, look=self.looks)
        by_part: defaultdict[Part, list[Shift]] = defaultdict(list)
        for shift in found:
            by_part[shift.policy, shift.tier, shift.slice].append(shift)
        self.latest |= {place: by_part[(*place, "")] for place in taken}
        self.latest_of_slices |= {part: by_part[part] for part in parts}
        self._all_at_once(taken)
        return found

    def _all_at_once(self, taken: Mapping[tuple[str, str], Block]) -> None:
        for place, block in taken.items():
            known = self.reference.tiers[place].rows
            distance, p_value = drift.mmd(known[:, :-1], block.rows[:, :-1], self._rng)
            self.together[place] = (distance, p_value)
            if p_value <= ODD_P:
                log.info(
                    "features together unlike the reference",
                    extra={"policy": place[0], "tier": place[1], "mmd2": distance, "p_value": p_value},
                )
