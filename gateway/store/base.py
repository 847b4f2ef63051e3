"""Rows, and what any store can do with them. SQLite and PostgreSQL keep the same rows under the same statements.

A store is synchronous and may block; `desk.py` stands between it and the event loop. Text in rows may hold anything,
NUL and lone surrogates too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from gateway.errors import LabelConflict


class Role(StrEnum):
    """What a tier was asked for: on the way to the answer, for a further choice, or after it, to learn from."""

    HOP, SIBLING, SHADOW = "hop", "sibling", "shadow"


class Source(StrEnum):
    """Who says that an answer was right. A larger model's opinion is a proxy, never the truth."""

    USER, VERIFIER, OPERATOR, PROXY = "user", "verifier", "operator", "proxy"

    @property
    def channel(self) -> Channel:
        by = {Source.OPERATOR: Channel.OPERATOR, Source.PROXY: Channel.PROXY}
        return by.get(self, Channel.CLIENT)


class Channel(StrEnum):
    """Each decision has at most one label in each: what clients send can neither touch nor contradict an operator's."""

    CLIENT, OPERATOR, PROXY = "client", "operator", "proxy"


class Outcome(StrEnum):
    """What became of a label."""

    CREATED, UNCHANGED, REVISED = "created", "unchanged", "revised"


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """One request. number: of its id.  at: when it came, seconds since 1970.  status: HTTP's; 499 when the client left.

    reason, tier, p_correct, threshold, calibrator (id@12 hex digits): of the hop that was served, "" or None without.
    usd and tokens: of all hops and siblings, not of shadows.  prompt_sha256: hex, over roles and contents.
    prompt, answer: None unless the configuration wants texts kept, and then redacted.
    inclusion: the probability with which this decision was to be explored, when exploring was on for it.
    explored: it was drawn: all tiers are asked in shadow, and a label is wanted.
    metadata: of what the request said of itself, what slices of the monitors are made of.
    """

    number: str
    at: float
    client: str
    policy: str
    mode: str
    status: int
    reason: str
    tier: str
    p_correct: float | None
    threshold: float | None
    calibrator: str
    seconds: float
    usd: float
    prompt_tokens: int
    completion_tokens: int
    prompt_sha256: str
    prompt: str | None = None
    answer: str | None = None
    inclusion: float | None = None
    explored: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HopRow:
    """One tier's turn in a decision. position: from 0, shadows after the others.

    calibrator: id@12 hex digits, or none.  model: id@revision of what answered, "" when nothing did.
    features: by name, None for a value that is not finite; empty without evidence.  null_reason, note: why p is None.
    rival, rival_p: the other calibrator's label and what it made of the answer, which decided nothing; "" without one.
    agrees: whether its answer comes to the same as the one that was served, so that a label of that one tells about
    this one, too; looked at where a decision was explored, None elsewhere and where it cannot be told.
    """

    number: str
    position: int
    role: Role
    tier: str
    reason: str
    null_reason: str
    note: str
    p_correct: float | None
    threshold: float | None
    calibrator: str
    model: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    usd: float
    retries: int
    error: str
    features: Mapping[str, float | None]
    rival: str = ""
    rival_p: float | None = None
    agrees: bool | None = None


@dataclass(frozen=True, slots=True)
class LabelRow:
    """What somebody says about a decision. revision: from 0; the highest of a decision's channel counts, once.

    author: the key's name.  at: when it came.  decided_at, tier, calibrator (12 hex digits), p_correct: from the id, so
    they are of the calibrator that decided, however late the label comes and whether or not the decision's row exists.
    arrived: the store's, for its order: seconds since 1970 where `at` is before that of a label that came earlier, as
    clocks are set back and no two machines' are alike; else None, and `at` will do.
    """

    number: str
    channel: Channel
    revision: int
    label: bool
    source: Source
    author: str
    comment: str | None
    at: float
    decided_at: float
    tier: str
    calibrator: str
    p_correct: float | None
    arrived: float | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """What is written in one go: a decision with its hops, or hops that come after."""

    decision: DecisionRow | None
    hops: tuple[HopRow, ...]


@dataclass(frozen=True, slots=True)
class Whole:
    """Everything known about one decision. decision: None when its row was lost, dropped or is too old.

    labels: all revisions, oldest first.
    """

    decision: DecisionRow | None
    hops: tuple[HopRow, ...]
    labels: tuple[LabelRow, ...]

    @property
    def known(self) -> bool:
        return self.decision is not None or bool(self.hops or self.labels)


@dataclass(frozen=True, slots=True)
class Wish:
    """A label to be stored. revise: it may replace one that says the contrary, or has another comment."""

    label: LabelRow
    revise: bool = False


@dataclass(frozen=True, slots=True)
class Labelled:
    """A label that counts, with its decision and the hop that was served, where these are still there."""

    label: LabelRow
    decision: DecisionRow | None
    served: HopRow | None


@dataclass(frozen=True, slots=True)
class Brief:
    """One request in short. reason, tier: as in its row."""

    at: float
    policy: str
    status: int
    reason: str
    tier: str
    seconds: float
    usd: float


@dataclass(frozen=True, slots=True)
class AlarmRow:
    """An alarm that the monitors of some gateway on this store have raised, as gateway/monitor/alarms.py has it.

    kind, tier, slice, what: which one it is.  since, seen: when it was found first and last, seconds since 1970.
    """

    kind: str
    tier: str
    slice: str
    what: str
    why: str
    page: bool
    since: float
    seen: float

    @property
    def about(self) -> tuple[str, str, str, str]:
        return self.kind, self.tier, self.slice, self.what


class Kind(StrEnum):
    """Decisions that more is known of: every tier's answer, or whether what was served was right."""

    EXPLORED, LABELLED = "explored", "labelled"


Cursor = tuple[float, str, str]  # (at or arrived, number, channel or "") of the last row seen
START: Cursor = (0.0, "", "")
TICK_SECONDS = 0.01  # between labels dated behind others; were it tiny, no overlap would end behind one from the future


class Store(Protocol):
    """Decisions and labels. Everything raises StoreDown when it cannot be done now, and then nothing was done.

    threads: how many may be in here at once.
    """

    threads: int

    def write(self, entries: Sequence[Entry]) -> None:
        """All of it, durably; what is there already stays as it is."""

    def put(self, wishes: Sequence[Wish]) -> list[tuple[Outcome, LabelRow]]:
        """All labels or none, durably when this returns; with each, the row that counts now.

        Raises LabelConflict for the first that contradicts what is there.
        """

    def whole(self, number: str) -> Whole:
        """Everything about one decision; empty when nothing is known."""

    def labels(self, number: str) -> tuple[LabelRow, ...]:
        """All of one decision, all revisions, oldest first."""

    def recent(self, limit: int, *, wanting: bool = False, before: float | None = None) -> list[DecisionRow]:
        """The latest decisions, newest first. wanting: only those explored that have no label but a proxy's."""

    def briefs(self, since: float, limit: int, policy: str | None = None) -> list[Brief]:
        """The latest requests since a time, newest first. policy: of this one alone."""

    def stories(self, kind: Kind, since: float, limit: int) -> list[Whole]:
        """The latest decisions of a kind since a time, newest first, without texts and features.

        Labelled ones: those with the latest labels that are no proxy's; so many labels are looked at.
        """

    def decisions(self, after: Cursor = START, limit: int = 1000) -> list[tuple[DecisionRow, tuple[HopRow, ...]]]:
        """A page of the log in order of (at, number), behind a cursor."""

    def labelled(self, after: Cursor = START, limit: int = 1000) -> list[Labelled]:
        """A page of labels that count, proxies too, in the order in which they came, behind a cursor. One that is
        committed together with others may come before those that were seen already."""

    def alarms(
        self, on: Sequence[AlarmRow], ended: Sequence[tuple[str, str, str, str]], before: float
    ) -> list[AlarmRow]:
        """Those of all gateways, with what is on in one of them and what has ended there. One that is known keeps the
        earlier `since`; those that nobody has seen on since `before` are forgotten."""

    def purge(self, before: float, labelled_before: float) -> int:
        """Forget decisions that came before a time, and those with a label before another; how many. Labels stay."""

    def close(self) -> None: ...


def settle(wish: Wish, known: LabelRow | None) -> tuple[Outcome, int] | None:
    """What becomes of a label next to the one that counts so far, and its revision; None when it may not be stored."""
    if known is None:
        return Outcome.CREATED, 0
    contrary = known.label != wish.label.label
    if wish.revise and (contrary or wish.label.comment not in (None, known.comment)):
        return Outcome.REVISED, known.revision + 1
    return None if contrary else (Outcome.UNCHANGED, known.revision)


def settled(wishes: Sequence[Wish], known: Sequence[LabelRow]) -> tuple[list[tuple[Outcome, LabelRow]], list[LabelRow]]:
    """What becomes of each label, with the row that counts then; and the rows that are new. known: what there is of
    these decisions. Raises LabelConflict."""
    counts = {(row.number, row.channel): row for row in sorted(known, key=lambda row: row.revision)}
    done: list[tuple[Outcome, LabelRow]] = []
    fresh: list[LabelRow] = []
    for place, wish in enumerate(wishes):
        about = (wish.label.number, wish.label.channel)
        step = settle(wish, counts.get(about))
        if step is None:
            raise LabelConflict(wish.label.number, place)
        outcome, revision = step
        if outcome is not Outcome.UNCHANGED:
            counts[about] = replace(wish.label, revision=revision)
            fresh.append(counts[about])
        done.append((outcome, counts[about]))
    return done, fresh


def in_turn(wishes: Sequence[Wish], latest: float) -> list[Wish]:
    """What is to be stored, in order behind the latest label, of whatever date. latest: seconds since 1970."""
    return [
        wish if wish.label.at > latest else replace(wish, label=replace(wish.label, arrived=latest + TICK_SECONDS))
        for wish in wishes
    ]


def counting(labels: Sequence[LabelRow]) -> dict[Channel, LabelRow]:
    """The label that counts in each channel. labels: of one decision, oldest first."""
    return {row.channel: row for row in labels}


def pages(store: Store, limit: int = 1000) -> Iterator[tuple[DecisionRow, tuple[HopRow, ...]]]:
    """The whole log, oldest first, read page by page so that a writer is never kept waiting for long."""
    after = START
    while page := store.decisions(after, limit):
        yield from page
        after = (page[-1][0].at, page[-1][0].number, "")


def cursor(label: LabelRow) -> Cursor:
    """Behind this label."""
    return label.at if label.arrived is None else label.arrived, label.number, label.channel


def label_pages(store: Store, after: Cursor = START, limit: int = 1000) -> Iterator[Labelled]:
    """All labels that count behind a cursor, page by page."""
    while page := store.labelled(after, limit):
        yield from page
        after = cursor(page[-1].label)
