"""What labels prove about two calibrators, on streams of explored traffic made up so that the truth is known."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from gateway.monitor import trials
from gateway.monitor.compare import Margins, Paired, Told
from gateway.monitor.rollout import Release, Stage, State
from gateway.monitor.trials import ANY_COST, Showing, known
from gateway.store.base import Cursor, DecisionRow, HopRow, Labelled, LabelRow, Source, Whole
from tests.store.rows import decision, hop, label

AT, ALPHA = 1_700_000_000.0, 0.05
APART_SECONDS = 1000.0  # from label to label, so that no look reads one again
OLD, NEW = "cheap@0123456789ab", "cheap@ba9876543210"


@dataclass(frozen=True, slots=True)
class Kind:
    """Answers alike: how many of 1 there are, what both calibrators say, how many are right. accepted: from .8 on."""

    share: float
    old: float
    new: float
    right: float

    @property
    def wrongly(self) -> float:
        return self.share * (1 - self.right) * ((self.new >= 0.8) - (self.old >= 0.8))

    @property
    def brier(self) -> float:
        return self.share * (self.new**2 - self.old**2 - 2 * self.right * (self.new - self.old))


SURE, LOW = Kind(0.7, 0.95, 0.9, 0.9), Kind(0.1, 0.4, 0.4, 0.4)
HARM = (Kind(0.4, 0.95, 0.9, 0.9), Kind(0.6, 0.7, 0.85, 0.5))  # .3 more of all answers are accepted and wrong
GOOD = (SURE, LOW, Kind(0.2, 0.9, 0.55, 0.5))


@dataclass(eq=False)
class Log:
    """A store with a stream in it, labels in the order of decisions.

    told: how many have come.  asked: decisions that were asked for one by one.
    """

    rows: list[tuple[Labelled, tuple[HopRow, ...]]] = field(default_factory=list)
    told: int = 0
    asked: list[str] = field(default_factory=list)

    def labelled(self, after: Cursor, limit: int) -> Sequence[Labelled]:
        return [one for one, _ in self._behind(after, limit)]

    def whole(self, number: str) -> Whole:
        self.asked.append(number)
        one, hops = self.rows[int(number)]
        return Whole(one.decision, hops, (one.label,))

    def decisions(self, after: Cursor, limit: int) -> Sequence[tuple[DecisionRow, tuple[HopRow, ...]]]:
        return [(one.decision, hops) for one, hops in self._behind(after, limit) if one.decision is not None]

    def _behind(self, after: Cursor, limit: int) -> Sequence[tuple[Labelled, tuple[HopRow, ...]]]:
        first = max(0, int((after[0] - AT) // APART_SECONDS))
        return self.rows[first : self.told][:limit]

    def labels(self, number: str) -> tuple[LabelRow, ...]:
        return ()


def stream(n: int, kinds: Sequence[Kind], seed: int, *, share: float, comparable: bool) -> Log:
    """share: of the canary.  comparable: whether it is known which answers come to the same."""
    rng, log = np.random.default_rng(seed), Log()
    for place in range(n):
        kind = kinds[int(rng.choice(len(kinds), p=[one.share for one in kinds]))]
        canary = bool(rng.random() < share)
        right, dear_right = bool(rng.random() < kind.right), bool(rng.random() < 0.6)
        mine, other = (kind.new, kind.old) if canary else (kind.old, kind.new)
        accepted = mine >= 0.8
        same = right and dear_right if right or dear_right else bool(rng.random() < 0.3)
        cheap = hop(
            str(place), p_correct=mine, calibrator=NEW if canary else OLD, rival=OLD if canary else NEW, rival_p=other,
            agrees=True if accepted else same if comparable else None,
        )  # fmt: skip
        dear = hop(str(place), 1, tier="dear", p_correct=None, threshold=None, calibrator="none", agrees=True)
        hops = (cheap,) if accepted else (cheap, dear)
        at = AT + (place + 1) * APART_SECONDS
        row = decision(str(place), at=at, tier=hops[-1].tier, explored=True, inclusion=0.02)
        says = label(str(place), right if accepted else dear_right, Source.OPERATOR, at=at, decided_at=at)
        log.rows.append((Labelled(says, row, hops[-1]), hops))
    return log


def showing(margins: Margins, share: float, *, explored_only: bool = True) -> Showing:
    release = [Release({"cheap": letter * 64}, {}) for letter in "ab"]
    state = State(release[0], (), release[1], Stage.CANARY, AT, share)
    return Showing("cheap", state, OLD, NEW, margins, explored_only)


def looks(found: Showing, log: Log) -> Iterator[Showing]:
    """After every label."""
    for _ in log.rows:
        log.told += 1
        found.read(log, AT + 1e9)
        yield found


def proven(kinds: Sequence[Kind], margins: Margins, *, safe: bool, share: float, comparable: bool) -> int:
    """In how many of 40 streams of 120 labels anything was ever proven that is not so."""
    count = 0
    for seed in range(40):
        found = looks(showing(margins, share), stream(120, kinds, seed, share=share, comparable=comparable))
        if safe:
            count += any("accepted_wrong" in one.paired.safe_in(ALPHA) for one in found)
        else:
            count += any(one.paired.harmful_in(ALPHA) for one in found)
    return count


MOST = 7  # of 40, at 5 % each: more has a chance below .2 %


@pytest.mark.parametrize(("share", "comparable"), [(0.05, True), (0.05, False), (0.5, False)])
def test_harm_at_the_margin_is_called_none_no_more_often_than_alpha(share: float, comparable: bool) -> None:
    margins = Margins(0.0, sum(kind.wrongly for kind in HARM), ANY_COST)
    assert proven(HARM, margins, safe=True, share=share, comparable=comparable) <= MOST


@pytest.mark.parametrize(("share", "comparable"), [(0.05, False), (0.5, False)])
def test_harm_within_the_margin_is_called_harm_no_more_often_than_alpha(share: float, comparable: bool) -> None:
    """Of the view of what was served margins are per served answer, of which there are fewer."""
    either = sum(kind.share * ((kind.new >= 0.8) + (kind.old >= 0.8)) for kind in HARM) / 2
    wrongly, brier = (sum(getattr(kind, name) for kind in HARM) / either for name in ("wrongly", "brier"))
    assert proven(HARM, Margins(brier, wrongly, ANY_COST), safe=False, share=share, comparable=comparable) <= MOST


def needed(kinds: Sequence[Kind], seed: int, *, explored_only: bool, comparable: bool = True) -> int:
    """Labels until all three measures are proven to be without harm, in a canary of 5 %; 1500 where they are not."""
    log = stream(1500, kinds, seed, share=0.05, comparable=comparable)
    found = looks(showing(Margins(0.0, 0.05, ANY_COST), 0.05, explored_only=explored_only), log)
    done = (n for n, one in enumerate(found, 1) if len(one.paired.safe_in(ALPHA)) == 3)
    return next(done, len(log.rows))


def test_answers_known_to_agree_prove_in_a_small_canary_what_served_ones_do_not() -> None:
    assert needed(GOOD, 0, explored_only=True) < 700
    assert needed(GOOD, 0, explored_only=False) == 1500


def test_a_label_reaches_every_answer_that_comes_to_the_same_and_those_it_refutes() -> None:
    assert [known(says, agrees=same) for says, same in itertools.product((True, False), (True, False, None))] == [
        True, False, None, False, None, None,
    ]  # fmt: skip


def test_of_an_answer_that_may_be_right_or_wrong_every_bet_is_paid_by_the_worse_end() -> None:
    old, new = Told(0.6, False, 0.5), Told(0.9, True, 0.0)
    unknown = Paired(Margins()).after(old=old, new=new, right=None)
    ends = [Paired(Margins()).after(old=old, new=new, right=right) for right in (True, False)]
    assert (unknown.rows, unknown.n) == (1, 0)
    for measure, (low, high) in unknown.mean.items():
        told = [end.mean[measure][0] for end in ends]
        assert (low, high) == (min(told), max(told))
    assert unknown.safe.total.tolist() == np.minimum(*(end.safe.total for end in ends)).tolist()
    assert unknown.harmful.total.tolist() == np.minimum(*(end.harmful.total for end in ends)).tolist()


def test_an_escalated_answer_counts_by_what_the_served_one_was() -> None:
    log = stream(200, [Kind(1.0, 0.7, 0.85, 0.5)], 0, share=0.05, comparable=True)
    found = list(looks(showing(Margins(), 0.05), log))[-1]
    low, high = found.everything.mean["accepted_wrong"]
    assert found.served.rows < 25 < found.everything.n < found.everything.rows == 200
    assert low < 0.5 < high
    assert "accepted_wrong" in found.paired.harmful_in(ALPHA)


def test_labels_find_their_decisions_without_asking_for_each_and_wait_until_these_are_read() -> None:
    log = stream(50, HARM, 0, share=0.5, comparable=True)
    found, log.told = showing(Margins(), 0.5), 50
    found.read(log, AT + 11 * APART_SECONDS)
    assert found.everything.rows == 10  # so many decisions have settled
    found.read(log, AT + 1e9)
    assert (found.everything.rows, log.asked) == (50, [])


def test_a_label_of_a_decision_that_is_no_longer_at_hand_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "WAYS", 5)
    log = stream(50, HARM, 0, share=0.5, comparable=True)
    found, log.told = showing(Margins(), 0.5), 50
    found.read(log, AT + 1e9)
    assert found.everything.rows == 50
    assert len(log.asked) > 5
