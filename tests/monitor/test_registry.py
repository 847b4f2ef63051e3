from __future__ import annotations

from pathlib import Path

import pytest

from calibrators import artifact as artifacts
from calibrators.artifact import ArtifactCorrupt, ArtifactMissing
from gateway.errors import ConfigError
from gateway.monitor.registry import ARTIFACT, Registry

POCKET = Path(__file__).parents[2] / "deploy/pocket/calibrators"
SMALL, BASE = (artifacts.load(POCKET / f"pocket-{name}.json") for name in ("small", "base"))
AT = "2026-11-22T09:00:00+00:00"


def test_what_is_put_in_is_found_by_its_hash_with_its_lineage(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    registry.put(SMALL, parent=None, who="ops", at=AT, why="first", labels=("d1", "d2"))
    kept = registry.put(BASE, parent=SMALL.sha256, who="trigger", at=AT, why="drift")
    assert registry.hashes() == sorted([SMALL.sha256, BASE.sha256])
    assert artifacts.load(kept.path).sha256 == BASE.sha256
    assert kept.lineage.data_sha256 == BASE.fit["data_sha256"]
    assert [one.artifact.sha256 for one in registry.ancestors(BASE.sha256)] == [BASE.sha256, SMALL.sha256]
    assert registry.get(SMALL.sha256).lineage.labels == ("d1", "d2")


def test_the_first_lineage_stays(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.put(SMALL, parent=None, who="ops", at=AT, why="first")
    assert registry.put(SMALL, parent=None, who="mallory", at=AT, why="mine").lineage.who == "ops"


def test_an_unknown_parent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no parent"):
        Registry(tmp_path).put(SMALL, parent="f" * 64, who="ops", at=AT, why="first")


def test_files_cannot_be_written_and_another_artefact_in_its_place_is_found(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    kept = registry.put(SMALL, parent=None, who="ops", at=AT, why="first")
    assert kept.path.stat().st_mode & 0o222 == 0
    kept.path.unlink()
    artifacts.dump(BASE, tmp_path / SMALL.sha256 / ARTIFACT)
    with pytest.raises(ArtifactCorrupt, match="tampered"):
        registry.get(SMALL.sha256)
    with pytest.raises(ArtifactMissing):
        registry.get("e" * 64)


def test_a_draft_of_a_dead_process_is_no_artefact(tmp_path: Path) -> None:
    (tmp_path / ".draft-abc").mkdir()
    assert Registry(tmp_path).hashes() == []
