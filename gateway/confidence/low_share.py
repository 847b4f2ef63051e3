"""Which share of the tokens was chosen against the odds."""

import math

import numpy as np

from gateway.confidence import Higher, Needs
from gateway.nouns import Evidence

NEEDS = Needs()
HIGHER = Higher.DOUBTFUL
LN_HALF = math.log(0.5)


def feature(evidence: Evidence) -> float:
    """low_count, freed of the answer's length.

    Formula: #{t : l_t < ln 0.5} / N
    Unit: share, in [0, 1]
    Undefined: never
    Source: own
    """
    return float(np.count_nonzero(evidence.trace.chosen < LN_HALF) / evidence.trace.chosen.size)
