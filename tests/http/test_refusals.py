"""What clients may not send, and what they are told then: always OpenAI's error object, never a 5xx."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import httpx2
import openai
import pytest

from gateway import config as configs
from gateway.errors import ConfigError, EngineError, GatewayError
from gateway.http.app import create_app
from gateway.http.auth import Keyring
from gateway.http.errors import TABLE, problem
from gateway.http.journal import Journal
from gateway.http.live import Generation, Lasting, Live
from gateway.http.protocol import LINGER_SECONDS
from gateway.ids import Seal
from gateway.resilience.ledger import Ledger
from gateway.snapshot import open_cascade
from gateway.telemetry import Telemetry
from tests.faults.ask import ask
from tests.faults.gateway import HEAD, PATIENCE, Gateway, cascade, running, write_artifact
from tests.faults.upstream import Upstream

WRONG = [
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
    ({"model": None}, "model"),
    ({"model": 3}, "model"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"temperature": 2.5}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 9}, "n"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"stop": [""]}, "stop.0"),
    ({"seed": 2**70}, "seed"),
    ({"logit_bias": {"x": 1}}, "logit_bias.x"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"tools": [{"type": "function"}]}, "tools.0.function"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"chat_template": "{{ x }}"}, "chat_template"),
    ({"route": {"stream_mode": "prefix"}, "stream": True}, "route.stream_mode"),
    ({"user": "x" * 513}, "user"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param"), WRONG, ids=[json.dumps(change)[:40] for change, _ in WRONG])
def test_a_wrong_field_is_named(change: dict[str, object], param: str, http: httpx2.Client, upstream: Upstream) -> None:
    told = http.post("/v1/chat/completions", json=ask() | change)
    assert told.status_code == 400, told.text
    error = told.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert not upstream.seen


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"model": "auto"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"model": "auto", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "max_tokens": ' + b"9" * 20_000 + b"}",
        b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "foo": NaN}',
        b'{"model": "auto", "messages": [{"role": "user", "content": "NaN"}], "foo": {"maximum": -Infinity}}',
    ],
)
def test_bad_json_is_a_400(body: bytes, http: httpx2.Client) -> None:
    told = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert told.status_code == 400, told.text
    assert told.json()["error"]["type"] == "invalid_request_error"


def test_a_message_may_be_of_what_is_no_number(http: httpx2.Client) -> None:
    messages = [{"role": "user", "content": "Is NaN equal to -Infinity?"}]
    assert http.post("/v1/chat/completions", json={"model": "auto", "messages": messages}).status_code == 200


def test_a_nul_is_a_character_like_any_other(http: httpx2.Client) -> None:
    assert http.post(
        "/v1/chat/completions", json=ask() | {"messages": [{"role": "user", "content": "a\0b"}]}
    ).is_success


def test_harmless_forms_of_unsupported_fields_are_taken(http: httpx2.Client) -> None:
    body = ask(tools=[], tool_choice="none", response_format={"type": "text"}, parallel_tool_calls=True, stop="x")
    assert http.post("/v1/chat/completions", json=body).status_code == 200


def test_an_unknown_model_is_told_the_right_ones(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="atuo", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"
    assert "did you mean 'auto'" in str(caught.value)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405), ("PUT", "/health", 405)],
)
def test_the_frameworks_own_errors_have_our_shape(method: str, path: str, status: int, http: httpx2.Client) -> None:
    told = http.request(method, path)
    assert told.status_code == status
    assert told.json()["error"]["type"] == "invalid_request_error"
    assert told.headers["x-request-id"]


def test_what_is_not_json_is_a_415(http: httpx2.Client) -> None:
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
        told = http.post("/v1/chat/completions", content=b"x", headers={"content-type": kind})
        assert told.status_code == 415
    body = json.dumps(ask()).encode()
    good = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json; charset=utf-8"})
    assert good.status_code == 200
    packed = {"content-type": "application/json", "content-encoding": "gzip"}
    assert http.post("/v1/chat/completions", content=body, headers=packed).status_code == 415


def test_a_large_body_is_refused(http: httpx2.Client) -> None:
    told = http.post("/v1/chat/completions", json=ask() | {"user": "x" * 300_000})
    assert told.status_code == 413
    assert told.json()["error"]["message"] == "The request is larger than 0.25 MiB."


def test_an_announced_giant_is_refused_before_it_comes(gateway: Gateway) -> None:
    with gateway.connect() as raw:
        raw.sendall(HEAD + b"content-length: 10737418240\r\n\r\n{")
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_an_endless_body_is_refused_once_it_is_too_long(gateway: Gateway) -> None:
    with gateway.connect() as raw:
        raw.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        for _ in range(5):
            raw.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("size", [300_000, 5_000_000])
def test_who_reads_only_when_he_has_sent_everything_is_told_too(size: int, gateway: Gateway) -> None:
    """A closed socket would have met his bytes with a reset."""
    with gateway.connect() as raw:
        raw.sendall(HEAD + b"content-length: %d\r\n\r\n" % size + b"x" * size)
        told = b"".join(iter(lambda: raw.recv(65536), b""))
    assert told.startswith(b"HTTP/1.1 413")
    assert told.endswith(b"}")


def test_who_sends_for_ever_is_heard_for_a_moment(gateway: Gateway) -> None:
    with gateway.connect() as raw:
        raw.sendall(HEAD + b"content-length: 10737418240\r\n\r\n")
        began = time.monotonic()

        def send() -> None:
            while time.monotonic() - began < PATIENCE:
                raw.sendall(b"x" * 0x10000)
                time.sleep(0.05)

        with pytest.raises(ConnectionError):
            send()
        assert time.monotonic() - began >= LINGER_SECONDS - 0.5


def test_keys_open_the_public_routes_and_nothing_else_does(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    keys = {"clients": [{"name": "alice", "key": "env:ALICE_KEY"}, {"name": "bob", "sha256": "0" * 64}]}
    with running(tmp_path, cascade(upstream.url, keys=keys), ALICE_KEY="sk-alice") as locked:
        with openai.OpenAI(base_url=f"{locked.url}/v1", api_key="sk-alice", max_retries=0, timeout=PATIENCE) as good:
            assert good.models.list().data
            assert good.chat.completions.create(model="auto", messages=[{"role": "user", "content": "x"}])
        with openai.OpenAI(base_url=f"{locked.url}/v1", api_key="sk-mallory", max_retries=0, timeout=PATIENCE) as bad:
            with pytest.raises(openai.AuthenticationError) as caught:
                bad.chat.completions.create(model="auto", messages=[{"role": "user", "content": "x"}])
            assert caught.value.code == "invalid_api_key"
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert httpx2.get(locked.url + path, timeout=PATIENCE).status_code == 401
        for shown in ("Basic sk-alice", "sk-alice", "Bearer", "Bearer sk-alice2", "Bearer " + "0" * 64):
            told = httpx2.get(f"{locked.url}/v1/models", headers={"authorization": shown}, timeout=PATIENCE)
            assert told.status_code == 401, shown
        for path in ("/health", "/ready"):
            assert httpx2.get(locked.url + path, timeout=PATIENCE).status_code == 200
    assert "sk-" not in locked.log.read_text()


def test_every_gateway_error_has_a_status() -> None:
    def leaves(family: type[GatewayError]) -> set[type[GatewayError]]:
        below = family.__subclasses__()
        return {leaf for one in below for leaf in leaves(one)} if below else {family}

    ours = {leaf for leaf in leaves(GatewayError) if leaf.__module__.startswith("gateway.")}
    served = {leaf for leaf in ours if not leaf.__module__.startswith("gateway.fleet")}  # not the tools' own
    assert served <= set(TABLE)
    assert EngineError not in TABLE  # only leaves are raised


def test_nothing_of_an_unknown_error_is_told() -> None:
    told = problem(RuntimeError("/srv/secret"))
    assert (told.status, b"secret" in told.body) == (500, False)
    assert b"secret" not in problem(ConfigError("/srv/secret")).body


def test_a_mistake_of_ours_is_a_500_that_tells_nothing(upstream: Upstream, tmp_path: Path) -> None:
    """Through the application itself, because no request is known to bring one about."""
    write_artifact(tmp_path / "cheap.json")
    config = configs.parse(json.dumps(cascade(upstream.url)), tmp_path / "cascade.yaml")

    async def work() -> tuple[int, bytes]:
        async with open_cascade(config) as snapshot, AsyncExitStack() as stack:
            broken = {name: replace(tier, engine=None) for name, tier in snapshot.tiers.items()}
            first = Generation(replace(snapshot, tiers=broken, policies={}), Keyring((), True), Seal(b"s"), stack)
            app = create_app(Live(first, lambda: config, Lasting(b"s", Ledger())), Telemetry(), Journal())
            transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
            async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE) as inside:
                told = await inside.post("/v1/chat/completions", json=ask() | {"model": "cheap"})
                return told.status_code, told.content

    status, body = asyncio.run(work())
    assert status == 500
    assert json.loads(body)["error"]["type"] == "server_error"
    assert b"NoneType" not in body
