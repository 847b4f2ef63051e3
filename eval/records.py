"""Collected answers on disk: one Parquet row per question and tier, token arrays included, and a manifest beside it.

The columns and their types are `COLUMNS`; docs/records.md explains them. The file says its own schema version, and
reading checks it: a file cut in half, a missing column or a newer version is an error in words, never a wrong number.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.datasets import Question, Slice
from eval.grade import Grade
from gateway.answers import Rule
from gateway.errors import BadTrace, GatewayError
from gateway.nouns import Finish, Floats, Source, TokenTrace

RECORDS, MANIFEST = "records.parquet", "manifest.json"  # in the folder of a collection
SCHEMA = "confidence-gateway/records"
SCHEMA_VERSION = 1
DRAFT = ".draft"
ROWS_PER_GROUP = 512  # 20 candidates x 500 tokens x 512 rows are 20 MB: what reading holds in memory at a time

FLOATS = pa.list_(pa.float32())
COLUMNS = pa.schema(
    [
        pa.field("question", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("family", pa.string(), nullable=False),
        pa.field("slices", pa.string(), nullable=False),  # a JSON object: a slice is a word or a number
        pa.field("tier", pa.string(), nullable=False),
        pa.field("engine", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("grade", pa.string(), nullable=False),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("finish", pa.string()),
        pa.field("error", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("completion_tokens", pa.int32(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("usd", pa.float64(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("no_trace", pa.string(), nullable=False),
        pa.field("chosen", FLOATS),
        pa.field("top", FLOATS),
        pa.field("top_k", pa.int32(), nullable=False),
        pa.field("tokens", pa.list_(pa.binary())),
        pa.field("end_nats", pa.float32()),
        pa.field("signals", pa.map_(pa.string(), FLOATS)),
    ]
)


class BadRecords(GatewayError):
    """A file of records, or a manifest, that cannot be used. The message says what is wrong and what to do."""

    def __init__(self, file: Path, message: str) -> None:
        super().__init__(f"{file}: {message}")
        self.file = file


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One tier's answer to one question.

    question, dataset, split, family, slices: of the Question; family is never empty.  tier: its name.
    engine: first 12 hex digits of its fingerprint's hash.  prompt: the prompt template's SHA-256.
    text: None when there was no answer, and then `error` says why.  answer, grade, rule: as eval.grade read the text.
    seconds: from the call to the last token.  usd: by the tier's prices.
    trace: None where the engine gave no evidence, and `no_trace` says why.  Nats are kept as float32, what engines
    compute in.
    """

    question: str
    dataset: str
    split: str
    family: str
    tier: str
    engine: str
    prompt: str
    grade: Grade
    text: str | None = None
    answer: str = ""
    rule: Rule = Rule.NONE
    finish: Finish | None = None
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    usd: float = 0.0
    trace: TokenTrace | None = None
    no_trace: str = ""
    slices: Mapping[str, Slice] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        """What names a row of a collection: (split, question, tier)."""
        return self.split, self.question, self.tier


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A record flattened: a line of the journal, where msgspec writes bytes as base64, and a row of the Parquet file.

    chosen, top, signals: little-endian float32; top is (T, top_k) row by row.
    """

    question: str
    dataset: str
    split: str
    family: str
    slices: dict[str, str | int | float]
    tier: str
    engine: str
    prompt: str
    text: str | None
    answer: str
    grade: Grade
    rule: Rule
    finish: Finish | None
    error: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    usd: float
    source: Source | None
    no_trace: str
    chosen: bytes | None
    top: bytes | None
    top_k: int
    tokens: list[bytes] | None
    end_nats: float | None
    signals: dict[str, bytes] | None


SAME = ("question", "dataset", "split", "family", "tier", "engine", "prompt", "text", "answer", "grade", "rule",
        "finish", "error", "prompt_tokens", "completion_tokens", "seconds", "usd", "no_trace")  # fmt: skip


def flatten(record: Record) -> Row:
    """A record as plain values."""
    trace = record.trace
    top = None if trace is None else trace.top
    return Row(
        **{name: getattr(record, name) for name in SAME},
        slices=dict(record.slices),
        source=None if trace is None else trace.source,
        chosen=None if trace is None else _pack(trace.chosen),
        top=None if top is None else _pack(top),
        top_k=0 if top is None else top.shape[1],
        tokens=None if trace is None else list(trace.tokens),
        end_nats=None if trace is None or trace.end_nats is None else float(np.float32(trace.end_nats)),
        signals=None if trace is None else {name: _pack(signal) for name, signal in trace.signals.items()},
    )


def restore(row: Row) -> Record:
    """The record a row was made from, nats rounded to float32. Raises BadTrace when its arrays do not fit together."""
    trace = None
    if row.source is not None and row.chosen is not None:
        trace = TokenTrace(
            row.source,
            _unpack(row.chosen),
            None if row.top is None else _matrix(_unpack(row.top), row.top_k),
            tuple(row.tokens or ()),
            {name: _unpack(signal) for name, signal in (row.signals or {}).items()},
            row.end_nats,
        )
    return Record(**{name: getattr(row, name) for name in SAME}, slices=row.slices, trace=trace)


def _pack(nats: Floats) -> bytes:
    return nats.astype("<f4").tobytes()


def _unpack(packed: bytes) -> Floats:
    return np.frombuffer(packed, dtype="<f4").astype(np.float64)


def _matrix(flat: Floats, width: int) -> Floats:
    if width < 1 or flat.size % width:
        raise BadTrace(f"{flat.size} candidates do not make rows of {width}")
    return flat.reshape(-1, width)


# Parquet


def write(path: Path, rows: Iterable[Row]) -> None:
    """All rows, in order, in constant memory; readers see the old file or the whole new one."""
    with replacing(path) as draft, pq.ParquetWriter(draft, _told(), compression="zstd") as writer:
        batch: list[Row] = []
        for row in rows:
            batch.append(row)
            if len(batch) == ROWS_PER_GROUP:
                writer.write_table(_table(batch))
                batch = []
        if batch:
            writer.write_table(_table(batch))


def read(path: Path) -> Iterator[Record]:
    """The records of a file, in order, a few hundred in memory at a time. Raises BadRecords, before the first one where
    it can."""
    return _records(path, _opened(path))


def columns(path: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file, some of their columns only. Raises BadRecords."""
    try:
        for batch in _opened(path).iter_batches(columns=list(names)):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise BadRecords(path, f"broken ({str(error).splitlines()[0]}); copy it again") from None


def open_parquet(path: Path) -> pq.ParquetFile:
    """Raises BadRecords for a file that is missing, cut or no Parquet at all."""
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise BadRecords(path, "there is no such file; collect answers with `confgate collect`") from None
    except OSError as error:
        raise BadRecords(path, f"cannot be read: {error.strerror or error}") from None
    except pa.ArrowInvalid as error:
        why = str(error).splitlines()[0]
        raise BadRecords(path, f"no whole Parquet file, it may have been cut ({why}); copy it again") from None


def _opened(path: Path) -> pq.ParquetFile:
    file = open_parquet(path)
    _check(path, file.schema_arrow)
    return file


def asked(path: Path) -> list[tuple[str, str]]:
    """(split, id) of every question in a file, once each, in order. Raises BadRecords."""
    found = _opened(path).read(columns=["split", "question"])
    return list(dict.fromkeys(zip(found["split"].to_pylist(), found["question"].to_pylist(), strict=True)))


def is_ours(schema: pa.Schema) -> bool:
    """Whether a Parquet file says that it holds our records, and not a table of the user's own."""
    return (schema.metadata or {}).get(b"schema") == SCHEMA.encode()


def _told() -> pa.Schema:
    return COLUMNS.with_metadata({"schema": SCHEMA, "schema_version": str(SCHEMA_VERSION)})


def _check(path: Path, schema: pa.Schema) -> None:
    if not is_ours(schema):
        raise BadRecords(path, f"not a file of collected answers: its metadata do not say {SCHEMA!r}")
    version = int(schema.metadata[b"schema_version"])
    if version > SCHEMA_VERSION:
        raise BadRecords(path, f"schema version {version}, this program knows up to {SCHEMA_VERSION}; upgrade it")
    missing = [name for name in COLUMNS.names if name not in schema.names]
    if missing:
        raise BadRecords(path, f"no column {', '.join(missing)}; collect anew, or take the file as it was written")
    wrong = [
        f"{name} is {schema.field(name).type}, not {COLUMNS.field(name).type}"
        for name in COLUMNS.names
        if schema.field(name).type != COLUMNS.field(name).type
    ]
    if wrong:
        raise BadRecords(path, f"columns of another type: {'; '.join(wrong)}")


def _records(path: Path, file: pq.ParquetFile) -> Iterator[Record]:
    number = 0
    try:
        for batch in file.iter_batches(ROWS_PER_GROUP, columns=COLUMNS.names):
            columns = [_column(batch.column(name)) for name in COLUMNS.names]
            for values in zip(*columns, strict=True):
                yield restore(_row(dict(zip(COLUMNS.names, values, strict=True))))
                number += 1
    except (BadTrace, ValueError, msgspec.ValidationError) as error:
        raise BadRecords(path, f"row {number} holds what was never written: {error}") from None
    except (pa.ArrowException, OSError) as error:
        raise BadRecords(path, f"broken after row {number} ({str(error).splitlines()[0]}); copy it again") from None


def _column(column: pa.Array) -> list[Any]:
    """Values of one column; lists of numbers packed as in a Row, without a Python object for each number."""
    if column.type != FLOATS:
        return cast(list[Any], column.to_pylist())
    values = column.values.to_numpy(zero_copy_only=False).astype("<f4")
    offsets = column.offsets.to_numpy()
    return [
        values[start:stop].tobytes() if valid else None
        for start, stop, valid in zip(offsets[:-1], offsets[1:], column.is_valid().to_pylist(), strict=True)
    ]


def _row(values: dict[str, Any]) -> Row:
    values["slices"] = json.loads(values["slices"])
    values["grade"], values["rule"] = Grade(values["grade"]), Rule(values["rule"])
    values["finish"] = values["finish"] and Finish(values["finish"])
    values["source"] = values["source"] and Source(values["source"])
    if values["signals"] is not None:
        values["signals"] = {name: np.array(nats, dtype="<f4").tobytes() for name, nats in values["signals"]}
    return Row(**values)


def _table(rows: list[Row]) -> pa.Table:
    columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS.names}
    columns["slices"] = [json.dumps(slices, sort_keys=True) for slices in columns["slices"]]
    for name in ("chosen", "top"):
        columns[name] = [packed and np.frombuffer(packed, dtype="<f4") for packed in columns[name]]
    columns["signals"] = [
        None if signals is None else [(name, np.frombuffer(packed, dtype="<f4")) for name, packed in signals.items()]
        for signals in columns["signals"]
    ]
    return pa.table(columns, schema=_told())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft beside a file, which takes its place in one step, and for good, when the block ends without an error."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=DRAFT)
    os.fchmod(handle, 0o644)  # mkstemp gives 0600, and others may be meant to read this
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        _sync(draft)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Have what was written at a path survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """One tier of a collection. fingerprint: what its engine said of itself; prices: US dollars per million tokens.

    weights: the model that `confgate up` serves under the engine's name for it; empty where others started the server.
    """

    name: str
    fingerprint: Mapping[str, str]
    usd_per_mtok_in: float = 0.0
    usd_per_mtok_out: float = 0.0
    weights: str = ""

    @property
    def engine(self) -> str:
        """Short name of the fingerprint, as records carry it."""
        return sha256_of(dict(self.fingerprint))[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a collection is of. A collection is resumed only as what it was: see `differs`.

    splits: questions per split.  data_sha256: over the questions themselves.
    template, system, shots: the prompt, {question} where the question goes, and the ids of its examples.
    prompt: the prompt's SHA-256, of the template alone where there is no more to it.
    versions: of what computed the answers.  command, created: when it began first.
    """

    dataset: str
    splits: Mapping[str, int]
    data_sha256: str
    template: str
    max_tokens: int | None
    top_k: int
    seed: int
    tiers: tuple[Collected, ...]
    system: str = ""
    shots: tuple[str, ...] = ()
    prompt: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    created: str = ""
    schema: str = SCHEMA
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not self.prompt:
            object.__setattr__(self, "prompt", hashlib.sha256(self.template.encode()).hexdigest())

    def differs(self, other: Manifest) -> list[str]:
        """What a resumed collection would mix, in words; empty when it may go on."""
        mine, theirs = self._facts(), other._facts()
        return [
            f"{name}: {mine.get(name, 'absent')!r} there, {theirs.get(name, 'absent')!r} now"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {name: getattr(self, name) for name in IDENTITY}
        facts |= {f"questions of {split}": n for split, n in self.splits.items()}
        facts["order of tiers"] = [tier.name for tier in self.tiers]
        for tier in self.tiers:
            told = asdict(tier)
            facts |= {f"{tier.name}.fingerprint.{name}": value for name, value in told.pop("fingerprint").items()}
            facts |= {f"{tier.name}.{name}": value for name, value in told.items()}
        return facts


# `splits` and `tiers` count too, one fact at a time.
IDENTITY = ("dataset", "data_sha256", "template", "system", "shots", "prompt", "max_tokens", "top_k")


def write_manifest(path: Path, manifest: Manifest) -> None:
    with replacing(path) as draft:
        draft.write_text(json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def file_of(source: Path) -> Path:
    """The file of records in a folder of `collect`, or the file itself. Raises BadRecords where there is neither."""
    if not source.exists():
        raise BadRecords(source, "there is no such folder or file; collect answers with `confgate collect`")
    return source / RECORDS if source.is_dir() else source


def read_manifest(path: Path) -> Manifest:
    """Raises BadRecords."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise BadRecords(
            path,
            "there is no manifest; it lies beside the records that `confgate collect` and `import` write, and only "
            "these have the texts that are needed here; a table of one's own is for `confgate fit`, `sweep`, `report`",
        ) from None
    except OSError as error:
        raise BadRecords(path, f"cannot be read: {error.strerror or error}") from None
    except msgspec.DecodeError as error:
        raise BadRecords(path, f"no whole manifest ({error}); take it from where the records come from") from None


def questions_sha256(questions: Iterable[Question]) -> str:
    """Hash of what was asked, in order, and of what a right answer comes to."""
    return sha256_of([[question.split, question.id, question.text, question.target] for question in questions])


def sha256_of(value: object) -> str:
    """Hash of plain JSON values, the same on every machine."""
    told = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(told.encode()).hexdigest()
