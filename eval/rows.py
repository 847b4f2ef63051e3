"""The rows of a table of the user's own, as dictionaries: Parquet, JSONL or CSV, long or wide, or lm-eval's samples."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from eval import lm_eval, records
from eval.records import BadRecords

SHARED = ("question", "split", "family", "prompt_tokens")  # columns of a wide table that may belong to all models


def read(path: Path, called: Mapping[str, str] | None = None, shared: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One row per model and question. Raises BadRecords naming the file and line.

    called: by our name of a column, what it is called in this file; behind the model's name too, in a wide table.
    shared: further columns of a wide table that belong to no model.
    """
    rows = READERS[_kind(path)](path)
    if not rows:
        raise BadRecords(path, "no rows in it")
    if lm_eval.are_samples(rows):
        rows = lm_eval.table_rows(path, rows)
    return lengthened(path, renamed(path, rows, called or {}), shared)


def renamed(path: Path, rows: list[dict[str, Any]], called: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows with our names for columns. Raises BadRecords for a column that is not there, or is there under both."""
    if not called:
        return rows
    ours = {theirs: name for name, theirs in called.items()}
    have = list(dict.fromkeys(name for row in rows for name in row))
    absent = [theirs for theirs in ours if not any(_is(name, theirs) for name in have)]
    if absent:
        raise BadRecords(path, f"no column {', '.join(absent)}; have {', '.join(have)}")
    new = {name: _ours(name, ours) for name in have}
    twice = [name for name, n in Counter(new.values()).items() if n > 1]
    if twice:
        raise BadRecords(
            path, f"column {', '.join(twice)} would be there twice; leave it out of the file, or rename it"
        )
    return [{new[name]: value for name, value in row.items()} for row in rows]


def _is(name: str, theirs: str) -> bool:
    return name == theirs or name.endswith(f".{theirs}")  # of one model, in a wide table


def _ours(name: str, ours: Mapping[str, str]) -> str:
    return next((name.removesuffix(theirs) + mine for theirs, mine in ours.items() if _is(name, theirs)), name)


def lengthened(path: Path, rows: list[dict[str, Any]], shared: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A wide table, one row per question with columns such as `small.correct` and `small.certainty`, made long.

    A long one is returned as it is. A model whose cell for `correct` is empty was not asked.
    Raises BadRecords for a column that belongs to no model, nor to all.
    """
    models = [name.removesuffix(WIDE) for name in rows[0] if name.endswith(WIDE)]
    if not models or "correct" in rows[0]:
        return rows
    longest = sorted(models, key=len, reverse=True)  # "a.b.x" is of the model "a.b", not of "a"
    owner = {name: next((model for model in longest if name.startswith(f"{model}.")), "") for name in rows[0]}
    strange = [name for name, model in owner.items() if not model and name not in {*SHARED, *shared}]
    if strange:
        told = f"column {', '.join(strange)} belongs to none of {', '.join(models)}"
        raise BadRecords(path, f"{told}; in a wide table it is called like {models[0]}.certainty")
    return [
        {
            "model": model,
            **{name: row.get(name) for name, whose in owner.items() if not whose},
            **{name[len(model) + 1 :]: row.get(name) for name, whose in owner.items() if whose == model},
        }
        for model in models
        for row in rows
        if not empty(row.get(f"{model}{WIDE}"))
    ]


def empty(value: object) -> bool:
    """Whether a cell says nothing."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


WIDE = ".correct"


def _kind(path: Path) -> str:
    if path.suffix.lower() not in READERS:
        raise BadRecords(path, f"need a file that ends in {', '.join(READERS)}, or a folder that was collected into")
    return path.suffix.lower()


def _from_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        return cast(list[dict[str, Any]], records.open_parquet(path).read().to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise BadRecords(path, f"broken ({str(error).splitlines()[0]}); copy it again") from None


def _from_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadRecords(path, f"line {number} is no JSON ({error}); was the file cut?") from None
        if not isinstance(row, dict):
            raise BadRecords(path, f"line {number} is no JSON object with the columns' names")
        rows.append(row)
    return rows


def _from_csv(path: Path) -> list[dict[str, Any]]:
    text = _text(path)
    if text and not text.endswith(("\n", "\r")):  # a cell that was cut looks like any other, and so does an empty one
        told = "its last line has no end, as in a file that was cut; copy it again, or end that line if it is whole"
        raise BadRecords(path, told)
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", restval=None, strict=True)
    rows = []
    try:
        for row in reader:
            if "" in row or None in row.values():
                told = f"line {reader.line_num} does not have {len(reader.fieldnames or ())} cells; was the file cut?"
                raise BadRecords(path, told)
            rows.append(row)
    except csv.Error as error:
        raise BadRecords(path, f"line {reader.line_num} is no CSV ({error})") from None
    return rows


READERS = {".parquet": _from_parquet, ".jsonl": _from_jsonl, ".csv": _from_csv}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadRecords(path, "there is no such file") from None
    except OSError as error:
        raise BadRecords(path, f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise BadRecords(path, f"not UTF-8 at byte {error.start}") from None
