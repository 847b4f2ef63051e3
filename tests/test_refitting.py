"""Fits that start by themselves: one at a time, with a pause, and whatever becomes of the process is told."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibrators import artifact as artifacts
from eval.card import Absent
from gateway import config as configs
from gateway.errors import ConfigError
from gateway.monitor.evidence import Findings, Place
from gateway.monitor.labels import Seen, Verdict
from gateway.monitor.rollouts import Rollouts
from gateway.monitor.settings import Refit
from gateway.nouns import Tier
from gateway.refitting import Refitting, note, tried
from gateway.snapshot import Snapshot
from tests.faults.gateway import cascade, write_artifact

NOW = 1_800_000_000.0
MADE = '{"artefact": "cheap@1", "how": "platt", "labels": 9}'


class Run:
    """A tier whose calibrator is proven over-confident, on this many labels of wrong answers."""

    def __init__(self, folder: Path, wrong: int = 100) -> None:
        label = write_artifact(folder / "cheap.json")
        plan: dict[str, Any] = cascade(
            "http://127.0.0.1:1/v1", store={"sqlite": "store.db"}, exploration={"share": 1.0}
        )
        plan |= {"rollout": {"folder": "rollout"}, "monitors": {"refit": {"causes": ["metric"], "seconds": 10}}}
        path = folder / "cascade.yaml"
        path.write_text(json.dumps(plan))
        self.config, self.folder = configs.read(path), folder / "rollout"
        sealed = artifacts.load(folder / "cheap.json")
        Rollouts(self.folder).begin("cheap", sealed, who="test", at=NOW)
        tier = Tier("cheap", Absent("cheap", {}), calibrator=sealed.calibrator(), calibrator_id=label)
        self.snapshot = Snapshot(self.config, {"cheap": tier}, {}, {})
        verdict = Verdict("default", "cheap", 2 * wrong, 9.0, 0.0, True, False, label)
        place = Place(verdict, Seen(200, 0.9, 0.5, 0.4, 0.6), None)
        self.found = Findings({}, (place,), read_at=NOW, tally={("cheap", label): (wrong, wrong)})

    def look(self, refitting: Refitting, *, now: float = NOW, monotonic: float = 0.0) -> list[str]:
        rules = self.config.monitors.refit
        assert rules is not None
        return refitting.look(self.snapshot, rules, self.found, {}, now=now, monotonic=monotonic)

    def ended(self, refitting: Refitting, **at: float) -> list[str]:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            outcomes = self.look(refitting, **at)
            if outcomes:
                return outcomes
            time.sleep(0.05)
        raise AssertionError("it never ended")


def program(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


@pytest.mark.parametrize(
    ("text", "outcome", "words"),
    [
        ("import sys; print('not better'); sys.exit(1)", "declined", "not better"),
        ("import sys; sys.exit(7)", "failed", "it said nothing"),
        ("import os; os.abort()", "failed", "it said nothing"),
        ("print('it is done')", "failed", "it is done"),
        (f"print({MADE!r})", "offered", "cheap@1 (platt on 9 labels)"),
    ],
)  # fmt: skip
def test_what_became_of_a_fit_is_told(text: str, outcome: str, words: str, tmp_path: Path) -> None:
    run, refitting = Run(tmp_path), Refitting(program(text))
    assert run.look(refitting) == ["started"]
    assert [fit["state"] for fit in refitting.told()] == ["running"]
    assert run.ended(refitting) == [outcome]
    [fit] = refitting.told()
    assert (fit["tier"], fit["state"], fit["cause"]) == ("cheap", outcome, "metric")
    assert words in fit["why"]


def test_the_next_fit_waits_for_the_pause_whoever_made_the_last(tmp_path: Path) -> None:
    run, refitting = Run(tmp_path), Refitting(program(""))
    (run.folder / "fits").mkdir()
    note(run.folder, "cheap", NOW - 3600)
    assert run.look(refitting) == []
    assert run.look(refitting, now=NOW + 24 * 3600) == ["started"]
    refitting.stop()


def test_two_processes_never_fit_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    one, other = Refitting(program("import time; time.sleep(60)")), Refitting(program(""))
    assert run.look(one) == ["started"]
    assert run.look(other, now=NOW + 1e6) == []
    one.stop()
    assert run.look(other, now=NOW + 1e6) == ["started"]
    other.stop()


def test_a_fit_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    run, refitting = Run(tmp_path), Refitting(program("import time; time.sleep(60)"))
    run.look(refitting)
    assert run.look(refitting, monotonic=9.0) == []
    assert run.look(refitting, monotonic=11.0) == ["failed"]
    assert "too long" in refitting.told()[0]["why"]


def test_with_too_few_labels_it_waits_and_says_for_how_many(tmp_path: Path) -> None:
    run, refitting = Run(tmp_path, wrong=12), Refitting(program(""))
    assert run.look(refitting) == []
    [fit] = refitting.told()
    assert (fit["state"], fit["why"]) == ("waiting", "for 18 more labels of the rarer class")


def other_model(run: Run, *, why: str = "weights were a, are b", **rules: Any) -> None:
    """Its server is another than its calibrator's."""
    refit = Refit(**{"questions": {"dataset": "pocket", "n": 100}, **rules})
    monitors = run.config.monitors.model_copy(update={"refit": refit})
    run.config = run.config.model_copy(update={"monitors": monitors})
    bare = Tier("cheap", Absent("cheap", {}))
    run.snapshot = Snapshot(run.config, {"cheap": bare}, {}, {"cheap": why})
    run.found = Findings({}, (), read_at=NOW)


def test_another_model_is_asked_the_questions_once_it_has_stayed_the_same_for_a_while(tmp_path: Path) -> None:
    run = Run(tmp_path)
    refitting = Refitting(program("import sys; print(sys.argv)"))
    other_model(run)
    assert run.look(refitting) == []
    assert refitting.told()[0]["why"] == "for its server to stay the same for 10 minutes"
    assert run.look(refitting, monotonic=599.0) == []
    other_model(run, why="weights were a, are c")  # servers are being replaced
    assert run.look(refitting, monotonic=601.0) == []
    assert run.look(refitting, monotonic=1202.0) == ["started"]
    [fit] = refitting.told()
    assert (fit["cause"], fit["why"]) == ("model change", "weights were a, are c")
    outcomes = run.ended(refitting, monotonic=1203.0)
    assert outcomes == ["failed"]  # it printed no artefact, but what it was told to do
    assert "'--questions'" in refitting.told()[0]["why"]
    assert "model change: weights were a, are c" in refitting.told()[0]["why"]
    assert run.look(refitting, monotonic=1e6) == []  # the pause
    assert run.look(refitting, now=NOW + 25 * 3600, monotonic=1e6) == ["started"]
    refitting.stop()


@pytest.mark.parametrize("rules", [{"questions": None}, {"causes": ("metric",)}])
def test_without_questions_another_model_is_a_persons_matter_and_that_is_said(
    rules: dict[str, Any], tmp_path: Path
) -> None:
    run, refitting = Run(tmp_path), Refitting(program(""))
    other_model(run, **rules)
    assert run.look(refitting, monotonic=1e6) == []
    assert "monitors.refit.questions" in refitting.told()[0]["why"]


def test_nothing_starts_while_another_calibrator_is_on_trial(tmp_path: Path) -> None:
    run, refitting = Run(tmp_path), Refitting(program(""))
    write_artifact(tmp_path / "other.json", slope=9.0)
    Rollouts(run.folder).offer("cheap", artifacts.load(tmp_path / "other.json"), who="test", at=NOW, why="a test")
    assert run.look(refitting) == []


def test_a_try_that_stands_in_the_future_holds_up_nothing(tmp_path: Path) -> None:
    (tmp_path / "fits").mkdir()
    assert tried(tmp_path, "a/b", NOW) is None
    note(tmp_path, "a/b", NOW)
    assert tried(tmp_path, "a/b", NOW) == NOW
    assert tried(tmp_path, "a/b", NOW - 1) is None
    (tmp_path / "fits" / "c.json").write_text("rubbish")
    assert tried(tmp_path, "c", NOW) is None


def test_a_fit_needs_a_rollout_to_go_on_trial_in() -> None:
    plan = cascade("http://127.0.0.1:1/v1", store={"sqlite": "store.db"}, monitors={"refit": {}})
    with pytest.raises(ConfigError, match=r"monitors\.refit: what a fit comes to must go on trial"):
        configs.parse(json.dumps(plan, indent=1), Path("/somewhere/cascade.yaml"))


@pytest.mark.parametrize(("key", "state"), [("", "waiting"), ("maker.pem", "running")])
def test_where_signatures_are_demanded_a_fit_waits_for_a_key(key: str, state: str, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.snapshot = replace(run.snapshot, config=run.config.model_copy(update={"signers": ("0" * 64,)}))
    refitting = Refitting(program("import time; time.sleep(30)"), {"CONFGATE_SIGNING_KEY": key})
    run.look(refitting)
    [told] = refitting.told()
    assert told["state"] == state
    assert ("CONFGATE_SIGNING_KEY" in told["why"]) is (state == "waiting")
    refitting.stop()
