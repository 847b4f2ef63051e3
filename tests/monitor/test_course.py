from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import AuditBroken, RolloutRefused
from gateway.monitor import audit, course, rollout
from gateway.monitor.rollout import Action, Limits, Release, Stage, State, Step

OLD, NEW = Release({"small": "a" * 64}, {"small": 0.9}), Release({"small": "b" * 64}, {"small": 0.92})


def test_every_state_on_the_way_is_found_again_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    assert course.now(path) is None
    state = course.begin(path, OLD, who="ops", at=1.0)
    step: Step
    for at, (step, candidate) in enumerate(
        [
            (rollout.offered(state, NEW, Limits()), NEW),
            (Step(Action.CANARY, ("it changes 1 %",)), None),
            (Step(Action.PROMOTE, ("better",), {"labels": 700}), None),
            (Step(Action.ROLLBACK, ("wealth",)), None),
            (Step(Action.SAFE, ("wealth again",)), None),
        ],
        2,
    ):
        state = course.take(path, state, step, who="ops", at=float(at), candidate=candidate)
        assert course.now(path) == state
    assert state == State(live=None, since=6.0)
    told = audit.read(path)
    assert [event.action for event in told] == ["begin", "shadow", "canary", "promote", "rollback", "safe"]
    assert told[3].facts["why"] == ["better"]
    assert told[3].facts["labels"] == 700


def test_a_step_decided_on_an_old_state_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    old = course.begin(path, OLD, who="ops", at=1.0)
    new = course.take(path, old, rollout.offered(old, NEW, Limits()), who="ops", at=2.0, candidate=NEW)
    with pytest.raises(RolloutRefused, match="another step meanwhile"):
        course.take(path, old, rollout.offered(old, NEW, Limits()), who="eve", at=3.0, candidate=NEW)
    assert course.now(path) == new
    with pytest.raises(RolloutRefused, match="another step meanwhile"):
        course.begin(path, NEW, who="eve", at=4.0)


def test_a_step_that_is_not_possible_leaves_no_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    state = course.begin(path, OLD, who="ops", at=1.0)
    with pytest.raises(RolloutRefused, match="not possible"):
        course.take(path, state, Step(Action.ROLLBACK, ()), who="ops", at=2.0)
    assert len(audit.read(path)) == 1
    assert state.stage is Stage.NONE


def test_a_log_of_something_else_is_no_rollout(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit.append(path, at="2026-11-22T09:00:00+00:00", who="ops", action="shadow", facts={"state": {"live": 3}})
    with pytest.raises(AuditBroken, match="no state of a rollout"):
        course.now(path)
