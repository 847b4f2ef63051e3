"""A calibrated probability meets a threshold here and nowhere else."""

from __future__ import annotations

from gateway.nouns import Finish, Reason


def decide(p_correct: float | None, threshold: float | None, *, finish: Finish, null_reason: Reason | None) -> Reason:
    """What becomes of one tier's answer.

    p_correct: calibrated probability in [0, 1], None without evidence, and then null_reason says why.
    threshold: accept at or above it; None accepts whatever came (a last tier, a bypass).
    No evidence is not low confidence: it has its own reason, and it escalates.
    """
    if threshold is None:
        return Reason.LAST
    if finish is Finish.LENGTH:
        return Reason.TRUNCATED
    if p_correct is None:
        return null_reason or Reason.NO_EVIDENCE
    return Reason.CONFIDENT if p_correct >= threshold else Reason.UNSURE
