"""Right, wrong, unreadable or never asked: one answer held against its target.

Numbers are compared as exact rationals. No tolerance, and no percentage: some public graders take 1800 for 18 and 10001
for 10000. How the final answer is found stands in gateway/answers.py, because the gateway's features look at it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache

from gateway.answers import MAX_TAIL, STRICT, Rule, last_box, last_clause, read_answer
from gateway.errors import GatewayError
from gateway.nouns import Finish
from gateway.numerals import read_number

NO_ANSWER = "none"  # the target of a question that has no answer

_LETTER = re.compile(r"[A-E]")
# In running text a capital A is an article, so a letter counts when it is in brackets, has one behind it or is alone.
_LETTER_IN_BOX = re.compile(r"^\W*(?:\\text\w*\{\W*)?([A-E])\b")
_LETTER_IN_CLAUSE = re.compile(r"^\W*(?:option\W+|choice\W+)?([A-E])\b(?!['’]|\s+[a-z])")
_LETTER_ALONE = re.compile(r"\(([A-E])\)|\b([A-E])\)|^[^\w\n]*+([A-E])[^\w\n]*+$", re.MULTILINE)


class Grade(StrEnum):
    """What became of a question. Only RIGHT and WRONG are evidence about the model's knowledge."""

    RIGHT = "right"
    WRONG = "wrong"
    UNREADABLE = "unreadable"  # there is a text, but no one final answer in it
    UNASKED = "unasked"  # no text: the model was never asked, or never replied


class BadTarget(GatewayError):
    """A reference answer that no text could ever match."""

    def __init__(self, target: str) -> None:
        super().__init__(f"target {target!r} is neither one number, an option letter A to E, nor {NO_ANSWER!r}")
        self.target = target


@dataclass(frozen=True, slots=True)
class Graded:
    """One answer's grade, and how it came about.

    grade: flexible, by whatever rule fired.  strict: as grade where the answer was marked (box, "####"), else
    unreadable; a model whose two accuracies differ by more than two points has a prompt problem.
    answer: the final answer in canonical spelling ("18", "3/4", "B"), empty when none was read.
    truncated: cut at the token limit, and wrong for that, whatever it holds.
    """

    grade: Grade
    rule: Rule = Rule.NONE
    answer: str = ""
    truncated: bool = False

    @property
    def strict(self) -> Grade:
        if self.grade is Grade.UNASKED or self.truncated or self.rule in STRICT:
            return self.grade
        return Grade.UNREADABLE


def grade(text: str | None, target: str, finish: Finish = Finish.STOP) -> Graded:
    """Hold a model's text against the reference answer. text: None when there is no reply.

    target: a number in any spelling, an option letter, or "none" for a question without an answer, where any number is
    wrong and no number stays unreadable: a refusal and a failure look alike. Raises BadTarget.
    """
    wanted = read_target(target)
    if text is None:
        return Graded(Grade.UNASKED)
    rule, found = _read_letter(text) if _LETTER.fullmatch(wanted) else _read_number(text)
    if finish.cut:
        return Graded(Grade.WRONG, rule, found, truncated=True)
    if not found:
        return Graded(Grade.UNREADABLE, rule)
    return Graded(Grade.RIGHT if found == wanted else Grade.WRONG, rule, found)


@lru_cache(maxsize=65_536)
def read_target(target: str) -> str:
    """A reference answer in canonical spelling: "1,234.0" is "1234", "6/8" is "3/4". Raises BadTarget."""
    stripped = target.strip()
    if _LETTER.fullmatch(stripped) or stripped == NO_ANSWER:
        return stripped
    number = read_number(stripped)
    if number is None:
        raise BadTarget(target)
    return spell(number)


def spell(number: Fraction) -> str:
    """Lowest terms: "18", "-7", "3/4"."""
    return str(number)


def accuracy(grades: Iterable[Grade]) -> tuple[int, int]:
    """(right, asked): unreadable counts as asked and not right, unasked does not count."""
    asked = [one for one in grades if one is not Grade.UNASKED]
    return sum(one is Grade.RIGHT for one in asked), len(asked)


def _read_number(text: str) -> tuple[Rule, str]:
    reading = read_answer(text)
    return reading.rule, "" if reading.number is None else spell(reading.number.value)


def _read_letter(text: str) -> tuple[Rule, str]:
    """The option letter of a multiple-choice answer: boxed, after "answer is", or the last one that stands alone."""
    text = text[-MAX_TAIL:]
    box = last_box(text)
    if box is not None:
        match = _LETTER_IN_BOX.search(text[slice(*box)])
        return Rule.BOXED, match[1] if match else ""
    clause = last_clause(text)
    match = _LETTER_IN_CLAUSE.search(text[slice(*clause)]) if clause else None
    if match is not None:
        return Rule.ANSWER_IS, match[1]
    alone = list(_LETTER_ALONE.finditer(text))
    return (Rule.LAST_LINE, next(filter(None, alone[-1].groups()))) if alone else (Rule.NONE, "")
