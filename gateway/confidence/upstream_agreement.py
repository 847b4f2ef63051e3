"""Whether a tier asked before came to the same final number."""

import math

from gateway.confidence import Higher, Needs
from gateway.confidence._answer import final_answer
from gateway.nouns import Evidence, Summed

NEEDS = Needs(earlier=True)
HIGHER = Higher.SURER


def feature(evidence: Evidence | Summed, *, back: int = 1) -> float:
    """1 when the two final numbers are equal, else 0; back = 1 is the tier asked just before. Models of one
    family share errors, so what agreement is worth is fitted, never assumed.

    Formula: 1 if equal as exact rationals, else 0
    Unit: flag, 0 or 1
    Undefined: when that tier was skipped, or either text has no final number
    Source: agreement-based cascading, arXiv:2407.02348
    """
    if back > len(evidence.earlier):
        return math.nan
    ours, theirs = final_answer(evidence.text).number, final_answer(evidence.earlier[-back].text).number
    return math.nan if ours is None or theirs is None else float(ours.value == theirs.value)
