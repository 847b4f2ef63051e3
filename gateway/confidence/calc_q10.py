"""A low quantile over the digits of computed results."""

import math

from gateway.confidence import Higher, Needs
from gateway.confidence._answer import result_tokens
from gateway.confidence._order import quantile
from gateway.nouns import Evidence

NEEDS = Needs(tokens=True)
HIGHER = Higher.SURER


def feature(evidence: Evidence) -> float:
    """calc_min, less at the mercy of one token.

    Formula: 0.1-quantile of l_t over the tokens with digits that directly follow "=", final answer apart
    Unit: nats, <= 0
    Undefined: when no "=" before the final answer is followed by digits
    Source: own
    """
    results = result_tokens(evidence.trace)
    return quantile(evidence.trace.chosen[results], 0.1) if results.size else math.nan
