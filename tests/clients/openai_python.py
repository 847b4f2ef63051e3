"""openai-python: everything a user of the SDK relies on. Asserts; says nothing when all is well."""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.request
from typing import Any

import openai

BASE, KEY, SLOW_KEY = os.environ["BASE"], os.environ["KEY"], os.environ["SLOW_KEY"]
client = openai.OpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=0)
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def plan(**small: Any) -> list[Any]:
    return [{"role": "user", "content": json.dumps({"small": small, "large": small})}]


def upstream() -> dict[str, int]:
    with urllib.request.urlopen(os.environ["UPSTREAM"]) as told:
        return dict(json.load(told))


def whole_answers() -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=plan(), logprobs=True, top_logprobs=3, n=2, stop=["\n\n"], max_completion_tokens=50,
        extra_body={"route": {"debug": True}}, extra_headers={"x-request-id": "mine-1"},
    )  # fmt: skip
    answer = raw.parse()
    assert answer._request_id == raw.headers["x-request-id"] == "mine-1"
    assert [choice.message.content for choice in answer.choices] == ["The answer is 42"] * 2
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    told = answer.choices[0].logprobs
    assert told is not None
    assert "".join(entry.token for entry in told.content or []) == "The answer is 42"
    assert all(len(entry.top_logprobs) == 3 for entry in told.content or [])
    assert raw.headers["x-route-tier"] == "cheap"
    assert 0.8 < float(raw.headers["x-route-confidence"]) < 1
    assert (answer.model_extra or {})["route"]["tier"] == "cheap"


def streams() -> None:
    text, usage = "", None
    for chunk in client.chat.completions.create(
        model="auto", messages=plan(), stream=True, stream_options={"include_usage": True}, logprobs=True
    ):
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == "The answer is 42"
    assert usage is not None
    assert usage.total_tokens == 12
    with client.chat.completions.stream(model="dear", messages=plan()) as events:
        assert events.get_final_completion().choices[0].message.content == "The answer is 42"


def tools() -> None:
    messages = plan(calls=[["weather", '{"city": "Bern"}']])
    choice = client.chat.completions.create(model="auto", messages=messages, tools=[WEATHER]).choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Bern"}
    after = [*messages, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"}]
    assert client.chat.completions.create(model="auto", messages=after).choices[0].finish_reason == "stop"
    with client.chat.completions.stream(model="dear", messages=messages, tools=[WEATHER]) as events:
        streamed = events.get_final_completion().choices[0]
    assert streamed.message.tool_calls is not None
    assert streamed.message.tool_calls[0].function.name == "weather"


def errors() -> None:
    for wrong, error, code in (
        ({"model": "atuo"}, openai.NotFoundError, "model_not_found"),
        ({"model": "cheap", "tools": [WEATHER]}, openai.BadRequestError, "unsupported_parameter"),
        ({"temperature": 9}, openai.BadRequestError, None),
        ({"messages": plan(fault="overflow")}, openai.BadRequestError, "context_length_exceeded"),
        ({"messages": plan(fault="500")}, openai.InternalServerError, None),
    ):
        try:
            client.chat.completions.create(**{"model": "auto", "messages": plan(), **wrong})
        except error as told:
            assert told.code == code, told
            assert told.request_id
        else:
            raise AssertionError(f"{wrong} was taken")
    try:
        client.with_options(api_key="wrong").models.list()
        raise AssertionError("a wrong key was taken")
    except openai.AuthenticationError as told:
        assert told.code == "invalid_api_key"
    slow = client.with_options(api_key=SLOW_KEY)
    slow.chat.completions.create(model="auto", messages=plan())
    try:
        slow.chat.completions.create(model="auto", messages=plan())
        raise AssertionError("a second request in a minute was taken")
    except openai.RateLimitError as told:
        assert int(told.response.headers["retry-after"]) >= 1
        assert told.response.headers["x-ratelimit-limit-requests"] == "1"


def other_endpoints() -> None:
    assert {"auto", "auto:strict", "cheap", "dear"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("dear").id == "dear"
    told = client.completions.create(model="auto", prompt="Once", logprobs=2, max_tokens=5)
    assert told.choices[0].text == "The answer is 42"
    assert told.choices[0].logprobs is not None
    assert told.choices[0].logprobs.tokens == ["The", " answer", " is", " 42"]
    streamed = client.completions.create(model="auto", prompt="Once", stream=True)
    assert "".join(part.choices[0].text for part in streamed) == "The answer is 42"


async def fifty_at_once() -> None:
    async with openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=0) as many:
        asked = [many.chat.completions.create(model="auto", messages=plan(text=f"nonce {n}")) for n in range(50)]
        answers = await asyncio.gather(*asked)
    assert [answer.choices[0].message.content for answer in answers] == [f"nonce {n}" for n in range(50)]


def leaving_frees_the_upstream() -> None:
    before = upstream()["let_go"]
    stream = client.chat.completions.create(model="dear", messages=plan(repeat=50, pause=0.2), stream=True)
    next(iter(stream))
    stream.close()
    for _ in range(100):
        if upstream()["let_go"] > before:
            return
        time.sleep(0.1)
    raise AssertionError("the upstream goes on for nobody")


whole_answers()
streams()
tools()
errors()
other_endpoints()
asyncio.run(fifty_at_once())
leaving_frees_the_upstream()
