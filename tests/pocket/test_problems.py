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
    digest = "f9b45993b0d4f07bf2841f7e796e37b0e481eee45e0b4a68352f98a2c56b7bbc"
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


def test_the_shifts_show_what_training_never_shows() -> None:
    words = {split: set(re.findall(r"[A-Za-z]+", " ".join(p.text for p in drawn))) for split, drawn in DRAWN.items()}
    assert set(pocket.NEW_NAMES) | set(pocket.NEW_ITEMS) <= words["new_names"]
    for split in ("train", "calibration", "validation", "test", "reworded"):
        assert not words[split] & {*pocket.NEW_NAMES, *pocket.NEW_ITEMS}
    assert {"portion", "crates", "cartons", "tally"} <= words["reworded"] - words["train"]
    assert {"radio", "uncle", "bus"} <= words["extra_clause"] - words["train"]
    assert min(p.steps for p in DRAWN["more_steps"]) > max(p.steps for p in DRAWN["train"])
    assert min(p.magnitude for p in DRAWN["larger_numbers"]) > max(p.magnitude for p in DRAWN["train"])


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
