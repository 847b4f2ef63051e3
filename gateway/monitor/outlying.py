"""How far out each answer of one decision lies, seen from the reference: the out-of-distribution score of a request.

Made from the log when somebody asks, so it costs the serving path nothing.
"""

from __future__ import annotations

import numpy as np

from gateway.monitor.reference import Reference
from gateway.store.base import Whole
from gateway.store.telling import Distance


def distances(reference: Reference, whole: Whole) -> dict[int, Distance]:
    """By position, of the hops that the reference knows: those with features under the calibrator that it is of."""
    found = {}
    policy = "" if whole.decision is None else whole.decision.policy
    for hop in whole.hops:
        known = reference.tiers.get((policy, hop.tier))
        if known is None or known.calibrator != hop.calibrator or not hop.features.keys() >= {*known.names}:
            continue
        values = [hop.features[name] for name in known.names]
        row = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        found[hop.position] = Distance(known.distance(row), known.limit)
    return found
