"""Answers as numbers: what a calibrator is fitted on, made from collected records or from a table of the user's own.

Answers that failed in a way that needs no confidence to see (cut at the limit, empty, no final answer in them) are kept
out and counted: the gateway escalates them by rule, and a calibrator fitted on them would learn to detect a format.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calibrators.base import BadLabels
from eval import _questions, records
from eval import rows as reading
from eval.datasets import Question, Slice
from eval.grade import Grade
from eval.records import MANIFEST, RECORDS, BadRecords, Manifest, Record
from gateway import confidence
from gateway.errors import BadTrace, ConfigError
from gateway.nouns import Evidence, Floats, Source

# Of both families, and what arithmetic shows. Five candidates, for over HTTP twenty cost a server most of its speed and
# tell no more: docs/records.md has what was measured.
FEATURES = (
    "lp_mean",
    "lp_bottom",
    "lp_quantile(q=0)",
    "lp_tail",
    "calc_min",
    "ans_min",
    "end_lp",
    "length",
    "deepconf_average(k=5)",
    "margin_min",
)
NEEDED = ("model", "question", "correct")  # columns of a user's own table
KNOWN = ("split", "family")  # and those that mean something where they are present
COUNTED = ("prompt_tokens", "completion_tokens", "seconds", "usd", "cost")  # what an answer took, numbers >= 0
ANSWER = "answer"  # the final answer, for comparing with other models' ones
MEANT = (*NEEDED, *KNOWN, *COUNTED, ANSWER)
Place = tuple[str, str]  # split, question
TRUE, FALSE = {"1", "1.0", "true"}, {"0", "0.0", "false"}


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """One tier's answers.

    names: F feature names.  X: (N, F), NaN where a feature is undefined.  y: (N,) of 0 and 1.
    question, family, split: (N,) words; family names what no fold may tear apart.  slices: by name, N values.
    said: by (split, question), the text of every answer there is, also of those left out.  left_out: how many, by why.
    source: of the evidence; None in a user's own table.  cut: measured up to the final number only.
    prefix: measured on so many first tokens only.  spent: what a table of one's own tells of COUNTED, (N,) each.
    """

    tier: str
    names: tuple[str, ...]
    X: Floats
    y: Floats
    question: npt.NDArray[np.str_]
    family: npt.NDArray[np.str_]
    split: npt.NDArray[np.str_]
    slices: Mapping[str, Sequence[Slice]]
    said: Mapping[Place, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    source: Source | None = None
    cut: bool = False
    prefix: int | None = None
    spent: Mapping[str, Floats] = field(default_factory=dict)

    @property
    def places(self) -> list[Place]:
        """Where each row comes from, (N,)."""
        return [(str(split), str(question)) for split, question in zip(self.split, self.question, strict=True)]

    def rows(self, chosen: npt.NDArray[np.bool_]) -> Table:
        """Some of the rows. chosen: (N,)."""
        slices = {name: [value for value, kept in zip(values, chosen, strict=True) if kept]
                  for name, values in self.slices.items()}  # fmt: skip
        return replace(
            self,
            X=self.X[chosen],
            y=self.y[chosen],
            question=self.question[chosen],
            family=self.family[chosen],
            split=self.split[chosen],
            slices=slices,
            spent={name: values[chosen] for name, values in self.spent.items()},
        )

    def with_columns(self, names: Sequence[str], X: Floats) -> Table:
        """The same with other features. X: (N, F)."""
        return replace(self, names=tuple(names), X=X)


def read(
    path: Path,
    features: Sequence[str] | None = None,
    slices: Sequence[str] = (),
    *,
    called: Mapping[str, str] | None = None,
    some: bool = False,
    cut: bool = False,
    prefix: int | None = None,
) -> tuple[dict[str, Table], Manifest | None]:
    """Tables and manifest of a collection (its folder, or its Parquet file), or of the user's own table, which has
    no manifest. Raises what `from_records` and `from_user` do."""
    file = path / RECORDS if path.is_dir() else path
    if collected(path):
        if called:
            raise ConfigError(f"{path} was collected, so its columns have their names; leave out --columns")
        manifest = records.read_manifest(file.parent / MANIFEST)
        return from_records(file, features, cut=cut, prefix=prefix), manifest
    if cut or prefix:
        raise ConfigError(f"{file} is a table of finished confidences: there is no text in it that could be cut")
    return from_user(file, features, slices, called, some=some), None


def collected(path: Path) -> bool:
    """Whether it holds records of ours, rather than a table of the user's own. Raises BadRecords."""
    return path.is_dir() or (path.suffix == ".parquet" and records.is_ours(records.open_parquet(path).schema_arrow))


def read_all(
    paths: Sequence[Path],
    features: Sequence[str] | None = None,
    slices: Sequence[str] = (),
    *,
    called: Mapping[str, str] | None = None,
    some: bool = False,
    cut: bool = False,
    prefix: int | None = None,
) -> tuple[dict[str, Table], Manifest | None]:
    """`read` for several, put together tier by tier, with the first one's manifest. Tables of the user's own may hold
    a model each.

    Raises ConfigError when they were not answered by the same engines, or do not support the same features.
    """
    parts = [read(path, features, slices, called=called, some=some, cut=cut, prefix=prefix) for path in paths]
    found: dict[str, list[Table]] = {}
    first, manifest = parts[0]
    for path, (every, theirs) in zip(paths, parts, strict=True):
        if _asked(manifest) != _asked(theirs) or (manifest is not None and every.keys() != first.keys()):
            raise ConfigError(f"{path} and {paths[0]} are not answers of the same tiers to the same prompt")
        for tier, table in every.items():
            found.setdefault(tier, []).append(table)
            if (table.names, table.spent.keys()) != (found[tier][0].names, found[tier][0].spent.keys()):
                raise ConfigError(f"{path} and {paths[0]} do not support the same features; name them with --features")
    return {tier: _stacked(tables) for tier, tables in found.items()}, manifest


def _asked(manifest: Manifest | None) -> object:
    return manifest and (manifest.prompt, [(tier.name, tier.fingerprint) for tier in manifest.tiers])


def _stacked(parts: Sequence[Table]) -> Table:
    """Tables of one tier under each other."""
    if len(parts) == 1:
        return parts[0]
    slices = {name: [value for part in parts for value in part.slices[name]] for name in parts[0].slices}
    return replace(
        parts[0],
        X=np.concatenate([part.X for part in parts]),
        y=np.concatenate([part.y for part in parts]),
        question=np.concatenate([part.question for part in parts]),
        family=np.concatenate([part.family for part in parts]),
        split=np.concatenate([part.split for part in parts]),
        slices=slices,
        said={place: text for part in parts for place, text in part.said.items()},
        left_out=dict(sum((Counter(part.left_out) for part in parts), Counter())),
        spent={name: np.concatenate([part.spent[name] for part in parts]) for name in parts[0].spent},
    )


def ordered(every: Mapping[str, Table], tiers: Sequence[str]) -> dict[str, Table]:
    """The tables of these tiers in this order; of all in their own order when none are named. Raises ConfigError."""
    for tier in tiers:
        if tier not in every:
            raise ConfigError(f"no answers of {tier!r} in these records; have {', '.join(every)}")
    return {tier: every[tier] for tier in tiers or every}


def looks_back(name: str) -> bool:
    """Whether a feature is about earlier tiers. Columns of a user's own table never are."""
    try:
        return confidence.find(name).needs.earlier
    except ConfigError:
        return False


def windowed(specs: Sequence[str], window: int | None) -> list[str]:
    """The specs with this window wherever a feature has one and none is given."""
    return [spec if window is None else _windowed(spec, window) for spec in specs]


def _windowed(spec: str, window: int) -> str:
    feature = confidence.find(spec).spec
    inside = f"{feature[:-1]},window={window})" if feature.endswith(")") else f"{feature}(window={window})"
    try:
        return confidence.find(inside).spec
    except ConfigError:  # it has no window, or has one already
        return feature


# From collected records


@dataclass(slots=True)
class _Draft:
    """A table while rows come in."""

    names: tuple[str, ...]
    source: Source | None
    cut: bool
    prefix: int | None = None
    X: list[Floats] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    facts: list[tuple[str, str, str]] = field(default_factory=list)
    slices: dict[str, list[Slice]] = field(default_factory=lambda: defaultdict(list))
    said: dict[Place, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    spent: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def finished(self, tier: str) -> Table:
        question, family, split = (np.array(part, dtype=np.str_) for part in zip(*self.facts, strict=True))
        return Table(
            tier, self.names, np.array(self.X), np.array(self.y), question, family, split, dict(self.slices),
            self.said, dict(self.left_out), self.source, self.cut, self.prefix,
            {name: np.array(values) for name, values in self.spent.items()},
        )  # fmt: skip


def from_records(
    path: Path, features: Sequence[str] | None = None, *, cut: bool = False, prefix: int | None = None
) -> dict[str, Table]:
    """A table per tier, in the order of the records. Features of earlier tiers' answers come later; see eval.fit.

    features: specs, all of which every tier's evidence must support; None takes those of FEATURES that it supports.
    cut: leave out of the measurement what an answer says behind its final number.
    prefix: measure so many first tokens only.
    Raises BadRecords, ConfigError for a wrong feature, BadTrace for one that the records cannot give.
    """
    drafts: dict[str, _Draft] = {}
    for record in records.read(path):
        if record.tier not in drafts:
            if record.trace is None:
                continue  # nothing to see yet which features there are; such a row is left out anyway
            drafts[record.tier] = _begin(record, features, cut=cut, prefix=prefix)
        _add(drafts[record.tier], record)
    if not drafts:
        raise BadRecords(path, "no answer in it carries log-probs, so no confidence can be measured")
    for tier, draft in drafts.items():
        if not draft.facts:
            why = ", ".join(f"{n} {word}" for word, n in draft.left_out.items())
            raise BadRecords(path, f"no answer of {tier} can be fitted on ({why})")
    return {tier: draft.finished(tier) for tier, draft in drafts.items()}


def _begin(record: Record, features: Sequence[str] | None, *, cut: bool, prefix: int | None) -> _Draft:
    names = FEATURES if features is None else tuple(features)
    evidence = _evidence(record, cut=cut, prefix=prefix)
    usable = supported(names, evidence, required=features is not None)
    return _Draft(tuple(confidence.find(spec).spec for spec in usable), evidence.trace.source, cut, prefix)


def supported(specs: Iterable[str], evidence: Evidence, *, required: bool = False) -> list[str]:
    """Those of the features that such evidence can give. Raises BadTrace for the first other one when all are
    required."""
    return [spec for spec in specs if _supports(spec, evidence, required=required)]


def _supports(spec: str, evidence: Evidence, *, required: bool) -> bool:
    try:
        confidence.measure([spec], evidence)
    except BadTrace:
        if required:
            raise
        return False
    return True


def _add(draft: _Draft, record: Record) -> None:
    why = failure(record)
    if record.text is not None:
        draft.said[record.split, record.question] = record.text
    if why:
        draft.left_out[why] += 1
        return
    try:
        values = confidence.measure(draft.names, _evidence(record, cut=draft.cut, prefix=draft.prefix)).values
    except BadTrace:
        draft.left_out["without evidence"] += 1
        return
    draft.X.append(values)
    draft.y.append(float(record.grade is Grade.RIGHT))
    draft.facts.append((record.question, record.family, record.split))
    for name, value in record.slices.items():
        draft.slices[name].append(value)


def failure(record: Record) -> str:
    """Why a record stays out of every fit, in a word; "" when it takes part."""
    if record.grade is Grade.UNASKED or record.text is None:
        return "not answered"
    if record.finish is not None and record.finish.cut:
        return "truncated"
    if not record.text.strip():
        return "empty"
    if record.grade is Grade.UNREADABLE:
        return "unreadable"
    return "without evidence" if record.trace is None else ""


def _evidence(record: Record, *, cut: bool, prefix: int | None) -> Evidence:
    assert record.trace is not None, "a record without a trace is left out before"
    evidence = Evidence(record.trace, record.text or "")
    if prefix is not None:
        return confidence.first_tokens(evidence, prefix)
    return confidence.cut_after_answer(evidence) if cut else evidence


# From a table of the user's own


def from_user(
    path: Path,
    features: Sequence[str] | None = None,
    slices: Sequence[str] = (),
    called: Mapping[str, str] | None = None,
    *,
    some: bool = False,
) -> dict[str, Table]:
    """A table per model, in the order of first appearance, from Parquet, JSONL or CSV. docs/records.md has the schema.

    features: columns to fit on; None takes every column that has no meaning of its own and is no slice.
    slices: columns by which objectives group rows and results are broken down.  called: what our columns are called.
    some: take those of the features that are there.
    Raises BadRecords naming the file, row and column, and BadLabels.
    """
    for name in called or {}:
        if name not in MEANT:
            raise ConfigError(f"--columns says what we find under which name: no {name!r}; have {', '.join(MEANT)}")
    rows = reading.read(path, called, slices)
    have = list(dict.fromkeys(name for row in rows[:1000] for name in row))
    features = [name for name in features if name in have] if features is not None and some else features
    missing = [name for name in (*NEEDED, *(features or ()), *slices) if name not in have]
    if missing:
        raise BadRecords(path, f"no column {', '.join(missing)}; have {', '.join(have)}")
    meant = {*MEANT, *slices}
    names = tuple(features) if features is not None else tuple(name for name in have if name not in meant)
    counted = [name for name in COUNTED if name in have]
    if not names and not some:
        raise BadRecords(path, f"no column left to fit on besides {', '.join(have)}")
    drafts: dict[str, _Draft] = {}
    for number, row in enumerate(rows, start=1):
        draft = drafts.setdefault(str(row.get("model", "")), _Draft(names, None, cut=False))
        question = str(row.get("question", ""))
        place = _word(row, "split", "all"), question
        draft.X.append(np.array([_number(path, number, name, row.get(name)) for name in names]))
        draft.y.append(_label(path, number, row.get("correct")))
        draft.facts.append((question, _word(row, "family", question), place[0]))
        for name in counted:
            draft.spent[name].append(_amount(path, number, name, row.get(name)))
        if ANSWER in row and not reading.empty(row[ANSWER]):
            draft.said[place] = str(row[ANSWER]).strip()
        for name in slices:
            draft.slices[name].append(_slice(row.get(name)))
    return {model: draft.finished(model) for model, draft in drafts.items()}


def _number(path: Path, row: int, name: str, value: object) -> float:
    """A cell as a number; an empty one is NaN, which the missing-value policy decides about."""
    if value is None or value == "":
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        advice = "name the columns to fit on with --features, or what to group by with --slices"
        raise BadRecords(path, f"row {row}: {name} is {value!r}, not a number; {advice}") from None


def _word(row: Mapping[str, Any], name: str, otherwise: str) -> str:
    value = row.get(name)
    return otherwise if reading.empty(value) else str(value)


def _amount(path: Path, row: int, name: str, value: object) -> float:
    amount = _number(path, row, name, value)
    if amount < 0 or math.isinf(amount):
        raise BadRecords(path, f"row {row}: {name} is {value!r}; what an answer took is a number >= 0")
    return amount


def _label(path: Path, row: int, value: object) -> float:
    told = str(value).strip().lower()
    if told not in TRUE | FALSE:
        raise BadLabels(f"{path}: row {row}: correct must be 1 or 0, true or false, got {value!r}")
    return float(told in TRUE)


def _slice(value: object) -> Slice:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def dealt_out(every: Mapping[str, Table], written: str, *, seed: int) -> dict[str, Table]:
    """Questions of one split dealt out to several, families together and the same for all models.

    written: "all:fit=0.6,test=0.4".  Raises ConfigError and BadSplit.
    """
    facts = {
        place: str(family) for table in every.values() for place, family in zip(table.places, table.family, strict=True)
    }
    asked = [Question(question, question, "", "", split, family=family) for (split, question), family in facts.items()]
    before = {split for split, _ in facts}
    dealt = _questions.divide(asked, written, seed=seed)
    to = {question.id: question.split for question in dealt if question.split not in before}
    return {tier: moved(table, written.partition(":")[0], to) for tier, table in every.items()}


def moved(table: Table, split: str, to: Mapping[str, str]) -> Table:
    """The table with the questions of a split in others. to: the new split by question."""
    new = [to[str(one)] if own == split else str(own) for one, own in zip(table.question, table.split, strict=True)]
    said = {(to[one] if own == split else own, one): text for (own, one), text in table.said.items()}
    return replace(table, split=np.array(new, dtype=np.str_), said=said)


def codes(columns: Iterable[Sequence[Slice]], names: Sequence[str]) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Slice number of each row (N,), and the slices' names: every combination of the columns' values that occurs.

    A numeric column of more than MANY values is cut at its terciles; slices of fewer than SMALL rows become one.
    """
    told = [_labels(name, column) for name, column in zip(names, columns, strict=True)]
    label = np.array([" ".join(parts) for parts in zip(*told, strict=True)])
    found, code, count = np.unique(label, return_inverse=True, return_counts=True)
    if (count < SMALL).any():
        label = np.where(count[code] < SMALL, "other", label)
        found, code = np.unique(label, return_inverse=True)
    return code.astype(np.int64), tuple(str(name) for name in found)


MANY = 12  # more values than this and a slice would be too small to speak for itself
SMALL = 20  # the mean loss of fewer rows is mostly noise, and a group objective would chase it


def _labels(name: str, column: Sequence[Slice]) -> list[str]:
    numeric = all(isinstance(value, int | float) for value in column)
    if not numeric or len(set(column)) <= MANY:
        return [f"{name}={value}" for value in column]
    values = np.array(column, dtype=np.float64)
    low, high = np.quantile(values, [1 / 3, 2 / 3])
    return [
        f"{name}<={low:g}" if v <= low else f"{name}<={high:g}" if v <= high else f"{name}>{high:g}" for v in values
    ]
