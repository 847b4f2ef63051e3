"""What the drill rests on: answers that pocket models gave, some right, some wrong."""

from __future__ import annotations

from tests.drill.recorded import SPLITS, answers


def test_every_answer_has_its_question_and_a_log_prob_for_every_token() -> None:
    known = answers()
    assert {split: len(some) for split, some in known.items()} == SPLITS
    for one in (one for some in known.values() for one in some):
        assert len(one.nats) == len(one.tokens) + 1
        assert max(one.nats) <= 0
        assert one.question
        assert one.target


def test_shifted_questions_are_the_harder_ones() -> None:
    right = {split: sum(one.right for one in some) / len(some) for split, some in answers().items()}
    assert min(right["calibration"], right["test"]) > 0.4
    assert all(share < 0.4 for split, share in right.items() if split not in ("calibration", "test"))
