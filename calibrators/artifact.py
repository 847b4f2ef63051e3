"""A fitted calibrator on disk: one JSON document per tier, sealed by its hash, never a pickle.

An artifact says whom it belongs to and refuses everyone else. Whatever is wrong with a file or a server, one of five
typed errors says what differs and what to do; the gateway then serves that tier without a confidence and escalates.

Canonical bytes: sorted keys, no spaces, UTF-8, floats as Python's shortest exact repr, no NaN and no infinity. The
SHA-256 is taken over them without the fields `sha256` and `signature`. Saving what was loaded gives the same bytes.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, Self, TypeAlias, TypeGuard, cast

import numpy as np

from calibrators.base import Fitted, UnknownFamily, find

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

SCHEMA = "confidence-gateway/calibrator"
SCHEMA_VERSION = 1
MAX_BYTES = 16 * 2**20  # Venn-Abers on 100,000 points takes about 6 MB; more is a mistake or an attack
MAX_DEPTH = 12  # a tree ensemble needs 5 levels; the parser itself recurses, so it must never see 100,000
OPTIONAL = ("early_abort", "expires", "signature")
UNHASHED = ("sha256", "signature")
NEEDED = {
    "fingerprint": ("model", "source"),  # without these two an artifact would fit any server
    "fit": ("data_sha256", "n", "n_rare", "objective", "eta", "seed", "split", "slices"),
    "validity": ("conditions", "checks"),
}
REFETCH = "fetch the file again or fit anew with `confgate fit`"
MAKE_KEY = "`openssl genpkey -algorithm ed25519 -out maker.pem`"
REFIT = "serve what it was fitted on, or fit anew on this server's answers with `confgate fit`"


class ArtifactError(Exception):
    """Base of every reason not to use a calibrator. The message says what differs and what to do."""


class ArtifactMissing(ArtifactError):
    """No file, or one that may not be read."""


class ArtifactCorrupt(ArtifactError):
    """The bytes are not a whole, unchanged, well-formed artifact."""


class ArtifactTooNew(ArtifactError):
    """Written under a schema that this version does not know."""


class ArtifactMismatch(ArtifactError):
    """Belongs to another server or another signer. `differing`: (field, fitted on, served) for every difference."""

    def __init__(self, message: str, differing: Sequence[tuple[str, str, str]] = ()) -> None:
        super().__init__(message)
        self.differing = tuple(differing)


class ArtifactExpired(ArtifactError):
    """Past the day that its makers vouch for."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Artifact:
    """One tier's calibrator and everything needed to decide whether it may be used.

    id: a name for people, in headers and logs.  kind: the family's file name.
    features: ordered specs, the columns of X.
    params: plain numbers, all that the family rebuilds itself from, its preprocessing included.
    fingerprint: facts about the server that the answers came from (model, revision, tokenizer, chat_template, engine,
    dtype, source, logprobs_mode, k, sampling, ...), each a string; at least `model` and `source`.
    fit: data_sha256, n, n_rare (the rarer of right and wrong), objective, eta, seed, split, slices, and more.
    metrics: by name, `Score.as_json()` or `Insufficient.as_json()`; always an n, and an interval where there is one.
    validity: `conditions` in words, `checks` a mapping that a machine can test.
    created: ISO 8601 with an offset.  expires: ISO date, the last day of use, or None.
    early_abort: when an answer will not be accepted whatever comes: {feature, confidence, levels[]{threshold, epsilon,
    bounds[]{tokens, at_most, n, accepted}}}, as eval/early_abort.py learns it; None where nobody asked for it.
    signature: {algorithm, public_key, value}, or None; it covers sha256 and so everything else.
    """

    id: str
    kind: str
    features: tuple[str, ...]
    params: Mapping[str, Json]
    fingerprint: Mapping[str, str]
    fit: Mapping[str, Json]
    metrics: Mapping[str, Mapping[str, Json]]
    validity: Mapping[str, Json]
    created: str
    expires: str | None
    sha256: str
    early_abort: Mapping[str, Json] | None = None
    signature: Mapping[str, str] | None = None

    @classmethod
    def seal(
        cls,
        *,
        id: str,  # noqa: A002  the document's own word
        kind: str,
        features: Sequence[str],
        params: Mapping[str, object],
        fingerprint: Mapping[str, str],
        fit: Mapping[str, object],
        metrics: Mapping[str, Mapping[str, object]],
        validity: Mapping[str, object],
        created: dt.datetime,
        expires: dt.date | None = None,
        early_abort: Mapping[str, object] | None = None,
    ) -> Self:
        """Close a new artifact. It goes through the same checks as one read from disk, so what is sealed can be loaded.

        NumPy scalars and arrays become plain numbers and lists. Raises ArtifactCorrupt naming the field that is wrong.
        """
        open_document: dict[str, object] = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "id": id,
            "kind": kind,
            "features": list(features),
            "params": params,
            "fingerprint": fingerprint,
            "fit": fit,
            "metrics": metrics,
            "validity": validity,
            "created": created.isoformat(),
        }
        if expires is not None:
            open_document["expires"] = expires.isoformat()
        if early_abort is not None:
            open_document["early_abort"] = early_abort
        document = cast(dict[str, Json], _plain(open_document, "artifact"))
        document["sha256"] = _sha256(document)
        return cls._from_document(document, "this artifact")

    @property
    def label(self) -> str:
        """What headers, logs and metrics call this artifact: id@first-12-hex of its hash."""
        return f"{self.id}@{self.sha256[:12]}"

    def document(self) -> dict[str, Json]:
        """The whole artifact as plain JSON values; absent options are left out."""
        told: dict[str, Json] = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION}
        told |= {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: told[key] for key in told if not (key in OPTIONAL and told[key] is None)}

    def calibrator(self) -> Fitted:
        """The family named by `kind`, rebuilt from `params`, having answered one row as wide as `features`.

        Raises ArtifactCorrupt when there is no such family or it refuses, ArtifactError when a package is missing.
        """
        try:
            fitted = find(self.kind).from_params(dict(self.params))
            p = fitted.predict(np.zeros((1, len(self.features))))
        except UnknownFamily as error:
            raise ArtifactCorrupt(f"{self.label}: {error}. Upgrade this program, or fit anew") from error
        except ImportError as error:
            raise ArtifactError(f"{self.label}: {self.kind} needs a package that is not here ({error})") from error
        except Exception as error:  # whatever a family finds wrong, it means one thing at this door
            raise ArtifactCorrupt(f"{self.label}: {self.kind} refuses its params ({error!r}); {REFETCH}") from error
        if p.shape != (1,) or not 0 < p[0] < 1:
            raise ArtifactCorrupt(
                f"{self.label}: {self.kind} gives {p!r}, not one probability inside (0, 1); {REFETCH}"
            )
        return fitted

    def check(self, served: Mapping[str, str], today: dt.date) -> tuple[str, ...]:
        """Compare with the live server. Returns the fingerprint's fields that `served` is silent about, sorted.

        served: what the server says of itself, by the fingerprint's field names; other fields in it are ignored.
        Raises ArtifactExpired after the last day of use, ArtifactMismatch when any field differs; it names them all.
        """
        if self.expires is not None and today > dt.date.fromisoformat(self.expires):
            raise ArtifactExpired(
                f"{self.label} was good until {self.expires} and today is {today}; check it on fresh labels and "
                "seal it anew, or fit anew with `confgate fit`"
            )
        shared = sorted(self.fingerprint.keys() & served.keys())
        differing = [
            (name, self.fingerprint[name], served[name]) for name in shared if self.fingerprint[name] != served[name]
        ]
        if differing:
            told = "; ".join(f"{name}: fitted on {fitted!r}, served {now!r}" for name, fitted, now in differing)
            raise ArtifactMismatch(f"{self.label} does not belong to this server: {told}. To do: {REFIT}", differing)
        return tuple(sorted(self.fingerprint.keys() - served.keys()))

    @classmethod
    def _from_document(cls, document: Mapping[str, Json], whose: str) -> Self:
        """Every check that does not need a server, in the order that gives the most useful message."""
        try:
            _check_document(document)
        except (ArtifactTooNew, ArtifactCorrupt) as error:
            raise type(error)(f"{whose}: {error}") from None
        told = {key: value for key, value in document.items() if key not in ("schema", "schema_version")}
        told["features"] = tuple(cast(Sequence[str], told["features"]))
        return cls(**cast(dict[str, Any], {"expires": None, "signature": None} | told))


def dump(artifact: Artifact, path: Path | str) -> None:
    """Write atomically: readers see the old file or the whole new one, also after a power cut.

    Raises ArtifactCorrupt when a field was changed after sealing: such a file could never be loaded.
    """
    path = Path(path)
    document = artifact.document()
    Artifact._from_document(document, artifact.label)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".draft")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_canonical(document) + b"\n")
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # mkstemp gives 0600, and the server runs as another user than the fitter
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive the power cut too
    finally:
        os.close(folder)


def load(path: Path | str, signers: Sequence[str] = ()) -> Artifact:
    """Read and check; never runs anything from the file.

    signers: public keys, 64 hex digits each; where there are any, the artifact must be signed by one of them.
    Raises ArtifactMissing, ArtifactCorrupt or ArtifactTooNew, and ArtifactMismatch for who signed it.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        why = error.strerror or str(error)
        raise ArtifactMissing(
            f"{path}: {why}; check the path in the cascade file, or fit with `confgate fit`"
        ) from error
    artifact = Artifact._from_document(_parse(raw, str(path)), str(path))
    if signers:
        verify(artifact, *map(bytes.fromhex, signers))
    return artifact


def sign(artifact: Artifact, private_key: bytes) -> Artifact:
    """The same artifact with an Ed25519 signature over its hash. private_key: the 32 raw bytes."""
    key = _ed25519().Ed25519PrivateKey.from_private_bytes(private_key)
    return replace(
        artifact,
        signature={
            "algorithm": "ed25519",
            "public_key": public_key(private_key),
            "value": key.sign(_signed_bytes(artifact)).hex(),
        },
    )


def public_key(private_key: bytes) -> str:
    """The other half, 64 hex digits. private_key: the 32 raw bytes."""
    key = _ed25519().Ed25519PrivateKey.from_private_bytes(private_key)
    return cast(str, key.public_key().public_bytes_raw().hex())


def read_private_key(path: Path | str) -> bytes:
    """The 32 raw bytes of a key as `openssl genpkey -algorithm ed25519` writes it. Raises ArtifactError."""
    serialization = _cryptography("serialization")
    try:
        key = serialization.load_pem_private_key(Path(path).read_bytes(), password=None)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:  # no PEM, another kind of PEM, or one under a password
        raise ArtifactError(f"{path}: no open private key in PEM; {MAKE_KEY} makes one") from error
    if not isinstance(key, _ed25519().Ed25519PrivateKey):
        raise ArtifactError(f"{path}: a key of another kind than Ed25519; {MAKE_KEY} makes one")
    return cast(bytes, key.private_bytes_raw())


def verify(artifact: Artifact, *public_keys: bytes) -> None:
    """Raises ArtifactMismatch unless the artifact carries a signature by one of these keys. Each: the 32 raw bytes.

    The keys come from the operator, never from the file: the one in the file only makes the message useful.
    """
    wanted = " or ".join(key.hex() for key in public_keys)
    if artifact.signature is None:
        raise ArtifactMismatch(
            f"{artifact.label} is not signed, and a signature by {wanted} is required; get it signed with "
            "`confgate sign` by who holds that key"
        )
    ed25519 = _ed25519()
    for key in public_keys:
        try:
            value = bytes.fromhex(artifact.signature["value"])
            ed25519.Ed25519PublicKey.from_public_bytes(key).verify(value, _signed_bytes(artifact))
        except Exception:  # noqa: S112  InvalidSignature lives in a package that may not be here; a bad key: ValueError
            continue
        return
    raise ArtifactMismatch(
        f"{artifact.label}: not signed by {wanted} but, it says, by {artifact.signature['public_key']}; "
        "get it from its maker again, or trust that key if you know it"
    )


def _signed_bytes(artifact: Artifact) -> bytes:
    """The prefix keeps a signature made here from meaning anything elsewhere."""
    return f"{SCHEMA}/{SCHEMA_VERSION}\n{artifact.sha256}".encode()


def _ed25519() -> ModuleType:
    return _cryptography("asymmetric.ed25519")


def _cryptography(module: str) -> ModuleType:
    """Imported on use: few artifacts travel, and everyone else should not need the package."""
    try:
        return importlib.import_module(f"cryptography.hazmat.primitives.{module}")
    except ImportError as error:
        raise ArtifactError(
            "signatures need the package `cryptography`: pip install 'confidence-gateway[sign]'"
        ) from error


# What the bytes must be


def _parse(raw: bytes, whose: str) -> dict[str, Json]:
    """Bytes to a plain document, refusing what JSON parsers let pass: twin keys, NaN, overflow, deep nests."""

    def refuse(why: str) -> NoReturn:
        raise ArtifactCorrupt(f"{whose}: {why}; {REFETCH}")

    def no_twins(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        seen = dict(pairs)
        if len(seen) != len(pairs):
            names = [name for name, _ in pairs]
            refuse(f"key {next(name for name in names if names.count(name) > 1)!r} appears twice")
        return seen

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            refuse(f"number {text} is not finite")
        return number

    if not raw:
        refuse("the file is empty")
    if len(raw) > MAX_BYTES:
        refuse(f"larger than {MAX_BYTES} bytes")
    if raw.startswith(b"\x80"):
        refuse("a pickle, which is code and is never loaded")
    try:
        document = json.loads(
            raw.decode("utf-8"), object_pairs_hook=no_twins, parse_float=finite, parse_constant=finite
        )
    except RecursionError:
        refuse(f"nested deeper than {MAX_DEPTH} levels")
    except UnicodeDecodeError as error:
        refuse(f"not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        refuse(f"no whole JSON document ({error}; {len(raw)} bytes)")
    except ValueError as error:  # an integer of thousands of digits
        refuse(str(error))
    if not isinstance(document, dict):
        refuse(f"need a JSON object, got {type(document).__name__}")
    return document


def _canonical(document: Mapping[str, Json]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
        "utf-8"
    )


def _sha256(document: Mapping[str, Json]) -> str:
    return hashlib.sha256(_canonical({key: document[key] for key in document if key not in UNHASHED})).hexdigest()


def _plain(value: object, where: str) -> Json:
    """Copy into plain JSON values. Raises ArtifactCorrupt naming the place of what JSON cannot carry exactly."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ArtifactCorrupt(f"{where}: every key must be a string, got {sorted(map(repr, value))}")
        return {key: _plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{where}[{i}]") for i, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ArtifactCorrupt(f"{where} is {value}; an artifact holds finite numbers only")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ArtifactCorrupt(f"{where}: JSON has no {type(value).__name__}")


# What the document must say


def _check_document(document: Mapping[str, Json]) -> None:
    """Raises ArtifactTooNew or ArtifactCorrupt with the first thing that is wrong."""
    if document.get("schema") != SCHEMA:
        raise ArtifactCorrupt(f"need a document of schema {SCHEMA!r}, got {document.get('schema')!r}; {REFETCH}")
    version = document.get("schema_version")
    if not _is_whole(version) or version < 1:
        raise ArtifactCorrupt(f"schema_version must be a whole number from 1 on, got {version!r}; {REFETCH}")
    if version > SCHEMA_VERSION:
        raise ArtifactTooNew(
            f"schema version {version}, this program knows up to {SCHEMA_VERSION}; upgrade it, or fit "
            "anew with its own `confgate fit`"
        )
    wanted = {"schema", "schema_version"} | {field.name for field in fields(Artifact)}
    _check_keys("", document, wanted - set(OPTIONAL), wanted)
    _check_depth(document)
    try:
        actual = _sha256(document)
    except (UnicodeEncodeError, ValueError) as error:
        raise ArtifactCorrupt(f"no canonical bytes exist ({error}); {REFETCH}") from None
    if document["sha256"] != actual:
        raise ArtifactCorrupt(f"says sha256 {document['sha256']!r} but is {actual}: changed after sealing; {REFETCH}")
    for name, test, need in RULES:
        if name in document and not test(document[name]):
            raise ArtifactCorrupt(f"{name} must be {need}, got {_short(document[name])}; {REFETCH}")
    for name, keys in NEEDED.items():
        _check_keys(f"{name}.", cast(Mapping[str, Json], document[name]), set(keys), None)
    _check_fit(cast(Mapping[str, Json], document["fit"]))
    for name, metric in cast(Mapping[str, Mapping[str, Json]], document["metrics"]).items():
        if not _is_whole(metric.get("n")) or not ({"value", "low", "high"} <= set(metric) or "insufficient" in metric):
            raise ArtifactCorrupt(f"metrics.{name} needs n with value, low and high, or with insufficient; {REFETCH}")


def _check_keys(where: str, document: Mapping[str, Json], needed: set[str], known: set[str] | None) -> None:
    """known: every key allowed, None where more are welcome."""
    missing = sorted(needed - set(document))
    unknown = sorted(set(document) - known) if known is not None else []
    if missing or unknown:
        wrong = [f"{where}{key} is missing" for key in missing] + [f"{where}{key} is unknown" for key in unknown]
        raise ArtifactCorrupt(f"{', '.join(wrong)}; {REFETCH}")


def _check_depth(document: Json) -> None:
    level: list[Json] = [document]
    for _ in range(MAX_DEPTH):
        inner: list[Json] = []
        for value in level:
            if isinstance(value, Mapping):
                inner.extend(value.values())
            elif isinstance(value, list | tuple):
                inner.extend(value)
        if not inner:
            return
        level = inner
    raise ArtifactCorrupt(f"nested deeper than {MAX_DEPTH} levels; {REFETCH}")


def _check_fit(fit: Mapping[str, Json]) -> None:
    n, n_rare = fit["n"], fit["n_rare"]
    if not _is_whole(n) or not _is_whole(n_rare) or not 0 <= 2 * n_rare <= n:
        raise ArtifactCorrupt(f"fit needs whole 0 <= n_rare <= n / 2, got n_rare {n_rare!r} of n {n!r}; {REFETCH}")
    if not _is_hex(fit["data_sha256"], 64):
        raise ArtifactCorrupt(f"fit.data_sha256 must be 64 hex digits, got {_short(fit['data_sha256'])}; {REFETCH}")


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_hex(value: object, digits: int) -> bool:
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None


def _is_name(value: object) -> bool:
    """Fit to stand in an HTTP header and in a file name."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value) is not None


def _is_features(value: object) -> bool:
    good = isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value)
    return good and 0 < len(set(cast(Sequence[str], value))) == len(cast(Sequence[str], value))


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_words(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(word, str) and word for word in value.values())


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(row, Mapping) for row in value.values())


def _is_validity(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    conditions = value.get("conditions", [])
    return (
        isinstance(conditions, list | tuple)
        and all(isinstance(condition, str) for condition in conditions)
        and isinstance(value.get("checks", {}), Mapping)
    )


def _is_early_abort(value: object) -> bool:
    def rows(found: object, *keys: str) -> bool:
        good = isinstance(found, list | tuple) and all(isinstance(row, Mapping) for row in found)
        return good and all(_is_number(row.get(key)) for row in cast(Sequence[Any], found) for key in keys)

    if not isinstance(value, Mapping) or not isinstance(value.get("feature"), str):
        return False
    levels = value.get("levels")
    return rows(levels, "threshold", "epsilon") and all(
        rows(level.get("bounds"), "tokens", "at_most", "n", "accepted") for level in cast(Sequence[Any], levels)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_day(value: object) -> bool:
    try:
        return isinstance(value, str) and dt.date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


def _is_moment(value: object) -> bool:
    try:
        return isinstance(value, str) and dt.datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _is_signature(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) == {"algorithm", "public_key", "value"}
        and value["algorithm"] == "ed25519"
        and _is_hex(value["public_key"], 64)
        and _is_hex(value["value"], 128)
    )


RULES: tuple[tuple[str, Callable[[object], bool], str], ...] = (
    ("id", _is_name, "1 to 64 letters, digits, dots, dashes, underscores"),
    ("kind", _is_name, "the file name of a calibrator family"),
    ("features", _is_features, "a list of different feature names, at least one"),
    ("params", _is_mapping, "an object"),
    ("fingerprint", _is_words, "an object of non-empty strings"),
    ("fit", _is_mapping, "an object"),
    ("metrics", _is_table, "an object of objects"),
    ("validity", _is_validity, "an object with a list of words `conditions` and an object `checks`"),
    ("early_abort", _is_early_abort, "an object with a feature and levels of threshold, epsilon and bounds"),
    ("created", _is_moment, "an ISO 8601 time with its offset"),
    ("expires", _is_day, "an ISO date"),
    ("signature", _is_signature, "an object {algorithm: ed25519, public_key, value}"),
)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
