"""The calibrated confidence of a tier asked before, on the logit scale."""

import math

from gateway.confidence import Higher, Needs
from gateway.nouns import Evidence, Summed

NEEDS = Needs(earlier=True)
HIGHER = Higher.SURER
P_MIN = 1e-6  # a tier that claims certainty must not outweigh every other feature


def feature(evidence: Evidence | Summed, *, back: int = 1) -> float:
    """Low confidence upstream means a hard question; back = 1 is the tier asked just before, 2 the one before it.

    Formula: ln(p / (1 - p)), p of the tier asked `back` tiers earlier, within +-13.8
    Unit: log odds
    Undefined: when that tier was skipped, or had no confidence
    Source: own; keeps later tiers calibrated on the questions that reach them, whatever the thresholds
    """
    if back > len(evidence.earlier):
        return math.nan
    p_correct = evidence.earlier[-back].p_correct
    if p_correct is None:
        return math.nan
    p = min(max(p_correct, P_MIN), 1 - P_MIN)
    return math.log(p) - math.log1p(-p)
