"""Mean log-prob of the emitted tokens."""

from gateway.confidence import Higher, Needs
from gateway.confidence._order import mean
from gateway.nouns import Evidence

NEEDS = Needs()
HIGHER = Higher.SURER


def feature(evidence: Evidence) -> float:
    """Minus the log-perplexity; favours long repetitive answers.

    Formula: (1/N) Σ_t l_t
    Unit: nats, <= 0
    Undefined: never
    Source: "Chow-Average", Gupta et al. 2024, arXiv:2404.10136
    """
    return mean(evidence.trace.chosen)
