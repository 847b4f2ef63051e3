"""A low quantile of the gap between the first and the second choice."""

from gateway.confidence import Higher, Needs
from gateway.confidence._margin import STAND_IN, margins
from gateway.confidence._order import quantile
from gateway.nouns import Evidence

NEEDS = Needs(top_k=2, stand_ins=(STAND_IN,))
HIGHER = Higher.SURER


def feature(evidence: Evidence, *, q: float = 0.05) -> float:
    """The close calls of the answer.

    Formula: q-quantile of {p_t,(1) - p_t,(2)}, linear between order statistics
    Unit: probability, in [0, 1]
    Undefined: never
    Source: margin sampling, Scheffer et al. 2001; exact from two candidates
    """
    return quantile(margins(evidence.trace), q)
