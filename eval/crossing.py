"""From recorded answers to crossed tables, one per split, with the very probabilities that the gateway would compute.

Every p comes from gateway.cascade.judge and the tier's own calibrator, row by row as in service, because summing a
batch in another order can change the last bit. Where a calibrator looks at earlier tiers, only its columns about them
are measured anew for each path; what the trace says does not change.

The one exception are answers that a calibrator was fitted on: there its p would be too good to choose anything by, and
the out-of-fold p of the fit takes its place (eval.held_out).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from calibrators.base import CalibrationError
from eval.baselines import LENGTH, RAW
from eval.costs import Usage
from eval.crossed import BadTable, Bools, Crossed, Floats, Path
from eval.datasets import Slice
from eval.grade import Grade
from eval.held_out import HeldOut
from eval.records import Record
from gateway import cascade, confidence
from gateway.nouns import Ask, Completion, Earlier, Evidence, Finish, Message, Source, Tier, TokenTrace

ASK = Ask((Message("user", "recorded"),), deadline=0.0)  # judging looks at its sampler alone, and that is greedy
STUB = TokenTrace(Source.CHOSEN, np.zeros(1))  # features about earlier tiers look at texts and probabilities alone


@dataclass(frozen=True, slots=True, eq=False)
class Crossing:
    """One split. table: cost in tokens, see eval.costs for others.  unasked: questions left out because some tier gave
    no answer at all; the gateway would have gone on without that tier, which is no question of policy.
    cut, unreadable, silent: (n, K) answers that met their token limit, that have no final number, that came without
    log-probs.  slices: n values by name, only those that every question has."""

    table: Crossed
    usage: Usage
    unasked: int
    cut: Bools
    unreadable: Bools
    silent: Bools
    slices: Mapping[str, tuple[Slice, ...]]

    def rows(self, chosen: Bools) -> Crossing:
        """The same for some of the questions. chosen: (n,)."""
        usage = self.usage
        parts = (usage.prompt_tokens[chosen], usage.completion_tokens[chosen], usage.seconds[chosen])
        return Crossing(
            self.table.rows(chosen),
            Usage(usage.tiers, *parts),
            self.unasked,
            self.cut[chosen],
            self.unreadable[chosen],
            self.silent[chosen],
            {
                name: tuple(value for value, keep in zip(values, chosen, strict=True) if keep)
                for name, values in self.slices.items()
            },
        )


@dataclass(slots=True)
class _Row:
    """What is kept of a record: its trace is hundreds of times larger.

    p: when the tier is asked first.  unseen: out of fold, for an answer that was fitted on, after exactly `after`.
    """

    text: str
    answer: str
    right: bool
    features: Floats | None
    p: float | None
    unseen: float | None
    after: tuple[str, ...]
    raw: float | None
    cut: bool
    unreadable: bool
    silent: bool
    prompt_tokens: int
    completion_tokens: int
    seconds: float


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
    empty = [split for split, found in splits.items() if not found.questions]
    if empty or not splits:
        raise BadTable(
            f"no question of {', '.join(empty) or 'these records'} was answered by all of {', '.join(names)}"
        )
    return {split: _crossing(found, tiers) for split, found in splits.items()}


def _row(record: Record, tier: Tier, held_out: HeldOut | None) -> _Row:
    completion = completed(record)
    verdict = cascade.judge(completion, tier, ASK, ())
    trace = record.trace
    p, unseen = verdict.p_correct, None
    after: tuple[str, ...] = ()
    if held_out is not None and verdict.features is not None and record.question in held_out.p:
        unseen, after = held_out.p[record.question], held_out.after
        p = None if after else unseen
    return _Row(
        completion.text,
        record.answer,
        record.grade is Grade.RIGHT,
        None if verdict.features is None else verdict.features.values,
        p,
        unseen,
        after,
        None if trace is None else float(np.exp(trace.chosen.mean())),
        record.finish is Finish.LENGTH,
        record.grade is Grade.UNREADABLE,
        trace is None,
        record.prompt_tokens,
        record.completion_tokens,
        record.seconds,
    )


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


def _crossing(found: _Split, tiers: Sequence[Tier]) -> Crossing:
    def matrix(name: str) -> Floats:
        values = [[getattr(row, name) for row in rows] for rows in found.rows]
        return np.array(values, dtype=np.float64)  # None becomes NaN

    prompt_tokens, completion_tokens, seconds = matrix("prompt_tokens"), matrix("completion_tokens"), matrix("seconds")
    names = tuple(tier.name for tier in tiers)
    looking = any(confidence.needs(tier.features).earlier for tier in tiers)
    p = matrix("p")
    table = Crossed(
        tuple(found.questions),
        names,
        p,
        matrix("right"),
        prompt_tokens + completion_tokens,
        seconds,
        given=_Given(found.rows, tiers, p) if looking else None,
        families=tuple(found.families),
        answers=tuple(tuple(row.answer for row in rows) for rows in found.rows),
        scores={RAW: np.minimum(matrix("raw"), 1.0), LENGTH: 1 / (1 + completion_tokens)},
        signals=_signals(found.rows, tiers),
        prompts={"prompt length": np.log1p(prompt_tokens[:, 0])},
    )
    cut, unreadable, silent = (matrix(name).astype(np.bool_) for name in ("cut", "unreadable", "silent"))
    shared = [name for name in found.slices[0] if all(name in one for one in found.slices)]
    slices = {name: tuple(one[name] for one in found.slices) for name in shared}
    usage = Usage(names, prompt_tokens, completion_tokens, seconds)
    return Crossing(table, usage, found.unasked, cut, unreadable, silent, slices)


def _signals(rows: Sequence[Sequence[_Row]], tiers: Sequence[Tier]) -> dict[str, Floats]:
    """The tiers' features one by one, without those about earlier tiers."""
    found: dict[str, Floats] = {}
    for k, tier in enumerate(tiers):
        for place, name in enumerate(tier.features):
            if confidence.needs((name,)).earlier:
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
        looking = [place for place, name in enumerate(tier.features) if confidence.needs((name,)).earlier]
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
