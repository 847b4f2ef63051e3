"""Log-prob of the end token."""

import math

from gateway.confidence import Higher, Needs
from gateway.nouns import Evidence

NEEDS = Needs()
HIGHER = Higher.SURER


def feature(evidence: Evidence) -> float:
    """How sure the model was to be finished; the end token is in no other feature.

    Formula: l of the end token
    Unit: nats, <= 0
    Undefined: when the engine does not report the end token
    Source: own; LM-Polygraph drops the end token from token-level scores, and so do we
    """
    end = evidence.trace.end_nats
    return math.nan if end is None else end
