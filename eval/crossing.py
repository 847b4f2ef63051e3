"""From answers to crossed tables, one per split, with the very probabilities that the gateway would compute.

Answers are records, or rows of a table of the user's own, which has features and no texts or log-probs.

Every p comes from gateway.cascade.judge and the tier's own calibrator, row by row as in service, because summing a
batch in another order can change the last bit. Where a calibrator looks at earlier tiers, only its columns about them
are measured anew for each path; what the trace says does not change.

The one exception are answers that a calibrator was fitted on: there its p would be too good to choose anything by, and
the out-of-fold p of the fit takes its place (eval.held_out).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from calibrators.base import CalibrationError
from eval import tables
from eval.baselines import LENGTH, RAW
from eval.costs import PAID, Model, Usage
from eval.crossed import BadTable, Bools, Crossed, Floats, Path
from eval.datasets import Slice
from eval.grade import Grade
from eval.held_out import HeldOut
from eval.records import Record
from eval.tables import Place, Table
from gateway import cascade, confidence
from gateway.nouns import Ask, Completion, Earlier, Evidence, Message, Source, Tier, TokenTrace

ASK = Ask((Message("user", "recorded"),), deadline=0.0)  # judging looks at its sampler alone, and that is greedy
STUB = TokenTrace(Source.CHOSEN, np.zeros(1))  # features about earlier tiers look at texts and probabilities alone


@dataclass(frozen=True, slots=True, eq=False)
class Crossing:
    """One split. table: cost in tokens, see eval.costs for others.  unasked: questions left out because some tier gave
    no answer at all; the gateway would have gone on without that tier, which is no question of policy.
    cut, unreadable, silent: (n, K) answers that met their token limit, that have no final number, that came without
    log-probs; None where nobody says so.  slices: n values by name, only those that every question has."""

    table: Crossed
    usage: Usage
    unasked: int
    cut: Bools | None
    unreadable: Bools | None
    silent: Bools | None
    slices: Mapping[str, tuple[Slice, ...]]

    def rows(self, chosen: Bools) -> Crossing:
        """The same for some of the questions. chosen: (n,)."""
        cut, unreadable, silent = (
            None if marked is None else marked[chosen] for marked in (self.cut, self.unreadable, self.silent)
        )
        return Crossing(
            self.table.rows(chosen),
            self.usage.rows(chosen),
            self.unasked,
            cut,
            unreadable,
            silent,
            {
                name: tuple(value for value, keep in zip(values, chosen, strict=True) if keep)
                for name, values in self.slices.items()
            },
        )


@dataclass(slots=True)
class _Row:
    """What is kept of an answer: a record's trace is hundreds of times larger. None: not known.

    p: when the tier is asked first.  unseen: out of fold, for an answer that was fitted on, after exactly `after`.
    raw: a score in [0, 1] as it came.  paid: by cost model, what others have added up.
    """

    text: str
    answer: str
    right: bool
    features: Floats | None
    p: float | None
    unseen: float | None
    after: tuple[str, ...]
    raw: float | None
    cut: bool | None
    unreadable: bool | None
    silent: bool | None
    prompt_tokens: float | None
    completion_tokens: float | None
    seconds: float | None
    paid: Mapping[Model, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Split:
    questions: list[str] = field(default_factory=list)
    families: list[str] = field(default_factory=list)
    slices: list[Mapping[str, Slice]] = field(default_factory=list)
    rows: list[list[_Row]] = field(default_factory=list)
    unasked: int = 0


def cross(
    records: Iterable[Record], tiers: Sequence[Tier], held_out: Mapping[str, HeldOut] | None = None
) -> dict[str, Crossing]:
    """One crossing per split, in the order met. records: rows of one question together, as collecting writes them.

    tiers: in the order they would be asked.  held_out: by tier; a question in there gets that p and no other. Where the
    calibrator looks at earlier tiers that p is for one path, all of them, and on any other such a question has none.
    Raises BadTable when a split has no question that all of them answered.
    """
    names, known = [tier.name for tier in tiers], held_out or {}
    splits: defaultdict[str, _Split] = defaultdict(_Split)
    for (split, question), together in groupby(records, key=lambda record: (record.split, record.question)):
        told = {record.tier: record for record in together if record.tier in names}
        found = splits[split]
        if any(name not in told or told[name].grade is Grade.UNASKED for name in names):
            found.unasked += 1
            continue
        found.questions.append(question)
        found.families.append(told[names[0]].family)
        found.slices.append(told[names[0]].slices)
        found.rows.append([_row(told[tier.name], tier, known.get(tier.name)) for tier in tiers])
    return _crossings(splits, tiers)


def cross_tables(
    every: Mapping[str, Table], tiers: Sequence[Tier], held_out: Mapping[str, HeldOut] | None = None
) -> dict[str, Crossing]:
    """The same from a table of the user's own per tier. Raises BadTable, also for a question that one of them was asked
    twice."""
    known, chosen = held_out or {}, [every[tier.name] for tier in tiers]
    where = [_places(table) for table in chosen]
    raw = _raw(chosen)
    splits: defaultdict[str, _Split] = defaultdict(_Split)
    for place in dict.fromkeys(place for rows in where for place in rows):
        found = splits[place[0]]
        if any(place not in rows for rows in where):
            found.unasked += 1
            continue
        first, row = chosen[0], where[0][place]
        found.questions.append(place[1])
        found.families.append(str(first.family[row]))
        found.slices.append({name: values[row] for name, values in first.slices.items()})
        asked = zip(chosen, where, tiers, strict=True)
        found.rows.append(
            [_told(table, rows[place], place, tier, known.get(tier.name), raw) for table, rows, tier in asked]
        )
    crossed = _crossings(splits, tiers)
    return {split: replace(one, table=replace(one.table, raw=f"column {raw}")) for split, one in crossed.items()}


def _places(table: Table) -> dict[Place, int]:
    """Row number by split and question."""
    places = table.places
    found = {place: row for row, place in enumerate(places)}
    if len(found) < len(places):
        (split, question), n = Counter(places).most_common(1)[0]
        raise BadTable(
            f"{table.tier} answers question {question!r} (split {split!r}) {n} times, and a policy asks once: keep one "
            "of these rows, or give repeated answers ids of their own and the same name in a column family"
        )
    return found


def _raw(every: Sequence[Table]) -> str | None:
    """The first feature that every tier has and that lies in [0, 1]: a confidence that can be taken as it is."""
    for name in every[0].names:
        if all(name in table.names for table in every):
            values = np.concatenate([table.X[:, table.names.index(name)] for table in every])
            if bool((np.isnan(values) | ((values >= 0) & (values <= 1))).all()):
                return name
    return None


def _told(table: Table, row: int, place: Place, tier: Tier, held_out: HeldOut | None, raw: str | None) -> _Row:
    """One row of a tier's table. raw: the feature that is a confidence already."""
    said = table.said.get(place, "")
    values = np.array([_feature(name, table, row, said, tier) for name in tier.features])
    p = None if tier.calibrator is None else _predicted(tier, values)
    p, unseen, after = _out_of_fold(place[1], p, held_out)
    spent = {name: float(column[row]) for name, column in table.spent.items()}
    return _Row(
        said,
        said,
        bool(table.y[row]),
        values,
        p,
        unseen,
        after,
        None if raw is None else float(table.X[row, table.names.index(raw)]),
        None,
        None,
        None,
        spent.get("prompt_tokens"),
        spent.get("completion_tokens"),
        spent.get("seconds"),
        {model: spent[model] for model in PAID if model in spent},
    )


def _feature(name: str, table: Table, row: int, said: str, tier: Tier) -> float:
    """A column's value, or what a feature about earlier tiers says where none was asked before."""
    if name in table.names:
        return float(table.X[row, table.names.index(name)])
    nobody = cascade.in_order((), tier.after)
    return float(confidence.measure((name,), Evidence(STUB, said, nobody)).values[0])


def _row(record: Record, tier: Tier, held_out: HeldOut | None) -> _Row:
    completion = completed(record)
    verdict = cascade.judge(completion, tier, ASK, ())
    trace = record.trace
    measured = None if verdict.features is None else held_out
    p, unseen, after = _out_of_fold(record.question, verdict.p_correct, measured)
    return _Row(
        completion.text,
        record.answer,
        record.grade is Grade.RIGHT,
        None if verdict.features is None else verdict.features.values,
        p,
        unseen,
        after,
        None if trace is None else float(np.exp(trace.chosen.mean())),
        record.finish is not None and record.finish.cut,
        record.grade is Grade.UNREADABLE,
        trace is None,
        record.prompt_tokens,
        record.completion_tokens,
        record.seconds,
    )


def _out_of_fold(
    question: str, p: float | None, held_out: HeldOut | None
) -> tuple[float | None, float | None, tuple[str, ...]]:
    """(p, unseen, after) of a row: where the question was fitted on, the calibrator's own p gives way."""
    if held_out is None or question not in held_out.p:
        return p, None, ()
    unseen, after = held_out.p[question], held_out.after
    return None if after else unseen, unseen, after


def completed(record: Record) -> Completion:
    """What the engine said when the record was made."""
    if record.text is None or record.finish is None:
        raise BadTable(f"{record.tier} gave no answer to {record.question}")
    return Completion(
        record.text,
        record.finish,
        record.prompt_tokens,
        record.completion_tokens,
        record.engine,
        record.tier,
        record.seconds,
        record.trace,
        record.no_trace,
    )


def _crossings(splits: Mapping[str, _Split], tiers: Sequence[Tier]) -> dict[str, Crossing]:
    """Raises BadTable when a split has no question that all tiers answered."""
    empty = [split for split, found in splits.items() if not found.questions]
    if empty or not splits:
        names = ", ".join(tier.name for tier in tiers)
        raise BadTable(f"no question of {', '.join(empty) or 'these records'} was answered by all of {names}")
    return {split: _crossing(found, tiers) for split, found in splits.items()}


def _crossing(found: _Split, tiers: Sequence[Tier]) -> Crossing:
    def matrix(name: str) -> Floats:
        values = [[getattr(row, name) for row in rows] for rows in found.rows]
        return np.array(values, dtype=np.float64)  # None becomes NaN

    prompt_tokens, completion_tokens, seconds = matrix("prompt_tokens"), matrix("completion_tokens"), matrix("seconds")
    names = tuple(tier.name for tier in tiers)
    looking = any(tables.looks_back(name) for tier in tiers for name in tier.features)
    p, raw = matrix("p"), matrix("raw")
    answers = tuple(tuple(row.answer for row in rows) for rows in found.rows)
    scores = {RAW: np.minimum(raw, 1.0), LENGTH: 1 / (1 + completion_tokens)}
    table = Crossed(
        tuple(found.questions),
        names,
        p,
        matrix("right"),
        np.nan_to_num(prompt_tokens + completion_tokens),
        seconds,
        given=_Given(found.rows, tiers, p) if looking else None,
        families=tuple(found.families),
        answers=answers if any(map(any, answers)) else (),
        scores=_told_of(scores),
        signals=_signals(found.rows, tiers),
        prompts={} if np.isnan(prompt_tokens).any() else {"prompt length": np.log1p(prompt_tokens[:, 0])},
    )
    cut, unreadable, silent = (_marked(matrix(name)) for name in ("cut", "unreadable", "silent"))
    shared = [name for name in found.slices[0] if all(name in one for one in found.slices)]
    slices = {name: tuple(one[name] for one in found.slices) for name in shared}
    paid = {
        model: np.array([[row.paid.get(model, np.nan) for row in rows] for rows in found.rows])
        for model in PAID
        if any(model in row.paid for row in found.rows[0])
    }
    usage = Usage(names, prompt_tokens, completion_tokens, seconds, paid)
    return Crossing(table, usage, found.unasked, cut, unreadable, silent, slices)


def _told_of(columns: Mapping[str, Floats]) -> dict[str, Floats]:
    """Those that say anything."""
    return {name: values for name, values in columns.items() if not np.isnan(values).all()}


def _marked(values: Floats) -> Bools | None:
    return None if bool(np.isnan(values).any()) else values.astype(np.bool_)


def _signals(rows: Sequence[Sequence[_Row]], tiers: Sequence[Tier]) -> dict[str, Floats]:
    """The tiers' features one by one, without those about earlier tiers."""
    found: dict[str, Floats] = {}
    for k, tier in enumerate(tiers):
        for place, name in enumerate(tier.features):
            if tables.looks_back(name):
                continue
            column = found.setdefault(name, np.full((len(rows), len(tiers)), np.nan))
            for i, row in enumerate(rows):
                values = row[k].features
                column[i, k] = np.nan if values is None else values[place]
    return found


class _Given:
    """p along a path, for calibrators that look at what was asked before; each path is computed once."""

    def __init__(self, rows: Sequence[Sequence[_Row]], tiers: Sequence[Tier], alone: Floats) -> None:
        self._rows, self._tiers, self._alone = rows, tiers, alone
        self._known: dict[Path, Floats] = {}

    def __call__(self, path: Path) -> Floats:
        if path not in self._known:
            self._known[path] = self._along(path)
        return self._known[path]

    def _along(self, path: Path) -> Floats:
        tier = self._tiers[path[-1]]
        looking = [place for place, name in enumerate(tier.features) if tables.looks_back(name)]
        if not looking or len(path) == 1:
            return self._alone[:, path[-1]]
        names = tuple(tier.features[place] for place in looking)
        asked_before = tuple(self._tiers[asked].name for asked in path[:-1])
        before = [self(path[: level + 1]) for level in range(len(path) - 1)]
        p = np.full(len(self._rows), np.nan)
        for i, rows in enumerate(self._rows):
            own = rows[path[-1]]
            if own.features is None:
                continue
            if own.unseen is not None:
                p[i] = own.unseen if own.after == asked_before else np.nan
                continue
            earlier = tuple(
                Earlier(self._tiers[asked].name, rows[asked].text, None if np.isnan(said[i]) else float(said[i]))
                for asked, said in zip(path[:-1], before, strict=True)
            )
            values = own.features.copy()
            seen = cascade.in_order(earlier, tier.after)
            values[looking] = confidence.measure(names, Evidence(STUB, own.text, seen)).values
            p[i] = _predicted(tier, values)
        return p


def _predicted(tier: Tier, values: Floats) -> float:
    """As the cascade does: a p that cannot be had, or is none, is no evidence."""
    assert tier.calibrator is not None, "features were measured, so there is a calibrator"
    try:
        p = float(tier.calibrator.predict(values[np.newaxis, :])[0])
    except CalibrationError:
        return np.nan
    return p if 0.0 <= p <= 1.0 else np.nan
