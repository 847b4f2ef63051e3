from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval import _demo_report, _server
from eval.datasets import Question, pocket
from eval.demo import CASCADE, HOME, Reply, held_out, mistakes, standings, verdict
from eval.grade import Grade
from gateway.errors import ConfigError
from tests.faults.gateway import ROOT

TIERS = ["p-small", "p-large"]
MODELS = [CASCADE, *TIERS]
POCKET = ROOT / "deploy/pocket/cascade.yaml"


def hop(tier: str, p: float | None, reason: str = "unsure", null: str | None = None) -> dict[str, Any]:
    return {"tier": tier, "reason": reason, "confidence": p, "null_reason": null}


def reply(
    number: int, model: str, *, right: bool, usd: float, hops: list[dict[str, Any]] | None = None, split: str = HOME
) -> Reply:
    hops = hops or [hop(model, 0.5, "last")]
    route = {
        "tier": hops[-1]["tier"],
        "reason": hops[-1]["reason"],
        "hops": hops,
        "usage_total": {"total_tokens": 10},
        "cost": {"usd": usd},
    }
    asked = Question(f"q{number}", f"How many are {number} and a few more of them?", "7", "pocket", split)
    return Reply(asked, model, grade=Grade.RIGHT if right else Grade.WRONG, answer="7" if right else "8", route=route)


def replies(cascade_right: int, large_right: int, *, cascade_usd: float = 0.5, n: int = 40) -> list[Reply]:
    """n questions; the large model costs 1 each, the small one .1 and is never right."""
    early, late = [hop("p-small", 0.95, "confident")], [hop("p-small", 0.2), hop("p-large", 0.9, "last")]
    return [
        *(reply(q, CASCADE, right=q < cascade_right, usd=cascade_usd, hops=late if q % 2 else early) for q in range(n)),
        *(reply(q, "p-small", right=False, usd=0.1) for q in range(n)),
        *(reply(q, "p-large", right=q < large_right, usd=1.0) for q in range(n)),
    ]


def test_questions_are_half_at_home_and_show_every_shift() -> None:
    asked = held_out(48)
    splits = [question.split for question in asked]
    assert splits.count(HOME) == 24
    assert {splits.count(shift) for shift in pocket.SHIFTS} == {4, 5}
    assert len({question.id for question in asked}) == 48
    with pytest.raises(ConfigError, match="at least 10 questions"):
        held_out(9)


def test_costs_and_accuracies_stand_beside_the_largest_model() -> None:
    rows = standings(replies(30, 32), MODELS, "p-large")
    assert [row.model for row in rows] == MODELS
    cascade, small, large = rows
    assert (cascade.accuracy.value, cascade.n, cascade.usd, cascade.tokens) == (0.75, 40, 20.0, 400)
    assert cascade.accuracy.low == pytest.approx(0.598, abs=0.001)  # Wilson
    assert cascade.saving is not None
    assert (cascade.saving.value, cascade.saving.low, cascade.saving.high) == (0.5, 0.5, 0.5)
    assert cascade.gain is not None
    assert cascade.gain.value == pytest.approx(-0.05)
    assert cascade.gain.low is not None
    assert cascade.gain.low < -0.05 < 0.0
    assert small.saving is not None
    assert small.saving.value == pytest.approx(0.9)
    assert large.saving is None


def test_no_difference_seen_is_no_proof_of_none() -> None:
    gain = standings(replies(40, 40), MODELS, "p-large")[0].gain
    assert gain is not None
    assert gain.value == 0.0
    assert gain.low is not None
    assert gain.low == pytest.approx(-0.088, abs=0.001)  # Clopper-Pearson, 0 of 40


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (replies(30, 31), ["no difference that so few questions could show", "spends 50% [50%, 50%] of what p-large"]),
        (replies(10, 35), ["worse by 62 ["]),
        (replies(35, 10), ["better by 62 ["]),
        (replies(30, 30, cascade_usd=1.2), ["spends 120% [120%, 120%] of what p-large costs: more, not less"]),
        (replies(0, 30), ["p-small alone is as often right here for less", "does not pay"]),
    ],
)
def test_the_verdict_says_what_is_there_good_or_bad(given: list[Reply], said: list[str]) -> None:
    told = verdict(standings(given, MODELS, "p-large"), "At home")
    assert told.startswith("At home (n = 40): the cascade is right on ")
    for part in said:
        assert part in told


def test_all_that_did_not_work_is_named() -> None:
    good = replies(30, 30)
    assert mistakes(good) == []
    broken = Reply(good[0].question, "p-large", error="APIStatusError: 503")
    assert mistakes([*good, broken]) == ["q0 to p-large: APIStatusError: 503"]
    mute = reply(0, CASCADE, right=True, usd=1, hops=[hop("p-small", None, "uncalibrated", "uncalibrated")])
    assert "q0: p-small gave no confidence (uncalibrated)" in mistakes([*good, mute])
    cut = reply(
        0, CASCADE, right=True, usd=1, hops=[hop("p-small", None, "truncated", "truncated"), hop("p-large", 0.9)]
    )
    assert mistakes([*good, cut]) == []
    last = [reply(0, CASCADE, right=True, usd=1, hops=[hop("p-small", 0.2), hop("p-large", 0.9, "last")])]
    assert mistakes(last) == ["no question was accepted before the last tier"]
    first = [reply(0, CASCADE, right=True, usd=1, hops=[hop("p-small", 0.9, "confident")])]
    assert mistakes(first) == ["no question was escalated"]


@pytest.mark.parametrize("width", [60, 120, 200])
def test_a_line_per_question_fits_the_terminal_and_has_no_colour_in_a_pipe(width: int) -> None:
    told = _demo_report.questions(replies(30, 30), width=width, colour=False)
    head, *lines = told.splitlines()
    assert len(lines) == 40
    assert "\x1b" not in told
    assert max(map(len, lines)) <= max(width, _demo_report.QUESTION_LEAST + len(head))
    assert "small .20  large .90" in lines[1]
    assert "wrong: 8, not 7" in lines[39]
    assert "\x1b[32m" in _demo_report.questions(replies(30, 30), width=width, colour=True)


def test_regions_are_told_apart() -> None:
    given = [*replies(30, 30), *(reply(q, m, right=False, usd=1, split="more_steps") for m in MODELS for q in range(3))]
    summed = _demo_report.summary(given, MODELS)
    assert [(where, rows[0].n) for where, rows in summed] == [("In distribution", 40), ("Shifted", 3)]
    told = _demo_report.told(summed, width=80)
    assert "Shifted (n = 3)" in told
    document = json.dumps(_demo_report.as_json(given, summed, []))
    assert "NaN" not in document


def test_names_lose_what_all_of_them_share() -> None:
    assert _demo_report.shortened(["pocket-nano", "pocket-base"]) == {"pocket-nano": "nano", "pocket-base": "base"}
    assert _demo_report.shortened(["small", "large-v2"]) == {"small": "small", "large-v2": "large-v2"}


def test_a_gateway_that_cannot_start_says_why(tmp_path: Path) -> None:
    config = tmp_path / "cascade.yaml"
    config.write_text("tiers: []\n")
    with (
        pytest.raises(_server.NotServing, match=r"the gateway ended with 1; it said:\n.*cascade.yaml"),
        _server.gateway(config),
    ):
        pass


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "deploy/pocket/calibrators/pocket-base.json").exists(), reason="nothing shipped here")
def test_the_demonstration_works_on_what_is_shipped() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "demo", "--n", "20", "--json", "-c", str(POCKET)],
        cwd=ROOT, env={**os.environ, "COLUMNS": "100"}, capture_output=True, text=True, check=False, timeout=170,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["mistakes"] == []
    assert len(told["questions"]) == 20 * 5
    routed = [row for row in told["questions"] if row["model"] == CASCADE]
    for row in routed:
        spent = sum(hop["tokens"] for hop in row["route"]["hops"])
        assert row["tokens"] == spent
    for region in told["summary"]:
        for model in region["models"]:
            n = model["n"]
            right = [
                row["grade"] == "right"
                for row in told["questions"]
                if row["model"] == model["model"] and (row["split"] == HOME) == (region["where"] == "In distribution")
            ]
            assert len(right) == n == 10
            assert model["accuracy"]["value"] == pytest.approx(np.mean(right))
