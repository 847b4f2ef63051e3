"""A quantile of the emitted tokens' log-probs."""

from gateway.confidence import Higher, Needs
from gateway.confidence._order import quantile
from gateway.nouns import Evidence

NEEDS = Needs()
HIGHER = Higher.SURER


def feature(evidence: Evidence, *, q: float = 0.1) -> float:
    """A vector of these in a small learned rule beats sum and mean; q = 0 is the minimum.

    Formula: q-quantile of {l_t}, linear between order statistics
    Unit: nats, <= 0
    Undefined: never
    Source: "Chow-Quantile", Gupta et al. 2024, arXiv:2404.10136
    """
    return quantile(evidence.trace.chosen, q)
