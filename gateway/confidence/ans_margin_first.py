"""Gap between first and second choice where the final number begins."""

import math

from gateway.confidence import Higher, Needs
from gateway.confidence._answer import answer_tokens
from gateway.confidence._margin import STAND_IN, margins
from gateway.nouns import Evidence

NEEDS = Needs(top_k=2, tokens=True, stand_ins=(STAND_IN,))
HIGHER = Higher.SURER


def feature(evidence: Evidence) -> float:
    """Margin at the number's first token, its sign if it has one.

    Formula: p_t,(1) - p_t,(2) at the first token that overlaps the final number
    Unit: probability, in [0, 1]
    Undefined: when no final number can be read
    Source: own; compare UQAC, arXiv:2503.19168
    """
    span = answer_tokens(evidence.trace)
    return math.nan if span is None else float(margins(evidence.trace)[span.start])
