"""How many requests of a policy may need more than one tier: what it was chosen to do, with some room.

The reference holds what the first tier's calibrator said of traffic that is known to be good. How many of those answers
the tier would pass on at the threshold that is served now is the share to expect; a cascade that is meant to escalate
nine of ten is no news when it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gateway.monitor.evidence import Served
from gateway.monitor.forecast import smoothed
from gateway.monitor.reference import Reference
from gateway.monitor.slo import Slos

SET = "or set monitors.slos.escalated"


@dataclass(frozen=True, slots=True)
class Allowed:
    """Of one policy. limit: share of requests that may escalate, in (0, 1); None where nothing says, and then `why`.

    expected: share by the reference, of its n answers; None where the limit is set by hand.
    """

    limit: float | None
    why: str = ""
    expected: float | None = None
    n: int = 0


def allowed(served: Served, reference: Reference, slos: Slos) -> Mapping[str, Allowed]:
    """By policy; those of one tier escalate nothing and are left out."""
    return {policy: _of(policy, tiers, reference, slos) for policy, tiers in served.items() if len(tiers) > 1}


def _of(policy: str, tiers: Mapping[str, tuple[str, float | None]], reference: Reference, slos: Slos) -> Allowed:
    if slos.escalated is not None:
        return Allowed(slos.escalated)
    tier, (label, threshold) = next(iter(tiers.items()))
    known = reference.tiers.get((policy, tier))
    if known is None:
        named = f"the reference has no {tier} of this policy" if reference.tiers else "no reference is configured"
        return Allowed(None, f"{named}, so no share is expected: write one with `confgate monitors --write`, {SET}")
    if known.calibrator != label or threshold is None:
        return Allowed(None, f"the reference is of {known.calibrator}, served is {label}: write it again, {SET}")
    expected = smoothed(int(np.count_nonzero(known.rows[:, -1] < threshold)), len(known.rows))
    return Allowed(odds_doubled(expected), expected=expected, n=len(known.rows))


def odds_doubled(share: float) -> float:
    """About twice a small share (science 7.4 goes back at twice the forecast), and never all. share: in (0, 1)."""
    return 2 * share / (1 + share)
