"""DeepConf's average trace confidence."""

from gateway.confidence import Needs
from gateway.confidence._deepconf import token_confidence
from gateway.nouns import Evidence

NEEDS = Needs()


def feature(evidence: Evidence, *, k: int = 20) -> float:
    """Mean of C_t over the answer, nats >= 0, higher = surer. k: candidates per token. arXiv:2508.15260."""
    return float(token_confidence(evidence.trace, k).mean())
