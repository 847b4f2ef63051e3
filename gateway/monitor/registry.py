"""Every calibrator that ever was, in a folder by its hash, with where it came from. What is in there never changes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from calibrators import artifact as artifacts
from calibrators.artifact import Artifact, ArtifactCorrupt, ArtifactError, ArtifactMissing
from gateway.errors import ConfigError, StoreDown
from gateway.monitor import reference as references
from gateway.monitor.reference import NOTHING, Reference

MEASURED_ON = ("span", "source")
ARTIFACT, LINEAGE, REFERENCE = "artifact.json", "lineage.json", "reference.npz"


@dataclass(frozen=True, slots=True)
class Lineage:
    """data_sha256: of what it was fitted on.  parent: hash of the artefact it is to replace, None for a first one.

    who: a key's or a program's name.  at: ISO 8601.  why: the trigger, in words.  labels: numbers of the decisions
    whose labels went into the fit, so that one bad key can be cut out and the fit repeated.
    """

    data_sha256: str
    parent: str | None
    who: str
    at: str
    why: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """An artefact of the registry. path: of the file that a tier's `calibrator` may name."""

    artifact: Artifact
    lineage: Lineage
    path: Path


class Registry:
    """One folder per artefact, named by its hash. Raises StoreDown when the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(
        self, artifact: Artifact, *, parent: str | None, who: str, at: str, why: str, labels: tuple[str, ...] = (),
        reference: Reference = NOTHING,
    ) -> Kept:  # fmt: skip
        """Keep an artefact, atomically. One that is there already stays as it is, lineage too.

        reference: what the traffic it was fitted on looked like, for the monitors.
        Raises ConfigError when the parent is not here.
        """
        if parent is not None and not (self._folder / parent).is_dir():
            raise ConfigError(f"the registry has no parent {parent[:12]}; put it in first, or name none")
        place = self._folder / artifact.sha256
        if place.is_dir():
            return self.get(artifact.sha256)
        lineage = Lineage(str(artifact.fit["data_sha256"]), parent, who, at, why, labels)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(dir=self._folder, prefix=".draft-"))
            try:
                artifacts.dump(artifact, draft / ARTIFACT)
                (draft / LINEAGE).write_text(json.dumps(asdict(lineage), sort_keys=True) + "\n", encoding="utf-8")
                if reference.tiers:
                    references.dump(reference, draft / REFERENCE)
                for file in draft.iterdir():
                    file.chmod(0o444)
                draft.chmod(0o755)
                os.rename(draft, place)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        except FileExistsError:
            return self.get(artifact.sha256)  # another process was faster with the same
        except OSError as error:
            if place.is_dir():
                return self.get(artifact.sha256)
            raise StoreDown(f"the registry {self._folder}: {error.strerror or error}") from error
        return self.get(artifact.sha256)

    def get(self, sha256: str) -> Kept:
        """Read and check. Raises ArtifactMissing, ArtifactCorrupt when the folder holds another than its name says."""
        place = self._folder / sha256
        artifact = artifacts.load(place / ARTIFACT)
        if artifact.sha256 != sha256:
            raise ArtifactCorrupt(f"{place} holds {artifact.sha256[:12]}; the registry was tampered with, restore it")
        try:
            told: Mapping[str, object] = json.loads((place / LINEAGE).read_bytes())
            lineage = Lineage(**{**told, "labels": tuple(told["labels"])})  # type: ignore[arg-type]
        except FileNotFoundError:
            raise ArtifactMissing(f"{place}: no lineage; put the artefact in again") from None
        except (ValueError, TypeError, KeyError) as error:
            raise ArtifactCorrupt(f"{place}: no lineage ({error}); restore it") from None
        return Kept(artifact, lineage, place / ARTIFACT)

    def reference(self, sha256: str) -> Reference:
        """What the traffic looked like that an artefact was fitted on; NOTHING where nobody kept it. Raises ConfigError
        for a file that holds none."""
        path = self._folder / sha256 / REFERENCE
        return references.load(path) if path.exists() else NOTHING

    def hashes(self) -> list[str]:
        """All there are, sorted."""
        if not self._folder.is_dir():
            return []
        return sorted(place.name for place in self._folder.iterdir() if not place.name.startswith("."))

    def alike(self, artifact: Artifact) -> frozenset[str]:
        """Labels of all whose features are measured on the same part of an answer; broken ones are left out."""
        found = set()
        for sha256 in self.hashes():
            with contextlib.suppress(ArtifactError):
                other = self.get(sha256).artifact
                if all(other.fingerprint.get(name) == artifact.fingerprint.get(name) for name in MEASURED_ON):
                    found.add(other.label)
        return frozenset(found)

    def ancestors(self, sha256: str) -> list[Kept]:
        """The artefact, its parent, and so on to the first."""
        line: list[Kept] = []
        following: str | None = sha256
        while following is not None and following not in {kept.artifact.sha256 for kept in line}:
            line.append(self.get(following))
            following = line[-1].lineage.parent
        return line
