"""Log-prob of the least likely token of the final number."""

import math

from gateway.confidence import Higher, Needs
from gateway.confidence._answer import answer_tokens
from gateway.confidence._order import lowest
from gateway.nouns import Evidence

NEEDS = Needs(tokens=True)
HIGHER = Higher.SURER


def feature(evidence: Evidence) -> float:
    """The final number's weakest digit.

    Formula: min l_t over the tokens that overlap the final number
    Unit: nats, <= 0
    Undefined: when no final number can be read
    Source: own; compare UQAC, arXiv:2503.19168
    """
    span = answer_tokens(evidence.trace)
    return math.nan if span is None else lowest(evidence.trace.chosen[span])
