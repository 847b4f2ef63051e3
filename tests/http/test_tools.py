"""What goes beyond plain chat: tools, formats and vLLM's own fields go to tiers that allow them, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from tests.faults.ask import ask, plan
from tests.faults.gateway import PATIENCE, SURE, UNSURE, Gateway, cascade, confgate_ends, running, write_artifact
from tests.faults.upstream import Upstream

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = ["weather", '{"city": "Bern"}']
CALLED = {"id": "call-0", "type": "function", "function": {"name": CALL[0], "arguments": CALL[1]}}


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Three tiers: plain, one whose calibrator was fitted on requests with tools, and one that allows everything."""
    folder = tmp_path_factory.mktemp("tools")
    write_artifact(folder / "cheap.json")
    write_artifact(folder / "fitted.json", fields="tools")
    config = cascade(upstream.url)
    plain, dear = config["tiers"]
    every = ["tools", "response_format", "reasoning_effort", "structured_outputs", "chat_template_kwargs"]
    config["tiers"] = [plain, {**plain, "name": "fitted", "calibrator": "fitted.json", "allows": ["tools"]},
                       {**dear, "allows": every}]  # fmt: skip
    sure = 0.8
    config["policies"] = {
        "default": {"steps": [{"tier": "cheap", "accept_at": sure}, {"tier": "dear"}]},
        "three": {
            "steps": [{"tier": "cheap", "accept_at": sure}, {"tier": "fitted", "accept_at": sure}, {"tier": "dear"}]
        },
        "plain": {"steps": [{"tier": "cheap"}]},
    }
    with running(folder, config) as process:
        yield process


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="whatever", max_retries=0, timeout=PATIENCE) as sdk:
        yield sdk


@pytest.fixture(scope="module")
def http(gateway: Gateway) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=gateway.url, timeout=PATIENCE) as plain:
        yield plain


def calling(nats: float = SURE) -> list[dict[str, Any]]:
    return plan({"calls": [CALL], "nats": nats}, {"calls": [CALL, ["weather", "{}"]]})


def test_a_tool_call_comes_back_from_the_tier_that_allows_tools(client: openai.OpenAI, upstream: Upstream) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=calling(), tools=[WEATHER], tool_choice="auto", parallel_tool_calls=False
    )
    choice = raw.parse().choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert [(one.id, one.function.name, one.function.arguments) for one in choice.message.tool_calls or []] == [
        ("call-0", *CALL), ("call-1", "weather", "{}"),
    ]  # fmt: skip
    assert (raw.headers["x-route-tier"], raw.headers["x-route-confidence"]) == ("dear", "null")
    assert raw.headers["x-route-tiers-tried"] == "1"
    [seen] = upstream.seen
    assert (seen.body["tools"], seen.body["tool_choice"], seen.body["parallel_tool_calls"]) == (
        [WEATHER],
        "auto",
        False,
    )


def test_a_calibrator_that_was_fitted_for_tools_decides(client: openai.OpenAI, upstream: Upstream) -> None:
    create = client.chat.completions.with_raw_response.create
    sure = create(model="auto:three", messages=calling(SURE), tools=[WEATHER])
    assert (sure.headers["x-route-tier"], sure.headers["x-route-reason"]) == ("fitted", "confident")
    unsure = create(model="auto:three", messages=calling(UNSURE), tools=[WEATHER])
    assert (unsure.headers["x-route-tier"], unsure.headers["x-route-tiers-tried"]) == ("dear", "2")
    assert all("tools" in seen.body for seen in upstream.seen)


@pytest.mark.parametrize("mode", ["buffer", "commit"])
def test_streamed_calls_add_up_to_the_whole(mode: str, client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        model="auto", messages=calling(), tools=[WEATHER], stream=True, logprobs=True,
        extra_body={"route": {"stream_mode": mode}},
    )  # fmt: skip
    calls: dict[int, list[str]] = {}
    finish, tokens = [], []
    for chunk in chunks:
        choice = chunk.choices[0]
        tokens += [entry.token for entry in (choice.logprobs and choice.logprobs.content) or ()]
        finish += [choice.finish_reason] if choice.finish_reason else []
        for part in choice.delta.tool_calls or ():
            assert part.function is not None
            told = calls.setdefault(part.index, [part.id or "", part.function.name or "", ""])
            told[2] += part.function.arguments or ""
    assert calls == {0: ["call-0", *CALL], 1: ["call-1", "weather", "{}"]}
    assert finish == ["tool_calls"]
    whole = client.chat.completions.create(model="auto", messages=calling(), tools=[WEATHER], logprobs=True)
    told = whole.choices[0].logprobs
    assert told is not None
    assert tokens == [entry.token for entry in told.content or ()] != []


def test_a_conversation_goes_on_after_a_call(client: openai.OpenAI, upstream: Upstream) -> None:
    messages = [
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": None, "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "call-0", "content": "12"},
    ]
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=messages)
    assert raw.headers["x-route-tier"] == "dear"
    assert upstream.seen[0].body["messages"] == messages


def test_log_probs_of_a_call_are_the_models_own(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="auto", messages=calling(), tools=[WEATHER], logprobs=True)
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content


FIELDS: list[tuple[str, Any]] = [
    ("response_format", {"type": "json_object"}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}),
    ("reasoning_effort", "low"),
    ("structured_outputs", {"json": {"type": "object"}}),
    ("chat_template_kwargs", {"enable_thinking": False}),
]


@pytest.mark.parametrize(("name", "value"), FIELDS)
def test_a_field_goes_where_it_is_allowed(name: str, value: Any, http: httpx2.Client, upstream: Upstream) -> None:
    answer = http.post("/v1/chat/completions", json=ask(**{name: value}, route={"debug": True}))
    assert answer.json()["route"]["null_reason"] == "uncalibrated", answer.text
    [seen] = upstream.seen
    assert (seen.model, seen.body[name]) == ("large", value)


@pytest.mark.parametrize("name", ["response_format", "structured_outputs"])
def test_of_these_two_a_raw_prompt_has_them_too(name: str, http: httpx2.Client, upstream: Upstream) -> None:
    value = {"type": "json_object"} if name == "response_format" else {"choice": ["a"], "regex": None}
    prompt = {"prompt": "x", name: value}
    assert http.post("/v1/completions", json={"model": "auto", **prompt}).status_code == 200
    assert upstream.seen[-1].body[name] == {key: told for key, told in value.items() if told is not None}
    refused = http.post("/v1/completions", json={"model": "cheap", **prompt})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)


@pytest.mark.parametrize(("name", "value"), [*FIELDS, ("tools", [WEATHER])])
def test_and_is_refused_where_no_tier_allows_it(name: str, value: Any, http: httpx2.Client, upstream: Upstream) -> None:
    for change in ({"model": "cheap"}, {"model": "auto:plain"}, {"route": {"max_tier": "cheap"}}):
        told = http.post("/v1/chat/completions", json=ask(**{name: value}) | change)
        assert told.status_code == 400
        assert (told.json()["error"]["param"], told.json()["error"]["code"]) == (name, "unsupported_parameter")
    assert not upstream.seen


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER] * 129}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"messages": [{"role": "user", "content": "12", "tool_call_id": "x"}]}, "messages.0.tool_call_id"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [CALLED]}]},
            "messages.0.tool_calls",
        ),
        ({"messages": [{"role": "assistant"}]}, "messages.0.content"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json": None}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"chat_template_kwargs": {"chat_template": "{{ x }}"}}, "chat_template_kwargs.chat_template"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(change: dict[str, object], param: str, http: httpx2.Client, upstream: Upstream) -> None:
    told = http.post("/v1/chat/completions", json=ask() | change)
    assert (told.status_code, told.json()["error"]["param"]) == (400, param), told.text
    assert not upstream.seen


VLLM: list[tuple[str, Any, Any]] = [
    ("top_k", 5, -2),
    ("min_p", 0.1, 1.5),
    ("repetition_penalty", 1.1, 0),
    ("stop_token_ids", [3], [-1]),
    ("ignore_eos", True, "yes"),
    ("min_tokens", 2, -1),
]


@pytest.mark.parametrize(("name", "good", "bad"), VLLM)
def test_vllms_samplers_go_through_and_cost_the_confidence(
    name: str, good: Any, bad: Any, http: httpx2.Client, upstream: Upstream
) -> None:
    heat = {"temperature": 0.7} if name in ("top_k", "min_p") else {}
    told = http.post("/v1/chat/completions", json=ask(**{name: good}, **heat, route={"debug": True})).json()
    assert told["route"]["hops"][0]["null_reason"] == "sampler_changed"
    assert upstream.seen[0].body[name] == good
    wrong = http.post("/v1/chat/completions", json=ask(**{name: bad}))
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"].split(".")[0] == name


def test_what_the_server_told_beside_its_answer_is_told_on_demand(http: httpx2.Client, upstream: Upstream) -> None:
    told = {"nats": SURE, "reasoning": "6 times 7", "stop_reason": "###"}
    both = {"extras": ["reasoning", "stop_reason"]}
    served = http.post("/v1/chat/completions", json=ask(told, route=both, n=2))
    assert served.headers["x-route-reason"] == "confident", "it says nothing else about the answer"
    for choice in served.json()["choices"]:
        assert (choice["message"]["reasoning"], choice["stop_reason"]) == ("6 times 7", "###")
    unasked = http.post("/v1/chat/completions", json=ask(told))
    assert "6 times 7" not in unasked.text
    assert "stop_reason" not in unasked.json()["choices"][0]
    token = http.post("/v1/chat/completions", json=ask({"stop_reason": 7}, route={"extras": ["stop_reason"]})).json()
    assert token["choices"][0]["stop_reason"] == 7
    assert "reasoning" not in token["choices"][0]["message"]
    odd = http.post("/v1/chat/completions", json=ask({"reasoning": {"x": 1}, "stop_reason": [1]}, route=both)).json()
    assert (odd["choices"][0]["message"]["reasoning"], odd["choices"][0]["stop_reason"]) == (None, None)
    text = json.dumps({"small": told})
    raw = http.post("/v1/completions", json={"model": "cheap", "prompt": text, "route": both}).json()["choices"][0]
    assert (raw["stop_reason"], "reasoning" in raw) == ("###", False)
    for wrong in ({"stream": True, "route": both}, {"route": {"extras": ["kv_transfer_params"]}}):
        refused = http.post("/v1/chat/completions", json=ask() | wrong)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"].startswith("route.extras")
    assert not [seen for seen in upstream.asked("small") if "extras" in seen.body or "route" in seen.body]


def test_token_ids_come_with_whole_answers_when_asked_for(http: httpx2.Client, upstream: Upstream) -> None:
    answer = http.post("/v1/chat/completions", json=ask({"nats": SURE}, return_token_ids=True))
    told = answer.json()
    assert told["prompt_token_ids"] == [1, 2, 3]
    assert len(told["choices"][0]["token_ids"]) == 5
    assert answer.headers["x-route-tier"] == "cheap"
    assert "token_ids" not in http.post("/v1/chat/completions", json=ask({"nats": SURE})).json()["choices"][0]
    streamed = http.post("/v1/chat/completions", json=ask(return_token_ids=True, stream=True))
    assert streamed.json()["error"]["param"] == "return_token_ids"


def test_only_an_engine_that_forwards_fields_may_allow_them(tmp_path: Any) -> None:
    path = tmp_path / "cascade.yaml"
    told = cascade("http://127.0.0.1:1/v1")
    told["tiers"][1] |= {"engine": {"kind": "local", "model": "a/name"}, "allows": ["tools"]}
    path.write_text(json.dumps(told, indent=1))
    code, _, err = confgate_ends("check", "-c", str(path))
    assert code == 1
    assert "tiers[1].allows" in err
    assert "local" in err
