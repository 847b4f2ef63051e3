from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import records
from eval.grade import Grade
from eval.records import BadRecords, Collected, Manifest, Record
from gateway.answers import Rule
from gateway.nouns import Finish, Source, TokenTrace

NATS = st.floats(-50, 0, width=32)


def record(question: str = "q1", trace: TokenTrace | None = None, **changes: object) -> Record:
    base = Record(
        question=question,
        dataset="d",
        split="test",
        family="f",
        tier="small",
        engine="0123456789ab",
        prompt="p",
        grade=Grade.RIGHT,
        text="1+1=2\n#### 2 é",
        answer="2",
        rule=Rule.HASHES,
        finish=Finish.STOP,
        prompt_tokens=7,
        completion_tokens=3,
        seconds=0.25,
        usd=1e-6,
        trace=trace,
        slices={"steps": 2, "magnitude": 2.5, "shift": "none"},
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@st.composite
def traces(draw: st.DrawFn) -> TokenTrace:
    tokens = draw(st.integers(1, 6))
    width = draw(st.integers(0, 4))
    chosen = np.array(draw(st.lists(NATS, min_size=tokens, max_size=tokens)))
    top = np.array(draw(st.lists(NATS, min_size=tokens * width, max_size=tokens * width))).reshape(tokens, width)
    return TokenTrace(
        draw(st.sampled_from(Source)),
        chosen,
        -np.sort(-top, axis=1) if width else None,
        tuple(draw(st.lists(st.binary(max_size=4), min_size=tokens, max_size=tokens))) if draw(st.booleans()) else (),
        {"entropy": np.abs(chosen)} if draw(st.booleans()) else {},
        draw(st.none() | NATS),
    )


def assert_same(one: Record, other: Record) -> None:
    for name in records.SAME:
        assert getattr(one, name) == getattr(other, name), name
    assert dict(one.slices) == dict(other.slices)
    assert (one.trace is None) == (other.trace is None)
    if one.trace is None or other.trace is None:
        return
    assert one.trace.source is other.trace.source
    assert one.trace.tokens == other.trace.tokens
    assert one.trace.end_nats == other.trace.end_nats
    np.testing.assert_array_equal(one.trace.chosen, other.trace.chosen)
    assert (one.trace.top is None) == (other.trace.top is None)
    if one.trace.top is not None and other.trace.top is not None:
        np.testing.assert_array_equal(one.trace.top, other.trace.top)
    assert list(one.trace.signals) == list(other.trace.signals)


@given(st.lists(st.none() | traces(), min_size=1, max_size=4))
def test_what_is_written_is_read_again_float32_by_float32(
    tmp_path_factory: pytest.TempPathFactory, given_traces: list[TokenTrace | None]
) -> None:
    path = tmp_path_factory.mktemp("records") / "r.parquet"
    rows = [record(f"q{n}", trace) for n, trace in enumerate(given_traces)]
    rows.append(record("lost", None, text=None, grade=Grade.UNASKED, finish=None, error="away", rule=Rule.NONE))
    records.write(path, map(records.flatten, rows))
    again = list(records.read(path))
    assert len(again) == len(rows)
    for one, other in zip(rows, again, strict=True):
        assert_same(one, other)


def written(folder: Path, n: int = 700) -> Path:
    """More rows than one row group holds."""
    path = folder / "records.parquet"
    trace = TokenTrace(Source.CHOSEN, np.array([-0.5, -0.25]))
    records.write(path, (records.flatten(record(f"q{number}", trace)) for number in range(n)))
    return path


def test_row_groups_keep_their_order(tmp_path: Path) -> None:
    assert [r.question for r in records.read(written(tmp_path))] == [f"q{n}" for n in range(700)]


def test_a_file_cut_in_half_is_refused_in_words(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadRecords, match="no whole Parquet file, it may have been cut"):
        records.read(path)


def test_a_byte_changed_in_the_middle_is_an_error_and_no_number(tmp_path: Path) -> None:
    path = written(tmp_path)
    raw = bytearray(path.read_bytes())
    raw[40:400] = bytes(360)
    path.write_bytes(raw)
    with pytest.raises(BadRecords, match=r"broken|never written"):
        list(records.read(path))


def test_missing_columns_are_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    pq.write_table(pq.read_table(path).drop_columns(["chosen", "grade"]), path)
    with pytest.raises(BadRecords, match=r"no column grade, chosen"):
        records.read(path)


def test_a_column_of_another_type_is_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    table = pq.read_table(path)
    place = table.schema.get_field_index("usd")
    pq.write_table(table.set_column(place, "usd", table["usd"].cast(pa.float32())), path)
    with pytest.raises(BadRecords, match="usd is float, not double"):
        records.read(path)


def test_a_newer_schema_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = written(tmp_path)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"schema": records.SCHEMA, "schema_version": "9"}), path)
    with pytest.raises(BadRecords, match="schema version 9, this program knows up to 1; upgrade"):
        records.read(path)


def test_somebody_elses_table_is_not_taken_for_ours(tmp_path: Path) -> None:
    path = tmp_path / "theirs.parquet"
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(BadRecords, match="not a file of collected answers"):
        records.read(path)


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    before = path.read_bytes()

    def broken() -> object:
        yield records.flatten(record())
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        records.write(path, broken())  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["records.parquet"]


def manifest(**changes: object) -> Manifest:
    base = Manifest(
        dataset="d",
        splits={"test": 3},
        data_sha256="0" * 64,
        template="{question}",
        max_tokens=None,
        top_k=20,
        seed=0,
        tiers=(Collected(name="small", fingerprint={"model": "m", "weights": "aa"}),),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    records.write_manifest(tmp_path / "manifest.json", manifest(versions={"python": "3"}))
    assert records.read_manifest(tmp_path / "manifest.json") == manifest(versions={"python": "3"})


def test_a_manifest_says_what_would_be_mixed() -> None:
    other = Collected(name="small", fingerprint={"model": "m", "weights": "bb"}, weights="there")
    told = manifest().differs(manifest(top_k=5, splits={"test": 4}, tiers=(other,), created="later"))
    assert told == [
        "questions of test: 3 there, 4 now",
        "small.fingerprint.weights: 'aa' there, 'bb' now",
        "small.weights: '' there, 'there' now",
        "top_k: 20 there, 5 now",
    ]


def test_half_a_manifest_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    records.write_manifest(path, manifest())
    path.write_text(path.read_text()[:50])
    with pytest.raises(BadRecords, match="no whole manifest"):
        records.read_manifest(path)
    with pytest.raises(BadRecords, match="there is no manifest"):
        records.read_manifest(tmp_path / "absent.json")


def test_records_that_are_nowhere_are_named_as_they_were(tmp_path: Path) -> None:
    assert records.file_of(tmp_path) == tmp_path / records.RECORDS
    for source in (Path("nope"), tmp_path / "nope"):
        with pytest.raises(BadRecords, match=f"^{source}: there is no such folder or file"):
            records.file_of(source)
