"""Samples of lm-evaluation-harness, as version 0.4.13 itself writes them (tests/data/lm_eval, with its dummy model)."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from eval import tables
from eval.export import Format, export
from eval.prompts import plain
from eval.records import BadRecords
from tests.eval.test_export import NOW, QUESTIONS, collection

THEIRS = Path(__file__).parents[1] / "data" / "lm_eval" / "acme__small"


def choices() -> Path:
    return next(THEIRS.glob("samples_tiny_mc_*"))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_options_of_a_multiple_choice_task_become_a_confidence() -> None:
    (table,) = tables.from_user(choices()).values()
    assert table.tier == "acme/small"  # from the results beside it
    assert table.names == ("choice_nats", "choice_margin", "choice_p")
    for sample, x, y, question in zip(rows(choices()), table.X, table.y, table.question, strict=True):
        nats = sorted((float(one[0]) for one in sample["filtered_resps"]), reverse=True)
        assert x[0] == nats[0]
        assert x[1] == pytest.approx(nats[0] - nats[1])
        assert x[2] == pytest.approx(math.exp(nats[0]) / sum(map(math.exp, nats)))
        assert y == sample["acc"]
        assert question == f"tiny_mc-{sample['doc_id']}"


def test_without_results_the_folder_names_the_model(tmp_path: Path) -> None:
    home = tmp_path / "org__model"
    home.mkdir()
    shutil.copy(choices(), home)
    assert list(tables.from_user(home / choices().name)) == ["org/model"]


def test_generated_answers_have_no_confidence_there_and_the_message_says_what_to_do() -> None:
    with pytest.raises(BadRecords, match="keeps no log-probs of those; write the prompts with `confgate batch`"):
        tables.from_user(next(THEIRS.glob("samples_tiny_gen_*")))


def test_our_own_export_is_read_back_by_its_features(tmp_path: Path) -> None:
    files = export(collection(tmp_path / "in", plain()), QUESTIONS, plain(), tmp_path / "out", [Format.LM_EVAL], NOW)
    (table,) = tables.from_user(next(file for file in files if "large/samples" in str(file))).values()
    assert "lp_mean" in table.names
    assert table.X[:, table.names.index("lp_mean")] == pytest.approx([-0.1] * 3)
    assert list(table.question) == ["q0", "q1", "q2"]
    assert list(table.split) == ["test"] * 3
    assert list(table.y) == [1, 0, 1]  # strict-match, the first of its two filters


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"filtered_resps": [["x", "False"], ["-1", "False"]]}, "an option's log-prob is 'x', not a number"),
        ({"filtered_resps": [["nan", "False"], ["-1", "False"]]}, "an option's log-prob is 'nan', not finite"),
        ({"filtered_resps": [["-1", "False"]]}, "the log-prob of the right answer alone is no confidence"),
        ({"acc": 0.4}, "no metric acc or exact_match that is 1 or 0"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    broken = rows(choices())
    broken[1] |= change
    path = tmp_path / "samples_x_2026-01-01T00-00-00.0.jsonl"
    path.write_text("\n".join(map(json.dumps, broken)))
    with pytest.raises(BadRecords, match=f"line 2: {said}"):
        tables.from_user(path)


# Wide tables of the user's own


def write(folder: Path, text: str) -> Path:
    path = folder / "wide.csv"
    path.write_text(text)
    return path


def test_a_wide_table_is_read_like_the_long_one(tmp_path: Path) -> None:
    wide = write(tmp_path, "question,family,a.correct,a.sure,a.b.correct,a.b.sure\nq1,f,1,0.9,0,0.2\nq2,f,0,,1,0.7\n")
    found = tables.from_user(wide)
    assert list(found) == ["a", "a.b"]
    assert found["a"].names == found["a.b"].names == ("sure",)
    assert found["a.b"].X[:, 0].tolist() == [0.2, 0.7]
    assert math.isnan(found["a"].X[1, 0])
    assert found["a"].y.tolist() == [1, 0]
    assert list(found["a"].family) == ["f", "f"]


def test_a_column_of_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRecords, match=r"column cost belongs to none of a; .* called like a.certainty"):
        tables.from_user(write(tmp_path, "question,a.correct,a.sure,cost\nq1,1,0.5,3\n"))
