"""Logarithm of the answer's length."""

import math

from gateway.confidence import Higher, Needs
from gateway.nouns import Evidence

NEEDS = Needs()
HIGHER = Higher.EITHER


def feature(evidence: Evidence) -> float:
    """length on the scale on which a linear rule wants it.

    Formula: ln N, N in tokens
    Unit: log tokens, >= 0
    Undefined: never
    Source: arXiv:2510.10409
    """
    return math.log(evidence.trace.chosen.size)
