"""The thin shell: what the event loop notes, and a thread that looks at it now and then."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gateway.monitor import drift
from gateway.monitor.drift import Shift
from gateway.monitor.reference import Reference
from gateway.monitor.slo import Budget, Objective, Slos
from gateway.monitor.windows import Windows
from gateway.nouns import Floats, Hop

log = logging.getLogger(__name__)

ODD_P = 0.01  # of the permutation test over all features at once; told in the log, no alarm by itself


class Watch:
    """Of one process. `note` and `ended` are called on the event loop; looks are taken in a thread of their own.

    told: called in that thread with what a look found.  Windows belong to a reference, and so does the count of looks.
    """

    def __init__(
        self,
        reference: Reference,
        slos: Slos,
        told: Callable[[Sequence[Shift], Windows], None],
        *,
        rows: int,
        every_seconds: float,
        seed: int = 0,
    ) -> None:
        self.windows = Windows(reference, rows)
        self.budgets: Mapping[Objective, Budget] = {name: Budget(share) for name, share in slos.budgets.items()}
        self._reference, self._slos, self._told = reference, slos, told
        self._every, self._looks = every_seconds, 0
        self._rng = np.random.default_rng(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def note(self, policy: str, hops: Sequence[Hop]) -> None:
        """One answered request's hops in order, without shadows and siblings."""
        self.windows.note(policy, hops)

    def ended(self, status: int, seconds: float, *, tiers_asked: int, now: float) -> None:
        """One request, however it ended. status: HTTP's; a client's own mistakes and hang-ups are not ours.

        now: monotonic seconds.
        """
        if 400 <= status < 500:
            return
        self.budgets[Objective.AVAILABILITY].note(now, bad=status >= 500)
        if status < 400:
            self.budgets[Objective.LATENCY].note(now, bad=seconds > self._slos.fast_seconds)
            self.budgets[Objective.ESCALATION].note(now, bad=tiers_asked > 1)

    def look(self) -> list[Shift]:
        """Judge what windows are full; [] when none is. Milliseconds: not for the event loop."""
        taken = self.windows.take()
        if not taken:
            return []
        self._looks += 1
        found = drift.shifts(self._reference, taken, look=self._looks)
        for shift in found:
            if shift.drifted:
                log.warning("drift", extra={"policy": shift.policy, "tier": shift.tier, "told": str(shift)})
        self._all_at_once(taken)
        self._told(found, self.windows)
        return found

    def _all_at_once(self, taken: Mapping[tuple[str, str], Floats]) -> None:
        for place, rows in taken.items():
            known = self._reference.tiers[place].rows
            distance, p_value = drift.mmd(known[:, :-1], rows[:, :-1], self._rng)
            if p_value <= ODD_P:
                log.info(
                    "features together unlike the reference",
                    extra={"policy": place[0], "tier": place[1], "mmd2": distance, "p_value": p_value},
                )

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """Wait for a look that is under way, but not for long."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self.look()
            except Exception:  # a look that fails must not end all later ones; nothing was judged, and it is told
                log.exception("a look at drift failed")
