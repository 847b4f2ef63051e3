from __future__ import annotations

from pathlib import Path

import pytest

from calibrators import artifact as artifacts
from calibrators.artifact import Artifact
from gateway.errors import ConfigError, RolloutRefused
from gateway.monitor.rollout import Stage
from gateway.monitor.rollouts import Rollouts, Wish, of
from tests.faults.gateway import write_artifact


def artifact(folder: Path, intercept: float) -> Artifact:
    path = folder / f"{intercept}.json"
    write_artifact(path, intercept=intercept)
    return artifacts.load(path)


@pytest.fixture
def rollouts(tmp_path: Path) -> Rollouts:
    made = Rollouts(tmp_path / "rollout")
    made.begin("org/small", artifact(tmp_path, 4.0), who="gateway", at=1.0)
    return made


def test_a_rollout_begins_once_with_what_is_configured(rollouts: Rollouts, tmp_path: Path) -> None:
    first = rollouts.state("org/small")
    assert rollouts.begin("org/small", artifact(tmp_path, 5.0), who="another", at=2.0) == first
    assert rollouts.tiers() == ["org/small"]


def test_an_offer_keeps_the_artefact_with_its_parent_and_puts_it_in_shadow(rollouts: Rollouts, tmp_path: Path) -> None:
    new, first = artifact(tmp_path, 5.0), rollouts.state("org/small")
    assert first is not None
    state = rollouts.offer("org/small", new, who="fit", at=2.0, why="drift", labels=("d1",))
    assert (state.stage, of(state.candidate, "org/small")) == (Stage.SHADOW, new.sha256)
    lineage = rollouts.registry.get(new.sha256).lineage
    assert (lineage.parent, lineage.labels, lineage.why) == (of(first.live, "org/small"), ("d1",), "drift")
    with pytest.raises(RolloutRefused, match="already"):
        rollouts.offer("org/small", artifact(tmp_path, 6.0), who="fit", at=3.0, why="drift")


def test_live_at_once_is_two_steps_and_another_artefact_than_the_one_on_trial_is_refused(
    rollouts: Rollouts, tmp_path: Path
) -> None:
    new, other = artifact(tmp_path, 5.0), artifact(tmp_path, 6.0)
    for one in (new, other):
        rollouts.registry.put(one, parent=None, who="fit", at="2026-01-01T00:00:00+00:00", why="")
    rollouts.act("org/small", Wish.PROMOTE, who="ops", at=2.0, why="sure", artefact=new.label)
    assert [event.action for event in rollouts.history("org/small")] == ["begin", "shadow", "promote"]
    rollouts.act("org/small", Wish.SHADOW, who="ops", at=3.0, why="try", artefact=other.sha256[:8])
    with pytest.raises(RolloutRefused, match="not the one on trial"):
        rollouts.act("org/small", Wish.PROMOTE, who="ops", at=4.0, why="oops", artefact=new.label)


def test_a_step_needs_a_reason_a_rollout_and_an_artefact_that_is_there(rollouts: Rollouts) -> None:
    with pytest.raises(RolloutRefused, match="say why"):
        rollouts.act("org/small", Wish.ROLLBACK, who="ops", at=2.0, why=" ")
    with pytest.raises(RolloutRefused, match="no rollout yet"):
        rollouts.act("nobody", Wish.ROLLBACK, who="ops", at=2.0, why="x")
    with pytest.raises(RolloutRefused, match="which artefact"):
        rollouts.act("org/small", Wish.SHADOW, who="ops", at=2.0, why="x")
    for wrong in ("abc", "f" * 64):
        with pytest.raises(ConfigError, match="at least 6 digits of one of"):
            rollouts.find(wrong)


def test_evidence_is_shown_to_everybody_as_long_as_it_is_of_the_state(rollouts: Rollouts, tmp_path: Path) -> None:
    first = rollouts.state("org/small")
    assert first is not None
    assert rollouts.shown("org/small", first) == {}
    rollouts.show("org/small", first, {"evidence": {"labels": 3}, "wants": None})
    assert Rollouts(rollouts.folder).shown("org/small", first) == {"evidence": {"labels": 3}, "wants": None}
    later = rollouts.offer("org/small", artifact(tmp_path, 5.0), who="fit", at=2.0, why="drift")
    assert rollouts.shown("org/small", later) == {}
    (rollouts.folder / "evidence" / "org%2Fsmall.json").write_text("[")
    assert rollouts.shown("org/small", first) == {}
