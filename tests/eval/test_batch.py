"""Batches, out and back in: what is imported is what collecting over HTTP gets."""

from __future__ import annotations

import asyncio
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from calibrators import scores
from eval import batch, cli, records, sweep_cli
from eval import collect as collecting
from eval.collect import Plan, summary
from eval.data_cli import app
from eval.datasets import Question, load
from eval.grade import Grade
from eval.records import BadRecords, Record
from gateway import config as configs
from gateway.errors import ConfigError
from tests.faults.gateway import cascade
from tests.faults.upstream import Upstream, completion, plan_of

PLAN = Plan(top_k=3, concurrency=2)


def question_file(folder: Path, n: int = 6) -> Path:
    """Questions that tell the models of the upstream what to say."""
    path = folder / "sums.jsonl"
    rows = []
    for number in range(n):
        said = {"small": {"text": f"It is {number + number % 2}", "nats": -0.3}, "large": {"text": f"#### {number}"}}
        rows.append(json.dumps({"id": f"q{number}", "question": json.dumps(said), "answer": number}))
    path.write_text("\n".join(rows) + "\n")
    return path


def run_batch(requests: list[str]) -> list[str]:
    """As `vllm run-batch` does: the body that the server would have sent, wrapped."""
    lines = []
    for number, line in enumerate(map(json.loads, requests)):
        body = completion(line["body"], plan_of(line["body"]))
        response = {"status_code": 200, "request_id": f"vllm-batch-{number}", "body": body}
        lines.append(
            json.dumps({"id": f"vllm-{number}", "custom_id": line["custom_id"], "response": response, "error": None})
        )
    return lines


def replies(folder: Path, model: str, asked: list[Question], **changes: Any) -> Path:
    path = folder / f"{model}.jsonl"
    lines = run_batch(list(batch.requests(asked, model, PLAN)))
    path.write_text("\n".join(reversed(lines)) + "\n")  # batches come back in any order
    return path


def imported(folder: Path, asked: list[Question], *files: tuple[str, Path]) -> list[Record]:
    every = [batch.read(file, tier, asked) for tier, file in files]
    return list(records.read(batch.save(folder / "imported", asked, every, PLAN)))


def facts(record: Record) -> tuple[object, ...]:
    """All but the seconds, the price and what the live server said of itself."""
    trace = record.trace
    assert trace is not None
    assert trace.top is not None
    return (
        record.key, record.dataset, record.family, record.prompt, record.text, record.answer, record.grade, record.rule,
        record.finish, record.prompt_tokens, record.completion_tokens, trace.source, trace.tokens, trace.end_nats,
        trace.chosen.tolist(), trace.top.tolist(),
    )  # fmt: skip


def test_what_is_imported_is_what_collecting_over_http_gets(tmp_path: Path) -> None:
    asked = load("jsonl", question_file(tmp_path))
    files = [("cheap", replies(tmp_path, "small", asked)), ("dear", replies(tmp_path, "large", asked))]
    there = imported(tmp_path, asked, *files)
    with Upstream() as upstream:
        (tmp_path / "cascade.yaml").write_text(json.dumps(cascade(upstream.url)))
        config = configs.read(tmp_path / "cascade.yaml")
        path = asyncio.run(collecting.collect(config, asked, tmp_path / "collected", PLAN))
    assert [facts(record) for record in there] == [facts(record) for record in records.read(path)]
    one, other = (records.read_manifest(tmp_path / name / "manifest.json") for name in ("imported", "collected"))
    assert (one.data_sha256, one.prompt, one.splits) == (other.data_sha256, other.prompt, other.splits)
    assert one.tiers[0].fingerprint == {"model": "small"}


def test_failures_and_gaps_are_unasked_with_the_reason(tmp_path: Path) -> None:
    asked = load("jsonl", question_file(tmp_path))
    path = replies(tmp_path, "small", asked)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["response"] = None
    lines[0]["error"] = {"message": "out of memory"}
    lines[1]["response"] = {"status_code": 400, "body": {"error": {"message": "too long"}}}
    lines[2]["response"]["body"]["choices"] = []
    path.write_text("\n".join(map(json.dumps, lines[:-1])))
    found = {record.question: record for record in imported(tmp_path, asked, ("cheap", path))}
    assert [found[f"q{n}"].grade is Grade.UNASKED for n in range(6)] == [True, False, False, True, True, True]
    assert "out of memory" in found["q5"].error
    assert "too long" in found["q4"].error
    assert "without choices" in found["q3"].error
    assert found["q0"].error == "no reply in small.jsonl"
    assert summary(tmp_path / "imported" / "records.parquet")[0]["unasked"] == 4


def test_replies_without_logprobs_are_kept_and_say_so(tmp_path: Path) -> None:
    asked = load("jsonl", question_file(tmp_path))
    path = replies(tmp_path, "small", asked)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["response"]["body"]["choices"][0]["logprobs"] = None
    path.write_text("\n".join(map(json.dumps, lines)))
    found = imported(tmp_path, asked, ("", path))
    assert {record.tier for record in found} == {"small"}
    assert all(record.trace is None and "no log-probs" in record.no_trace for record in found)
    assert found[0].grade is Grade.RIGHT


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda lines: [*lines, "{"], "line 7 is no reply of a batch"),
        (lambda lines: [*lines, '{"id": 3}'], "line 7 is no reply of a batch"),
        (lambda lines: [*lines, lines[0]], "line 7: custom_id 'test/q5' stands on line 1 already"),
        (lambda lines: [lines[0].replace("test/q5", "other")], "line 1: custom_id 'other': no such question was asked"),
        (lambda lines: [lines[0], lines[1].replace('"small"', '"large"')], "line 2: large answers, and small above"),
        (lambda _: [], "no reply in it tells which model answered"),
    ],
)
def test_rubbish_is_named_by_its_line(tmp_path: Path, edit: Any, said: str) -> None:
    asked = load("jsonl", question_file(tmp_path))
    path = replies(tmp_path, "small", asked)
    path.write_text("\n".join(edit(path.read_text().splitlines())))
    with pytest.raises(BadRecords, match=said):
        batch.read(path, "", asked)


def test_two_files_for_one_tier_and_a_full_folder_are_refused(tmp_path: Path) -> None:
    asked = load("jsonl", question_file(tmp_path))
    path = replies(tmp_path, "small", asked)
    with pytest.raises(ConfigError, match="one file for each tier"):
        imported(tmp_path, asked, ("", path), ("", path))
    imported(tmp_path, asked, ("", path))
    with pytest.raises(ConfigError, match="holds records already"):
        imported(tmp_path, asked, ("", path))
    with pytest.raises(BadRecords, match="there is no such file"):
        batch.read(tmp_path / "absent.jsonl", "", asked)


def test_the_commands_make_a_batch_and_read_it_back(tmp_path: Path) -> None:
    data = question_file(tmp_path, 40)
    words = ["--dataset", "jsonl", "--data", str(data), "--split", "test", "--top-k", "3"]
    made = CliRunner().invoke(app, ["batch", *words, "--model", "small", "--out", str(tmp_path / "in.jsonl")])
    assert made.output == f"{tmp_path / 'in.jsonl'}: 40 requests\n"
    lines = (tmp_path / "in.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["body"]["top_logprobs"] == 3
    (tmp_path / "said.jsonl").write_text("\n".join(run_batch(lines)))
    told = CliRunner().invoke(
        app, ["import", f"cheap={tmp_path / 'said.jsonl'}", *words, "--out", str(tmp_path / "out")]
    )
    assert told.exit_code == 0, told.output
    assert "50.0% [" in told.output
    again = CliRunner().invoke(app, ["export", "-r", str(tmp_path / "out"), "--out", str(tmp_path / "exported"),
                                     "--dataset", "jsonl", "--data", str(data)])  # fmt: skip
    assert again.exit_code == 0, again.output
    assert len(again.output.splitlines()) == 3


def hard_and_easy(path: Path, split: str, n: int, seed: int) -> Path:
    """Questions that a small model answers wrongly where it is unsure, and a large one less often."""
    rng, rows = random.Random(seed), []
    for number in range(n):
        sure = rng.random()
        word = "".join(chr(97 + int(digit)) for digit in f"{number:03}")  # no variant of another question
        said = {}
        for model, right in (("small", rng.random() < sure), ("large", rng.random() < 0.8)):
            nats = -0.05 - (1 - sure) * rng.uniform(0.8, 1.2) if model == "small" else -0.4 + 0.3 * right * rng.random()
            said[model] = {"text": f"{word} #### {number if right else n + 1}", "nats": nats}
        rows.append(
            json.dumps({"id": f"{split}{number}", "split": split, "question": json.dumps(said), "answer": number})
        )
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_batch_goes_all_the_way_to_a_verdict_without_any_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cascade file says where the models will be; nobody asks them."""
    monkeypatch.setattr(scores, "bootstrap_all", partial(scores.bootstrap_all, resamples=20))
    monkeypatch.setattr(scores, "noise_floor", partial(scores.noise_floor, draws=20))
    for seed, split in enumerate(("calibration", "test")):
        data = hard_and_easy(tmp_path / f"{split}.jsonl", split, 300, seed)
        words = ["--dataset", "jsonl", "--data", str(data), "--split", split, "--top-k", "3"]
        said = []
        for model in ("small", "large"):
            requests = tmp_path / f"{split}-{model}.jsonl"
            CliRunner().invoke(app, ["batch", *words, "--model", model, "--out", str(requests)])
            requests.write_text("\n".join(run_batch(requests.read_text().splitlines())))
            said.append(f"{model}={requests}")
        done = CliRunner().invoke(app, ["import", *said, *words, "--out", str(tmp_path / split)])
        assert done.exit_code == 0, done.output
    fitted = ["fit", "-r", str(tmp_path / "calibration"), "--out", str(tmp_path), "--features", "lp_mean"]
    done = CliRunner().invoke(cli.app, fitted)
    assert done.exit_code == 0, done.output
    tiers = [
        {"name": name, "engine": {"kind": "openai_http", "url": "http://127.0.0.1:9/v1", "model": name},
         "calibrator": f"{name}.json", "prices": {"usd_per_mtok_in": usd, "usd_per_mtok_out": usd}}
        for name, usd in (("small", 1), ("large", 20))
    ]  # fmt: skip
    policy = {"default": {"steps": [{"tier": "small", "accept_at": 0.5}, {"tier": "large"}]}}
    config = {"keys": {"allow_anonymous": True}, "tiers": tiers, "policies": policy}
    (tmp_path / "cascade.yaml").write_text(json.dumps(config))
    records_of = ["-r", str(tmp_path / "calibration"), "-r", str(tmp_path / "test")]
    swept = [*records_of, "-c", str(tmp_path / "cascade.yaml"), "--steps", "8", "--json"]
    told = json.loads(CliRunner().invoke(sweep_cli.app, swept).stdout)
    assert told["sells"]
    assert told["chosen"]["tiers"] == ["small", "large"]
    assert told["n"] == {"chosen_on": 300, "test": 300}
