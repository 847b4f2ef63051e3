"""The API contract's small print: caps, nulls, and the shape of what is refused before a route is reached."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx2
import pytest

from gateway.http import completions, wire
from gateway.http.doors import REQUEST_ID
from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, Gateway, cascade, running, write_artifact
from tests.faults.upstream import Upstream

TEXT = {"role": "user", "content": "x"}

CAPS = [
    ({"messages": [TEXT] * 4097}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 257}]}, "messages.0.content"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": "x" * 257}, "stop"),
    ({"logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias"),
    ({"logit_bias": {"1": -101}}, "logit_bias.1"),
    ({"logit_bias": {"-1": 1}}, "logit_bias.-1"),
    ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
    ({"metadata": {"a": "x" * 513}}, "metadata.a"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"model": "x" * 257}, "model"),
    ({"stop_token_ids": [1] * 65}, "stop_token_ids"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({"presence_penalty": -2.1}, "presence_penalty"),
    ({"frequency_penalty": 2.1}, "frequency_penalty"),
    ({"seed": 1.5}, "seed"),
    ({"n": True}, "n"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    *(({name: "x"}, name) for name in sorted(wire.REFUSED)),
]


@pytest.mark.parametrize(("change", "param"), CAPS, ids=[json.dumps(change)[:40] for change, _ in CAPS])
def test_what_is_too_much_is_named(
    change: dict[str, object], param: str, http: httpx2.Client, upstream: Upstream
) -> None:
    told = http.post("/v1/chat/completions", json=ask() | change)
    assert (told.status_code, told.json()["error"]["param"]) == (400, param), told.text
    assert not upstream.seen


@pytest.mark.parametrize(
    ("path", "kind"), [("chat/completions", wire.ChatRequest), ("completions", completions.CompletionRequest)]
)
def test_null_means_absent_in_every_field(
    path: str, kind: type[wire.Request], http: httpx2.Client, upstream: Upstream
) -> None:
    needed = {"model": "cheap", "messages": [TEXT]} if kind is wire.ChatRequest else {"model": "cheap", "prompt": "x"}
    nothing = dict.fromkeys(kind.model_fields) | {"made_up": None, "chat_template": None}
    told = http.post(f"/v1/{path}", json=nothing | needed, headers={"x-route-debug": "true"})
    assert told.status_code == 200, told.text
    assert told.json()["route"]["ignored"] == []
    http.post(f"/v1/{path}", json=needed)
    assert upstream.seen[0].body == upstream.seen[1].body


STRANGE = {
    "made_up": 1,
    "stream_options": {"include_usage": True, "chunks": 2},
    "messages": [{**TEXT, "name": "bob", "refusal": None}, {"role": "user", "content": [
        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    ]}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": 1}, "made_up": 1}}],
}  # fmt: skip
WAYS = ["made_up", "messages.0.name", "messages.1.content.0.cache_control", "stream_options.chunks",
        "tools.0.function.made_up"]  # fmt: skip


@pytest.fixture(scope="module")
def choosy(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that takes no field it does not know."""
    folder = tmp_path_factory.mktemp("choosy")
    write_artifact(folder / "cheap.json")
    config = cascade(upstream.url)
    config["server"]["strict_fields"] = True
    config["tiers"][1]["allows"] = ["tools"]
    with running(folder, config) as process:
        yield process


def test_fields_that_mean_nothing_are_told_however_deep_they_are(http: httpx2.Client, choosy: Gateway) -> None:
    asked = {"model": "auto", "stream": True, "route": {"debug": True}, "messages": [TEXT]}
    told = http.post("/v1/chat/completions", json={**asked, **STRANGE, "tools": None})
    *_, last, _, _ = told.text.split("\n\n")
    assert json.loads(last.removeprefix("data: "))["route"]["ignored"] == WAYS[:-1]
    for name, field in STRANGE.items():
        strict = httpx2.post(f"{choosy.url}/v1/chat/completions", json={**asked, name: field}, timeout=PATIENCE)
        assert strict.status_code == 400, name
        assert strict.json()["error"]["code"] == "unknown_parameter"
        assert strict.json()["error"]["param"] in WAYS
    good = {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": 1}, "strict": None}}]}
    assert httpx2.post(f"{choosy.url}/v1/chat/completions", json={**asked, **good}, timeout=PATIENCE).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("POST", "/v1/chat/completions/", 404), ("PUT", "/v1/models", 405),
     ("GET", "/v1/models/x", 404), ("POST", "/v1/feedback", 415), ("POST", "/v1/completions", 415)],
)  # fmt: skip
def test_every_error_has_its_ids_wherever_it_comes_from(
    method: str, path: str, status: int, http: httpx2.Client
) -> None:
    told = http.request(method, path)
    assert told.status_code == status
    assert told.json()["error"]["type"] == "invalid_request_error"
    assert REQUEST_ID.match(told.headers["x-request-id"].encode())
    assert told.headers["x-route-schema"] == "1"


ROUTES = [
    ({"model": "auto"}, "auto", 502, "2"),
    ({"model": "auto:strict", "stream": True}, "auto:strict", 502, "2"),
    ({"model": "auto", "route": {"policy": "strict"}}, "auto:strict", 502, "2"),
    ({"model": "dear", "stream": True}, "dear", 502, "1"),
    ({"model": "auto", "route": {"max_tier": "cheap"}, "n": 2}, "auto", 502, "1"),
]


@pytest.mark.parametrize(("change", "policy", "status", "tried"), ROUTES, ids=[json.dumps(one[0]) for one in ROUTES])
def test_an_error_at_the_end_of_a_route_tells_whose_it_was_and_how_far_it_got(
    change: dict[str, object], policy: str, status: int, tried: str, http: httpx2.Client
) -> None:
    told = http.post("/v1/chat/completions", json=ask({"fault": "500"}, {"fault": "500"}) | change)
    assert told.status_code == status, told.text
    assert (told.headers["x-route-policy"], told.headers["x-route-tiers-tried"]) == (policy, tried)
    assert told.headers["x-route-id"]
    assert "x-route-tier" not in told.headers, "nobody answered"
    served = http.post("/v1/chat/completions", json=ask() | change)
    assert (served.status_code, served.headers["x-route-policy"]) == (200, policy)


@pytest.mark.parametrize("change", [{"n": 0}, {"model": "nobody"}, {"route": {"threshold": 2}}])
def test_a_request_that_had_no_route_yet_tells_of_none(change: dict[str, object], http: httpx2.Client) -> None:
    told = http.post("/v1/chat/completions", json=ask() | change)
    assert told.status_code in (400, 404)
    assert told.headers["x-route-id"]
    assert "x-route-policy" not in told.headers
    assert "x-route-tiers-tried" not in told.headers


def test_a_lone_surrogate_anywhere_is_no_mistake_of_ours(http: httpx2.Client) -> None:
    for name, value in (("stop", "s"), ("user", "s"), ("model", "s"), ("metadata", {"s": "s"}), ("s", 1)):
        body = json.dumps(ask() | {name: value}).replace('"s"', '"\\ud800"')
        told = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert told.status_code in (400, 404), (name, told.text)
    assert http.post("/v1/chat/completions", json=ask(stop="\0", user="\0", metadata={"\0": "\0"})).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/models", "/health"])
def test_a_wrong_method_is_told_the_right_one(path: str, http: httpx2.Client) -> None:
    told = http.delete(path)
    assert told.status_code == 405
    assert told.headers["allow"] in ("GET", "POST")
    assert set(told.json()["error"]) == {"message", "type", "param", "code"}
    head = http.head(path)
    assert (head.status_code, head.content) == (405, b"")


def test_what_the_connection_refuses_has_the_same_shape(gateway: Gateway) -> None:
    with gateway.connect() as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 70_000 + b"\r\n\r\n")
        head, _, body = raw.recv(4096).decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 431 ")
    assert "x-route-schema: 1" in head
    found = re.search(r"x-request-id: (\S+)", head)
    assert found is not None
    assert REQUEST_ID.match(found[1].encode())
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_no_header_of_an_answer_holds_what_a_client_or_a_model_wrote(http: httpx2.Client) -> None:
    answer = http.post(
        "/v1/chat/completions", json=ask({"text": "needle"}, user="needle", metadata={"needle": "needle"})
    )
    assert answer.status_code == 200
    for name, value in answer.headers.items():
        assert "needle" not in value
        assert value.isascii()
        assert len(value) < 1024, name
