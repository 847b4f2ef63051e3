"""The rows of a table of the user's own, as dictionaries: Parquet, JSONL or CSV, long or wide, or lm-eval's samples."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from eval import lm_eval, records
from eval.records import BadRecords

SHARED = ("question", "split", "family")  # columns of a wide table that belong to no model


def read(path: Path) -> list[dict[str, Any]]:
    """One row per model and question, columns as they are called there. Raises BadRecords naming the file and line."""
    rows = READERS[_kind(path)](path)
    if not rows:
        raise BadRecords(path, "no rows in it")
    if lm_eval.are_samples(rows):
        rows = lm_eval.table_rows(path, rows)
    return lengthened(path, rows)


def lengthened(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A wide table, one row per question with columns such as `small.correct` and `small.certainty`, made long.

    A long one is returned as it is. Raises BadRecords for a column that belongs to no model, nor to all.
    """
    models = [name.removesuffix(WIDE) for name in rows[0] if name.endswith(WIDE)]
    if not models or "correct" in rows[0]:
        return rows
    longest = sorted(models, key=len, reverse=True)  # "a.b.x" is of the model "a.b", not of "a"
    owner = {name: next((model for model in longest if name.startswith(f"{model}.")), "") for name in rows[0]}
    strange = [name for name, model in owner.items() if not model and name not in SHARED]
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
    ]


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
