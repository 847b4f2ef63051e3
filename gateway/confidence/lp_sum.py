"""Log-prob of the whole answer."""

from gateway.confidence import Higher, Needs
from gateway.nouns import Evidence

NEEDS = Needs()
HIGHER = Higher.SURER


def feature(evidence: Evidence) -> float:
    """Log-prob of the answer as one sequence; punishes long answers.

    Formula: Σ_t l_t
    Unit: nats, <= 0
    Undefined: never
    Source: "Chow-Sum", Gupta et al. 2024, arXiv:2404.10136
    """
    return float(evidence.trace.chosen.sum())
