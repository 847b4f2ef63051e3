"""What the calibrators of one tier show, in the log and by labels, since the latest step of its rollout.

Rows are hops of that tier on the way to an answer, with evidence; what a broken server did is in none of it. A label is
about the answer that was served, so which arm decided has a say in what is known. Two views make up for it, each sound
by itself:

Everything: of an explored decision the tier's own answer was held against the one that was served. Where both come to
the same, a label of one is a label of the other; where they differ and the served one was right, the tier's was wrong;
else nobody knows, and it counts as whatever is worse for the bet. All labels of explored decisions are in it, so both
arms alike.

Served: answers of the tier that were served, which both arms together cover as far as either would accept them. The
larger arm is thinned by lot until both weigh the same, and as each difference is then seen in one arm of two, it is
held against half its margin. For answers that cannot be compared, such as prose, this is all there is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.monitor import uncalibrated
from gateway.monitor.compare import ALPHA, Compared, Margins, Paired, Told
from gateway.monitor.feed import Book, Readable
from gateway.monitor.rollout import ESCALATION_MINUTES, Health, Minute, Rate, Stage, State, Trial
from gateway.nouns import Finish, Reason
from gateway.policy import decide, lot
from gateway.store.base import Channel, Cursor, DecisionRow, HopRow, Labelled, Role, Whole, cursor

PAGE = 200
OVERLAP_SECONDS = 120.0  # a label may be committed behind later ones
ANY_COST = 0.999  # a margin that nothing is beyond: cost is not judged
WAYS = 20_000  # explored decisions whose labels find them without asking the store, one by one, where clients wait too
ARMS = "arms"  # what the lot is for
RATES = {"truncated": Reason.TRUNCATED, "no_evidence": Reason.NO_EVIDENCE}


class Stories(Readable, Protocol):
    """What is read of a store."""

    def whole(self, number: str) -> Whole: ...


@dataclass(slots=True, eq=False)
class Showing:
    """Of one tier in one state. live, candidate: labels of their artefacts, "" for none.

    explored_only: labels of explored decisions alone.  thresholds: by policy, what answers are accepted at.
    forecast: of the deciding release.
    settle_seconds: after which a decision is taken to have been written.
    alpha: of a promotion that does harm, for telling.
    accepted_error, least_inclusion: an objective, and the share that is explored; None for none.
    """

    tier: str
    state: State
    live: str
    candidate: str
    margins: Margins
    explored_only: bool
    thresholds: Mapping[str, float] = field(default_factory=dict)
    forecast: Mapping[str, float] = field(default_factory=dict)
    accepted_error: float | None = None
    least_inclusion: float | None = None
    settle_seconds: float = 10.0
    alpha: float = ALPHA
    policies: Sequence[str] = ()
    served: Paired = field(init=False)
    everything: Paired = field(init=False)
    seen: int = 0
    flipped: int = 0
    _book: Book = field(init=False)
    _decisions_at: Cursor = field(init=False)
    _labels_at: float = field(init=False)
    _counted: set[str] = field(default_factory=set)
    _ways: dict[str, HopRow] = field(default_factory=dict)
    _early: dict[str, Labelled] = field(default_factory=dict)
    _minutes: dict[int, Counter[str]] = field(default_factory=dict)
    _rates: Counter[str] = field(default_factory=Counter)
    _promised: Counter[str] = field(default_factory=Counter)
    _costs: _Costs = field(init=False)

    def __post_init__(self) -> None:
        since = self.state.since
        told = self.margins
        if self.state.stage is Stage.CANARY:
            cost = told.cost if told.cost >= ANY_COST else told.cost / 2
            told = Margins(told.brier, told.accepted_wrong / 2, cost)
        self.served, self.everything = Paired(told), Paired(self.margins)
        judged = self.accepted_error is not None and self.least_inclusion is not None
        self._book = Book(
            trusted_only=True,
            drawn_only=self.explored_only,
            since=since,
            limits=dict.fromkeys(self.policies, self.accepted_error) if judged else {},  # type: ignore[arg-type]
            least_inclusion=self.least_inclusion if judged else None,
            counts=self._ours,
        )
        self._decisions_at, self._labels_at, self._costs = (since, "", ""), since, _Costs(self.tier)

    @property
    def deciding(self) -> str:
        return self.candidate if self.state.stage is Stage.CANARY else self.live

    @property
    def paired(self) -> Compared:
        """Labels of other decisions leave one view: where nothing was explored, no answer was held against another."""
        return Compared((self.everything, self.served) if self.explored_only else (self.served,))

    def read(self, store: Stories, now: float) -> None:
        """Take in what is new. now: seconds since 1970. Raises StoreDown; what was taken in until then stays.

        First the labels that may ask for going back, which is urgent.
        """
        self._book.read(store, now)
        self._read_decisions(store, now - self.settle_seconds)
        if self.candidate:
            self._read_labels(store)

    def health(self, now: float) -> Health:
        """Of the release that decides."""
        complete = int(now - self.settle_seconds) // 60
        minutes = [
            Minute(count["requests"], count["escalated"])
            for at in range(complete - ESCALATION_MINUTES, complete)
            if (count := self._minutes.get(at)) is not None
        ]
        return Health(
            honesty=[
                verdict
                for verdict in self._book.verdicts()
                if (verdict.tier, verdict.calibrator) == (self.tier, self.deciding)
            ],
            errors=self._book.errors(),
            minutes=minutes,
            forecast=self.forecast.get("escalated"),
            rates=[
                Rate(f"{name} answers of {self.tier}", self._rates[name], self._rates["n"], self.forecast[name])
                for name in RATES
                if name in self.forecast
            ],
        )

    def trial(self) -> Trial | None:
        """None without a candidate."""
        if not self.candidate:
            return None
        return Trial(self.seen, self.flipped, self.paired, to_learn=self.candidate.startswith(f"{uncalibrated.ID}@"))

    def promised(self) -> dict[str, float]:
        """What the candidate's traffic is to be like, as far as it was seen; {} where nothing was."""
        n, judged = self._promised["n"], self._promised["judged"]
        told = {name: self._promised[name] / n for name in RATES} if n else {}
        return told | ({"escalated": self._promised["escalated"] / judged} if judged else {})

    def evidence(self, now: float) -> dict[str, object]:
        """For people."""
        health = self.health(now)
        told: dict[str, object] = {
            "labels": sum(verdict.n for verdict in health.honesty),
            "log_wealth_over": max((round(verdict.log_over, 3) for verdict in health.honesty), default=None),
            "traffic": dict(self._rates),
            "forecast": dict(self.forecast),
        }
        if self.candidate:
            told |= {
                "seen": self.seen,
                "flipped": self.flipped,
                "paired_labels": self.paired.n,
                "mean_difference": self.paired.widest.mean,
                "interval": self.paired.widest.interval,
                "harm_excluded_in": self.paired.safe_in(self.alpha),
                "harm_proven_in": self.paired.harmful_in(self.alpha),
                "views": {"everything": shown(self.everything), "served": shown(self.served)}
                if self.explored_only
                else {"served": shown(self.served)},
            }
        return told

    # Decisions

    def _ours(self, decision: DecisionRow) -> bool:
        return decision.tier == self.tier and decision.calibrator == self.deciding

    def _read_decisions(self, store: Readable, before: float) -> None:
        while page := store.decisions(self._decisions_at, PAGE):
            for decision, hops in page:
                if decision.at > before:
                    return
                self._note(decision, hops)
                self._decisions_at = (decision.at, decision.number, "")

    def _note(self, decision: DecisionRow, hops: Sequence[HopRow]) -> None:
        way = [hop for hop in hops if hop.role is Role.HOP]
        self._costs.note(decision.policy, way)
        hop = self._on_the_way(way)
        if hop is None:
            return
        both = self._both(hop)
        if both is not None:
            self._note_both(hop, *both)
            if decision.explored and decision.tier != self.tier:
                self._ways[decision.number] = hop
                if len(self._ways) > WAYS:
                    del self._ways[next(iter(self._ways))]
        if hop.calibrator != self.deciding:
            return
        self._rates["n"] += 1
        for name, reason in RATES.items():
            self._rates[name] += hop.null_reason == reason
        level = self.thresholds.get(decision.policy)
        if hop.p_correct is not None and level is not None and hop.threshold == level:  # none that a request asked for
            at = int(decision.at) // 60
            count = self._minutes.setdefault(at, Counter())
            count["requests"] += 1
            count["escalated"] += hop.reason == Reason.UNSURE
            while len(self._minutes) > 2 * ESCALATION_MINUTES:
                del self._minutes[min(self._minutes)]

    def _both(self, hop: HopRow) -> tuple[float | None, float | None] | None:
        """What live and candidate made of an answer; None where it was another pair's."""
        if not self.candidate:
            return None
        if (hop.calibrator, hop.rival) == (self.live or "none", self.candidate):
            return hop.p_correct, hop.rival_p
        if (hop.calibrator, hop.rival) == (self.candidate, self.live or "none"):
            return hop.rival_p, hop.p_correct
        return None

    def _note_both(self, hop: HopRow, old: float | None, new: float | None) -> None:
        self._promised["n"] += 1
        for name, reason in RATES.items():
            self._promised[name] += hop.null_reason == reason
        if old is None and new is None:
            return
        self.seen += 1
        if self.live:  # beside nothing every decision is another one
            self.flipped += accepts(old, hop.threshold) != accepts(new, hop.threshold)
        if new is not None and hop.threshold is not None:
            self._promised["judged"] += 1
            self._promised["escalated"] += not accepts(new, hop.threshold)

    # Labels

    def _read_labels(self, store: Stories) -> None:
        for one in list(self._early.values()):
            del self._early[one.label.number]
            self._compare(store, one)
        at: Cursor = (max(self._labels_at - OVERLAP_SECONDS, self.state.since), "", "")
        while page := store.labelled(at, PAGE):
            for one in page:
                self._compare(store, one)
            at = cursor(page[-1].label)
            self._labels_at = max(at[0], self._labels_at)
            if len(page) < PAGE:  # else labels that come as fast as they are read would keep it here for ever
                break

    def _compare(self, store: Stories, one: Labelled) -> None:
        """A label that has not counted yet, if it ever may."""
        label, decision = one.label, one.decision
        if label.channel is not Channel.OPERATOR or decision is None or label.number in self._counted:
            return
        if label.decided_at < self.state.since or (self.explored_only and not decision.explored):
            return
        if self.explored_only and (decision.at, decision.number) > self._decisions_at[:2]:
            self._early[label.number] = one  # all alike: were served ones heard at once, they would be too many
        elif one.served is not None and one.served.tier == self.tier:
            self._take(one, decision, one.served, right=label.label, served=True)
        elif self.explored_only:
            hop = self._ways.pop(label.number, None) or self._on_the_way(store.whole(label.number).hops)
            if hop is not None:
                self._take(one, decision, hop, right=known(label.label, agrees=hop.agrees), served=False)
            self._counted.add(label.number)

    def _take(self, one: Labelled, decision: DecisionRow, hop: HopRow, *, right: bool | None, served: bool) -> None:
        self._counted.add(one.label.number)
        old, new = self._both(hop) or (None, None)
        if old is None or new is None:
            return
        beyond = self._costs.beyond(decision.policy)
        told = [Told(p, accepts(p, hop.threshold), 0.0 if accepts(p, hop.threshold) else beyond) for p in (old, new)]
        if self.explored_only:
            self.everything = self.everything.after(old=told[0], new=told[1], right=right)
        if served and self._kept(hop):
            self.served = self.served.after(old=told[0], new=told[1], right=right)

    def _on_the_way(self, hops: Sequence[HopRow]) -> HopRow | None:
        return next((hop for hop in hops if hop.role is Role.HOP and hop.tier == self.tier and not hop.error), None)

    def _kept(self, hop: HopRow) -> bool:
        """Whether a row stays, so that both arms weigh the same."""
        share = self.state.share
        if self.state.stage is not Stage.CANARY or share >= 1:
            return True
        mine = share if hop.calibrator == self.candidate else 1 - share
        return lot(hop.number, ARMS) < (1 - mine) / mine


@dataclass(slots=True, eq=False)
class _Costs:
    """What escalating from a tier costs, by policy, from what it did cost. Sums of US dollars and counts."""

    tier: str
    _hops: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    )
    _beyond: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))

    def note(self, policy: str, way: Sequence[HopRow]) -> None:
        names = [hop.tier for hop in way]
        for hop in way:
            total = self._hops[policy][hop.tier]
            total[0], total[1] = total[0] + hop.usd, total[1] + 1
        if self.tier in names and names[-1] != self.tier:
            later = way[len(names) - names[::-1].index(self.tier) :]
            total = self._beyond[policy]
            total[0], total[1] = total[0] + sum(hop.usd for hop in later), total[1] + 1

    def beyond(self, policy: str) -> float:
        """Mean cost of the tiers after this one, as a share of the dearest way, in [0, 1]; 1 while nothing is known."""
        usd, n = self._beyond[policy]
        if not n:
            return 1.0
        dearest = sum(total / count for total, count in self._hops[policy].values())
        return min(1.0, usd / n / dearest) if dearest else 0.0


def accepts(p_correct: float | None, threshold: float | None) -> bool:
    """Whether an answer is served for its confidence; a last tier's never is."""
    return decide(p_correct, threshold, finish=Finish.STOP, null_reason=None) is Reason.CONFIDENT


def known(label: bool, *, agrees: bool | None) -> bool | None:
    """What a label of the answer that was served says of another one, that comes to the same or does not."""
    if agrees is None or (not agrees and not label):
        return None
    return agrees and label


def shown(view: Paired) -> dict[str, object]:
    safe, harmful = (each.log.round(3).tolist() for each in (view.safe, view.harmful))
    return {"labels": view.rows, "known": view.n, "log_wealth_safe": safe, "log_wealth_harmful": harmful}
