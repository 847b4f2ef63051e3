"""From the store's rows to what the monitors judge. Synchronous, page by page: for a thread, not the event loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from gateway.errors import ConfigError
from gateway.monitor.labels import ALPHA, AcceptedError, ErrorVerdict, Honesties, Judged, Verdict
from gateway.monitor.poison import weights
from gateway.nouns import Floats, Reason
from gateway.store.base import START, Channel, Cursor, DecisionRow, Labelled, Store, counting, cursor, label_pages

SETTLE_SECONDS = 7 * 86400.0  # by then nearly all labels that will ever come have; science 7.3


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


@dataclass(slots=True, eq=False)
class Book:
    """All tests that labels feed, kept up to date from the store. A restart reads everything again.

    trusted_only: labels by operators alone, which is what rollouts may rest on.
    drawn_only: of explored decisions alone; who labels what he finds wrong chooses by the truth, and then no test of
    calibration holds.
    Of a decision labelled in two channels the first label read counts. A revision of what was read is not taken back,
    as a test that was looked at cannot be unlooked: it counts at the next start.
    since: seconds since 1970; what was decided earlier was another release's doing. A new release takes a new book.
    limits: by policy, the objective for accepted errors.  least_inclusion: of exploring.
    """

    trusted_only: bool
    drawn_only: bool = True
    since: float = 0.0
    tolerance: float = 0.0
    limits: Mapping[str, float] = field(default_factory=dict)
    least_inclusion: float | None = None
    alpha: float = ALPHA
    honesties: Honesties = field(init=False)
    _errors: dict[str, AcceptedError] = field(default_factory=dict)
    _labels_at: Cursor = START
    _decisions_at: Cursor = START
    _counted: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.honesties = Honesties(self.tolerance, self.alpha)
        if self.limits and self.least_inclusion is None:
            raise ConfigError("accepted errors need exploration: labels of what users care to verify are no sample")
        if self.least_inclusion is not None:
            self._errors = {
                policy: AcceptedError(policy, limit, self.least_inclusion, self.alpha)
                for policy, limit in self.limits.items()
            }

    def read(self, store: Store, now: float) -> int:
        """Take in what is new; how many labels counted. now: seconds since 1970. Raises StoreDown."""
        fresh = list(self._fresh(store))
        self.honesties.note(fresh)
        if self._errors:
            self._settle(store, now - SETTLE_SECONDS)
        return len(fresh)

    def verdicts(self) -> list[Verdict]:
        return self.honesties.verdicts()

    def errors(self) -> list[ErrorVerdict]:
        return [error.verdict() for error in self._errors.values()]

    def _fresh(self, store: Store) -> Iterator[Judged]:
        for one in label_pages(store, self._labels_at):
            self._labels_at = cursor(one.label)
            row = judged(one)
            if row is None or (self.trusted_only and not row.trusted) or (self.drawn_only and not row.explored):
                continue
            if one.label.decided_at < self.since or one.label.number in self._counted:
                continue
            self._counted.add(one.label.number)
            yield row

    def _settle(self, store: Store, before: float) -> None:
        """Accepted decisions old enough, in the order they were made, each once."""
        while page := store.decisions(self._decisions_at):
            for decision, _ in page:
                if decision.at > before:
                    return
                self._decisions_at = (decision.at, decision.number, "")
                error = self._errors.get(decision.policy)
                if (
                    decision.at < self.since
                    or error is None
                    or decision.inclusion is None
                    or decision.reason != Reason.CONFIDENT
                ):
                    continue
                right = self._right(store, decision) if decision.explored else None
                error.note(inclusion=decision.inclusion, explored=decision.explored, right=right)

    def _right(self, store: Store, decision: DecisionRow) -> bool | None:
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
