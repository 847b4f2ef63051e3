"""The API contract's small print: caps, nulls, and the shape of what is refused before a route is reached."""

from __future__ import annotations

import json
import re

import httpx2
import pytest

from gateway.http import completions, wire
from gateway.http.doors import REQUEST_ID
from tests.faults.ask import ask
from tests.faults.gateway import Gateway
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
