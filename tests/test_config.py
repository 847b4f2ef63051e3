"""The configuration file: what is right is read, what is wrong is told with its line."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from gateway import config, engines
from gateway.errors import ConfigError
from gateway.http.auth import Keyring

GOOD = """\
server:
  port: 9000
keys:
  allow_anonymous: true
tiers:
  - name: small
    engine: {kind: openai_http, url: "http://127.0.0.1:1/v1", model: m}
    calibrator: here/small.json
  - name: large
    engine:
      kind: openai_http
      url: http://127.0.0.1:2/v1
      model: l
      api_key: env:LARGE_KEY
policies:
  default:
    steps:
      - {tier: small, accept_at: 0.8}
      - tier: large
"""

FILE = Path("/somewhere/cascade.yaml")
DIGITS = 5_000 * "1"  # more than Python reads as a number
HASH = 64 * "b"


def told(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, FILE)
    return str(caught.value)


def test_a_good_file_is_read_and_paths_start_at_its_folder() -> None:
    read = config.parse(GOOD, FILE)
    assert read.server.port == 9000
    assert read.tiers[0].calibrator == Path("/somewhere/here/small.json")
    assert [step.accept_at for step in read.policies["default"].steps] == [0.8, None]


@pytest.mark.parametrize(
    ("right", "wrong", "line", "words"),
    [
        ("port: 9000", "prot: 9000", 2, "no key 'prot'; did you mean 'port'?"),
        ("port: 9000", "port: 90000", 2, "less than or equal to 65535"),
        ("port: 9000", 'hosts: [a, "gw.example.com:8080"]', 2, "server.hosts[1]: need a name alone"),
        ("port: 9000", "hosts: [https://gw.example.com]", 2, "need a name alone, without scheme, port and path"),
        ("port: 9000", "hosts: ['*.example.com']", 2, "'*' for any"),
        ("server:", "admin: {allow_anonymous: true, hosts: ['::1']}\nserver:", 1, "admin.hosts[0]: need a name alone"),
        ("port: 9000", "hosts: localhost", 2, "server.hosts: need a list"),
        ("server:", "overrides: [x]\nserver:", 1, "overrides: need keys and values"),
        ("server:", "monitors: {slices: {metadata: 3}}\nserver:", 1, "metadata: need keys and values"),
        ("server:", "overrides: {threshold: [.1]}\nserver:", 1, "overrides.threshold[1]: is missing"),
        ("server:", "overrides: {threshold: [.1, .2, .3]}\nserver:", 1, "threshold: need at most 2, have 3"),
        ("  allow_anonymous: true", "  allow_anonymous: true\n  anonymous: {limits: {usd_per_day: .inf}}", 5, "finite"),
        ("    calibrator: here", "    prices: {usd_per_mtok_in: .nan}\n    calibrator: here", 8, "finite"),
        ("    calibrator: here", "    patience_seconds: .inf\n    calibrator: here", 8, "finite"),
        ("server:", "serve:", 1, "no key 'serve'; did you mean 'server'?"),
        ("server:", "monitors: {rows: 5}\nserver:", 1, "greater than or equal to 200"),
        ("server:", "monitors:\n  labels_by: anybody\nserver:", 2, "'operators' or 'everybody'"),
        ("server:", "monitors: {slos: {acepted_error: .1}}\nserver:", 1, "did you mean 'accepted_error'?"),
        ("url: http://127.0.0.1:2/v1", "ulr: x", 12, "no key 'ulr'; did you mean 'url'?"),
        ("http://127.0.0.1:2/v1", "http://:2/v1", 12, "it names no host"),
        ("http://127.0.0.1:2/v1", "http://vllm..svc:2/v1", 12, "label empty or too long"),
        ("http://127.0.0.1:2/v1", "http://vllm:70000/v1", 12, "Port out of range"),
        ("model: l\n", "model: l\n      max_reply_mib: .inf\n", 14, "finite number"),
        ("kind: openai_http\n", "kind: openai\n", 11, "local, openai_http"),
        ("api_key: env:LARGE_KEY", "api_key: sk-123", 14, "pattern"),
        ("calibrator: here/small.json", "calibrator: 7", 8, "path"),
        ("calibrator: here/small.json", "calibrator: ~nosuchuser/x.json", 8, "path can be made of this: Could not"),
        ("calibrator: here/small.json", 'calibrator: "a\\0b"', 8, "path can be made of this: embedded null"),
        ("api_key: env:LARGE_KEY", "api_key: file:~nosuchuser/key", 14, "path can be made of this: Could not"),
        ("allow_anonymous: true", "allow_anonymous: false", 3, "nobody may ask"),
        ("accept_at: 0.8", "accept_at: 1.8", 18, "less than or equal to 1"),
        ("{tier: small, accept_at: 0.8}", "{tier: smal, accept_at: 0.8}", 18, "did you mean 'small'?"),
        (", accept_at: 0.8", "", 18, "only the last step may lack accept_at"),
        ("- tier: large", "- {tier: large, accept_at: 0.5}", 19, "always answers"),
        ("- tier: large", "- tier: small", 19, "only once"),
        ("    calibrator: here/small.json\n", "", 17, "no calibrator"),
        ("default:", "defalt:", 15, "must be called default"),
        ("name: large", "name: small", 5, "same name"),
        ("name: large", "name: auto", 9, "whole cascade"),
        ("name: large", 'name: "a\\r\\nb"', 9, "pattern"),
        ("port: 9000", "port: 9000\n  port: 9001", 3, "written twice"),
        ("port: 9000", "port: [", 4, "no YAML"),
        ("port: 9000", "port: !!python/object:os.system x", 2, "no YAML"),
        ("name: large", "name: 2026-02-30", 9, "a number, a date or the like, and is none"),
        pytest.param("name: large", "name: " + DIGITS, 9, "a number, a date or the like, and is none", id="digits"),
        ("port: 9000", "port: 0x_", 2, "a number, a date or the like, and is none"),
        ("port: 9000", "port: !!float ''", 2, "a number, a date or the like, and is none"),
        ("port: 9000", "port: !!bool x", 2, "a number, a date or the like, and is none"),
        ("port: 9000", "port: !!timestamp x", 2, "a number, a date or the like, and is none"),
    ],
)
def test_a_mistake_is_told_with_its_line(right: str, wrong: str, line: int, words: str) -> None:
    assert right in GOOD
    message = told(GOOD.replace(right, wrong, 1))
    assert message.startswith(f"{FILE}:{line}: "), message
    assert words in message
    assert "sk-123" not in message


def test_all_mistakes_are_told_at_once() -> None:
    message = told(GOOD.replace("port:", "prot:").replace("accept_at: 0.8", "accept_at: 8"))
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "a: &x [*x]\n", 'a: "\\UFFFFFFFF"', pytest.param(f"%YAML 1.{DIGITS}\n---\na: 1", id="version")],
)
def test_what_is_no_configuration_is_refused(text: str) -> None:
    assert str(FILE) in told(text)


@pytest.mark.parametrize(("tiers", "words"), [("[]", "tiers: need at least 1, have 0"), ("3", "tiers: need a list")])
def test_a_cascade_has_a_tier(tiers: str, words: str) -> None:
    assert words in told(f"keys: {{allow_anonymous: true}}\ntiers: {tiers}\npolicies: {{}}")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        config.read(tmp_path / "nowhere.yaml")


def test_a_model_folder_that_is_missing_is_named_with_its_line(tmp_path: Path) -> None:
    text = GOOD.replace(
        'engine: {kind: openai_http, url: "http://127.0.0.1:1/v1", model: m}', "engine: {kind: local, model: ./gone}"
    )
    with pytest.raises(ConfigError) as caught:
        config.parse(text, tmp_path / "c.yaml")
    assert "c.yaml:7: tiers[0].engine.model: " in str(caught.value)
    assert "gone" in str(caught.value)


def test_a_key_is_a_hash_or_a_reference_never_itself() -> None:
    for client in (
        "{name: a, sha256: sk-1}",
        "{name: a, key: sk-1}",
        "{name: a}",
        '{name: a, key: "env:X", sha256: ""}',
    ):
        assert "sk-1" not in told(GOOD.replace("allow_anonymous: true", f"clients: [{client}]"))


@pytest.mark.parametrize("kind", ["env", "file"])
def test_blanks_around_a_key_do_not_count(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", " sk-1\n")
    (tmp_path / "key").write_text(" sk-1\n")
    client = config.Client(name="a", key={"env": "env:A_KEY", "file": f"file:{tmp_path}/key"}[kind])
    assert client.digest() == hashlib.sha256(b"sk-1").digest()


@pytest.mark.parametrize("kind", ["env", "file"])
@pytest.mark.parametrize(
    ("key", "words"),
    [
        (b" \n", "is empty"),
        (b"sk-\xff", "it is not UTF-8"),
        ("sk-gr\u00fcn".encode(), "printable ASCII"),
        (b"sk-\t1", "printable ASCII"),
    ],
)
def test_a_key_that_no_client_could_send_is_refused(
    kind: str, key: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", os.fsdecode(key))
    (tmp_path / "key").write_bytes(key)
    client = config.Client(name="a", key={"env": "env:A_KEY", "file": f"file:{tmp_path}/key"}[kind])
    with pytest.raises(ConfigError, match=words) as caught:
        client.digest()
    assert "sk-" not in str(caught.value)


NOTHING = hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (f"clients: [{{name: a, sha256: {NOTHING}}}]", "keys.clients[0].sha256: the SHA-256 of nothing"),
        (f"admins: [{{name: a, sha256: {NOTHING}}}]", "keys.admins[0].sha256: the SHA-256 of nothing"),
        (
            f"clients: [{{name: a, sha256: {HASH}}}, {{name: b, sha256: {HASH}}}]",
            "client b has the key of client a",
        ),
        (
            f"clients: [{{name: a, sha256: {HASH}}}]\n  admins: [{{name: a, sha256: {HASH}}}]",
            "admin a has the key of client a",
        ),
        (
            "admins: [{name: a, key: env:A}, {name: b, key: env:A}]",
            "keys.admins[1]: admin b has the key of admin a",
        ),
    ],
)
def test_a_key_is_one_persons(keys: str, words: str) -> None:
    message = told(GOOD.replace("allow_anonymous: true", f"allow_anonymous: true\n  {keys}"))
    assert words in message
    assert HASH not in message


def test_keys_are_compared_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "sk-1")
    (tmp_path / "key").write_text("sk-1\n")
    a, b = config.Client(name="a", key="env:A_KEY"), config.Client(name="b", key=f"file:{tmp_path}/key")
    hashed = config.Client(name="b", sha256=hashlib.sha256(b"sk-1").hexdigest())
    for keys in ({"clients": (a, b)}, {"clients": (a,), "admins": (b,)}, {"clients": (a,), "admins": (hashed,)}):
        with pytest.raises(ConfigError, match=r"(client|admin) b has the key of client a"):
            Keyring.of(config.Keys(**keys))
    twice = Keyring.of(config.Keys(clients=(a, config.Client(name="a", key=f"file:{tmp_path}/key"))))
    assert len(twice.clients) == 2


def test_the_schema_knows_every_engine() -> None:
    text = json.dumps(config.schema())
    assert "accept_at" in text
    for kind in engines.kinds():
        assert kind in text


def test_every_engine_file_keeps_the_contract() -> None:
    for kind in engines.kinds():
        file = engines.find(kind)
        assert issubclass(file.Options, engines.Options)
        assert kind in str(file.Options.model_fields["kind"].annotation)
        assert callable(file.open_engine)
    with pytest.raises(ConfigError, match="openai_http"):
        engines.find("nothing")
