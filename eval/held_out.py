"""Out-of-fold probabilities beside an artefact: what a calibrator says of the answers it was fitted on is too good.

`confgate fit` writes one small Parquet file per artefact, keyed by question, with the artefact's hash; `confgate sweep`
takes p from it for questions of the fit, and the calibrator's own for all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from calibrators import artifact as artifacts
from calibrators.artifact import Artifact
from eval.fit import Fitting
from eval.records import replacing
from eval.tables import Place
from gateway.errors import ConfigError
from gateway.nouns import Floats

ENDING = ".held-out.parquet"
COLUMNS = pa.schema([("split", pa.string()), ("question", pa.string()), ("p", pa.float64())])
HASH = b"artifact_sha256"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Of one artefact. p: by question, by a fit that had not seen it, after all of `after`, the earlier tiers that the
    calibrator looks at."""

    p: Mapping[str, float]
    after: tuple[str, ...] = ()


def beside(path: Path) -> Path:
    """The file that belongs to an artefact's."""
    return path.with_suffix(ENDING)


def save(fittings: Sequence[Fitting], paths: Sequence[Path]) -> None:
    """One file beside each artefact. paths: of the artefacts, as they were written."""
    for fitting, path in zip(fittings, paths, strict=True):
        write(path, artifacts.load(path), fitting.table.places, fitting.held_out)


def write(path: Path, artifact: Artifact, places: Sequence[Place], p: Floats) -> None:
    """path: of the artefact.  p: (N,) out of fold, of the answers at `places`."""
    columns = [[split for split, _ in places], [question for _, question in places], p]
    told = COLUMNS.with_metadata({HASH: artifact.sha256.encode()})
    with replacing(beside(path)) as draft:
        pq.write_table(pa.table([pa.array(column) for column in columns], schema=told), draft)


def read(path: Path, artifact: Artifact) -> HeldOut | None:
    """What lies beside an artefact's file; None where nothing does. Raises ConfigError for what is not this artefact's.

    path: of the artefact.
    """
    file = beside(path)
    if not file.is_file():
        return None
    again = "run `confgate fit` again"
    try:
        table = pq.read_table(file)
        columns = [table.column(name).to_pylist() for name in ("question", "p")]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ConfigError(f"{file}: no out-of-fold probabilities ({error}); {again}") from None
    owner = (table.schema.metadata or {}).get(HASH, b"").decode()
    if owner != artifact.sha256:
        raise ConfigError(f"{file} belongs to another artefact than {artifact.label} ({owner[:12]}); {again}")
    told = artifact.fit.get("after")
    after = tuple(str(tier) for tier in told) if isinstance(told, list | tuple) else ()
    return HeldOut(dict(zip(*columns, strict=True)), after)


def of(calibrators: Mapping[str, Path]) -> dict[str, HeldOut]:
    """By tier, where there are any. calibrators: the artefacts' files.  Raises ConfigError and ArtifactError."""
    found = {tier: read(path, artifacts.load(path)) for tier, path in calibrators.items()}
    return {name: held for name, held in found.items() if held is not None}
