"""How many tokens were chosen against the odds."""

import math

import numpy as np

from gateway.confidence import Higher, Needs
from gateway.nouns import Evidence

NEEDS = Needs()
HIGHER = Higher.DOUBTFUL
LN_HALF = math.log(0.5)


def feature(evidence: Evidence) -> float:
    """Counts forks: tokens whose alternatives together were likelier.

    Formula: #{t : l_t < ln 0.5}
    Unit: tokens, >= 0
    Undefined: never
    Source: own
    """
    return float(np.count_nonzero(evidence.trace.chosen < LN_HALF))
