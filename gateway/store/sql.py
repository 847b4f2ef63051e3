"""The statements, the same for SQLite and PostgreSQL, and the store made of them.

Text that may hold anything is kept as ASCII JSON: PostgreSQL's text takes no NUL, UTF-8 no lone surrogate.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any, Protocol, TypeVar

from gateway.store.base import (
    START,
    AlarmRow,
    Brief,
    Channel,
    Cursor,
    DecisionRow,
    Entry,
    HopRow,
    Kind,
    Labelled,
    LabelRow,
    Outcome,
    Role,
    Source,
    Whole,
    Wish,
    cursor,
    in_turn,
    settled,
)

# Statements that bring an empty store to version 1, those that bring version 1 to 2, and so on. Never edit what was
# released; append. The types mean the same in both dialects.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE decisions (
            number TEXT PRIMARY KEY, at DOUBLE PRECISION NOT NULL, client TEXT NOT NULL, policy TEXT NOT NULL,
            mode TEXT NOT NULL, status BIGINT NOT NULL, reason TEXT NOT NULL, tier TEXT NOT NULL,
            p_correct DOUBLE PRECISION, threshold DOUBLE PRECISION, calibrator TEXT NOT NULL,
            seconds DOUBLE PRECISION NOT NULL, usd DOUBLE PRECISION NOT NULL, prompt_tokens BIGINT NOT NULL,
            completion_tokens BIGINT NOT NULL, prompt_sha256 TEXT NOT NULL, prompt TEXT, answer TEXT,
            inclusion DOUBLE PRECISION, explored SMALLINT NOT NULL)""",
        "CREATE INDEX decisions_at ON decisions (at, number)",
        """CREATE TABLE hops (
            number TEXT NOT NULL, position BIGINT NOT NULL, role TEXT NOT NULL, tier TEXT NOT NULL,
            reason TEXT NOT NULL, null_reason TEXT NOT NULL, note TEXT NOT NULL, p_correct DOUBLE PRECISION,
            threshold DOUBLE PRECISION, calibrator TEXT NOT NULL, model TEXT NOT NULL, finish TEXT NOT NULL,
            prompt_tokens BIGINT NOT NULL, completion_tokens BIGINT NOT NULL, seconds DOUBLE PRECISION NOT NULL,
            usd DOUBLE PRECISION NOT NULL, retries BIGINT NOT NULL, error TEXT NOT NULL, features TEXT NOT NULL,
            PRIMARY KEY (number, position))""",
        """CREATE TABLE labels (
            number TEXT NOT NULL, channel TEXT NOT NULL, revision BIGINT NOT NULL, label SMALLINT NOT NULL,
            source TEXT NOT NULL, author TEXT NOT NULL, comment TEXT, at DOUBLE PRECISION NOT NULL,
            decided_at DOUBLE PRECISION NOT NULL, tier TEXT NOT NULL, calibrator TEXT NOT NULL,
            p_correct DOUBLE PRECISION, PRIMARY KEY (number, channel, revision))""",
        "CREATE INDEX labels_at ON labels (at, number, channel)",
    ),
    (
        "ALTER TABLE hops ADD COLUMN rival TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE hops ADD COLUMN rival_p DOUBLE PRECISION",
    ),
    (
        "ALTER TABLE hops ADD COLUMN agrees SMALLINT",
        "CREATE INDEX decisions_explored ON decisions (at, number) WHERE explored = 1",
    ),
    (
        """CREATE TABLE alarms (
            kind TEXT NOT NULL, tier TEXT NOT NULL, slice TEXT NOT NULL, what TEXT NOT NULL, why TEXT NOT NULL,
            page SMALLINT NOT NULL, since DOUBLE PRECISION NOT NULL, seen DOUBLE PRECISION NOT NULL,
            PRIMARY KEY (kind, tier, slice, what))""",
    ),
    ("ALTER TABLE decisions ADD COLUMN metadata TEXT NOT NULL DEFAULT '{}'",),
    (
        "ALTER TABLE labels ADD COLUMN arrived DOUBLE PRECISION",
        "CREATE INDEX labels_arrived ON labels (coalesce(arrived, at), number, channel)",
    ),
)

FREE_TEXT = frozenset({"note", "model", "error", "comment", "prompt", "answer", "features", "why", "metadata"})
FLAGS = frozenset({"explored", "label", "agrees", "page"})
BULKY = {"prompt": "NULL", "answer": "NULL", "features": "'{}'"}  # what stands for texts and features that are left out
WORDS: dict[str, Callable[[Any], Any]] = {"role": Role, "channel": Channel, "source": Source}

Row = TypeVar("Row", DecisionRow, HopRow, LabelRow, AlarmRow)
Values = tuple[Any, ...]

# A parameter is written %s; none of these statements holds any other percent sign.
COUNTS = "NOT EXISTS (SELECT 1 FROM labels newer WHERE newer.number = l.number AND newer.channel = l.channel AND " \
         "newer.revision > l.revision)"  # fmt: skip
CAME = "coalesce(arrived, at)"  # of a label, as `cursor` has it


def columns(of: type[Row], table: str = "", *, bulky: bool = True) -> str:
    """The columns of a row in the order of its fields. bulky: with texts and features."""
    dot = f"{table}." if table else ""
    return ", ".join(f"{dot}{field.name}" if bulky else BULKY.get(field.name, field.name) for field in fields(of))


def insert(into: str, of: type[Row]) -> str:
    return f"INSERT INTO {into} ({columns(of)}) VALUES ({', '.join(['%s'] * len(fields(of)))})"  # noqa: S608


INSERT_DECISION = insert("decisions", DecisionRow) + " ON CONFLICT (number) DO NOTHING"
INSERT_HOP = insert("hops", HopRow) + " ON CONFLICT (number, position) DO NOTHING"
INSERT_LABEL = insert("labels", LabelRow)
KEEP_ALARM = (
    insert("alarms", AlarmRow)
    + " ON CONFLICT (kind, tier, slice, what) DO UPDATE SET why = excluded.why, page = excluded.page, "
    "seen = excluded.seen, since = CASE WHEN excluded.since < alarms.since THEN excluded.since ELSE alarms.since END"
)


def packed(row: DecisionRow | HopRow | LabelRow | AlarmRow) -> Values:
    """A row as columns."""
    return tuple(pack(field.name, getattr(row, field.name)) for field in fields(row))


def pack(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name == "features":
        value = {key: one if one is not None and math.isfinite(one) else None for key, one in value.items()}
    if name in FREE_TEXT:
        return json.dumps(value)
    if name in FLAGS:
        return int(value)
    return str(value) if isinstance(value, str) else value  # a word of an enumeration, plainly


def unpacked(of: type[Row], values: Sequence[Any]) -> Row:
    """A row from its columns. Pages of thousands are read, so columns that are what they are cost nothing."""
    row = list(values)
    for place, unpack in STEPS[of]:
        if row[place] is not None:
            row[place] = unpack(row[place])
    return of(*row)


def free_text(kept: str) -> Any:
    return "" if kept == '""' else json.loads(kept)  # most are empty


WAYS: dict[str, Callable[[Any], Any]] = dict.fromkeys(FREE_TEXT, free_text) | dict.fromkeys(FLAGS, bool) | WORDS


def steps(of: type[Row]) -> list[tuple[int, Callable[[Any], Any]]]:
    """The columns that are kept as something else than what they are: (place, how it is made from what is kept)."""
    return [(place, WAYS[field.name]) for place, field in enumerate(fields(of)) if field.name in WAYS]


STEPS: dict[type, list[tuple[int, Callable[[Any], Any]]]] = {
    DecisionRow: steps(DecisionRow),
    HopRow: steps(HopRow),
    LabelRow: steps(LabelRow),
    AlarmRow: steps(AlarmRow),
}


class Cursorlike(Protocol):
    """What runs statements inside a transaction."""

    def rows(self, statement: str, values: Values = ()) -> list[Values]: ...

    def many(self, statement: str, values: Iterable[Values]) -> None: ...


class SqlStore:
    """The store over whatever opens a transaction. Raises StoreDown as `Store` says."""

    def reading(self) -> AbstractContextManager[Cursorlike]:
        """A transaction that only reads."""
        raise NotImplementedError

    def writing(self) -> AbstractContextManager[Cursorlike]:
        """A transaction that is durable when it has ended without an error, and undone otherwise."""
        raise NotImplementedError

    def write(self, entries: Sequence[Entry]) -> None:
        """Rows are inserted in an order that is always the same, so that no two transactions wait for each other."""
        decisions = [entry.decision for entry in entries if entry.decision is not None]
        decisions.sort(key=lambda row: row.number)
        hops = sorted((hop for entry in entries for hop in entry.hops), key=lambda row: (row.number, row.position))
        with self.writing() as at:
            at.many(INSERT_DECISION, map(packed, decisions))
            at.many(INSERT_HOP, map(packed, hops))

    def put(self, wishes: Sequence[Wish]) -> list[tuple[Outcome, LabelRow]]:
        """Few statements for however many labels, in the order of `write`."""
        with self.writing() as at:
            numbers = list(dict.fromkeys(wish.label.number for wish in wishes))
            latest = at.rows(f"SELECT max({CAME}) FROM labels")[0][0] or 0.0  # noqa: S608
            done, fresh = settled(in_turn(wishes, latest), select(at, LabelRow, "labels", numbers))
            fresh.sort(key=lambda row: (row.number, row.channel, row.revision))
            at.many(INSERT_LABEL, [packed(row) for row in fresh])
        return done

    def whole(self, number: str) -> Whole:
        with self.reading() as at:
            decision = at.rows(f"SELECT {columns(DecisionRow)} FROM decisions WHERE number = %s", (number,))  # noqa: S608
            hops = hops_of(at, [number])[number]
            labels = labels_of(at, number)
        return Whole(unpacked(DecisionRow, decision[0]) if decision else None, hops, labels)

    def labels(self, number: str) -> tuple[LabelRow, ...]:
        with self.reading() as at:
            return labels_of(at, number)

    def recent(self, limit: int, *, wanting: bool = False, before: float | None = None) -> list[DecisionRow]:
        wanted = (
            "AND explored = 1 AND status = 200 AND NOT EXISTS (SELECT 1 FROM labels WHERE "
            "labels.number = decisions.number AND channel <> 'proxy')"
        )
        told = (
            f"SELECT {columns(DecisionRow)} FROM decisions WHERE at < %s {wanted if wanting else ''} "  # noqa: S608
            "ORDER BY at DESC, number DESC LIMIT %s"
        )
        with self.reading() as at:
            return [unpacked(DecisionRow, row) for row in at.rows(told, (1e300 if before is None else before, limit))]

    def briefs(self, since: float, limit: int, policy: str | None = None) -> list[Brief]:
        named, values = ("", ()) if policy is None else ("AND policy = %s", (policy,))
        told = (
            f"SELECT {', '.join(field.name for field in fields(Brief))} FROM decisions WHERE at >= %s {named} "  # noqa: S608
            "ORDER BY at DESC, number DESC LIMIT %s"
        )
        with self.reading() as at:
            return [Brief(*row) for row in at.rows(told, (since, *values, limit))]

    def stories(self, kind: Kind, since: float, limit: int) -> list[Whole]:
        told = f"SELECT {columns(DecisionRow, bulky=False)} FROM decisions WHERE at >= %s AND {OF_KIND[kind]}"  # noqa: S608
        values = (since, limit) if kind is Kind.EXPLORED else (since, since, limit)
        with self.reading() as at:
            found = [unpacked(DecisionRow, row) for row in at.rows(told, values)]
            numbers = [row.number for row in found]
            hops, labels = hops_of(at, numbers, bulky=False), labels_by(at, numbers)
        found.sort(key=lambda row: (row.at, row.number), reverse=True)
        return [Whole(row, hops[row.number], labels[row.number]) for row in found]

    def decisions(self, after: Cursor = START, limit: int = 1000) -> list[tuple[DecisionRow, tuple[HopRow, ...]]]:
        told = (
            f"SELECT {columns(DecisionRow)} FROM decisions WHERE (at, number) > (%s, %s) "  # noqa: S608
            "ORDER BY at, number LIMIT %s"
        )
        with self.reading() as at:
            page = [unpacked(DecisionRow, row) for row in at.rows(told, (*after[:2], limit))]
            hops = hops_of(at, [row.number for row in page])
        return [(row, hops[row.number]) for row in page]

    def labelled(self, after: Cursor = START, limit: int = 1000) -> list[Labelled]:
        told = (
            f"SELECT {columns(LabelRow, 'l')} FROM labels l WHERE ({CAME}, number, channel) > (%s, %s, %s) "  # noqa: S608
            f"AND {CAME} >= %s "  # which SQLite finds by the index, where it would go through all of it
            f"AND {COUNTS} ORDER BY {CAME}, number, channel LIMIT %s"
        )
        with self.reading() as at:
            page = [unpacked(LabelRow, row) for row in at.rows(told, (*after, after[0], limit))]
            numbers = list(dict.fromkeys(row.number for row in page))
            found = {row.number: row for row in select(at, DecisionRow, "decisions", numbers)}
            hops = hops_of(at, numbers)
        return [Labelled(row, found.get(row.number), served(row, hops[row.number])) for row in page]

    def alarms(
        self, on: Sequence[AlarmRow], ended: Sequence[tuple[str, str, str, str]], before: float
    ) -> list[AlarmRow]:
        told = f"SELECT {columns(AlarmRow)} FROM alarms WHERE seen >= %s ORDER BY since, kind, tier, slice, what"  # noqa: S608
        with self.writing() if on or ended else self.reading() as at:
            if on or ended:
                at.many("DELETE FROM alarms WHERE seen < %s", [(before,)])
                about = "kind = %s AND tier = %s AND slice = %s AND what = %s"
                at.many(f"DELETE FROM alarms WHERE {about}", sorted(ended))  # noqa: S608
                at.many(KEEP_ALARM, [packed(row) for row in sorted(on, key=lambda row: row.about)])
            return [unpacked(AlarmRow, row) for row in at.rows(told, (before,))]

    def purge(self, before: float, labelled_before: float) -> int:
        """Some at a time, so that labels need not wait for long; call it until it returns 0."""
        told = (
            "SELECT number FROM decisions WHERE at < %s OR (at < %s AND NOT EXISTS "
            "(SELECT 1 FROM labels WHERE labels.number = decisions.number)) LIMIT %s"
        )
        with self.writing() as at:
            numbers = sorted(row[0] for row in at.rows(told, (min(before, labelled_before), before, PURGE_ROWS)))
            at.many("DELETE FROM hops WHERE number = %s", [(number,) for number in numbers])
            at.many("DELETE FROM decisions WHERE number = %s", [(number,) for number in numbers])
        return len(numbers)


OF_KIND = {
    Kind.EXPLORED: "explored = 1 ORDER BY at DESC, number DESC LIMIT %s",
    Kind.LABELLED: "number IN "
    "(SELECT number FROM labels WHERE at >= %s AND channel <> 'proxy' ORDER BY at DESC LIMIT %s)",
}
PURGE_ROWS = 500
IN_ROWS = 500  # values in one IN list; SQLite's own limit was 999 for long


def labels_of(at: Cursorlike, number: str) -> tuple[LabelRow, ...]:
    told = f"SELECT {columns(LabelRow)} FROM labels WHERE number = %s ORDER BY {CAME}, channel, revision"  # noqa: S608
    return tuple(unpacked(LabelRow, row) for row in at.rows(told, (number,)))


def labels_by(at: Cursorlike, numbers: Sequence[str]) -> dict[str, tuple[LabelRow, ...]]:
    """As `labels_of`, by decision; empty where there are none."""
    found: defaultdict[str, list[LabelRow]] = defaultdict(list)
    for row in select(at, LabelRow, "labels", numbers):
        found[row.number].append(row)
    return {number: tuple(sorted(found[number], key=lambda row: (*cursor(row), row.revision))) for number in numbers}


def hops_of(at: Cursorlike, numbers: Sequence[str], *, bulky: bool = True) -> dict[str, tuple[HopRow, ...]]:
    """In order, by decision; empty where there are none. bulky: with features."""
    found: defaultdict[str, list[HopRow]] = defaultdict(list)
    for row in select(at, HopRow, "hops", numbers, bulky=bulky):
        found[row.number].append(row)
    return {number: tuple(sorted(found[number], key=lambda hop: hop.position)) for number in numbers}


def select(at: Cursorlike, of: type[Row], table: str, numbers: Sequence[str], *, bulky: bool = True) -> list[Row]:
    """The rows of these decisions. bulky: with texts and features."""
    rows: list[Row] = []
    for start in range(0, len(numbers), IN_ROWS):
        some = tuple(numbers[start : start + IN_ROWS])
        told = f"SELECT {columns(of, bulky=bulky)} FROM {table} WHERE number IN ({', '.join(['%s'] * len(some))})"  # noqa: S608
        rows += [unpacked(of, row) for row in at.rows(told, some)]
    return rows


def served(label: LabelRow, hops: Sequence[HopRow]) -> HopRow | None:
    """The hop that the label is about: the last of its tier on the way to the answer."""
    return next((hop for hop in reversed(hops) if hop.role is Role.HOP and hop.tier == label.tier), None)
