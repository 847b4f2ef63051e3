"""What an artifact keeps, and what its loader refuses."""

import datetime as dt
import json
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrators import artifact as home
from calibrators import platt
from calibrators.artifact import (
    Artifact,
    ArtifactCorrupt,
    ArtifactError,
    ArtifactExpired,
    ArtifactMismatch,
    ArtifactMissing,
    ArtifactTooNew,
    dump,
    load,
    sign,
    verify,
)
from calibrators.base import FitData

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
TODAY = dt.date(2026, 3, 2)
SERVED = {
    "model": "Qwen/Qwen2.5-0.5B-Instruct",
    "revision": "7ae557604adf67be50417f59c2c2f167def9a775",
    "engine": "vllm",
    "engine_version": "0.22.0",
    "dtype": "bfloat16",
    "source": "plugin",
    "k": "20",
}


def sealed(**changes: object) -> Artifact:
    told: dict[str, object] = {
        "id": "small-platt",
        "kind": "platt",
        "features": ["lp_mean", "deepconf_tail:32"],
        "params": {"weights": np.array([1.25, 1 / 3]), "intercept": np.float64(-0.1), "trees": [{"left": [1, 2]}]},
        "fingerprint": SERVED,
        "fit": {
            "data_sha256": "ab" * 32,
            "n": 1200,
            "n_rare": 240,
            "objective": "erm",
            "eta": 0.0,
            "seed": 7,
            "split": "fit",
            "slices": ["steps"],
        },
        "metrics": {
            "brier": {"value": 0.12, "low": 0.1, "high": 0.14, "n": 1200},
            "auroc": {"insufficient": "12 wrong answers", "n": 500},
        },
        "validity": {"conditions": ["greedy answers to English word problems"], "checks": {"tokens_max": 512}},
        "created": NOON,
    }
    return Artifact.seal(**(told | changes))  # type: ignore[arg-type]


def rewritten(tmp_path: Path, change: dict[str, object], *, rehash: bool = True) -> Path:
    """A file whose document was changed by someone who also knows how to hash."""
    document = sealed().document() | change  # type: ignore[operator]
    if rehash:
        document["sha256"] = home._sha256(document)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(document))
    return path


def test_save_load_save_gives_identical_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    dump(sealed(expires=dt.date(2026, 9, 1)), first)
    dump(load(first), second)
    assert first.read_bytes() == second.read_bytes()


def test_what_was_sealed_is_what_is_loaded(tmp_path: Path) -> None:
    ours = sealed()
    dump(ours, tmp_path / "a.json")
    theirs = load(tmp_path / "a.json")
    assert theirs.document() == ours.document()
    assert theirs.label == ours.label == f"small-platt@{ours.sha256[:12]}"
    assert theirs.params == {"weights": [1.25, 1 / 3], "intercept": -0.1, "trees": [{"left": [1, 2]}]}


def test_a_copy_laid_out_for_people_still_loads(tmp_path: Path) -> None:
    path = tmp_path / "pretty.json"
    path.write_text(json.dumps(sealed().document(), indent=4))
    assert load(path).label == sealed().label


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.text(st.characters(codec="utf-8")))
def test_every_finite_float_and_every_text_survive_exactly(numbers: list[float], word: str) -> None:
    ours = sealed(params={"numbers": numbers, "word": word})
    theirs = home._parse(home._canonical(ours.document()), "here")
    assert home._sha256(theirs) == ours.sha256
    assert repr(theirs["params"]["numbers"]) == repr(numbers)  # type: ignore[call-overload,index]


def test_writing_leaves_no_draft_and_a_readable_file(tmp_path: Path) -> None:
    dump(sealed(), tmp_path / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    dump(sealed(), path)
    before = path.read_bytes()

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(home.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        dump(sealed(id="other"), path)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_changed_after_sealing_is_not_written(tmp_path: Path) -> None:
    ours = sealed()
    ours.params["intercept"] = 5.0  # type: ignore[index]
    with pytest.raises(ArtifactCorrupt, match="changed after sealing"):
        dump(ours, tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_missing_and_so_is_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ArtifactMissing, match="confgate fit"):
            load(path)


def test_every_cut_of_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    dump(sealed(), path)
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # the last byte is the newline, which carries nothing
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactCorrupt):
            load(path)


def test_every_flipped_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    dump(sealed(), path)
    whole = bytearray(path.read_bytes())
    for place in range(len(whole) - 1):
        bent = whole.copy()
        bent[place] ^= 0x01
        path.write_bytes(bent)
        with pytest.raises(ArtifactError):
            load(path)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "empty"),
        (pickle.dumps({"schema": 1}), "pickle"),
        (b"null", "object"),
        (b"[]", "object"),
        (b"\xff\xfe{}", "UTF-8"),
        (b'\xef\xbb\xbf{"schema": 1}', "JSON"),
        (b'{"a": 1, "a": 1}', "'a' appears twice"),
        (b'{"a": NaN}', "NaN is not finite"),
        (b'{"a": -Infinity}', "not finite"),
        (b'{"a": 1e999}', "1e999 is not finite"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b"[" * 100_000, "nested deeper"),
        (b'{"a": "' + b" " * home.MAX_BYTES + b'"}', "larger than"),
        (b'{"schema": "something/else"}', "schema"),
    ],
)
def test_bytes_that_are_no_artifact_are_refused_with_the_reason(tmp_path: Path, raw: bytes, why: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(raw)
    with pytest.raises(ArtifactCorrupt, match=why) as told:
        load(path)
    assert str(path) in str(told.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"surprise": 1}, "surprise is unknown"),
        ({"features": []}, "features must be"),
        ({"features": ["a", "a"]}, "features must be"),
        ({"fingerprint": {"model": "m"}}, "fingerprint.source is missing"),
        ({"fingerprint": {"model": "m", "source": "plugin", "k": 20}}, "fingerprint must be"),
        ({"fit": {"n": 3}}, "fit.data_sha256 is missing"),
        ({"fit": sealed().fit | {"n_rare": 900}}, "n_rare 900 of n 1200"),  # type: ignore[operator]
        ({"metrics": {"brier": {"value": 0.1}}}, "metrics.brier needs n"),
        ({"validity": {"conditions": "all", "checks": {}}}, "validity must be"),
        ({"created": "yesterday"}, "created must be"),
        ({"created": "2026-03-01T12:00:00"}, "offset"),
        ({"expires": "2026-13-01"}, "expires must be"),
        ({"id": "a b\r\nx"}, "id must be"),
        ({"schema_version": True}, "schema_version"),
        ({"params": {"a": [[[[[[[[[[[[[1]]]]]]]]]]]]]}}, "nested deeper"),
        ({"params": {"a": "\ud800"}}, "canonical"),
    ],
)
def test_a_document_that_says_the_wrong_thing_is_refused(tmp_path: Path, change: dict[str, object], why: str) -> None:
    lone_surrogate = why == "canonical"
    with pytest.raises(ArtifactCorrupt, match=why):
        load(rewritten(tmp_path, change, rehash=not lone_surrogate))


@pytest.mark.parametrize("key", sorted(sealed().document()))
def test_no_key_may_be_missing(tmp_path: Path, key: str) -> None:
    document = sealed().document()
    del document[key]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactCorrupt, match=key):
        load(path)


def test_a_later_schema_is_refused_even_when_its_fields_are_strange(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"schema": home.SCHEMA, "schema_version": 2, "novel": True}))
    with pytest.raises(ArtifactTooNew, match="upgrade"):
        load(path)


def test_a_change_without_a_new_hash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorrupt, match="changed after sealing"):
        load(rewritten(tmp_path, {"params": {"intercept": 9.0}}, rehash=False))


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"w": [1.0, float("nan")]}, r"params\.w\[1\] is nan"),
        ({"w": np.array([np.inf])}, r"params\.w\[0\] is inf"),
        ({3: 1.0}, "every key must be a string"),
        ({"w": {1, 2}}, "JSON has no set"),
    ],
)
def test_sealing_names_the_value_that_json_cannot_carry(params: dict[object, object], why: str) -> None:
    with pytest.raises(ArtifactCorrupt, match=why):
        sealed(params=params)


def test_a_server_that_matches_is_accepted_and_its_silence_is_told() -> None:
    assert sealed().check(SERVED | {"uptime": "3"}, TODAY) == ()
    assert sealed().check({"model": SERVED["model"], "source": "plugin"}, TODAY) == (
        "dtype",
        "engine",
        "engine_version",
        "k",
        "revision",
    )


def test_every_difference_is_named_with_both_sides_and_what_to_do() -> None:
    with pytest.raises(ArtifactMismatch) as told:
        sealed().check(SERVED | {"dtype": "fp8", "engine_version": "0.23.0"}, TODAY)
    assert told.value.differing == (("dtype", "bfloat16", "fp8"), ("engine_version", "0.22.0", "0.23.0"))
    assert "dtype: fitted on 'bfloat16', served 'fp8'" in str(told.value)
    assert "confgate fit" in str(told.value)


def test_the_day_of_expiry_is_the_last_day_of_use() -> None:
    ours = sealed(expires=TODAY)
    assert ours.check(SERVED, TODAY) == ()
    with pytest.raises(ArtifactExpired, match="2026-03-02"):
        ours.check(SERVED, TODAY + dt.timedelta(days=1))


@pytest.mark.parametrize("kind", ["artifact", "os", "no_such_family", "objectives"])
def test_a_kind_that_is_no_family_is_answered_with_those_there_are(kind: str) -> None:
    with pytest.raises(ArtifactCorrupt, match=f"no calibrator '{kind}'; have .*platt"):
        sealed(kind=kind).calibrator()


@pytest.mark.parametrize("kind", ["../evil", "objectives.tilt", ""])
def test_a_kind_that_could_be_a_path_is_not_even_loaded(kind: str) -> None:
    with pytest.raises(ArtifactCorrupt):
        sealed(kind=kind).calibrator()


def fitted_platt() -> tuple[platt.Platt, np.ndarray]:
    rng = np.random.default_rng(3)
    X = rng.normal(size=(400, 1))
    right = (rng.random(400) < 1 / (1 + np.exp(-2 * X[:, 0]))).astype(float)
    return platt.fit(FitData(X, right)), X


def test_a_family_comes_back_from_disk_and_predicts_the_same(tmp_path: Path) -> None:
    fitted, X = fitted_platt()
    dump(sealed(features=["lp_mean"], params=fitted.to_params()), tmp_path / "a.json")
    assert load(tmp_path / "a.json").calibrator().predict(X).tolist() == fitted.predict(X).tolist()


def test_params_that_their_family_refuses_are_a_corrupt_artifact() -> None:
    with pytest.raises(ArtifactCorrupt, match="platt refuses its params"):
        sealed().calibrator()


def test_params_for_another_number_of_features_are_a_corrupt_artifact() -> None:
    with pytest.raises(ArtifactCorrupt, match="platt refuses its params"):
        sealed(params=fitted_platt()[0].to_params()).calibrator()


def test_a_family_whose_package_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(home, "find", absent)
    with pytest.raises(ArtifactError, match="needs a package"):
        sealed().calibrator()


def test_a_signature_binds_the_whole_artifact_to_its_maker(tmp_path: Path) -> None:
    ed25519 = home._ed25519()
    secret, public = bytes(range(32)), b""
    public = ed25519.Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    signed = sign(sealed(), secret)
    dump(signed, tmp_path / "a.json")
    loaded = load(tmp_path / "a.json")
    verify(loaded, public)
    assert loaded.sha256 == sealed().sha256
    other = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()
    with pytest.raises(ArtifactMismatch, match=public.hex()):
        verify(loaded, other)
    stolen = sealed(id="other").document() | {"signature": signed.signature}
    with pytest.raises(ArtifactMismatch, match="not signed by"):
        verify(Artifact._from_document(stolen, "here"), public)
    with pytest.raises(ArtifactMismatch, match="is not signed"):
        verify(sealed(), public)


def test_one_of_several_keys_is_enough_and_a_loader_that_knows_keys_takes_no_other(tmp_path: Path) -> None:
    ours, theirs, strange = (home.public_key(bytes([n]) * 32) for n in (1, 2, 3))
    path = tmp_path / "a.json"
    dump(sealed(), path)
    with pytest.raises(ArtifactMismatch, match=f"is not signed, and a signature by {ours} or {theirs} is required"):
        load(path, [ours, theirs])
    dump(sign(sealed(), bytes([2]) * 32), path)
    assert load(path, [ours, theirs]).signature == load(path).signature
    with pytest.raises(ArtifactMismatch, match=f"not signed by {strange} but, it says, by {theirs}"):
        load(path, [strange])


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "words", "absent"])
def test_a_private_key_is_read_as_openssl_writes_it_and_other_files_are_refused(tmp_path: Path, kind: str) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

    path, secret = tmp_path / "maker.pem", bytes(range(32))
    made = {
        "ed25519": lambda: ed25519.Ed25519PrivateKey.from_private_bytes(secret),
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
    }
    if kind in made:
        plain = serialization.NoEncryption()
        pkcs8 = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
        path.write_bytes(made[kind]().private_bytes(*pkcs8, plain))
    elif kind == "words":
        path.write_text("a key")
    if kind == "ed25519":
        assert home.read_private_key(path) == secret
        return
    said = {"rsa": "another kind than Ed25519", "words": "no open private key in PEM", "absent": "No such file"}[kind]
    with pytest.raises(ArtifactError, match=said):
        home.read_private_key(path)


def test_signing_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(home.importlib, "import_module", absent)
    with pytest.raises(ArtifactError, match=r"confidence-gateway\[sign\]"):
        sign(sealed(), bytes(32))
