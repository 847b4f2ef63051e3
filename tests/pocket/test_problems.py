"""The generator of word problems: reproducible, disjoint, varied, and right."""

from __future__ import annotations

import hashlib
import re
from fractions import Fraction

import pytest

from eval.datasets import load, pocket
from eval.grade import Grade, grade

DRAWN = {split: list(pocket.problems(split, 300)) for split in pocket.SPLITS}


def test_problems_are_reproducible_to_the_byte() -> None:
    """The hash was computed once; another Python or another machine must come to the same text."""
    told = "\n".join(p.text + p.chain for split in pocket.SPLITS for p in DRAWN[split][:50])
    digest = "a30b6a8f352f5c2a8b2698e70c4746624622d10cbf213d1d18a9d822d790a9ff"
    assert hashlib.sha256(told.encode()).hexdigest() == digest


def test_another_seed_gives_other_problems() -> None:
    assert [p.text for p in pocket.problems("test", 20, seed=1)] != [p.text for p in DRAWN["test"][:20]]


def test_no_two_splits_share_a_problem_not_even_a_renamed_one() -> None:
    owner: dict[str, str] = {}
    for split, drawn in DRAWN.items():
        for problem in drawn:
            assert owner.setdefault(problem.identity, split) == split


def test_training_keeps_out_of_every_other_splits_buckets() -> None:
    """The models saw far more training problems than a test can draw; the buckets hold for all of them."""
    buckets = [set(pocket.BUCKETS[split]) for split in ("train", "calibration", "validation", "test")]
    assert sum(len(bucket) for bucket in buckets) == len(set().union(*buckets)) == 20
    for split in ("train", "calibration", "validation", "test"):
        assert all(int(p.identity[:8], 16) % 20 in pocket.BUCKETS[split] for p in DRAWN[split])
    for split in pocket.SHIFTS:
        assert all(int(p.identity[:8], 16) % 20 in pocket.BUCKETS["test"] for p in DRAWN[split])


def test_a_problem_is_drawn_once_however_long_the_list() -> None:
    identities = [p.identity for p in pocket.problems("validation", 1500)]
    assert len(set(identities)) == 1500


@pytest.mark.parametrize("split", pocket.SPLITS)
def test_every_chain_is_right_and_ends_in_the_answer(split: str) -> None:
    for problem in DRAWN[split]:
        *equations, last = problem.chain.split("\n")
        for equation in equations:
            left, sign, right, result = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", equation).groups()  # type: ignore[union-attr]
            a, b = Fraction(left), Fraction(right)
            assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign] == Fraction(result)
        assert last == f"#### {problem.answer}"
        assert equations[-1].endswith(f"={problem.answer}")
        assert len(equations) == problem.steps
        assert problem.answer > 0
        assert problem.magnitude == max(int(n) for n in re.findall(r"\d+", " ".join(equations)))
        assert grade(problem.chain, str(problem.answer)).grade is Grade.RIGHT


@pytest.mark.parametrize("split", pocket.SPLITS)
def test_every_split_keeps_to_its_recipe(split: str) -> None:
    recipe = pocket.RECIPES[split]
    for problem in DRAWN[split]:
        assert recipe.steps[0] <= problem.steps <= recipe.steps[1]
        assert recipe.peak[0] <= problem.magnitude <= recipe.peak[1]


def words(split: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]+", " ".join(p.text for p in DRAWN[split])))


@pytest.mark.parametrize("split", pocket.SHIFTS)
def test_no_shift_uses_a_word_that_training_never_shows(split: str) -> None:
    known = set(re.findall(r"[A-Za-z]+", " ".join(pocket.problem("train", n).text for n in range(4000))))
    assert words(split) <= known


def test_the_shifts_show_what_training_never_shows() -> None:
    train = " ".join(p.text for p in DRAWN["train"])
    assert not any(name in train for name in pocket.NEW_NAMES)
    assert not re.search(r"(?:How many|more|of|the) (?:old|new|smaller) ", train)
    for problem in DRAWN["new_names"]:
        assert any(new in problem.text for new in (*pocket.NEW_NAMES, *pocket.NEW_ITEMS))
    assert not re.search(r"finds \d+ new|are left in the end|must have", train)
    assert re.search(r"finds \d+ new|are left in the end|must have", " ".join(p.text for p in DRAWN["reworded"]))
    clauses = r"has \d+ friends\.|sells \d+ \w+ every day|minutes every day|gives \w+ \d+ \w+\.|is \d+ years"
    assert all(re.search(clauses, problem.text) for problem in DRAWN["extra_clause"])
    assert not re.search(r"has \d+ friends\.|sells \d+ \w+ every day|minutes every day", train)
    assert min(p.steps for p in DRAWN["more_steps"]) > max(p.steps for p in DRAWN["train"])
    firsts = {split: [int(re.search(r"\d+", p.text)[0]) for p in DRAWN[split]] for split in ("train", "larger_numbers")}  # type: ignore[index]
    assert min(firsts["larger_numbers"]) > max(firsts["train"])


def test_thousands_of_surface_forms_all_operations_and_all_lengths() -> None:
    drawn = [pocket.problem("train", n) for n in range(6000)]
    names = "|".join([*pocket.NAMES, *pocket.ITEMS])
    forms = {re.sub(r"\d+", "#", re.sub(rf"\b(?:{names})\b", "@", p.text)) for p in drawn}
    assert len(forms) > 5000
    assert {p.steps for p in drawn} == set(range(2, 9))
    signs = "".join(re.sub(r"[^-+*/]", "", p.chain) for p in drawn)
    assert all(signs.count(sign) > len(signs) / 20 for sign in "+-*/")


def test_questions_carry_the_slices_that_objectives_group_by() -> None:
    question = load("pocket", split="more_steps", n=3)[0]
    assert question.target == str(DRAWN["more_steps"][0].answer)
    assert question.slices["steps"] == DRAWN["more_steps"][0].steps
    assert question.slices["shift"] == "more_steps"


def test_a_wrong_split_is_answered_with_the_right_ones() -> None:
    with pytest.raises(ValueError, match="more_steps"):
        next(pocket.problems("tset", 1))
