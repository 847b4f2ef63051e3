"""Which questions fit a calibrator, which choose thresholds, which are kept for the end; and whether a set is clean.

Splits go by question, never by answer, and variants of one question stay together: else a calibrator is tested on what
it has seen, and looks better than it is.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations

import numpy as np
import numpy.typing as npt
from scipy import stats

from eval.datasets import Question
from gateway.errors import GatewayError

KS_LIMIT = 0.1  # a larger distance on the main feature and the suspect set is not calibrated on
MIN_WORDS = 6  # a question with fewer plain words ("What is 3 * 4?") is like too many others to call them variants

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_NUMBER_WORDS = frozenset({
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty", "forty", "fifty",
    "sixty", "seventy", "eighty", "ninety", "hundred", "thousand", "million",
})  # fmt: skip

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class BadSplit(GatewayError):
    """Shares that make no split, or a split that no question fell into."""


class SharedQuestions(GatewayError):
    """Two splits hold the same question, or variants of one. `pairs`: (id in the first, id in the second)."""

    def __init__(self, first: str, second: str, pairs: Sequence[tuple[str, str]]) -> None:
        told = ", ".join(f"{one} ~ {other}" for one, other in pairs[:3])
        super().__init__(f"{first} and {second} share {len(pairs)} question(s) or variants of them: {told}")
        self.first, self.second, self.pairs = first, second, tuple(pairs)


def split(questions: Iterable[Question], shares: Mapping[str, float], *, seed: int = 0) -> dict[str, list[Question]]:
    """Divide questions among named splits, variants together: split(all, {"fit": 0.5, "tune": 0.2, "test": 0.3}).

    Each group of variants is drawn by a hash of its name and the seed: the same on every machine, whatever the order,
    and a question added later moves its own variants at most. So sizes are only about the shares, which must sum to 1.
    Raises BadSplit for such shares, or when a split stays empty.
    """
    if not shares or min(shares.values()) <= 0 or not math.isclose(sum(shares.values()), 1):
        raise BadSplit(f"shares must be positive and sum to 1, got {dict(shares)}")
    limits = list(accumulate(shares.values()))
    limits[-1] = math.inf  # rounding must not leave a gap below 1
    drawn: dict[str, list[Question]] = {name: [] for name in shares}
    listed = list(questions)
    for question, group in zip(listed, groups(listed), strict=True):
        lot = _lot(group, seed)
        drawn[next(name for name, limit in zip(shares, limits, strict=True) if lot < limit)].append(question)
    empty = [name for name, members in drawn.items() if not members]
    if empty:
        raise BadSplit(f"no question for {', '.join(empty)} out of {len(listed)} in {len(set(groups(listed)))} groups")
    return drawn


def check_disjoint(splits: Mapping[str, Iterable[Question]]) -> None:
    """Raises SharedQuestions when two of the splits hold the same question, or variants of one."""
    for one in shared(splits):
        raise SharedQuestions(one.first, one.second, one.pairs)


@dataclass(frozen=True, slots=True)
class Shared:
    """What two splits have in common. pairs: (id in the first, id in the second), one for each group of variants.
    lost: ids of all questions of the first that the second holds a variant of."""

    first: str
    second: str
    pairs: tuple[tuple[str, str], ...]
    lost: frozenset[str]

    def __str__(self) -> str:
        told = ", ".join(f"{one} ~ {other}" for one, other in self.pairs[:3])
        return f"{len(self.lost)} question(s) of {self.first} vary questions of {self.second} ({told})"


def shared(splits: Mapping[str, Iterable[Question]]) -> list[Shared]:
    """Every two splits that hold the same question, or variants of one; the splits in the order given."""
    members = [(name, question) for name, questions in splits.items() for question in questions]
    found: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in splits}  # split -> group -> ids
    for (name, question), group in zip(members, groups([question for _, question in members]), strict=True):
        found[name][group].append(question.id)
    common = {(one, two): sorted(found[one].keys() & found[two].keys()) for one, two in combinations(splits, 2)}
    return [
        Shared(
            one,
            two,
            tuple((found[one][group][0], found[two][group][0]) for group in both),
            frozenset(name for group in both for name in found[one][group]),
        )
        for (one, two), both in common.items()
        if both
    ]


def apart(splits: Mapping[str, Sequence[Question]]) -> tuple[list[Question], list[Shared]]:
    """All questions, one split after another, without those that vary a question of a later split; and which those are.

    So name first what is fitted on, and last what is tested on: the test stays as published, and nothing it asks was
    fitted on.
    """
    found = shared(splits)
    lost = {(one.first, name) for one in found for name in one.lost}
    return [q for name, questions in splits.items() for q in questions if (name, q.id) not in lost], found


def groups(questions: Sequence[Question]) -> list[str]:
    """A group name for each question; variants of one question, directly or by way of others, have the same.

    Variants share an id, a family, or the text but for numbers and names. The name is the group's smallest mark, so it
    depends on the members alone and not on their order.
    """
    parent: dict[str, str] = {}
    marks = [_marks(question) for question in questions]
    for first, *others in marks:
        for other in others:
            one, two = sorted((_root(parent, first), _root(parent, other)))
            if one != two:
                parent[two] = one
    return [_root(parent, first) for first, *_ in marks]


def skeleton(text: str) -> str:
    """A text without numbers and names: its words in order, lower case; those with a capital are dropped.

    The first words of sentences fall away with the names, alike in all variants. Too short a rest says nothing, and the
    whole text is taken; so it is for Chinese, Thai and others that have no capitals.
    """
    words = [word for word in _WORD.findall(text) if word.islower() and word not in _NUMBER_WORDS]
    return " ".join(words) if len(words) >= MIN_WORDS else text


@dataclass(frozen=True, slots=True)
class Contamination:
    """Whether answers on a suspect set look unlike those on a clean one.

    ks: greatest distance of the two distribution functions of the main feature, in [0, 1], with its p_value.
    accuracy_gap: suspect minus clean, with a 95 % interval (low, high).  advice: what to do, in words.
    """

    n_suspect: int
    n_clean: int
    ks: float
    p_value: float
    accuracy_gap: float
    low: float
    high: float
    advice: str


def contamination(suspect: Floats, suspect_right: Bools, clean: Floats, clean_right: Bools) -> Contamination:
    """Compare the main feature and the accuracy on a set the model may have seen with a clean set of the same kind.

    suspect, clean: (N,) and (M,) values of one feature, finite; *_right: whether each answer was right. KS is judged by
    its size, as a large set makes any small shift significant, and by its p-value, as in a small set it is large by
    chance. Accuracy interval: Agresti & Caffo 2000. Raises BadSplit when a set is empty or holds NaN.
    """
    for name, feature, right in (("suspect", suspect, suspect_right), ("clean", clean, clean_right)):
        if feature.size == 0 or feature.shape != right.shape or not bool(np.isfinite(feature).all()):
            raise BadSplit(f"{name}: need as many finite feature values as grades, at least one, got {feature.shape}")
    test = stats.ks_2samp(suspect, clean)
    ks, p_value = float(test.statistic), float(test.pvalue)
    gap = float(suspect_right.mean() - clean_right.mean())
    low, high = _gap_interval(suspect_right, clean_right)
    return Contamination(suspect.size, clean.size, ks, p_value, gap, low, high, _advice(ks, p_value, low, high))


def _advice(ks: float, p_value: float, low: float, high: float) -> str:
    gap = f"; accuracy differs by {100 * low:+.1f} to {100 * high:+.1f} points" if low > 0 or high < 0 else ""
    if ks <= KS_LIMIT:
        return f"confidence looks alike on both sets (KS {ks:.2f}): calibrate on either{gap}"
    if p_value >= 0.05:
        return (
            f"KS {ks:.2f} may be chance (p = {p_value:.2f}): collect more answers, or calibrate on the clean set{gap}"
        )
    return f"confidence differs (KS {ks:.2f}): calibrate on the clean set{gap}"


def _gap_interval(one: Bools, other: Bools) -> tuple[float, float]:
    p, q = (one.sum() + 1) / (one.size + 2), (other.sum() + 1) / (other.size + 2)
    half = 1.96 * math.sqrt(p * (1 - p) / (one.size + 2) + q * (1 - q) / (other.size + 2))
    return float(p - q - half), float(p - q + half)


def _marks(question: Question) -> list[str]:
    marks = [f"text {skeleton(question.text)}", f"id {question.dataset} {question.split} {question.id}"]
    return [*marks, f"family {question.family}"] if question.family else marks


def _root(parent: dict[str, str], mark: str) -> str:
    while mark in parent:
        parent[mark] = mark = parent.get(parent[mark], parent[mark])
    return mark


def _lot(group: str, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}/{group}".encode()).digest()[:8]) / 2**64
