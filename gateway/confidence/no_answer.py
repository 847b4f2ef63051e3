"""Whether no final number can be read."""

from gateway.confidence import Higher, Needs
from gateway.confidence._answer import final_answer
from gateway.nouns import Evidence, Summed

NEEDS = Needs()
HIGHER = Higher.DOUBTFUL


def feature(evidence: Evidence | Summed) -> float:
    """1 without a readable final number, else 0; tells why the answer-span features are undefined.

    Formula: 1 if no rule finds one number, else 0
    Unit: flag, 0 or 1
    Undefined: never
    Source: own
    """
    return float(final_answer(evidence.text).number is None)
