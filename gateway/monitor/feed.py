"""From the store's rows to what the monitors judge. Synchronous, page by page: for a thread, not the event loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from gateway.errors import ConfigError
from gateway.monitor.labels import ALPHA, AcceptedError, ErrorVerdict, Honesties, Judged, Verdict
from gateway.monitor.poison import weights
from gateway.nouns import Floats, Reason
from gateway.store.base import Channel, Cursor, DecisionRow, HopRow, Labelled, LabelRow, counting, cursor

SETTLE_SECONDS = 7 * 86400.0  # by then nearly all labels that will ever come have; science 7.3
OVERLAP_SECONDS = 120.0  # a label may be committed behind later ones, and before its decision is: look back so far
PAGE = 200  # rows at a time: a label that a client waits for stands behind a page


class Readable(Protocol):
    """What is read of a store."""

    def labelled(self, after: Cursor, limit: int) -> list[Labelled]: ...

    def decisions(self, after: Cursor, limit: int) -> Sequence[tuple[DecisionRow, tuple[HopRow, ...]]]: ...

    def labels(self, number: str) -> tuple[LabelRow, ...]: ...


def judged(one: Labelled) -> Judged | None:
    """What a label says about the calibrator that decided. None for a proxy's opinion, for an answer without a p, and
    where the decision's row is gone, as then nobody knows its policy.
    """
    decision = one.decision
    if one.label.channel is Channel.PROXY or decision is None or decision.p_correct is None:
        return None
    return Judged(
        decision.policy,
        decision.tier,
        decision.calibrator,
        decision.p_correct,
        one.label.label,
        accepted=decision.reason == Reason.CONFIDENT,
        trusted=one.label.channel is Channel.OPERATOR,
        explored=decision.explored,
    )


def everything(_: DecisionRow) -> bool:
    return True


@dataclass(slots=True, eq=False)
class Book:
    """All tests that labels feed, kept up to date from the store. A restart reads everything again.

    trusted_only: labels by operators alone, which is what rollouts may rest on.
    drawn_only: of explored decisions alone; who labels what he finds wrong chooses by the truth, and then no test of
    calibration holds.
    Of a decision labelled in two channels the first label read counts. A revision of what was read is not taken back,
    as a test that was looked at cannot be unlooked: it counts at the next start, and `revised` says how many there are.
    since: seconds since 1970; what was decided earlier was another release's doing. A new release takes a new book.
    counts: whether a decision is the release's own; it may look at anything but the truth.
    limits: by policy, the objective for accepted errors.  least_inclusion: of exploring; what was drawn with less, by
    an earlier configuration, is left out.
    newest_at: of the labels that counted; seconds since 1970, 0 without any.  first_at: when the first of the answers
    that they are about was given, likewise.  tally: by tier and calibrator, right and wrong ones among those counted.
    """

    trusted_only: bool
    drawn_only: bool = True
    since: float = 0.0
    tolerance: float = 0.0
    limits: Mapping[str, float] = field(default_factory=dict)
    least_inclusion: float | None = None
    alpha: float = ALPHA
    counts: Callable[[DecisionRow], bool] = everything
    honesties: Honesties = field(init=False)
    newest_at: float = 0.0
    first_at: float = 0.0
    revised: int = 0
    tally: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    _errors: dict[str, AcceptedError] = field(default_factory=dict)
    _labels_at: float = field(init=False)
    _decisions_at: Cursor = field(init=False)
    _counted: dict[str, tuple[Channel, bool]] = field(default_factory=dict)  # by decision

    def __post_init__(self) -> None:
        self.honesties = Honesties(self.tolerance, self.alpha)
        self._labels_at, self._decisions_at = self.since, (self.since, "", "")
        if self.limits and self.least_inclusion is None:
            raise ConfigError("accepted errors need exploration: labels of what users care to verify are no sample")
        if self.least_inclusion is not None:
            self._errors = {
                policy: AcceptedError(policy, limit, self.least_inclusion, self.alpha)
                for policy, limit in self.limits.items()
            }

    def read(self, store: Readable, now: float) -> int:
        """Take in what is new; how many labels counted. now: seconds since 1970, and it may jump. Raises StoreDown;
        what was taken in until then stays, and nothing is lost or counted twice."""
        at: Cursor = (max(self._labels_at - OVERLAP_SECONDS, self.since), "", "")
        fresh = 0
        while page := store.labelled(at, PAGE):
            fresh += self._note(page)
            at = cursor(page[-1].label)
            self._labels_at = max(at[0], self._labels_at)
            if len(page) < PAGE:  # else labels that come as fast as they are read would keep it here for ever
                break
        if self._errors:
            self._settle(store, now - SETTLE_SECONDS)
        return fresh

    def verdicts(self) -> list[Verdict]:
        return self.honesties.verdicts()

    def errors(self) -> list[ErrorVerdict]:
        return [error.verdict() for error in self._errors.values()]

    def _note(self, page: Sequence[Labelled]) -> int:
        """How many labels of a page were new and counted."""
        rows: list[Judged] = []
        for one in page:
            row, number = judged(one), one.label.number
            if row is None or (self.trusted_only and not row.trusted) or (self.drawn_only and not row.explored):
                continue
            if one.label.decided_at < self.since or one.decision is None or not self.counts(one.decision):
                continue
            said = (one.label.channel, row.right)
            known = self._counted.setdefault(number, said)
            if known is not said:
                if known == (said[0], not said[1]):
                    self._counted[number], self.revised = said, self.revised + 1
                continue
            self.newest_at = max(self.newest_at, one.label.at)
            self.first_at = min(self.first_at or one.label.decided_at, one.label.decided_at)
            right, wrong = self.tally.get((row.tier, row.calibrator), (0, 0))
            self.tally[row.tier, row.calibrator] = (right + row.right, wrong + (not row.right))
            rows.append(row)
        self.honesties.note(rows)
        return len(rows)

    def _settle(self, store: Readable, before: float) -> None:
        """Accepted decisions old enough, in the order they were made, each once."""
        while page := store.decisions(self._decisions_at, PAGE):
            for decision, _ in page:
                if decision.at > before:
                    return
                error = self._errors.get(decision.policy)
                if (
                    decision.at >= self.since
                    and error is not None
                    and decision.inclusion is not None
                    and decision.inclusion >= error.least_inclusion
                    and decision.reason == Reason.CONFIDENT
                    and self.counts(decision)
                ):
                    right = self._right(store, decision) if decision.explored else None
                    error.note(inclusion=decision.inclusion, explored=decision.explored, right=right)
                self._decisions_at = (decision.at, decision.number, "")

    def _right(self, store: Readable, decision: DecisionRow) -> bool | None:
        by = counting(store.labels(decision.number))
        wanted = (Channel.OPERATOR,) if self.trusted_only else (Channel.OPERATOR, Channel.CLIENT)
        return next((by[channel].label for channel in wanted if channel in by), None)


def fit_weights(rows: list[Labelled]) -> Floats:
    """(N,) in [0, 1]: how much each label may weigh in a fit, by the limits on any one key (gateway/monitor/poison.py).

    Operators are limited in nothing. Raises ConfigError for a label whose answer had no p: leave those out first.
    """
    p = [row.label.p_correct for row in rows]
    if any(each is None for each in p):
        raise ConfigError("a label of an answer without a confidence cannot be weighed; leave such labels out")
    authors = [(row.label.channel, row.label.author) for row in rows]  # a client may be called what an operator is
    trusted = frozenset(str(author) for author in authors if author[0] is Channel.OPERATOR)
    return weights(
        np.array(p, dtype=np.float64),
        np.array([row.label.label for row in rows], dtype=np.float64),
        [str(author) for author in authors],
        trusted,
    )
