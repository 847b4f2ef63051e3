"""Exports, held against what the tools themselves write. tests/clients/read_exports.py opens them with the tools."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval import records
from eval.datasets import Question
from eval.export import Format, OtherQuestions, export
from eval.grade import Grade
from eval.prompts import Prompt, boxed, plain
from eval.records import Collected, Manifest, Record
from gateway.answers import Rule
from gateway.nouns import Finish, Policy, Source, Tier, TokenTrace

DATA = Path(__file__).parents[1] / "data"
NOW = dt.datetime(2026, 5, 17, 12, tzinfo=dt.UTC)
QUESTIONS = [Question(f"q{n}", f"What is {n} + {n}?", str(2 * n), "sums", "test") for n in range(3)]
Json = dict[str, Any]


class Sure:
    """p from the one feature it is given, so that a test can say who answers."""

    def predict(self, features: Any) -> Any:
        return np.exp(features[:, 0])


def answer(question: Question, tier: str, text: str, grade: Grade, nats: float, rule: Rule = Rule.HASHES) -> Record:
    tokens = tuple(part.encode() for part in text.split(" "))
    return Record(
        question=question.id, dataset="sums", split="test", family=question.id, tier=tier, engine="e", prompt="p",
        grade=grade, text=" ".join(text.split(" ")), answer=question.target if grade is Grade.RIGHT else "7",
        rule=rule, finish=Finish.STOP, prompt_tokens=10, completion_tokens=len(tokens), seconds=0.5, usd=0.25,
        trace=TokenTrace(Source.CHOSEN, np.full(len(tokens), nats), None, tokens), slices={"steps": 1},
    )  # fmt: skip


def collection(folder: Path, prompt: Prompt) -> Path:
    """Two tiers and three questions: the small one is sure and right, sure and wrong, and never came."""
    lost = Record(question="q2", dataset="sums", split="test", family="q2", tier="org/small", engine="e", prompt="p",
                  grade=Grade.UNASKED, error="away")  # fmt: skip
    rows = [
        answer(QUESTIONS[0], "org/small", "#### 0", Grade.RIGHT, -0.1),
        answer(QUESTIONS[0], "large", "#### 0", Grade.RIGHT, -0.1),
        answer(QUESTIONS[1], "org/small", "it is 7", Grade.WRONG, -3.0, Rule.LAST_LINE),
        answer(QUESTIONS[1], "large", "so 2", Grade.RIGHT, -0.1, Rule.LAST_LINE),
        lost,
        answer(QUESTIONS[2], "large", "#### 4", Grade.RIGHT, -0.1),
    ]
    folder.mkdir()
    records.write(folder / "records.parquet", map(records.flatten, rows))
    told = Manifest(
        dataset="sums", splits={"test": 3}, data_sha256=records.questions_sha256(QUESTIONS), template=prompt.template,
        system=prompt.system, prompt=prompt.sha256, max_tokens=64, top_k=0, seed=0, created="2026-05-17T12:00:00+00:00",
        tiers=tuple(Collected(name=name, fingerprint={"model": name}) for name in ("org/small", "large")),
    )  # fmt: skip
    records.write_manifest(folder / "manifest.json", told)
    return folder


def cascade() -> Policy:
    sure = Tier("org/small", None, ("lp_mean",), Sure(), "made@0", Source.CHOSEN, threshold=0.8)  # type: ignore[arg-type]
    return Policy("default", (sure, Tier("large", None)))  # type: ignore[arg-type]


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    source = collection(tmp_path / "in", boxed())
    files = export(source, QUESTIONS, boxed(), tmp_path / "out", list(Format), NOW, cascade())
    assert all(file.is_file() for file in files)
    assert len(files) == len(list((tmp_path / "out").rglob("*.json*")))
    return tmp_path / "out"


def lines(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def theirs(pattern: str) -> Path:
    return next((DATA / "lm_eval").rglob(pattern))


def ours(out: Path, model: str, kind: str) -> Path:
    return next((out / "lm-eval" / model).glob(f"{kind}_*"))


def log_of(out: Path, model: str) -> Json:
    return next(
        log for path in (out / "inspect").iterdir() if (log := json.loads(path.read_text()))["eval"]["model"] == model
    )


def test_results_have_every_section_that_lm_eval_writes(exported: Path) -> None:
    told = json.loads(ours(exported, "org__small", "results").read_text())
    real = json.loads(theirs("results_*.json").read_text())
    machine = {"pretty_env_info", "transformers_version", "lm_eval_version", "upper_git_hash", "fewshot_as_multiturn",
               "total_evaluation_time_seconds"}  # of a program that we are not  # fmt: skip
    assert real.keys() - machine <= told.keys()
    assert told.keys() - real.keys() == {"route"}
    assert real["results"]["tiny_gen"].keys() - {"name"} == told["results"]["sums"].keys()
    assert real["n-samples"]["tiny_gen"].keys() == told["n-samples"]["sums"].keys()


def test_samples_have_every_field_that_lm_eval_writes_and_one_of_our_own(exported: Path) -> None:
    real, told = lines(theirs("samples_tiny_gen_*"))[0], lines(ours(exported, "large", "samples"))[0]
    assert told.keys() - real.keys() == {"route"}
    assert real.keys() <= told.keys()
    assert {name: type(value) for name, value in real.items()} | {"filtered_resps": list, "route": dict} == {
        name: type(value) for name, value in told.items()
    }
    assert told["route"]["features"].keys() >= {"lp_mean", "length"}


def test_strict_and_flexible_are_two_filters_with_their_own_score(exported: Path) -> None:
    scores = json.loads(ours(exported, "large", "results").read_text())["results"]["sums"]
    assert scores["exact_match,strict-match"] == pytest.approx(2 / 3)
    assert scores["exact_match,flexible-extract"] == 1
    assert scores["exact_match_stderr,strict-match"] == pytest.approx(np.std([1, 1, 0], ddof=1) / np.sqrt(3))
    samples = lines(ours(exported, "large", "samples"))
    assert [(s["doc_id"], s["filter"], s["exact_match"]) for s in samples] == [
        (n, name, right) for n in range(3) for name, right in
        (("strict-match", float(n != 1)), ("flexible-extract", 1.0))
    ]  # fmt: skip
    assert samples[2]["filtered_resps"] == ["[invalid]"]


def test_the_hashes_are_of_what_stands_beside_them(exported: Path) -> None:
    real = lines(theirs("samples_tiny_gen_*"))[0]
    told = lines(ours(exported, "large", "samples"))[0]
    for sample, prompt in ((real, None), (told, told["arguments"]["gen_args_0"]["arg_0"])):
        assert (
            sample["doc_hash"]
            == hashlib.sha256(json.dumps(sample["doc"], indent=2, ensure_ascii=False).encode()).hexdigest()
        )
        assert sample["target_hash"] == hashlib.sha256(sample["target"].encode()).hexdigest()
        if prompt:
            assert sample["prompt_hash"] == hashlib.sha256(prompt.encode()).hexdigest()


def test_an_answer_that_never_came_is_counted_and_not_scored(exported: Path) -> None:
    told = json.loads(ours(exported, "org__small", "results").read_text())
    assert told["n-samples"]["sums"] == {"original": 3, "effective": 2}
    assert told["results"]["sums"]["exact_match,flexible-extract"] == 0.5
    results = log_of(exported, "org/small")["results"]
    assert (results["total_samples"], results["completed_samples"]) == (3, 2)


def test_the_cascade_is_a_run_of_its_own_with_its_way_and_its_cost(exported: Path) -> None:
    first, second = (sample["route"] for sample in lines(ours(exported, "auto", "samples"))[::2])
    assert (first["tier"], first["usd"], len(first["hops"])) == ("org/small", 0.25, 1)
    assert (second["tier"], second["usd"], len(second["hops"])) == ("large", 0.5, 2)
    assert second["hops"][0]["p_correct"] == pytest.approx(np.exp(-3))
    about = json.loads(ours(exported, "auto", "results").read_text())["route"]
    assert about["steps"] == [
        {"tier": "org/small", "accept_at": 0.8, "calibrator": "made@0"},
        {"tier": "large", "accept_at": None, "calibrator": "none"},
    ]


def test_a_log_has_no_field_that_inspect_does_not_know_and_lacks_none_that_it_needs(exported: Path) -> None:
    fields = json.loads((DATA / "inspect" / "fields.json").read_text())
    log = log_of(exported, "large")
    sample = log["samples"][0]
    choice = sample["output"]["choices"][0]
    parts = {
        "EvalLog": log, "EvalSpec": log["eval"], "EvalDataset": log["eval"]["dataset"], "EvalPlan": log["plan"],
        "EvalConfig": log["eval"]["config"], "EvalResults": log["results"], "EvalScore": log["results"]["scores"][0],
        "EvalMetric": log["results"]["scores"][0]["metrics"]["accuracy"], "EvalStats": log["stats"],
        "EvalSample": sample, "ModelOutput": sample["output"], "ChatCompletionChoice": choice,
        "ModelUsage": sample["output"]["usage"], "Score": sample["scores"]["exact_rational"],
    }  # fmt: skip
    assert parts.keys() == fields.keys() - {"made_by"}
    for name, part in parts.items():
        assert set(fields[name]["required"]) <= part.keys() <= set(fields[name]["known"]), name


def test_a_log_carries_the_chat_its_logprobs_and_its_sums(exported: Path) -> None:
    log = log_of(exported, "large")
    assert [sample["id"] for sample in log["samples"]] == ["test/q0", "test/q1", "test/q2"]
    sample = log["samples"][0]
    assert [turn["role"] for turn in sample["messages"]] == ["system", "user", "assistant"]
    entries = sample["output"]["choices"][0]["logprobs"]["content"]
    assert [(entry["token"], entry["logprob"]) for entry in entries] == [
        ("####", pytest.approx(-0.1)),
        ("0", entries[1]["logprob"]),
    ]
    assert log["stats"]["model_usage"]["large"]["total_tokens"] == 36
    assert log["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 1


def test_the_same_records_make_the_same_files(tmp_path: Path) -> None:
    source = collection(tmp_path / "in", plain())
    made = [export(source, QUESTIONS, plain(), tmp_path / name, list(Format), NOW) for name in "ab"]
    assert [path.read_bytes() for path in made[0]] == [path.read_bytes() for path in made[1]]


def test_other_questions_or_another_prompt_are_refused(tmp_path: Path) -> None:
    source = collection(tmp_path / "in", plain())
    with pytest.raises(OtherQuestions, match="name the same --dataset, --data and --seed"):
        export(source, QUESTIONS[:2], plain(), tmp_path / "out", list(Format), NOW)
    with pytest.raises(OtherQuestions, match="their prompt has the hash"):
        export(source, QUESTIONS, boxed(), tmp_path / "out", list(Format), NOW)
    assert not (tmp_path / "out").exists()
