"""Three ways to stream, replayed on a clock: when the first token comes, who answers, what is paid."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibrators import artifact as artifacts
from eval import records, stream_study
from eval.grade import Grade
from eval.records import RECORDS, Record
from eval.replay import Recorded
from eval.stream_study import BUFFER, COMMIT, Seen, Study, Way
from gateway import streaming
from gateway.answers import Rule
from gateway.errors import ConfigError
from gateway.nouns import Finish, Policy, Prefix, Prices, Source, Tier, TokenTrace
from gateway.snapshot import with_calibrator
from tests.faults.gateway import ROOT, SURE, UNSURE, write_artifact

TOKENS, ALL = 3, 6
PROMPT = 10


def record(question: str, tier: str, nats: float, *, right: bool) -> Record:
    """Six tokens, a second each."""
    trace = TokenTrace(Source.CHOSEN, np.full(ALL, nats), None, (b" so",) * ALL, {}, nats)
    return Record(
        question=question, dataset="made", split="s", family=question, tier=tier, engine="0" * 12, prompt="0" * 64,
        grade=Grade.RIGHT if right else Grade.WRONG, text=" so" * ALL, rule=Rule.NONE, finish=Finish.STOP,
        prompt_tokens=PROMPT, completion_tokens=ALL, seconds=float(ALL), trace=trace,
    )  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """One question that the cheap tier is sure of, and one that it is not."""
    rows = [record(name, tier, nats, right=right)
            for name, nats, sure_right in (("sure", SURE, True), ("unsure", UNSURE, False))
            for tier, right in (("cheap", sure_right), ("dear", True))]  # fmt: skip
    records.write(tmp_path / RECORDS, [records.flatten(row) for row in rows])
    write_artifact(tmp_path / "cheap.json")
    write_artifact(tmp_path / "first.json", span=f"prefix-{TOKENS}")
    cheap, dear = (Tier(name, Recorded(rows[0]), prices=Prices(usd, usd)) for name, usd in (("cheap", 1), ("dear", 10)))
    whole, first = (artifacts.load(tmp_path / name) for name in ("cheap.json", "first.json"))
    cheap = replace(with_calibrator(cheap, whole, {}), threshold=0.8)
    cheap = replace(cheap, prefix=Prefix(TOKENS, with_calibrator(cheap, first, {})))
    route = Policy("default", (cheap, dear))
    return stream_study.replayed(
        tmp_path,
        [
            Way(BUFFER, stream_study.buffered, route),
            Way("prefix", streaming.prefix, route, TOKENS),
            Way(COMMIT, streaming.commit, route),
        ],
    )


def test_the_first_token_comes_when_it_was_made_and_decided_on(study: Study) -> None:
    first = {one.name: [row[2] for row in one.rows] for one in study.seen}
    assert first[BUFFER] == [ALL, 2 * ALL]
    assert first["prefix"] == [TOKENS, TOKENS + 1]
    assert first[COMMIT] == [1, 1]
    last = {one.name: [row[3] for row in one.rows] for one in study.seen}
    assert last == {BUFFER: [ALL, 2 * ALL], "prefix": [ALL, TOKENS + ALL], COMMIT: [ALL, ALL]}


def test_what_was_given_up_is_paid_for_and_no_more(study: Study) -> None:
    cheap, dear = (PROMPT + ALL) * 1e-6, (PROMPT + ALL) * 10e-6
    usd = {one.name: [row[1] for row in one.rows] for one in study.seen}
    assert usd[BUFFER] == pytest.approx([cheap, cheap + dear])
    assert usd["prefix"] == pytest.approx([cheap, (PROMPT + TOKENS) * 1e-6 + dear])
    assert usd[COMMIT] == pytest.approx([dear, dear])


def test_who_answered_is_counted_and_graded(study: Study) -> None:
    assert [dict(one.served) for one in study.seen] == [{"cheap": 1, "dear": 1}, {"cheap": 1, "dear": 1}, {"dear": 2}]
    assert all(row[0] == 1 for one in study.seen for row in one.rows)


def outcome(name: str, tokens: int | None, wrong: int, usd: float, first: float) -> Seen:
    rows = [(float(place >= wrong), usd, first, 2.0) for place in range(400)]
    return Seen(name, tokens, rows, Counter({"one": 400}))


def told(*every: Seen) -> Study:
    """Between buffering, 2 s for a dollar, and committing, no time for two dollars."""
    seen = (outcome(BUFFER, None, 20, 1.0, 2.0), *every, outcome(COMMIT, None, 20, 2.0, 0.0))
    return Study(seen, tuple(str(place) for place in range(400)))


def test_the_cheapest_that_is_not_less_often_right_is_chosen() -> None:
    worse, good, dearer = (
        outcome("prefix, 8 tokens", 8, 60, 1.1, 0.5),
        outcome("prefix, 16 tokens", 16, 20, 1.5, 0.8),
        outcome("prefix, 24 tokens", 24, 20, 1.6, 0.9),
    )
    assert stream_study.chosen(told(worse, good, dearer)) is good
    assert stream_study.chosen(told(worse, outcome("prefix, 12 tokens", 12, 90, 1.0, 0.5))) is worse


def test_the_page_says_whether_lots_between_the_other_modes_would_do_as_well() -> None:
    good, bad = outcome("prefix, 16 tokens", 16, 20, 1.25, 1.0), outcome("prefix, 24 tokens", 24, 20, 1.5, 1.5)
    facts = {"command": "python -m x", "policy": "one", "config": "c.yaml"}
    page = stream_study.page(told(good, bad), told(good, bad), None, facts)
    assert "after 1.50 s on average, where this takes 1.00 s" in page  # a quarter of the way from 2 s to none
    assert page.rstrip().endswith("Sooner than such a mix of the same cost: prefix, 16 tokens.")
    assert "the first token 50 % sooner than `buffer`" in page
    rows = [line for line in page.splitlines() if line.startswith("| prefix, 16")]
    assert len(rows) == 2
    assert "0.950 [0.924, 0.967]" in rows[0]  # Wilson's for 380 of 400
    assert "+25.0 % [+25.0, +25.0]" in rows[0]


def test_a_folder_without_calibrators_of_first_tokens_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="confgate fit --prefix"):
        stream_study.lengths(tmp_path)


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "eval.stream_study", "--calibrators", str(tmp_path), "--choose-on", str(tmp_path)]
    done = subprocess.run([*command, "--test-on", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"{tmp_path} holds no calibrators of first tokens; `confgate fit --prefix` makes them"
    ]
