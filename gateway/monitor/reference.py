"""What traffic looked like when the calibrators were trusted: one NumPy file beside the cascade's, never a pickle.

An artefact tells the mean of its features and no more, over all answers of its split; a later tier sees only what
earlier ones were unsure of. So the reference is of a policy: rows that each tier would be asked, by replay of records
that fitted nothing (`confgate monitors --write`), or rows of the decision log of a time that is known to be good.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from gateway.errors import ConfigError
from gateway.nouns import Floats, Hop

Words = npt.NDArray[np.str_]

ROWS = 5_000  # more do not make KS distances of .1 surer, and every look sorts them
QUANTILE = 0.99
AGAIN = "write it again with `confgate monitors --write`"


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """Whose n rows are, how long their prompts, and what requests said of themselves, to tell slices apart.

    prompt_tokens: (n,) of the request, as its first tier counted them, NaN where nobody told.  clients: (n,) names of
    keys, "" where nobody told.  metadata: (n,) as of `tagged`; None where nobody kept any.
    """

    prompt_tokens: Floats
    clients: Words
    metadata: Words | None = None

    def __getitem__(self, rows: Any) -> Marks:
        told = None if self.metadata is None else self.metadata[rows]
        return Marks(self.prompt_tokens[rows], self.clients[rows], told)


@dataclass(frozen=True, slots=True, eq=False)
class TierReference:
    """One tier of one policy. calibrator: the label of the artefact whose p stands in the rows.

    names: of F features.  rows: (n, F + 1), p_correct last.  mean: (F,).  precision: (F, F), inverse of the shrunken
    covariance (Ledoit and Wolf 2004).  limit: 99th percentile of the reference's own squared distances.
    marks: None where slices cannot be told apart.
    had_of: the label of the calibrator whose traffic the rows are, where another one's p was put in; "" for its own.
    """

    calibrator: str
    names: tuple[str, ...]
    rows: Floats
    mean: Floats
    precision: Floats
    limit: float
    marks: Marks | None = None
    had_of: str = ""

    def under(self, calibrator: str, names: Sequence[str], predict: Callable[[Floats], Floats]) -> TierReference | None:
        """The same answers as another calibrator judges them; None where it looks at what these rows do not hold.

        names: of its features, which must be measured on the same part of an answer.  predict: (n, F) -> p (n,).
        """
        if not {*names} <= {*self.names}:
            return None
        at = [self.names.index(name) for name in names]
        rows = np.column_stack([self.rows[:, at], predict(self.rows[:, at])])
        covariance = np.linalg.pinv(self.precision, hermitian=True)[np.ix_(at, at)]
        known = replace(
            self, calibrator=calibrator, names=tuple(names), rows=rows, mean=self.mean[at],
            precision=np.linalg.pinv(covariance, hermitian=True), had_of=self.had_of or self.calibrator,
        )  # fmt: skip
        return replace(known, limit=float(np.quantile(known.distances(rows[:, :-1]), QUANTILE)))

    def part(self, mask: npt.NDArray[np.bool_]) -> TierReference:
        """Some of the rows, (n,), as a reference of their own, with the same distance and a limit of their own."""
        rows = self.rows[mask]
        limit = float(np.quantile(self.distances(rows[:, :-1]), QUANTILE))
        return replace(self, rows=rows, limit=limit, marks=None)

    def distances(self, X: Floats) -> Floats:
        """Squared Mahalanobis distances, (n,); missing values count as the mean. X: (n, F)."""
        away = np.where(np.isfinite(X), X - self.mean, 0.0)
        squared: Floats = np.einsum("nf,fg,ng->n", away, self.precision, away)
        return squared

    def distance(self, x: Floats) -> float:
        """Of one row, (F,): the score of how far out one request is. Larger = farther; compare with `limit`."""
        return float(self.distances(x[None, :])[0])


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """By (policy, tier). sha256: of the file it was read from, "" without one.

    written: what stands in that file, where other calibrators have come into service since; None where it is this.
    """

    tiers: Mapping[tuple[str, str], TierReference]
    sha256: str = ""
    written: Reference | None = None


NOTHING = Reference({})
NO_METADATA: Mapping[str, str] = {}


def tier_reference(calibrator: str, names: Sequence[str], rows: Floats, marks: Marks | None = None) -> TierReference:
    """Fit one. rows: (n, F + 1), p_correct last; those beyond ROWS are left out evenly. Needs scikit-learn.

    Raises ConfigError for fewer rows than a look compares.
    """
    from sklearn.covariance import ledoit_wolf  # a serving gateway has no scikit-learn

    if rows.ndim != 2 or rows.shape[1] != len(names) + 1 or len(rows) < 10 * (len(names) + 1):
        raise ConfigError(
            f"a reference of {calibrator} needs at least {10 * (len(names) + 1)} rows of {len(names)} features and p, "
            f"got {rows.shape}; take more records"
        )
    kept = slice(None, None, -(-len(rows) // ROWS))
    rows, marks = rows[kept], None if marks is None else marks[kept]
    X = rows[:, :-1]
    mean = np.array([column[np.isfinite(column)].mean() if np.isfinite(column).any() else 0.0 for column in X.T])
    away = np.where(np.isfinite(X), X - mean, 0.0)
    scale = np.where(away.std(axis=0) > 0, away.std(axis=0), 1.0)
    covariance, _ = ledoit_wolf(away / scale, assume_centered=True)  # scaled: shrinking mixes units otherwise
    precision = np.linalg.pinv(covariance) / np.outer(scale, scale)
    known = TierReference(calibrator, tuple(names), rows, mean, precision, np.inf, marks)
    return replace(known, limit=float(np.quantile(known.distances(X), QUANTILE)))


def tagged(metadata: Mapping[str, str]) -> str:
    """What a request said of itself, for an array of words: each name=value between two line ends."""
    return "".join(f"\n{name}={value}\n" for name, value in metadata.items())


def telling(hops: Sequence[Hop]) -> list[Hop]:
    """The hops of one request that may be compared: with evidence, and asked for no other cause than low confidence.

    Behind a hop that failed or gave no evidence, a tier is asked what it otherwise never sees; a fault of a server must
    not look like drift, so such hops stay out as well.
    """
    found = []
    for hop in hops:
        if hop.error is not None or hop.p_correct is None or hop.features is None:
            break
        found.append(hop)
    return found


def row(hop: Hop) -> Floats:
    """(F + 1,), p_correct last. Only of hops with evidence."""
    assert hop.features is not None
    assert hop.p_correct is not None
    return np.append(hop.features.values, hop.p_correct)


def dump(reference: Reference, path: Path) -> None:
    """Write atomically."""
    head = [
        {
            "policy": policy,
            "tier": tier,
            "calibrator": known.calibrator,
            "names": known.names,
            "limit": known.limit,
            "had_of": known.had_of,
        }
        for (policy, tier), known in reference.tiers.items()
    ]
    arrays: dict[str, npt.NDArray[Any]] = {"head": np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)}
    for number, known in enumerate(reference.tiers.values()):
        arrays |= {f"rows{number}": known.rows, f"mean{number}": known.mean, f"precision{number}": known.precision}
        if known.marks is not None:
            arrays |= {f"tokens{number}": known.marks.prompt_tokens, f"clients{number}": known.marks.clients}
            if known.marks.metadata is not None:
                arrays[f"metadata{number}"] = known.marks.metadata
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **arrays)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".draft")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(packed.getvalue())
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def load(path: Path) -> Reference:
    """Raises ConfigError for anything that is not a whole reference; never runs anything from the file."""
    try:
        packed = path.read_bytes()
        with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
            head = json.loads(arrays["head"].tobytes())
            return Reference(
                {
                    (told["policy"], told["tier"]): _checked(
                        TierReference(
                            told["calibrator"],
                            tuple(told["names"]),
                            arrays[f"rows{number}"],
                            arrays[f"mean{number}"],
                            arrays[f"precision{number}"],
                            float(told["limit"]),
                            Marks(
                                arrays[f"tokens{number}"],
                                arrays[f"clients{number}"],
                                arrays.get(f"metadata{number}"),
                            )
                            if f"tokens{number}" in arrays
                            else None,  # as it was written before there were slices
                            str(told.get("had_of", "")),
                        )
                    )
                    for number, told in enumerate(head)
                },
                hashlib.sha256(packed).hexdigest(),
            )
    except (OSError, KeyError, TypeError, ValueError, BadZipFile, EOFError) as error:
        raise ConfigError(f"{path} holds no reference for drift ({error}); {AGAIN}") from None


def _checked(known: TierReference) -> TierReference:
    wide = len(known.names)
    if known.rows.ndim != 2 or known.rows.shape[1] != wide + 1 or not len(known.rows):
        raise ValueError(f"rows of {known.calibrator} are {known.rows.shape}")
    if known.mean.shape != (wide,) or known.precision.shape != (wide, wide):
        raise ValueError(f"moments of {known.calibrator} do not fit its {wide} features")
    marks = known.marks
    of_each = () if marks is None else (marks.prompt_tokens, marks.clients, marks.metadata)
    if any(marked is not None and marked.shape != (len(known.rows),) for marked in of_each):
        raise ValueError(f"marks of {known.calibrator} are not one for each of its rows")
    return known
