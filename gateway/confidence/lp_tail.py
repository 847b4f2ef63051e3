"""Mean log-prob of the end of the answer."""

from gateway.confidence import Higher, Needs
from gateway.confidence._order import mean
from gateway.nouns import Evidence

NEEDS = Needs()
HIGHER = Higher.SURER


def feature(evidence: Evidence, *, window: int = 32) -> float:
    """Where the final result is written down.

    Formula: mean of the last `window` values of l_t; all of them when N < window
    Unit: nats, <= 0
    Undefined: never
    Source: DeepConf's tail on emitted tokens; Fu et al. 2025, arXiv:2508.15260
    """
    return mean(evidence.trace.chosen[-window:])
