from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.datasets import Question, load
from eval.splits import BadSplit, SharedQuestions, apart, check_disjoint, contamination, groups, skeleton, split

SAMPLES = Path(__file__).parents[1] / "data"
SHARES = {"fit": 0.5, "tune": 0.2, "test": 0.3}


def question(name: str, text: str = "", family: str = "") -> Question:
    return Question(name, text or f"What is {name}?", "1", "made", family=family)


MANY = [question(f"q{i}") for i in range(2_000)]


def test_names_and_numbers_do_not_make_a_new_question() -> None:
    max_, bella = load("gsm8k", SAMPLES, split="train")[0], "Tom bought stamps at the post office. Some of the stamps"
    assert bella.split(" ", 1)[1] in max_.text
    assert skeleton("Ann has 3 red apples and buys four more apples at the shop.") == skeleton(
        "Bo has 17 red apples and buys 1,250 more apples at the shop."
    )
    assert skeleton("Ann has 3 red apples and buys four more apples.") != skeleton(
        "Ann has 3 red apples and eats four more apples."
    )


def test_short_questions_are_told_apart_by_their_numbers() -> None:
    assert skeleton("What is 3 * 4?") != skeleton("What is 5 * 6?")


def test_variants_are_one_group_by_way_of_each_other_too() -> None:
    text = "Ann has {} red apples and then buys some more of these apples at the shop."
    related = [question("a", text.format(3)), question("b", text.format(4), family="f"), question("c", family="f")]
    assert len(set(groups([*related, question("d")]))) == 2
    assert groups(related) == groups(related[::-1])[::-1]


def test_a_split_keeps_every_question_once_and_variants_together() -> None:
    families = [question(f"q{i}", family=f"f{i // 4}") for i in range(400)]
    parts = split(families, SHARES)
    assert sorted(q.id for part in parts.values() for q in part) == sorted(q.id for q in families)
    check_disjoint(parts)
    homes = {(q.family, name) for name, part in parts.items() for q in part}
    assert len(homes) == 100


def test_shares_are_kept_about() -> None:
    parts = split(MANY, SHARES)
    assert [len(part) / len(MANY) for part in parts.values()] == pytest.approx([0.5, 0.2, 0.3], abs=0.04)


def test_a_split_depends_on_the_seed_alone() -> None:
    shuffled = random.Random(3).sample(MANY, len(MANY))
    again = split(shuffled, SHARES)
    assert {name: {q.id for q in part} for name, part in split(MANY, SHARES).items()} == {
        name: {q.id for q in part} for name, part in again.items()
    }
    assert split(MANY, SHARES, seed=1) != split(MANY, SHARES, seed=0)
    assert [q.id for q in split(MANY, SHARES)["tune"]][:3] == ["q4", "q8", "q9"]  # on every machine


def test_a_question_added_later_moves_no_other() -> None:
    before = {q.id: name for name, part in split(MANY[:1_000], SHARES).items() for q in part}
    after = {q.id: name for name, part in split(MANY, SHARES).items() for q in part}
    assert before == {name: after[name] for name in before}


@settings(max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=40, max_size=80), st.integers(0, 5))
def test_no_split_ever_shares_a_family(families: list[int], seed: int) -> None:
    questions = [question(f"q{i}", family=f"f{family}") for i, family in enumerate(families)]
    with suppress(BadSplit):  # a split may stay empty, which is its own test
        check_disjoint(split(questions, {"fit": 0.5, "test": 0.5}, seed=seed))


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": 0.5, "b": 0.6}, {"a": 1.5, "b": -0.5}, {"a": 1.0, "b": 0.0}])
def test_shares_that_make_no_split_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(BadSplit, match="must be positive and sum to 1"):
        split(MANY, shares)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(BadSplit, match="no question for"):
        split([question("a"), question("b")], SHARES)


def test_a_question_in_two_splits_is_told_by_id() -> None:
    with pytest.raises(SharedQuestions, match=r"fit and test share 1 question.*q1 ~ q1") as told:
        check_disjoint({"fit": MANY[:2], "tune": MANY[5:9], "test": MANY[1:3]})
    assert told.value.pairs == (("q1", "q1"),)


def test_a_companion_set_is_not_independent_of_the_test_set() -> None:
    varied = Question("gsm_hard-7", "Some other words.", "1", "gsm_hard", family="gsm8k-test-0")
    with pytest.raises(SharedQuestions, match="gsm8k-test-0 ~ gsm_hard-7"):
        check_disjoint({"test": load("gsm8k", SAMPLES), "hard": [varied]})


def test_a_renamed_test_question_is_found_in_train() -> None:
    """GSM8K's own train row 20 and test row 632 differ in names and numbers only."""
    renamed = load("gsm8k", SAMPLES, split="train")[0]
    text = renamed.text.replace("Bella", "Max").replace("11", "16").replace("13", "9")
    with pytest.raises(SharedQuestions):
        check_disjoint({"train": [renamed], "test": [question("x", text)]})


def draw(seed: int, n: int, shift: float, accuracy: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1, n), rng.random(n) < accuracy


def test_sets_that_look_alike_may_both_be_calibrated_on() -> None:
    told = contamination(*draw(0, 2_000, 0.0, 0.8), *draw(1, 2_000, 0.0, 0.8))
    assert told.ks < 0.1
    assert told.low < 0 < told.high
    assert "calibrate on either" in told.advice
    assert "accuracy" not in told.advice


def test_a_set_the_model_has_seen_is_not_calibrated_on() -> None:
    told = contamination(*draw(0, 2_000, 0.5, 0.95), *draw(1, 2_000, 0.0, 0.8))
    assert told.ks == pytest.approx(0.2, abs=0.04)
    assert told.accuracy_gap == pytest.approx(0.15, abs=0.03)
    assert told.low < 0.15 < told.high
    assert "calibrate on the clean set; accuracy differs by +1" in told.advice


def test_a_large_distance_in_a_small_set_may_be_chance() -> None:
    told = contamination(*draw(0, 20, 0.0, 0.8), *draw(1, 20, 0.0, 0.8))
    assert told.ks > 0.1
    assert "may be chance" in told.advice


@pytest.mark.parametrize("bad", [np.array([]), np.array([np.nan, 1.0]), np.array([1.0])])
def test_contamination_refuses_what_it_cannot_compare(bad: np.ndarray) -> None:
    right = np.ones(2 if bad.size == 1 else bad.size, dtype=bool)
    with pytest.raises(BadSplit, match="suspect: need as many finite"):
        contamination(bad, right, *draw(0, 10, 0, 0.8))


def test_what_varies_a_later_split_is_left_out_of_the_earlier_one() -> None:
    """GSM8K's train row 20 and test row 632; the sample's first train row is that one."""
    train, test = load("gsm8k", SAMPLES, split="train"), load("gsm8k", SAMPLES)
    renamed = Question("gsm8k-test-632", train[0].text.replace("Bella", "Max").replace("11", "16"), "1", "gsm8k")
    rest, found = apart({"train": train, "test": [*test, renamed]})
    assert [q.id for q in rest] == [q.id for q in (*train[1:], *test, renamed)]
    assert str(found[0]) == (
        f"1 question(s) of train vary questions of test ({train[0].id} ~ gsm8k-test-632)"
    )  # fmt: skip
    assert apart({"train": train[1:], "test": test}) == ([*train[1:], *test], [])


def test_all_variants_of_a_later_question_are_left_out() -> None:
    family = [question(f"a{n}", family="f") for n in range(3)]
    rest, found = apart({"one": [*family, question("b")], "two": [question("c", family="f")]})
    assert [q.id for q in rest] == ["b", "c"]
    assert found[0].lost == {"a0", "a1", "a2"}
