"""Find the final answer in a model's text: which rule points at it, and where it stands.

The grader, the answer-span features and the agreement of two tiers all stand on this one reading. Everything is linear
in the text's length, and what a hostile text could make slow is capped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from gateway.numerals import (
    CURRENCY,
    MAX_REGION,
    VULGAR,
    Number,
    first_number,
    last_number,
    numbers,
    one_for_one,
    only_number,
)

MAX_TAIL = 100_000  # characters read from the end; five times the longest answer a model of ours can give

_BRACES = re.compile(r"\\f?boxed\s{0,3}\{|\\[{}\\]|[{}]")
_CLAUSE = re.compile(r"\banswers?[*_]{0,3}(?:\s{1,3}is\b|\s{0,2}[:=])[\s*_:$]*+", re.IGNORECASE | re.ASCII)
_MARKUP = re.compile(rf"(?:[\s*_`:=(\[]|\\[(\[]|{CURRENCY})*+")
_HEADING = re.compile(r"[.):]\**\s+\**[A-Za-z]")
_HAS_DIGIT = re.compile(rf"[0-9{''.join(VULGAR)}]")


class Rule(StrEnum):
    """What pointed at the answer, in the order tried. Strict grading trusts the first two alone."""

    BOXED = "boxed"  # the last balanced \boxed{...} that is not empty
    HASHES = "hashes"  # the last "####", with a number right behind it
    ANSWER_IS = "answer_is"  # the last "answer is" or "answer:", with a number in the rest of the line
    LAST_LINE = "last_line"  # the last number of the last line that is not empty
    LAST_NUMBER = "last_number"  # the last number of all
    NONE = "none"


STRICT = frozenset({Rule.BOXED, Rule.HASHES})


@dataclass(frozen=True, slots=True)
class Reading:
    """What the first rule that applied found. number: absent when the rule points at what is not one number.

    stop: where the final answer is over, closing brace included; text behind it is afterthought.
    """

    rule: Rule
    number: Number | None
    stop: int


def read_answer(text: str) -> Reading:
    """The final answer of a text, by the first rule that applies; Rule.NONE for a text without any number.

    A box, or a "####", that holds a range or two numbers is read as no number; later rules are not tried then.
    """
    skipped = max(0, len(text) - MAX_TAIL)
    plain = one_for_one(text[skipped:])
    found = (reading for rule in (_boxed, _hashes, _answer_is, _last) if (reading := rule(plain)) is not None)
    return _shifted(next(found, Reading(Rule.NONE, None, len(plain))), skipped)


POINTED_AT = STRICT | {Rule.ANSWER_IS}


def agree(one: str, other: str) -> bool | None:
    """Whether two answers to one question come to the same. None where that cannot be told: a number in prose that no
    text points at as its answer is none."""
    if one.strip() == other.strip():
        return True
    first, second = read_answer(one), read_answer(other)
    if first.number is None or second.number is None or not {first.rule, second.rule} <= POINTED_AT:
        return None
    return first.number.value == second.number.value


def last_box(text: str) -> tuple[int, int] | None:
    """Bounds of the content of the last balanced \\boxed{...} that is not empty. One pass, however deep the braces."""
    last = None
    open_braces: list[tuple[int, bool]] = []
    first = text.find("\\")
    for brace in _BRACES.finditer(text, first) if first >= 0 else ():
        if brace[0] == "}":
            start, boxed = open_braces.pop() if open_braces else (0, False)
            if boxed and (last is None or start > last[0]) and text[start : brace.start()].strip():
                last = start, brace.start()
        elif brace[0] == "{" or len(brace[0]) > 2:
            open_braces.append((brace.end(), brace[0] != "{"))
    return last


def last_clause(text: str) -> tuple[int, int] | None:
    """Bounds of what follows the last "answer is" or "answer:": the rest of the line, or the next one with words."""
    marks = list(_CLAUSE.finditer(text))
    if not marks:
        return None
    start = marks[-1].end()
    return start, _line_end(text, start)


def _boxed(text: str) -> Reading | None:
    box = last_box(text)
    return None if box is None else Reading(Rule.BOXED, only_number(text, *box), box[1] + 1)


def _hashes(text: str) -> Reading | None:
    """Fourth-level headings begin with "####" too ("#### Step 2", "#### 2. Compute"); those are no answers."""
    mark = text.rfind("####")
    if mark < 0:
        return None
    start, end = mark + 4, _line_end(text, mark)
    found = numbers(text, start, end)
    if not found or not _MARKUP.fullmatch(text, start, found[0].start) or _HEADING.match(text, found[0].end, end):
        return None
    return _reading(Rule.HASHES, first_number(text, found), end)


def _answer_is(text: str) -> Reading | None:
    clause = last_clause(text)
    found = numbers(text, *clause) if clause else []
    return _reading(Rule.ANSWER_IS, first_number(text, found), clause[1]) if clause and found else None


def _last(text: str) -> Reading | None:
    end = len(text)
    rule = Rule.LAST_LINE
    for line in reversed(text.splitlines(keepends=True)):
        start = end - len(line)
        if _HAS_DIGIT.search(line):
            found = numbers(text, max(start, end - MAX_REGION), end, line_start=start)
            if found:
                return _reading(rule, last_number(text, found, max(start, end - MAX_REGION)), end)
        if line.strip():
            rule = Rule.LAST_NUMBER
        end = start
    return None


def _reading(rule: Rule, number: Number | None, end: int) -> Reading:
    return Reading(rule, number, end if number is None else number.end)


def _shifted(reading: Reading, by: int) -> Reading:
    number = reading.number and Number(reading.number.value, reading.number.start + by, reading.number.end + by)
    return Reading(reading.rule, number, reading.stop + by)


def _line_end(text: str, start: int) -> int:
    newline = text.find("\n", start)
    return min(len(text) if newline < 0 else newline, start + MAX_REGION)
