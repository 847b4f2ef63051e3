"""`confgate keys`: what it prints lets the key in, and nothing else tells it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway import cli, config
from gateway.errors import GatewayError
from gateway.http.auth import Keyring

REST = """
tiers: [{name: t, engine: {kind: openai_http, url: "http://127.0.0.1:1/v1", model: m}}]
policies: {default: {steps: [{tier: t}]}}
"""


def ran(*words: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, output and the error's words."""
    result = CliRunner().invoke(cli.app, ["keys", *words], env=environment)
    assert result.exception is None or isinstance(result.exception, GatewayError | SystemExit), result.exception
    return result.exit_code, result.output, str(result.exception or "")


def who(lines: str, key: str) -> str:
    read = config.parse(lines + REST, Path("/somewhere/cascade.yaml"))
    return Keyring.of(read.keys).who(f"Bearer {key}").name


@pytest.mark.parametrize("name", ["me", "1e5", "2026-02-30", "null"])
def test_the_lines_that_are_printed_let_the_key_in(name: str) -> None:
    code, out, _ = ran("--name", name)
    told, lines = out.split("\n\n")
    key = told.removeprefix("the key, told this once: ")
    assert (code, who(lines, key)) == (0, name)
    assert key not in lines
    assert ran()[1] != ran()[1]


def test_a_key_can_be_an_admins_and_told_as_json() -> None:
    code, out, _ = ran("--admin", "--name", "root", "--json")
    told = json.loads(out)
    assert (code, told["kind"], told["name"]) == (0, "admin", "root")
    assert told["sha256"] == hashlib.sha256(told["key"].encode()).hexdigest()
    read = config.parse(
        f"keys:\n  allow_anonymous: true\n{ran('--admin')[1].split('keys:', 1)[1]}{REST}", Path("c.yaml")
    )
    assert [admin.name for admin in read.keys.admins] == ["me"]


def test_a_key_in_a_file_is_its_owners_is_not_printed_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    code, out, _ = ran("--file", str(path))
    key = path.read_text().strip()
    assert (code, path.stat().st_mode & 0o777) == (0, 0o600)
    assert key not in out
    assert who(out.split("\n\n")[1], key) == "me"
    assert "key" not in json.loads(ran("--file", str(tmp_path / "b.key"), "--json")[1])
    code, out, err = ran("--file", str(path))
    assert (code, out, path.read_text().strip()) == (1, "", key)
    assert f"cannot keep the key in {path}: File exists" in err


def test_a_key_that_is_there_already_is_hashed(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    path.write_text("sk-1\n")
    for place in ("env:A_KEY", f"file:{path}"):
        code, out, _ = ran("--from", place, A_KEY="sk-1\n")
        assert (code, who(out, "sk-1")) == (0, "me")
        assert "sk-1" not in out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--from", "sk-1"), 1, "--from wants env:NAME or file:PATH"),
        (("--from", "env:NO_SUCH_KEY"), 1, "NO_SUCH_KEY is not set"),
        (("--name", "a b"), 1, "--name wants letters"),
        (("--from", "env:A_KEY", "--file", "x"), 2, "--from names a key that is kept already"),
    ],
)
def test_what_is_no_key_is_refused(words: tuple[str, ...], code: int, told: str) -> None:
    ended, out, err = ran(*words, A_KEY="sk-2")
    assert (ended, told in out + err) == (code, True)
    assert "sk-" not in out + err
