"""`confgate fit --records` on what is wrong with answers, own and foreign: one line that helps, and nothing is lost."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from calibrators import artifact as artifacts
from calibrators import scores
from calibrators.base import sigmoid
from eval import records
from eval.cli import app
from eval.grade import Grade
from eval.records import Collected, Manifest, Record
from gateway.errors import GatewayError
from gateway.nouns import Finish, Source, TokenTrace

N = 200
Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def quick_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "bootstrap_all", partial(scores.bootstrap_all, resamples=20))
    monkeypatch.setattr(scores, "noise_floor", partial(scores.noise_floor, draws=20))


def good() -> Rows:
    """Answers of one model that can be fitted on."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=N)
    y = rng.random(N) < sigmoid(1.5 * x)
    return [
        {"model": "m", "question": f"q{i}", "correct": int(y[i]), "certainty": float(x[i]), "split": "cal"}
        for i in range(N)
    ]


def saved(path: Path, rows: Rows) -> Path:
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case _:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
    return path


def put(name: str, value: Any, where: slice = slice(None)) -> Callable[[Rows], None]:
    return lambda rows: [row.update({name: value}) for row in rows[where]] and None


def drop(name: str) -> Callable[[Rows], None]:
    return lambda rows: [row.pop(name) for row in rows] and None


def rare(rows: Rows) -> None:
    """Only the first 29 wrong answers stay wrong."""
    for row in [row for row in rows if not row["correct"]][29:]:
        row["correct"] = 1


def shared(rows: Rows) -> None:
    rows += [{**row, "split": "shifted"} for row in rows[:7]]


TABLES: dict[str, tuple[Callable[[Rows], None], list[str], str]] = {
    "29 of the rarer class": (rare, [], "29 answers of the rarer class, auto needs 30: collect 1 more"),
    "all right": (put("correct", 1), [], "all 200 answers are right"),
    "all wrong": (put("correct", 0), [], "all 200 answers are wrong"),
    "NaN refused": (put("certainty", None, slice(3)), ["--missing", "refuse"], "is NaN in 3 of 200 rows; leave"),
    "NaN everywhere": (put("certainty", None), [], "is NaN in every row; drop it"),
    "infinity": (put("certainty", float("inf"), slice(2)), [], "'certainty' is infinite in 2 rows; leave those rows"),
    "constant": (put("certainty", 0.5), [], "'certainty' is 0.5 in every row; drop it"),
    "a question in two splits": (shared, ["--split", "cal"], "7 questions are in more than one split"),
    "a label of 2": (put("correct", 2, slice(5, 6)), [], "row 6: correct must be 1 or 0, true or false, got"),
    "no label": (put("correct", None, slice(5, 6)), [], "row 6: correct must be 1 or 0, true or false, got"),
    "no column correct": (drop("correct"), [], "no column correct; have model, question"),
    "no column model": (drop("model"), [], "no column model; have question"),
    "no column question": (drop("question"), [], "no column question; have model"),
    "no feature of that name": (drop("certainty"), [], "no column certainty; have model"),
}


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("wrong", TABLES)
def test_a_table_that_cannot_be_fitted_is_refused_in_words_and_costs_nothing(
    tmp_path: Path, suffix: str, wrong: str
) -> None:
    change, arguments, said = TABLES[wrong]
    rows = good()
    change(rows)
    path = saved(tmp_path / f"my.{suffix}", rows)
    refuses(path, tmp_path / "out", [*arguments, "--features", "certainty"], said)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_a_table_cut_in_half_is_refused_and_costs_nothing(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"my.{suffix}", good())
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    refuses(path, tmp_path / "out", ["--features", "certainty"], "cut")


def refuses(records_at: Path, out: Path, arguments: list[str], said: str) -> None:
    """The fit ends with 1 and these words in one line, and leaves what an earlier fit wrote as it was."""
    out.mkdir()
    before = {out / "m.json": b"an earlier fit's", out / "other.json": b"another tier's"}
    for path, held in before.items():
        path.write_bytes(held)
    ended = CliRunner().invoke(app, ["fit", "-r", str(records_at), *arguments, "--out", str(out)])
    assert ended.exit_code == 1, ended.output
    assert isinstance(ended.exception, GatewayError | SystemExit), repr(ended.exception)
    told = ended.output if isinstance(ended.exception, SystemExit) else str(ended.exception)
    lines = [line for line in told.splitlines() if said in line]
    assert len(lines) == 1, told
    assert {path: path.read_bytes() for path in out.iterdir()} == before


# Collected records


def collected(folder: Path, change: Callable[[list[Record]], list[Record]] = lambda rows: rows) -> Path:
    """A folder of one tier's records, as `confgate collect` leaves it."""
    folder.mkdir()
    rows = [
        Record(
            question=row["question"], dataset="d", split="cal", family=row["question"], tier="m", engine="e",
            prompt="p", grade=Grade.RIGHT if row["correct"] else Grade.WRONG, text="#### 7", finish=Finish.STOP,
            trace=TokenTrace(Source.CHOSEN, np.array([row["certainty"] - 5.0, -0.1]), None, (b"#### ", b"7")),
        )
        for row in good()
    ]  # fmt: skip
    rows = change(rows)
    records.write(folder / "records.parquet", map(records.flatten, rows))
    manifest = Manifest(
        dataset="d", splits={"cal": N}, data_sha256="0" * 64, template="{question}", max_tokens=None, top_k=0, seed=0,
        tiers=(Collected(name="m", fingerprint={"model": "m@1"}),),
    )  # fmt: skip
    records.write_manifest(folder / "manifest.json", manifest)
    return folder


def graded(grade: Grade, keep: int = 0) -> Callable[[list[Record]], list[Record]]:
    """All answers of this grade, but the first `keep` of the others."""
    return lambda rows: [
        row if row.grade is grade or sum(other.grade is not grade for other in rows[:i]) < keep
        else replace(row, grade=grade) for i, row in enumerate(rows)
    ]  # fmt: skip


def alike(rows: list[Record]) -> list[Record]:
    return [replace(row, trace=rows[0].trace) for row in rows]


def doubled(rows: list[Record]) -> list[Record]:
    return [*rows, *(replace(row, split="shifted") for row in rows[:7])]


RECORDS: dict[str, tuple[Callable[[list[Record]], list[Record]], list[str], str]] = {
    "29 of the rarer class": (graded(Grade.RIGHT, 29), [], "29 answers of the rarer class, auto needs 30: collect"),
    "all right": (graded(Grade.RIGHT), [], "all 200 answers are right"),
    "constant, by name": (alike, ["--features", "lp_mean"], "'lp_mean' is"),
    "constant, all": (alike, [], "m: no feature left"),
    "a question in two splits": (doubled, ["--split", "cal"], "7 questions are in more than one split"),
    "a feature without its evidence": (list, ["--features", "margin_min"], "margin_min needs the 2 most likely tokens"),
    "a feature that there is not": (list, ["--features", "lp_men"], "no feature 'lp_men'; have"),
    "undefined, refused": (list, ["--features", "end_lp", "--missing", "refuse"], "end_lp"),
}


@pytest.mark.parametrize("wrong", RECORDS)
def test_collected_answers_that_cannot_be_fitted_are_refused_and_cost_nothing(tmp_path: Path, wrong: str) -> None:
    change, arguments, said = RECORDS[wrong]
    refuses(collected(tmp_path / "in", change), tmp_path / "out", arguments, said)


@pytest.mark.parametrize(
    ("file", "spoil", "said"),
    [
        ("records.parquet", lambda raw: raw[: len(raw) // 2], "no whole Parquet file, it may have been cut"),
        ("records.parquet", lambda raw: raw[:40] + bytes(200) + raw[240:], "records.parquet"),
        ("records.parquet", lambda raw: b"", "no whole Parquet file, it may have been cut"),
        ("manifest.json", lambda raw: raw[: len(raw) // 2], "manifest.json"),
    ],
    ids=["records cut", "records damaged", "records empty", "manifest cut"],
)
def test_a_spoilt_collection_is_refused_and_costs_nothing(tmp_path: Path, file: str, spoil: Any, said: str) -> None:
    folder = collected(tmp_path / "in")
    path = folder / file
    path.write_bytes(spoil(path.read_bytes()))
    refuses(folder, tmp_path / "out", [], said)


def test_records_without_a_column_are_refused_and_cost_nothing(tmp_path: Path) -> None:
    folder = collected(tmp_path / "in")
    whole = pq.read_table(folder / "records.parquet")
    pq.write_table(whole.drop_columns(["grade"]), folder / "records.parquet")
    refuses(folder, tmp_path / "out", [], "grade")


def test_a_person_sees_one_line_and_no_traceback(tmp_path: Path) -> None:
    rows = good()
    put("correct", 2, slice(1))(rows)
    path = saved(tmp_path / "my.csv", rows)
    command = [sys.executable, "-m", "gateway", "fit", "-r", str(path), "--out", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.strip().splitlines() == [f"{path}: row 1: correct must be 1 or 0, true or false, got '2'"]
    assert not (tmp_path / "out").exists()


def test_what_the_refused_ones_spoil_is_fit_to_be_fitted_on(tmp_path: Path) -> None:
    """The rows all of these tests start from: what they refuse is the one thing they change."""
    for source, options in (
        (saved(tmp_path / "my.csv", good()), ["--features", "certainty"]),
        (collected(tmp_path / "in"), []),
    ):
        ended = CliRunner().invoke(app, ["fit", "-r", str(source), *options, "--out", str(tmp_path / "out")])
        assert ended.exit_code == 0, ended.output
        assert artifacts.load(tmp_path / "out" / "m.json").fit["n"] == N
