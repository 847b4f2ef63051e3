from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from eval import records, sanity
from eval.cli import app
from eval.grade import Grade
from eval.records import Collected, Manifest, Record
from eval.sanity import Implausible, check, findings, floor, seen_before
from eval.tables import Table
from gateway.answers import Rule
from gateway.errors import ConfigError
from gateway.nouns import Finish, Source, TokenTrace


def manifest(model: str, **changes: Any) -> Manifest:
    base = Manifest(
        dataset="gsm8k", splits={"test": 1}, data_sha256="0", template="{question}", max_tokens=None, top_k=0, seed=0,
        tiers=(Collected(name="it", fingerprint={"model": model}),),
    )  # fmt: skip
    return replace(base, **changes)


def row(right: int, n: int, **changes: int) -> dict[str, Any]:
    told = sanity.wilson("accuracy", right, n)
    return {
        "split": "test", "tier": "it", "n": n, "right": right, "strict": right, "accuracy": told.value,
        "low": told.low, "high": told.high, "truncated": 0, "unreadable": 0,
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("model", "least"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.40),
        ("Qwen2.5-1.5B-Instruct", 0.58),
        ("qwen2.5-3b-instruct", 0.70),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ@abc", 0.8702),
        ("Qwen/Qwen2.5-14B-Instruct", 0.9006),
        ("Qwen/Qwen2.5-32B-Instruct", 0.9111),
    ],
)
def test_the_gate_knows_the_instruct_models_by_name(model: str, least: float) -> None:
    known = floor(model, "gsm8k")
    assert known is not None
    assert known[1] == pytest.approx(least, abs=1e-4)


@pytest.mark.parametrize(
    "model",
    ["Qwen/Qwen2.5-72B-Instruct", "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-Math-7B-Instruct", "Qwen2.5-Coder-7B-Instruct", ""],
)
def test_the_gate_says_nothing_about_models_it_has_no_figure_for(model: str) -> None:
    assert floor(model, "gsm8k") is None


def test_the_gate_knows_a_model_by_what_is_served_under_another_name() -> None:
    tier = Collected(name="it", fingerprint={"model": "seven"}, weights="Qwen/Qwen2.5-7B-Instruct")
    assert findings([row(160, 200)], manifest("seven", tiers=(tier,))).problems


def test_the_gate_is_about_gsm8k_alone() -> None:
    assert floor("Qwen/Qwen2.5-7B-Instruct", "svamp") is None


@pytest.mark.parametrize(("model", "share"), [("0.5B", 0.218), ("1.5B", 0.403)])
def test_what_a_broken_prompt_gave_once_does_not_pass(model: str, share: float) -> None:
    """The two figures of science 8.3."""
    found = findings([row(round(share * 1319), 1319)], manifest(f"Qwen/Qwen2.5-{model}-Instruct"))
    assert "is reported" in found.problems[0]
    assert "n = 1,319" in found.problems[0]


@pytest.mark.parametrize(
    ("model", "share"), [("0.5B", 0.45), ("1.5B", 0.60), ("3B", 0.76), ("7B", 0.90), ("32B", 0.95)]
)
def test_what_public_reruns_give_passes(model: str, share: float) -> None:
    assert not findings([row(round(share * 1319), 1319)], manifest(f"Qwen/Qwen2.5-{model}-Instruct")).problems


def test_few_answers_prove_nothing() -> None:
    qwen = manifest("Qwen/Qwen2.5-7B-Instruct")
    assert not findings([row(8, 10)], qwen).problems
    assert findings([row(160, 200)], qwen).problems


@pytest.mark.parametrize("what", ["truncated", "unreadable"])
def test_answers_cut_or_without_a_number_stop_whatever_the_model(what: str) -> None:
    assert what in findings([row(60, 100, **{what: 30})], manifest("anything")).problems[0]
    assert not findings([row(60, 100, **{what: 9})], manifest("anything")).problems


def test_unmarked_answers_are_told_where_the_prompt_asks_for_a_mark() -> None:
    lax = [row(90, 100, strict=80)]
    assert "10.0% of the answers are right without being marked" in findings(
        lax, manifest("m", system="put it in \\boxed{}")
    ).warnings[0]  # fmt: skip
    assert not findings(lax, manifest("m")).warnings
    assert not findings([row(90, 100, strict=89)], manifest("m", shots=("a",))).warnings


def test_a_tier_that_was_never_asked_is_no_problem() -> None:
    assert not findings([{"n": 0, "tier": "it", "split": "test"}], manifest("Qwen2.5-7B-Instruct")).problems


def collection(folder: Path, grades: list[Grade], finish: Finish = Finish.STOP) -> Path:
    folder.mkdir()
    rows = [
        Record(question=f"q{n}", dataset="gsm8k", split="test", family=f"q{n}", tier="it", engine="e", prompt="p",
               grade=grade, text="18", answer="18", rule=Rule.LAST_LINE, finish=finish,
               trace=TokenTrace(Source.CHOSEN, np.array([-0.1])))
        for n, grade in enumerate(grades)
    ]  # fmt: skip
    records.write(folder / "records.parquet", map(records.flatten, rows))
    records.write_manifest(folder / "manifest.json", manifest("Qwen/Qwen2.5-7B-Instruct"))
    return folder


def test_a_collection_is_checked_by_folder_and_by_file_and_a_table_is_not(tmp_path: Path) -> None:
    broken = collection(tmp_path / "broken", [Grade.RIGHT] * 20 + [Grade.WRONG] * 80)
    for source in (broken, broken / "records.parquet"):
        with pytest.raises(Implausible, match=r"it on test: 20.0% right .* go on all the same with --implausible"):
            check([source])
    (tmp_path / "table.csv").write_text("model,question,correct,x\na,q,1,1\n")
    assert check([tmp_path / "table.csv"]) == []
    assert check([collection(tmp_path / "sound", [Grade.RIGHT] * 95 + [Grade.WRONG] * 5)]) == []


def watched(folder: Path, model: str, right: float, rows: int) -> int:
    """How many rows come in before the gate stops them."""
    records.write_manifest(folder / "manifest.json", manifest(model))
    gate, done = sanity.Gate(folder), 0
    for n in range(rows):
        good = Grade.RIGHT if n % 100 < 100 * right else Grade.WRONG
        record = Record(question=f"q{n}", dataset="gsm8k", split="test", family="f", tier="it", engine="e", prompt="p",
                        grade=good, text="18", answer="18", rule=Rule.LAST_LINE, finish=Finish.STOP)  # fmt: skip
        gate(records.flatten(record))
        done += 1
    return done


def test_a_broken_prompt_is_found_on_the_first_200_answers_and_a_sound_one_never(tmp_path: Path) -> None:
    with pytest.raises(Implausible, match=r"50.0% right .* n = 200.*stopped after 200 of its answers"):
        watched(tmp_path, "Qwen/Qwen2.5-7B-Instruct", 0.5, 1000)
    assert watched(tmp_path, "Qwen/Qwen2.5-7B-Instruct", 0.5, 199) == 199
    assert watched(tmp_path, "Qwen/Qwen2.5-7B-Instruct", 0.9, 1000) == 1000
    assert watched(tmp_path, "another", 0.5, 1000) == 1000


@pytest.mark.parametrize("command", ["fit", "sweep"])
def test_nobody_fits_or_sweeps_over_broken_answers_by_accident(tmp_path: Path, command: str) -> None:
    from eval.sweep_cli import app as sweeps

    broken = collection(tmp_path / "broken", [Grade.WRONG] * 100, Finish.LENGTH)
    ended = CliRunner().invoke(
        app if command == "fit" else sweeps, [*(["fit"] if command == "fit" else []), "-r", str(broken)]
    )
    assert isinstance(ended.exception, Implausible)
    assert "100.0% of 100 answers truncated" in str(ended.exception)
    again = CliRunner().invoke(
        app if command == "fit" else sweeps,
        [*(["fit"] if command == "fit" else []), "-r", str(broken), "--implausible"],
    )
    assert not isinstance(again.exception, Implausible)
    assert "warning: it on test" in again.output


def table(seed: int, split: str, n: int, shift: float, right: float) -> Table:
    rng = np.random.default_rng(seed)
    names = np.array([f"{split}{i}" for i in range(n)])
    return Table("it", ("lp_mean",), rng.normal(shift, 1, (n, 1)), (rng.random(n) < right).astype(float), names, names,
                 np.full(n, split), {})  # fmt: skip


def both(one: Table, other: Table) -> dict[str, Table]:
    return {"it": replace(
        one, X=np.vstack([one.X, other.X]), y=np.r_[one.y, other.y], question=np.r_[one.question, other.question],
        family=np.r_[one.family, other.family], split=np.r_[one.split, other.split],
    )}  # fmt: skip


def test_a_set_that_models_have_seen_is_told_before_it_is_fitted_on() -> None:
    seen = both(table(0, "train", 2_000, 0.5, 0.95), table(1, "test", 2_000, 0.0, 0.8))
    (told,) = seen_before(seen, "train", [])
    assert told.startswith("it, train against test: confidence differs")
    assert "calibrate on the clean set" in told
    alike = both(table(0, "train", 2_000, 0.0, 0.8), table(1, "test", 2_000, 0.0, 0.8))
    assert "calibrate on either" in seen_before(alike, "train", ["test"])[0]
    assert seen_before({"it": table(0, "train", 50, 0.0, 0.8)}, "train", []) == []
    with pytest.raises(ConfigError, match="no split 'svamp'"):
        seen_before(seen, "train", ["svamp"])
