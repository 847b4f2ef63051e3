"""How many tokens the answer has."""

from gateway.confidence import Higher, Needs
from gateway.nouns import Evidence

NEEDS = Needs()
HIGHER = Higher.EITHER


def feature(evidence: Evidence) -> float:
    """Removes what bias by length every aggregate keeps, and is a signal by itself.

    Formula: N
    Unit: tokens, >= 1
    Undefined: never
    Source: arXiv:2510.10409
    """
    return float(evidence.trace.chosen.size)
