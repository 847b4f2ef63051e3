"""Which tokens spell the final answer, and which the results of its sums."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from gateway.answers import Reading, read_answer
from gateway.nouns import TokenTrace
from gateway.numerals import one_for_one

_AFTER_EQUALS = re.compile(r"=[^\S\n]*+[$€£]?+[^\S\n]*+-?+[^\S\n]*+[$€£]?+(?P<digits>[0-9]+(?:[,.][0-9]+)*+)")


@dataclass(frozen=True, slots=True, eq=False)
class Spelling:
    """An answer's text as its tokens spell it.

    ends: T of them, bytes up to and including each token.  The text is taken from the tokens' bytes, because a token
    may end in the middle of a character; bytes that are no UTF-8 become one surrogate each, so that no offset moves.
    """

    text: str
    ends: Sequence[int]
    reading: Reading

    def tokens(self, start: int, end: int) -> range:
        """The tokens that overlap text[start:end], end > start."""
        if not self.text.isascii():  # from characters to bytes
            length = len(self.text[start:end].encode(errors="surrogateescape"))
            start = len(self.text[:start].encode(errors="surrogateescape"))
            end = start + length
        return range(bisect_right(self.ends, start), bisect_left(self.ends, end) + 1)


@lru_cache(maxsize=64)
def final_answer(text: str) -> Reading:
    """read_answer, remembered: a tier's text is read for its spans, for agreement, and again for the next tier's."""
    return read_answer(text)


@lru_cache(maxsize=8)
def spelling(trace: TokenTrace) -> Spelling:
    """Text, token ends and final answer of a trace with tokens; traces are frozen, so its features share the work."""
    text = b"".join(trace.tokens).decode(errors="surrogateescape")
    return Spelling(text, list(accumulate(map(len, trace.tokens))), final_answer(text))


def answer_tokens(trace: TokenTrace) -> slice | None:
    """The tokens that overlap the final number, None when the text has none. "\\boxed{1,234}": from the 1 to the 4."""
    spelled = spelling(trace)
    number = spelled.reading.number
    if number is None:
        return None
    span = spelled.tokens(number.start, number.end)
    return slice(span.start, span.stop)


@lru_cache(maxsize=8)
def result_tokens(trace: TokenTrace) -> npt.NDArray[np.intp]:
    """Positions of the tokens that hold digits right after an "=" before the final answer. (M,), M >= 0."""
    spelled = spelling(trace)
    number = spelled.reading.number
    plain = one_for_one(spelled.text)
    end = len(plain) if number is None else number.start
    spans = [spelled.tokens(*match.span("digits")) for match in _AFTER_EQUALS.finditer(plain, 0, end)]
    return np.array(sorted(set().union(*spans)), dtype=np.intp)
