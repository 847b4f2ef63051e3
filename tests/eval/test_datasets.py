from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.datasets import BadQuestions, Question, load, names
from eval.datasets.gsm8k import without_annotations
from eval.grade import Grade, grade
from gateway.errors import ConfigError

SAMPLES = Path(__file__).parents[1] / "data"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A JSONL file of these rows, or of these lines as they are."""

    def file(name: str, *rows: object) -> Path:
        path = tmp_path / name
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        return path

    return file


def test_a_wrong_name_is_answered_with_the_right_ones() -> None:
    with pytest.raises(ConfigError, match=r"no dataset 'gsm9k'; have .*gsm8k.*svamp"):
        load("gsm9k", SAMPLES)
    assert "jsonl" in names()
    assert not [name for name in names() if name.startswith("_")]


def test_a_wrong_option_is_answered_with_the_right_ones() -> None:
    with pytest.raises(ConfigError, match=r"gsm8k: .*'part'; it takes folder, split"):
        load("gsm8k", SAMPLES, part="test")
    with pytest.raises(ConfigError, match=r"missing a required argument: 'folder'"):
        load("gsm8k")


def test_gsm8k_is_read_as_published() -> None:
    questions = load("gsm8k", SAMPLES)
    assert [question.target for question in questions[:4]] == ["18", "3", "70000", "540"]
    assert {"2125", "114200", "-10", "-3"} <= {question.target for question in questions}
    first = questions[0]
    assert (first.id, first.dataset, first.split, first.family) == ("gsm8k-test-0", "gsm8k", "test", "gsm8k-test-0")
    assert dict(first.slices) == {"steps": 2, "magnitude": 18.0}
    assert load("gsm8k", SAMPLES, split="train")[0].id == "gsm8k-train-0"
    assert load("gsm8k", SAMPLES / "gsm8k" / "test.jsonl") == questions


def test_every_reference_solution_of_the_samples_is_graded_right() -> None:
    for question in [*load("gsm8k", SAMPLES), *load("gsm8k", SAMPLES, split="train")]:
        assert grade(question.solution, question.target).strict is Grade.RIGHT


def test_annotations_are_stripped_for_prompts() -> None:
    assert without_annotations("sold 48/2 = <<48/2=24>>24 clips\n#### 24") == "sold 48/2 = 24 clips\n#### 24"
    assert "<<" not in "".join(question.solution for question in load("gsm8k", SAMPLES))


def test_svamp_is_read_with_its_decimal_answers() -> None:
    questions = load("svamp", SAMPLES)
    assert [question.target for question in questions[:2]] == ["51", "1"]
    assert {question.slices["type"] for question in questions} <= {
        "Addition", "Subtraction", "Multiplication", "Common-Division"
    }  # fmt: skip


def test_a_missing_file_is_named_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(BadQuestions, match=r"no dev.jsonl or gsm8k/dev.jsonl here"):
        load("gsm8k", SAMPLES, split="dev")
    with pytest.raises(BadQuestions, match="cannot be read"):
        load("jsonl", tmp_path / "nothing.jsonl")


def test_gsm_hard_keeps_its_floats_exact_and_its_kinship(write: Write) -> None:
    row = {"id": 7, "question": "q", "answer": -9867630.1, "gsm8k_test_index": 3}
    (question,) = load("gsm_hard", write("gsm-hard.jsonl", row))
    assert (question.target, question.family) == ("-98676301/10", "gsm8k-test-3")
    (loner,) = load("gsm_hard", write("gsm-hard.jsonl", {"id": 8, "question": "q", "answer": 2.5e-06}))
    assert (loner.target, loner.family) == ("1/400000", "")


def test_gsm_plus_marks_what_cannot_be_answered(write: Write) -> None:
    rows = [
        {"id": i, "question": "q", "answer": answer, "perturbation_type": "critical thinking", "gsm8k_test_index": 5}
        for i, answer in enumerate(["None", "1/4", "4.33"])
    ]
    questions = load("gsm_plus", write("gsm-plus-testmini.jsonl", *rows))
    assert [question.target for question in questions] == ["none", "1/4", "433/100"]
    assert grade("It cannot be told.", "none").grade is Grade.UNREADABLE


def test_mgsm_keeps_a_question_and_its_translations_together(write: Write) -> None:
    rows = [
        {"id": f"{lang}-3", "lang": lang, "question": "q", "answer": "2,125", "gsm8k_test_index": 3}
        for lang in ("de", "th")
    ]
    file = write("mgsm.jsonl", *rows)
    both = load("mgsm", file)
    assert [question.target for question in both] == ["2125", "2125"]
    assert len({question.family for question in both}) == 1
    assert [question.id for question in load("mgsm", file, language="th")] == ["mgsm-th-3"]
    with pytest.raises(BadQuestions, match="no language 'fr'; have de, th"):
        load("mgsm", file, language="fr")


def test_asdiv_leaves_out_what_is_not_one_number(write: Write) -> None:
    answers = ["9 (apples)", "3:4", "3:30 p.m.", "Rug B", "February 3rd", "6th", "They are equal", "5/2", "1.5 (kg)"]
    rows = [{"id": str(i), "question": "q", "answer": answer} for i, answer in enumerate(answers)]
    assert [question.target for question in load("asdiv", write("asdiv.jsonl", *rows))] == ["9", "5/2", "3/2"]


def test_mawps_and_aqua_are_read_in_their_own_shapes(write: Write) -> None:
    mawps = write("mawps.jsonl", {"id": 0, "question": "q", "answer": 43.0, "source": "addsub"})
    assert load("mawps", mawps)[0].slices["source"] == "addsub"
    aqua = write(
        "aqua.jsonl",
        {"id": "dev-0", "question": "How fast?", "options": ["A)32", "B)6"], "answer": "A"},
        {"id": "test-0", "question": "How long?", "options": ["A)1", "B)2"], "answer": "B"},
    )
    assert load("aqua", aqua)[0].text == "How fast?\nA) 32\nB) 6"
    assert [(question.split, question.target) for question in load("aqua", aqua, split="test")] == [("test", "B")]


def test_your_own_questions_are_read_with_the_slices_you_name(write: Write) -> None:
    file = write(
        "mine.jsonl",
        "\ufeff" + json.dumps({"id": 1, "question": "q", "answer": "$3.60", "grade": 4, "family": "pens"}),
        "",
        {"id": "2", "question": "r", "answer": 7, "grade": 5, "split": "fit"},
    )
    first, second = load("jsonl", file, slices=["grade"])
    assert first == Question("1", "q", "18/5", "mine", family="pens", slices={"grade": 4})
    assert (second.split, second.target) == ("fit", "7")
    assert [question.id for question in load("jsonl", file, split="fit")] == ["2"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"id": 1, "question": "q", "answer": "1"}', '{"id": 2, "quest'], r"mine.jsonl:2: not JSON: .* at column"),
        (["[1]"], r"mine.jsonl:1: need a JSON object, got list"),
        (["3"], r"mine.jsonl:1: need a JSON object, got int"),
        (['{"id": 1, "question": "q"}'], r"mine.jsonl:1: no 'answer'; have id, question"),
        (['{"id": 1, "question": "", "answer": "1"}'], r"mine.jsonl:1: no 'question'"),
        (['{"id": 1, "question": null, "answer": "1"}'], r"mine.jsonl:1: no 'question'"),
        (["{}"], r"mine.jsonl:1: no 'id'; have nothing"),
        (['{"id": 1, "question": "q", "answer": "3 or 4"}'], r"mine.jsonl:1: target '3 or 4' is neither one number"),
        (['{"id": 1, "question": "q", "answer": "1"}'] * 2, r"mine.jsonl:2: id '1' stands on line 1 already"),
        ([""], r"mine.jsonl: no questions"),
        (["[" * 100_000], r"mine.jsonl:1: not readable JSON"),
        (['{"id": 1, "question": "q", "answer": ' + "7" * 5_000 + "}"], r"mine.jsonl:1: not readable JSON"),
    ],
)
def test_a_broken_file_is_told_by_name_and_line(write: Write, rows: list[object], message: str) -> None:
    with pytest.raises(BadQuestions, match=message):
        load("jsonl", write("mine.jsonl", *rows))


def test_a_file_that_is_no_text_is_told_by_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_bytes(b"\x80\x81")
    with pytest.raises(BadQuestions, match=r"mine.jsonl: not UTF-8: byte 0 is 0x80"):
        load("jsonl", file)
    with pytest.raises(BadQuestions, match="cannot be read"):
        load("jsonl", tmp_path)


def test_gsm8k_without_its_mark_is_refused(write: Write) -> None:
    with pytest.raises(BadQuestions, match=r"test.jsonl:1: no '####'"):
        load("gsm8k", write("test.jsonl", {"question": "q", "answer": "18"}))


def test_a_question_cannot_be_changed() -> None:
    question = load("svamp", SAMPLES)[0]
    with pytest.raises(TypeError, match="does not support item assignment"):
        question.slices["type"] = "other"  # type: ignore[index]
    assert len({question, question}) == 1
