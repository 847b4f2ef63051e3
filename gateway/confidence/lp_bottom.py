"""Mean log-prob of the least sure tokens."""

from gateway.confidence import Higher, Needs
from gateway.confidence._order import kept_ceil, lowest_mean
from gateway.nouns import Evidence

NEEDS = Needs()
HIGHER = Higher.SURER


def feature(evidence: Evidence, *, share: float = 0.1) -> float:
    """The bottom share *of the tokens*; lp_window_bottom takes windows.

    Formula: mean of the ceil(share N) smallest l_t
    Unit: nats, <= 0
    Undefined: never
    Source: DeepConf's bottom 10 %, read as tokens, not windows; Fu et al. 2025, arXiv:2508.15260
    """
    nats = evidence.trace.chosen
    return lowest_mean(nats, kept_ceil(nats.size, share))
