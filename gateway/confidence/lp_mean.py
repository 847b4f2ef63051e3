"""Mean log-prob of the emitted tokens."""

from gateway.confidence import Needs
from gateway.nouns import Evidence

NEEDS = Needs()


def feature(evidence: Evidence) -> float:
    """Nats <= 0, higher = surer; minus the log-perplexity. "Chow-Average", Gupta et al. 2024, arXiv:2404.10136."""
    return float(evidence.trace.chosen.mean())
