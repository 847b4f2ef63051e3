"""Log-prob of the least likely digit of a computed result."""

import math

from gateway.confidence import Higher, Needs
from gateway.confidence._answer import result_tokens
from gateway.confidence._order import lowest
from gateway.nouns import Evidence

NEEDS = Needs(tokens=True)
HIGHER = Higher.SURER


def feature(evidence: Evidence) -> float:
    """Sums go wrong where their result is written, right after an "=".

    Formula: min l_t over the tokens with digits that directly follow "=", final answer apart
    Unit: nats, <= 0
    Undefined: when no "=" before the final answer is followed by digits
    Source: own
    """
    results = result_tokens(evidence.trace)
    return lowest(evidence.trace.chosen[results]) if results.size else math.nan
