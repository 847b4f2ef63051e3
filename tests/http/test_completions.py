"""The older completions: a raw prompt, and the same cascade behind it."""

from __future__ import annotations

import json

import httpx2
import openai
import pytest

from gateway.ids import Seal, number
from tests.faults.gateway import SURE
from tests.faults.upstream import Upstream
from tests.http.test_streaming import chunks


def said(**large: object) -> str:
    """A prompt that makes both models do as told."""
    return json.dumps({"small": large, "large": large})


def body(**fields: object) -> dict[str, object]:
    return {"model": "auto", "prompt": said(nats=SURE), **fields}


def test_a_raw_prompt_is_answered_by_the_last_tier_without_a_confidence(
    client: openai.OpenAI, upstream: Upstream
) -> None:
    raw = client.completions.with_raw_response.create(model="auto", prompt=said(nats=SURE), max_tokens=9)
    answer = raw.parse()
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("The answer is 42", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 12
    assert (raw.headers["x-route-tier"], raw.headers["x-route-confidence"]) == ("dear", "null")
    assert raw.headers["x-route-tiers-tried"] == "1"
    [seen] = upstream.seen  # the tier below could not have been accepted, so it was not asked
    assert seen.path == "/v1/completions"
    assert (seen.body["prompt"], seen.body["max_tokens"]) == (said(nats=SURE), 9)
    assert "messages" not in seen.body


def test_its_id_names_the_decision(http: httpx2.Client) -> None:
    answer = http.post("/v1/completions", json=body())
    assert answer.json()["id"] == "cmpl-" + answer.headers["x-route-id"]
    seal = Seal(b"sixteen or more characters")
    sealed = seal.seal(number(0.0), "alice", tier="dear", calibrator="none", p_correct=None)
    assert seal.open(f"cmpl-{sealed}", "alice").tier == "dear"


def test_a_tiers_name_takes_a_raw_prompt_there_and_says_why_nothing_is_known(http: httpx2.Client) -> None:
    told = http.post("/v1/completions", json=body(model="cheap", route={"debug": True})).json()
    assert told["route"]["reason"] == "bypass"
    assert told["route"]["null_reason"] == "uncalibrated"


def test_sixteen_tokens_where_nothing_is_said_and_one_prompt_may_stand_in_a_list(
    http: httpx2.Client, upstream: Upstream
) -> None:
    assert http.post("/v1/completions", json=body(prompt=[said()])).status_code == 200
    assert upstream.seen[0].body["max_tokens"] == 16


def test_an_answer_longer_than_the_window_gets_what_is_left(http: httpx2.Client, upstream: Upstream) -> None:
    assert http.post("/v1/completions", json=body(prompt=said(window=64), max_tokens=100)).status_code == 200
    asked = [(seen.path, seen.body.get("max_tokens")) for seen in upstream.seen]
    assert asked == [("/v1/completions", 100), ("/tokenize", None), ("/v1/completions", 44)]


@pytest.mark.parametrize("k", [0, 3])
def test_log_probs_come_in_the_older_shape(k: int, client: openai.OpenAI) -> None:
    told = client.completions.create(model="auto", prompt=said(nats=SURE), logprobs=k).choices[0].logprobs
    assert told is not None
    assert told.tokens == ["The", " answer", " is", " 42"]
    assert told.text_offset == [0, 3, 10, 13]
    assert told.token_logprobs == [SURE] * 4
    assert told.top_logprobs is not None
    assert [len(one or {}) for one in told.top_logprobs] == [k] * 4


@pytest.mark.parametrize("mode", ["buffer", "commit"])
def test_a_stream_says_what_the_whole_answer_says(mode: str, client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model="auto",
            prompt=said(nats=SURE),
            logprobs=2,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"route": {"stream_mode": mode}},
        )
    )
    *parts, last = chunks
    assert (last.choices, last.usage and last.usage.total_tokens) == ([], 12)
    assert {part.object for part in parts} == {"text_completion"}
    assert "".join(part.choices[0].text for part in parts) == "The answer is 42"
    assert [part.choices[0].finish_reason for part in parts if part.choices[0].finish_reason] == ["stop"]
    told = [part.choices[0].logprobs for part in parts if part.choices[0].logprobs]
    assert [offset for one in told for offset in one.text_offset or []] == [0, 3, 10, 13]
    assert [token for one in told for token in one.tokens or []] == ["The", " answer", " is", " 42"]


def test_several_choices(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="auto", prompt=said(), n=2, best_of=1, stop=["x"])
    assert [choice.index for choice in answer.choices] == [0, 1]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [7]}, "prompt.0"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"n": 9}, "n"),
        ({"prompt_embeds": "x"}, "prompt_embeds"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], param: str, http: httpx2.Client, upstream: Upstream) -> None:
    told = http.post("/v1/completions", json=body() | change)
    assert (told.status_code, told.json()["error"]["param"]) == (400, param), told.text
    assert not upstream.seen


@pytest.mark.parametrize("stream", [None, "buffer", "commit"])
def test_log_probs_that_are_no_numbers_cost_the_log_probs_alone(stream: str | None, http: httpx2.Client) -> None:
    asked = body(model="cheap", prompt=said(nats=float("nan")), logprobs=2, route={"debug": True})
    if stream is None:
        told = http.post("/v1/completions", json=asked).json()
        text, route = told["choices"][0]["text"], told["route"]
    else:
        asked |= {"stream": True, "route": {"debug": True, "stream_mode": stream}}
        *events, last = chunks(http.post("/v1/completions", json=asked).text)
        text, route = "".join(event["choices"][0]["text"] for event in events), last["route"]
    assert (text, route["confidence"]) == ("The answer is 42", None)


@pytest.mark.parametrize("fault", ["no_choices", "cut_json", "html", "500", "abort"])
def test_a_broken_server_is_a_502(fault: str, http: httpx2.Client, upstream: Upstream) -> None:
    told = http.post("/v1/completions", json=body(prompt=said(fault=fault)))
    assert told.status_code == 502, told.text
    assert upstream.asked("large")
