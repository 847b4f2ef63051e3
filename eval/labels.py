"""Labels from files into a store, and labelled decisions out of it as a table that calibrators are fitted on."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from eval import rows, tables
from eval.records import BadRecords, replacing
from gateway import ids
from gateway.errors import BadId, ConfigError, LabelConflict
from gateway.ids import Seal
from gateway.store import base
from gateway.store.base import Channel, DecisionRow, HopRow, Labelled, LabelRow, Outcome, Role, Source, Store, Wish
from gateway.store.telling import printable, truth

Json = dict[str, Any]

BATCH = 1000
LONGEST_COMMENT = 1024
COLUMNS = ("id", "label", "source", "comment")
KEY_SHARE = 0.05  # the project's failure model, section 6: most of any fit that one key may be


# In


def read(path: Path, source: Source) -> list[Json]:
    """Rows of a CSV, JSONL or Parquet file, each with id, label, source and comment. source: where a row names none.

    Raises BadRecords naming the row.
    """
    if path.suffix.lower() not in rows.READERS:
        raise BadRecords(path, f"need a file that ends in {', '.join(rows.READERS)}")
    found = rows.READERS[path.suffix.lower()](path)
    if not found:
        raise BadRecords(path, "no rows in it")
    return [item(path, number, row, source) for number, row in enumerate(found, start=1)]


def item(path: Path, number: int, row: Mapping[str, Any], source: Source) -> Json:
    strange = [name for name in row if name not in COLUMNS]
    if strange or "id" not in row or "label" not in row:
        have = ", ".join(row)
        raise BadRecords(path, f"row {number}: need the columns id and label, and may have source, comment; got {have}")
    says = str(row["label"]).strip().lower()
    if says not in tables.TRUE | tables.FALSE:
        raise BadRecords(path, f"row {number}: label must be 1 or 0, true or false, got {row['label']!r}")
    told = str(row.get("source") or source)
    if told not in tuple(Source):
        raise BadRecords(path, f"row {number}: source must be one of {', '.join(Source)}, got {told!r}")
    comment = row.get("comment") or None
    if comment is not None and len(str(comment).encode("utf-8", "surrogatepass")) > LONGEST_COMMENT:
        raise BadRecords(path, f"row {number}: a comment may have {LONGEST_COMMENT} bytes")
    return {"id": str(row["id"]).strip(), "label": says in tables.TRUE, "source": told, "comment": comment}


def wishes(
    path: Path, items: Sequence[Json], seal: Seal, store: Store, *, author: str, now: float, revise: bool
) -> list[Wish]:
    """Labels for the store. An id proves itself; a bare number is looked up. Raises BadRecords for neither."""
    return [
        Wish(label(path, number, one, seal, store, author=author, now=now), revise)
        for number, one in enumerate(items, start=1)
    ]


def label(path: Path, number: int, one: Json, seal: Seal, store: Store, *, author: str, now: float) -> LabelRow:
    source = Source(one["source"])
    try:
        found = seal.read(one["id"])
    except BadId:
        found = looked_up(one["id"], store) or refuse(path, number, one["id"])
    facts = (found.unix_seconds, found.tier, found.calibrator, found.p_correct)
    return LabelRow(found.number, source.channel, 0, one["label"], source, author, one["comment"], now, *facts)


def looked_up(given: str, store: Store) -> ids.Decision | None:
    """What the log says of a bare number."""
    try:
        number = ids.number_of(given)
    except BadId:
        return None
    row = store.whole(number).decision if given == number else None
    return None if row is None else ids.Decision(number, row.at, row.tier, digest(row.calibrator), row.p_correct)


def digest(calibrator: str) -> str:
    return calibrator.rpartition("@")[2] if "@" in calibrator else ""


def refuse(path: Path, row: int, given: str) -> ids.Decision:
    raise BadRecords(
        path,
        f"row {row}: no id of this configuration's, nor a number in its log: {given[:60]!r}; nothing was stored",
    )


def put(path: Path, store: Store, labels: Sequence[Wish]) -> Counter[Outcome]:
    """Store them, a thousand in a transaction. Raises BadRecords for a contradiction, naming what is stored by then."""
    done: Counter[Outcome] = Counter()
    for start in range(0, len(labels), BATCH):
        some = labels[start : start + BATCH]
        try:
            done.update(outcome for outcome, _ in store.put(some))
        except LabelConflict as error:
            rows = [start + place for place, one in enumerate(some, 1) if one.label.number == error.number]
            told = f"row {', '.join(map(str, rows))}: the contrary of a label that is there; --revise replaces it"
            raise BadRecords(path, f"{told}; the first {start} rows are stored, and may be sent again") from None
    return done


# Out


@dataclass(frozen=True, slots=True)
class Live:
    """One labelled answer to fit on. key: who labelled it; "" for operators, who are trusted."""

    tier: str
    question: str
    correct: bool
    family: str
    key: str
    at: float
    features: Mapping[str, float | None]


def usable(
    rows: Iterable[Labelled], *, trusted: bool = False, without: Collection[str] = ()
) -> tuple[list[Live], Counter[str]]:
    """One row per decision, of what was served; and how many labels are left out, by why.

    trusted, without: as of `heard`.
    """
    best, unheard, cut = heard(rows, trusted=trusted, without=without)
    left_out = unheard + cut
    kept: list[Live] = []
    for number, row in best.items():
        if row.served is None:
            left_out["its decision is not in the log"] += 1
        elif row.served.p_correct is None or not row.served.features:
            left_out["without evidence"] += 1
        else:
            family = row.decision.prompt_sha256 if row.decision is not None else number
            key = "" if row.label.channel is Channel.OPERATOR else row.label.author
            label = row.label
            kept.append(Live(row.served.tier, number, label.label, family, key, label.at, row.served.features))
    return kept, left_out


def heard(
    rows: Iterable[Labelled], *, trusted: bool, without: Collection[str]
) -> tuple[dict[str, Labelled], Counter[str], Counter[str]]:
    """One label per decision, by its number, an operator's before a client's; how many are of no channel that is heard,
    and how many of keys that are cut out, by why.

    trusted: operators' labels alone.  without: keys that are not heard.
    """
    best: dict[str, Labelled] = {}
    unheard: Counter[str] = Counter()
    cut: Counter[str] = Counter()
    for row in rows:
        label = row.label
        if label.channel is Channel.PROXY or (trusted and label.channel is not Channel.OPERATOR):
            unheard["a proxy's label" if label.channel is Channel.PROXY else "not an operator's label"] += 1
        elif label.author in without:
            cut[f"of {label.author}"] += 1
        elif label.number not in best or label.channel is Channel.OPERATOR:
            best[label.number] = row
    return best, unheard, cut


def check_cut(without: Collection[str], left_out: Counter[str]) -> None:
    """Raises ConfigError for a key that was to be left out and has no label. left_out: as of `usable`."""
    for name in without:
        if not left_out[f"of {name}"]:
            advice = "`confgate route-log ID` says whose one is"
            raise ConfigError(f"no label that would count is of a key {name!r}; {advice}")


def capped(rows: Sequence[Live], share: float) -> list[Live]:
    """As many rows as there may be when no key is more than this share of them; of each key the newest.

    Operators' rows all stay. The most that one key may have is the largest c with c <= share * (trusted + sum of what
    keys have up to c).
    """
    counts = Counter(row.key for row in rows if row.key)
    trusted = sum(not row.key for row in rows)
    most = max(counts.values(), default=0)
    while most and most > share * (trusted + sum(min(count, most) for count in counts.values())):
        most -= 1
    seen: Counter[str] = Counter()
    kept: list[Live] = []
    for row in sorted(rows, key=lambda row: row.at, reverse=True):
        seen[row.key] += 1
        if not row.key or seen[row.key] <= most:
            kept.append(row)
    return sorted(kept, key=lambda row: (row.at, row.question))


def write_table(rows: Sequence[Live], out: Path) -> None:
    """The user's own table of docs/records.md: model, question, correct, family, split, and a column per feature.

    Raises ConfigError where tiers have different features: a fit would find the others' columns empty.
    """
    names: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        names[row.tier].update(dict.fromkeys(row.features))
    if len({tuple(sorted(columns)) for columns in names.values()}) > 1:
        raise ConfigError(f"{', '.join(names)} have different features; write one file for each with --tier")
    features = list(next(iter(names.values()), {}))
    with replacing(out) as draft:
        columns: dict[str, Any] = {
            "model": [row.tier for row in rows],
            "question": [row.question for row in rows],
            "correct": [int(row.correct) for row in rows],
            "family": [row.family for row in rows],
            "split": ["live"] * len(rows),
        }
        columns |= {name: pa.array([value(row.features.get(name)) for row in rows], pa.float64()) for name in features}
        pq.write_table(pa.table(columns), draft)


def value(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else number


# The log

KINDS = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}


def log_schema() -> pa.Schema:
    """A column per field of a decision, one per field of a hop behind `hop_`, and `truth`."""
    columns = [(name, kind) for name, kind in kinds(DecisionRow)]
    columns += [(f"hop_{name}", kind) for name, kind in kinds(HopRow) if name != "number"]
    return pa.schema([*columns, ("truth", pa.bool_())])


def kinds(row: type[DecisionRow] | type[HopRow]) -> Iterator[tuple[str, pa.DataType]]:
    hints = get_type_hints(row)
    for field in fields(row):
        if field.name == "features":
            yield field.name, pa.map_(pa.string(), pa.float64())
        elif field.name == "metadata":
            yield field.name, pa.map_(pa.string(), pa.string())
        else:
            hint = hints[field.name]
            yield field.name, KINDS[str if hint is Role else next(iter(get_args(hint)), hint)]


def write_log(store: Store, out: Path, *, since: float, until: float) -> int:
    """One row per hop, and one for a decision without any. How many decisions. Read and written page by page."""
    schema, count = log_schema(), 0
    after = (since, "", "")
    with replacing(out) as draft, pq.ParquetWriter(draft, schema) as writer:
        while page := store.decisions(after, BATCH):
            page_rows = [(row, hops) for row, hops in page if row.at < until]
            rows = [line for row, hops in page_rows for line in log_lines(row, hops, store)]
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema))
            count += len(page_rows)
            after = (page[-1][0].at, page[-1][0].number, "")
            if len(page_rows) < len(page):
                break
    return count


def log_lines(row: DecisionRow, hops: Sequence[HopRow], store: Store) -> Iterator[Json]:
    told = asdict(row) | {"truth": truth(store.labels(row.number)), "metadata": list(printable(row.metadata).items())}
    for hop in hops or (None,):
        more = {} if hop is None else {f"hop_{name}": one for name, one in asdict(hop).items() if name != "number"}
        if hop is not None:
            more["hop_features"] = [(printable(name), one) for name, one in hop.features.items()]
        yield {name: printable(one) if isinstance(one, str) else one for name, one in (told | more).items()}


def everything(store: Store, since: float) -> Iterator[Labelled]:
    """All labels that count and came since then."""
    return base.label_pages(store, (since, "", ""))
