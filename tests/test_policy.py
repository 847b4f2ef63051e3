"""Where a probability meets a threshold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.nouns import Finish, Reason
from gateway.policy import decide

shares = st.floats(0, 1)


@given(shares, shares)
def test_at_or_above_the_threshold_is_confident(p_correct: float, threshold: float) -> None:
    wanted = Reason.CONFIDENT if p_correct >= threshold else Reason.UNSURE
    assert decide(p_correct, threshold, finish=Finish.STOP, null_reason=None) is wanted


@given(shares | st.none(), st.sampled_from(list(Finish)))
def test_without_a_threshold_someone_has_to_answer(p_correct: float | None, finish: Finish) -> None:
    assert decide(p_correct, None, finish=finish, null_reason=None) is Reason.LAST


@given(shares)
def test_a_cut_answer_is_never_confident(p_correct: float) -> None:
    assert decide(p_correct, 0.0, finish=Finish.LENGTH, null_reason=None) is Reason.TRUNCATED


@given(shares)
def test_no_evidence_is_not_low_confidence(threshold: float) -> None:
    assert decide(None, threshold, finish=Finish.STOP, null_reason=Reason.SAMPLER_CHANGED) is Reason.SAMPLER_CHANGED
    assert decide(None, threshold, finish=Finish.STOP, null_reason=None) is Reason.NO_EVIDENCE
