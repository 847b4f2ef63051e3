"""Mean gap between the first and the second choice."""

from gateway.confidence import Higher, Needs
from gateway.confidence._margin import STAND_IN, margins
from gateway.confidence._order import mean
from gateway.nouns import Evidence

NEEDS = Needs(top_k=2, stand_ins=(STAND_IN,))
HIGHER = Higher.SURER


def feature(evidence: Evidence) -> float:
    """Mean margin.

    Formula: (1/N) Σ_t (p_t,(1) - p_t,(2))
    Unit: probability, in [0, 1]
    Undefined: never
    Source: margin sampling, Scheffer et al. 2001; exact from two candidates
    """
    return mean(margins(evidence.trace))
