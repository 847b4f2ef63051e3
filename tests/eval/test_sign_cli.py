"""Signing calibrators from the command line, with a key as openssl writes it."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from calibrators import artifact as artifacts
from eval.sign_cli import app
from gateway.errors import GatewayError
from tests.faults.gateway import write_artifact


def test_what_is_signed_is_taken_under_the_key_that_was_printed(tmp_path: Path, key: Path) -> None:
    paths = [tmp_path / f"{name}.json" for name in "ab"]
    labels = [write_artifact(path) for path in paths]
    ended = CliRunner().invoke(app, [*map(str, paths), "--key", str(key), "--json"])
    told = json.loads(ended.output)
    assert told["signed"] == labels  # its hash, and so its name, is what it was
    for path in paths:
        assert artifacts.load(path, [told["public_key"]]).signature is not None
    assert f"signers: [{told['public_key']}]" in CliRunner().invoke(app, [str(paths[0]), "--key", str(key)]).output


def test_a_broken_calibrator_among_them_leaves_all_as_they_were(tmp_path: Path, key: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    write_artifact(good)
    bad.write_bytes(good.read_bytes()[:-20])
    before = good.read_bytes()
    ended = CliRunner().invoke(app, [str(good), str(bad), "--key", str(key)])
    assert isinstance(ended.exception, GatewayError)
    assert "bad.json" in str(ended.exception)
    assert good.read_bytes() == before
