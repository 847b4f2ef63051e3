"""Collecting, against a server on loopback that answers as the question itself says."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eval import collect as collecting
from eval import records
from eval._journal import FolderBusy, Journal
from eval._progress import Progress, clock_time
from eval.cli import app
from eval.collect import Different, Plan
from eval.datasets import Question, load
from eval.grade import Grade
from eval.records import BadRecords, Record
from gateway import config as configs
from gateway.errors import ConfigError, GatewayError
from tests.faults.gateway import ROOT, cascade
from tests.faults.upstream import Upstream

KILLS = 50


def question_file(folder: Path, n: int, **plan: Any) -> Path:
    """n questions that tell both models what to answer: the small one is right on two of three."""
    rows = []
    for number in range(n):
        small = {"text": f"The answer is {number + (number % 3 == 0)}", "nats": -0.1 - number % 7 / 10, **plan}
        large = {"text": f"The answer is {number}", "nats": -0.05, **plan}
        told = json.dumps({"small": small, "large": large})
        rows.append(json.dumps({"id": f"q{number}", "question": told, "answer": number, "kind": number % 2}))
    path = folder / "questions.jsonl"
    path.write_text("\n".join(rows) + "\n")
    return path


def questions(folder: Path, n: int, **plan: Any) -> list[Question]:
    return load("jsonl", question_file(folder, n, **plan), slices=["kind"])


def settings(folder: Path, url: str, **changes: object) -> configs.Config:
    return configs.read(config_file(folder, url, **changes))


def config_file(folder: Path, url: str, **changes: object) -> Path:
    path = folder / "cascade.yaml"
    path.write_text(json.dumps(cascade(url, **changes)))
    return path


def collected(
    folder: Path, upstream: Upstream, asked: list[Question], plan: Plan | None = None, **changes: Any
) -> list[Record]:
    plan = plan or Plan(concurrency=4, top_k=3)
    path = asyncio.run(collecting.collect(settings(folder, upstream.url, **changes), asked, folder / "out", plan))
    return list(records.read(path))


def facts(found: list[Record]) -> list[tuple[object, ...]]:
    """All of the records but how long they took."""
    return [
        (
            r.key, r.family, r.engine, r.prompt, r.text, r.answer, r.grade, r.rule, r.finish, r.usd, dict(r.slices),
            r.trace and r.trace.chosen.tolist(), r.trace and r.trace.top is not None and r.trace.top.tolist(),
            r.trace and r.trace.tokens, r.trace and r.trace.end_nats,
        )
        for r in found
    ]  # fmt: skip


def test_every_tier_answers_every_question_in_order(tmp_path: Path) -> None:
    with Upstream() as upstream:
        found = collected(tmp_path, upstream, questions(tmp_path, 12))
    assert [r.key for r in found] == [("test", f"q{n}", tier) for n in range(12) for tier in ("cheap", "dear")]
    assert [r.grade for r in found if r.tier == "dear"] == [Grade.RIGHT] * 12
    assert sum(r.grade is Grade.WRONG for r in found if r.tier == "cheap") == 4
    first = found[0]
    assert first.trace is not None
    assert first.trace.top is not None
    assert first.trace.top.shape[1] == 3
    assert b"".join(first.trace.tokens).decode() == first.text
    assert first.slices == {"kind": 0}
    assert first.usd > 0
    manifest = records.read_manifest(tmp_path / "out" / "manifest.json")
    assert [tier.engine for tier in manifest.tiers] == [found[0].engine, found[1].engine]
    assert not (tmp_path / "out" / "journal.jsonl").exists()


def test_what_is_collected_is_not_asked_again(tmp_path: Path) -> None:
    asked = questions(tmp_path, 5)
    with Upstream() as upstream:
        first = collected(tmp_path, upstream, asked)
        count = len(upstream.asked("small"))
        assert facts(collected(tmp_path, upstream, asked)) == facts(first)
        assert len(upstream.asked("small")) == count


def test_a_row_that_fails_is_kept_as_unasked_and_asked_again_next_time(tmp_path: Path) -> None:
    asked = questions(tmp_path, 4, fault="500", times=2)
    plan = Plan(concurrency=2, attempts=1)
    with Upstream() as upstream:
        assert {r.grade for r in collected(tmp_path, upstream, asked, plan)} == {Grade.UNASKED}
        failed = collected(tmp_path, upstream, asked, plan)
        assert all(r.error and r.text is None for r in failed)
        summed = collecting.summary(tmp_path / "out" / "records.parquet")
        assert [(row["n"], row["unasked"], row["accuracy"]) for row in summed] == [(0, 4, None)] * 2
        healed = collected(tmp_path, upstream, asked, plan)
    assert Grade.UNASKED not in {r.grade for r in healed}
    assert not (tmp_path / "out" / "journal.jsonl").exists()


def test_a_fault_that_passes_costs_an_attempt_and_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "PAUSE_SECONDS", 0.01)
    with Upstream() as upstream:
        found = collected(tmp_path, upstream, questions(tmp_path, 4, fault="500", times=1))
        assert len(upstream.asked("small")) == 8
    assert Grade.UNASKED not in {r.grade for r in found}


def test_a_tier_that_is_gone_is_given_up_and_the_others_are_not(tmp_path: Path) -> None:
    broken = [
        Question(f"q{n}", json.dumps({"small": {"fault": "500"}, "large": {"text": f"#### {n}"}}), str(n), "d")
        for n in range(40)
    ]
    with Upstream() as upstream:
        found = collected(tmp_path, upstream, broken, Plan(concurrency=2, attempts=1))
        assert len(upstream.asked("small")) < 40
    assert {r.grade for r in found if r.tier == "dear"} == {Grade.RIGHT}
    assert {r.grade for r in found if r.tier == "cheap"} == {Grade.UNASKED}


def test_another_question_set_or_model_is_refused_with_what_differs(tmp_path: Path) -> None:
    with Upstream() as upstream:
        collected(tmp_path, upstream, questions(tmp_path, 3))
        with pytest.raises(Different, match="questions of test: 3 there, 4 now"):
            collected(tmp_path, upstream, questions(tmp_path, 4))
        tiers = cascade(upstream.url)["tiers"]
        tiers[0]["prices"]["usd_per_mtok_in"] = 3
        with pytest.raises(Different, match=r"cheap.usd_per_mtok_in: 1.0 there, 3.0 now"):
            collected(tmp_path, upstream, questions(tmp_path, 3), tiers=tiers)
        with pytest.raises(Different, match="top_k: 3 there, 5 now"):
            collected(tmp_path, upstream, questions(tmp_path, 3), Plan(top_k=5))


def test_a_full_disk_is_told_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Journal, row: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "add", full)
    with Upstream() as upstream, pytest.raises(OSError, match="No space left"):
        collected(tmp_path, upstream, questions(tmp_path, 3))


def test_no_question_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no questions"):
        asyncio.run(collecting.collect(settings(tmp_path, "http://127.0.0.1:1/v1"), [], tmp_path / "out", Plan()))


def test_a_second_collector_is_turned_away(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(FolderBusy, match="another `confgate collect` is writing here"):
        Journal(tmp_path)
    with Journal(tmp_path):
        pass


def row(name: str) -> records.Row:
    return records.flatten(
        Record(question=name, dataset="d", split="s", family="f", tier="t", engine="e", prompt="p", grade=Grade.RIGHT)
    )


def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.add(row("one"))
        whole = journal.path.stat().st_size
        journal.add(row("two"))
    raw = (tmp_path / "journal.jsonl").read_bytes()
    for end in range(whole, len(raw)):
        (tmp_path / "journal.jsonl").write_bytes(raw[:end])
        with Journal(tmp_path) as journal:
            assert list(journal.grades) == [("s", "one", "t")]
            journal.add(row("two"))
            assert [r.question for r in journal.rows(journal.grades)] == ["one", "two"]


def test_a_broken_line_before_the_last_is_named(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(b"{}\n")
    with pytest.raises(BadRecords, match="line 1 is no row"):
        Journal(tmp_path)


# The command, killed


def command(folder: Path, data: Path) -> list[str]:
    return [
        sys.executable, "-m", "gateway", "collect", "-c", str(folder / "cascade.yaml"), "--dataset", "jsonl",
        "--split", "test", "--data", str(data), "--out", str(folder / "out"), "--concurrency", "3", "--top-k", "2",
    ]  # fmt: skip


def started(folder: Path, data: Path) -> subprocess.Popen[str]:
    """As at a prompt: of tests that run in a background, all that they start would ignore Ctrl-C."""
    return subprocess.Popen(
        command(folder, data),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def lines(folder: Path) -> int:
    path = folder / "out" / "journal.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_lines(folder: Path, alive: Callable[[], bool], wanted: int) -> None:
    until = time.monotonic() + 120
    while lines(folder) < wanted and alive() and time.monotonic() < until:
        time.sleep(0.001)


def collect_in(folder: Path, url: str, n: int) -> None:
    """What a killed process was doing. Its exit code is 0 only when it was not."""
    collected(folder, Upstream(port=int(url.split(":")[2].split("/")[0])), questions(folder, n, seconds=0.002))


def test_kill_9_at_any_moment_loses_rows_in_flight_at_most(tmp_path: Path) -> None:
    """Processes come from a server that has imported everything, so that fifty of them start in no time.

    There are three times more rows than fifty kills need: on a busy machine a process gets far before it is killed.
    """
    rng, n = random.Random(1), 500
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload(["eval.collect", "tests.eval.test_collect"])
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with Upstream() as upstream:
        collect_in(tmp_path / "a", upstream.url, n)
        before = len(upstream.asked("small")) + len(upstream.asked("large"))
        for _ in range(KILLS):
            done = lines(tmp_path / "b")
            process = forked.Process(target=collect_in, args=(tmp_path / "b", upstream.url, n))
            process.start()
            wait_for_lines(tmp_path / "b", process.is_alive, done + rng.randint(1, 4))
            time.sleep(rng.random() * 0.005)
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
        asked = len(upstream.asked("small")) + len(upstream.asked("large")) - before
        kept = lines(tmp_path / "b")
        assert asked - kept <= KILLS * 8  # four in flight for each of two tiers
        collect_in(tmp_path / "b", upstream.url, n)
    one, other = (list(records.read(tmp_path / name / "out" / "records.parquet")) for name in "ab")
    assert facts(one) == facts(other)
    assert {path.name for path in (tmp_path / "b" / "out").iterdir()} == {"lock", "manifest.json", "records.parquet"}


def finish_until(folder: Path, url: str, n: int, step: str) -> None:
    """A collector that is killed in the middle of writing the table, or between that and giving up the journal."""

    def end(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(*{"table": (records, "_table"), "journal": (Journal, "discard")}[step], end)
    collect_in(folder, url, n)


@pytest.mark.parametrize("step", ["table", "journal"])
def test_kill_9_while_it_finishes_costs_no_answer(tmp_path: Path, step: str) -> None:
    with Upstream() as upstream:
        forked = multiprocessing.get_context("forkserver")
        process = forked.Process(target=finish_until, args=(tmp_path, upstream.url, 6, step))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert lines(tmp_path) == 12
        assert (tmp_path / "out" / "records.parquet").exists() == (step == "journal")
        found = collected(tmp_path, upstream, questions(tmp_path, 6, seconds=0.002))
        assert len(upstream.asked("small")) == len(upstream.asked("large")) == 6
    assert len({(row.question, row.tier) for row in found}) == len(found) == 12
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"lock", "manifest.json", "records.parquet"}


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path: Path) -> None:
    data = question_file(tmp_path, 4000, seconds=0.05)  # more than a slow machine gets through before the signal
    with Upstream() as upstream:
        config_file(tmp_path, upstream.url)
        process = started(tmp_path, data)
        wait_for_lines(tmp_path, lambda: process.poll() is None, 5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "keeps what is done, and the same command goes on from there" in err
    assert "Traceback" not in err
    assert lines(tmp_path) >= 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset", "nope"], "no dataset 'nope'; have"),
        (["--dataset", "pocket", "--split", "nope"], "pocket has no split 'nope'; have train"),
        (["--dataset", "gsm8k"], "dataset gsm8k is read from a folder: say which with --data"),
        (["--prompt", "nope"], "no prompt 'nope'; have plain, boxed, shots"),
        (["--out", "/proc/nope"], "/proc/nope"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    config = config_file(tmp_path, "http://127.0.0.1:1/v1")
    ended = CliRunner().invoke(app, ["collect", "-c", str(config), "--n", "2", *arguments])
    assert isinstance(ended.exception, GatewayError)  # which the command prints before it exits with 1
    assert said in str(ended.exception)
    assert "\n" not in str(ended.exception)


def test_nobody_pays_for_a_whole_collection_over_a_broken_prompt(tmp_path: Path) -> None:
    data = question_file(tmp_path, 800, text="I do not know.")
    with Upstream() as upstream:
        given = ["collect", "-c", str(config_file(tmp_path, upstream.url)), "--dataset", "jsonl", "--split", "test",
                 "--data", str(data), "--out", str(tmp_path / "out"), "--top-k", "2"]  # fmt: skip
        ended = CliRunner().invoke(app, given)
        assert "stopped after 200 of its answers" in str(ended.exception)
        assert max(len(upstream.asked(model)) for model in ("small", "large")) < 300
        assert 200 <= lines(tmp_path) < 600
        ended = CliRunner().invoke(app, [*given, "--implausible"])
        assert ended.exit_code == 0
        assert lines(tmp_path) == 0
    assert len(list(records.read(tmp_path / "out" / "records.parquet"))) == 1600


# Progress


class Stream:
    """A stream that remembers, and is a terminal or is not."""

    def __init__(self, *, terminal: bool) -> None:
        self.terminal, self.text = terminal, ""

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_rate_and_what_is_left(terminal: bool) -> None:
    now = [0.0]
    stream = Stream(terminal=terminal)
    progress = Progress(100, 40, stream, lambda: now[0])  # type: ignore[arg-type]
    for _ in range(30):
        now[0] += 1.0
        progress(row("x"))
    last = stream.text.replace("\x1b[K", "").replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("70/100 answers (70%)  1.0/s  0:30 left")
    assert ("\r" in stream.text) == terminal
    assert len(stream.text.splitlines()) == (1 if terminal else 2) or terminal
    assert clock_time(3661) == "1:01:01"
