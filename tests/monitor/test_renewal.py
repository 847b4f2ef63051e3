"""What drift is measured from once a rollout has put another calibrator in service."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibrators import artifact as artifacts
from calibrators.artifact import Artifact
from gateway.monitor import drift
from gateway.monitor import reference as references
from gateway.monitor.reference import NOTHING, Marks, Reference, tier_reference
from gateway.monitor.registry import REFERENCE, Registry
from gateway.monitor.renewal import in_service, renewed
from gateway.monitor.rollouts import Rollouts, Wish
from gateway.nouns import Floats
from tests.faults.gateway import write_artifact

CHEAP, OTHER = ("default", "cheap"), ("default", "other")


def artifact(folder: Path, intercept: float, **fingerprint: str) -> Artifact:
    path = folder / f"{intercept}.json"
    write_artifact(path, intercept=intercept, **fingerprint)
    return artifacts.load(path)


def rows(n: int, judge: Artifact, seed: int = 0, shift: float = 0.0) -> Floats:
    nats = np.random.default_rng(seed).uniform(-0.8, 0.0, n)[:, None] + shift
    return np.column_stack([nats, judge.calibrator().predict(nats)])


@pytest.fixture
def old(tmp_path: Path) -> Artifact:
    return artifact(tmp_path, 4.0)


@pytest.fixture
def registry(tmp_path: Path, old: Artifact) -> Registry:
    made = Registry(tmp_path / "artefacts")
    put(made, old)
    return made


def put(registry: Registry, one: Artifact, reference: Reference = NOTHING) -> None:
    registry.put(one, parent=None, who="", at="", why="", reference=reference)


def written(old: Artifact) -> Reference:
    marks = Marks(np.full(1_000, 40.0), np.full(1_000, "alice"))
    tier = tier_reference(old.label, old.features, rows(1_000, old), marks)
    return Reference({CHEAP: tier, OTHER: tier_reference("other@0", ("lp_mean",), rows(300, old, 9))}, "f" * 64)


def test_a_new_calibrator_is_asked_what_it_makes_of_the_answers_in_the_reference(
    registry: Registry, old: Artifact, tmp_path: Path
) -> None:
    new, before = artifact(tmp_path, 1.0), written(old)
    put(registry, new)
    found = renewed(before, {"cheap": new}, registry)
    tier = found.tiers[CHEAP]
    assert (tier.calibrator, tier.had_of, tier.names) == (new.label, old.label, ("lp_mean",))
    assert (tier.rows == rows(1_000, new)).all()
    assert tier.limit == pytest.approx(before.tiers[CHEAP].limit)
    assert tier.marks is before.tiers[CHEAP].marks
    assert found.tiers[OTHER] is before.tiers[OTHER]
    assert found.sha256 != before.sha256
    same = [shift for shift in drift.shifts(found, {CHEAP: rows(500, new, 3)}) if shift.drifted]
    assert same == []  # that the new one claims less than the old one did is no drift
    apart = [shift for shift in drift.shifts(found, {CHEAP: rows(500, new, 3, 0.2)}) if shift.drifted]
    assert {shift.what for shift in apart} >= {"lp_mean", "p_correct"}
    assert renewed(found, {"cheap": old}, registry) is before  # rolled back


def test_a_calibrator_that_brings_a_reference_is_held_against_that_one(
    registry: Registry, old: Artifact, tmp_path: Path
) -> None:
    new = artifact(tmp_path, 1.0)
    own = Reference({CHEAP: tier_reference(new.label, ("lp_mean",), rows(400, new, 5, -1.0))})
    put(registry, new, own)
    assert len(renewed(written(old), {"cheap": new}, registry).tiers[CHEAP].rows) == 400
    assert set(renewed(NOTHING, {"cheap": new}, registry).tiers) == {CHEAP}  # none was written, and there is one now
    later = Reference({CHEAP: tier_reference(new.label, ("lp_mean",), rows(500, new, 6))})
    assert renewed(later, {"cheap": new}, registry) is later  # somebody wrote one for it since


def test_a_reference_is_not_lent_to_a_calibrator_that_looks_at_something_else(
    registry: Registry, old: Artifact, tmp_path: Path
) -> None:
    before = written(old)
    elsewhere = artifact(tmp_path, 1.0, span="answer")
    put(registry, elsewhere)
    assert renewed(before, {"cheap": elsewhere}, registry) is before
    strange = Reference({CHEAP: tier_reference(old.label, ("length",), rows(300, old))})
    new = artifact(tmp_path, 2.0)
    put(registry, new)
    assert renewed(strange, {"cheap": new}, registry) is strange


def test_some_of_the_features_are_enough(old: Artifact) -> None:
    rng = np.random.default_rng(7)
    X = rng.normal(size=(2_000, 3)) @ np.array([[1.0, 0.6, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]])
    p = np.full(len(X), 0.5)
    whole = tier_reference("a@1", ("a", "b", "c"), np.column_stack([X, p]))
    some = whole.under("b@2", ("c", "a"), lambda part: 1 / (1 + np.exp(-part[:, 1])))
    assert some is not None
    assert (some.rows[:, :-1] == X[:, [2, 0]]).all()
    fitted = tier_reference("b@2", ("c", "a"), some.rows)
    assert some.distances(X[:50, [2, 0]]) == pytest.approx(fitted.distances(X[:50, [2, 0]]), rel=0.02)
    assert whole.under("c@3", ("a", "d"), lambda part: part[:, 0]) is None


def test_a_broken_reference_of_its_own_costs_a_calibrator_nothing_else(
    registry: Registry, old: Artifact, tmp_path: Path
) -> None:
    new = artifact(tmp_path, 1.0)
    put(registry, new, Reference({CHEAP: tier_reference(new.label, ("lp_mean",), rows(400, new))}))
    file = tmp_path / "artefacts" / new.sha256 / REFERENCE
    assert file.stat().st_mode & 0o222 == 0
    file.unlink()
    file.write_bytes(b"no array")
    assert renewed(written(old), {"cheap": new}, registry).tiers[CHEAP].had_of == old.label


def test_whose_rows_a_reference_has_outlives_the_file(old: Artifact, tmp_path: Path) -> None:
    lent = written(old).tiers[CHEAP].under("new@1", ("lp_mean",), lambda X: np.full(len(X), 0.5))
    assert lent is not None
    references.dump(Reference({CHEAP: lent}), tmp_path / "then.npz")
    assert references.load(tmp_path / "then.npz").tiers[CHEAP].had_of == old.label


def test_what_is_in_service_is_read_from_the_logs_of_rollouts(old: Artifact, tmp_path: Path) -> None:
    rollouts, new = Rollouts(tmp_path / "rollout"), artifact(tmp_path, 1.0)
    rollouts.begin("cheap", old, who="", at=1.0)
    assert {tier: one.label for tier, one in in_service(rollouts).items()} == {"cheap": old.label}
    rollouts.offer("cheap", new, who="", at=2.0, why="a test")
    rollouts.act("cheap", Wish.PROMOTE, who="", at=3.0, why="a test")
    assert {tier: one.label for tier, one in in_service(rollouts).items()} == {"cheap": new.label}
