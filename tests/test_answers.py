"""When two answers come to the same."""

from __future__ import annotations

import pytest

from gateway.answers import agree


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("6 * 7 = 42\n#### 42", "so it is \\boxed{42.0}"),
        ("The answer is 1,000.", "#### 1000"),
        ("Paris", " Paris\n"),
        ("", ""),
    ],
)
def test_answers_agree_that_point_at_one_number_or_say_the_same(one: str, other: str) -> None:
    assert agree(one, other) is True
    assert agree(other, one) is True


def test_answers_that_point_at_two_numbers_disagree() -> None:
    assert agree("#### 42", "The answer is 43") is False


@pytest.mark.parametrize("other", ["I have 43 of them", "no idea", "", "#### none", "\ud800"])
def test_of_a_text_that_points_at_no_number_nothing_is_said(other: str) -> None:
    assert agree("#### 42", other) is None
    assert agree(other, "#### 42") is None
