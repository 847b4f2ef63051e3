"""The product: an answer from the cheapest tier that is sure enough, and the way to it, as official clients see it."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import openai
import pytest

from gateway.ids import NUMBER
from tests.faults.ask import ask, plan
from tests.faults.gateway import (
    P_SURE,
    P_UNSURE,
    PATIENCE,
    SURE,
    UNSURE,
    Gateway,
    cascade,
    running,
    until,
    write_artifact,
)
from tests.faults.upstream import Upstream


def test_a_sure_answer_of_the_cheap_tier_is_served(client: openai.OpenAI, upstream: Upstream) -> None:
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=plan({"nats": SURE}))
    answer = raw.parse()
    assert answer.choices[0].message.content == "The answer is 42"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "small"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens == 12
    assert raw.headers["x-route-tier"] == "cheap"
    assert raw.headers["x-route-reason"] == "confident"
    assert raw.headers["x-route-tiers-tried"] == "1"
    assert float(raw.headers["x-route-confidence"]) == pytest.approx(P_SURE, abs=1e-5)
    assert raw.headers["x-route-threshold"] == "0.8"
    assert raw.headers["x-route-calibrator"].startswith("cheap@")
    assert not upstream.asked("large")


def test_a_fingerprint_changes_with_the_tier_and_only_then(http: httpx2.Client) -> None:
    told = [
        http.post("/v1/chat/completions", json=ask() | {"model": model}).json() for model in ("cheap", "cheap", "dear")
    ]
    one, again, other = (answer["system_fingerprint"] for answer in told)
    assert one == again != other


def test_an_unsure_answer_escalates(client: openai.OpenAI) -> None:
    messages = plan({"nats": UNSURE}, {"text": "43"})
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=messages, extra_headers={"x-route-debug": "true"}
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == "43"
    assert raw.headers["x-route-tier"] == "dear"
    assert raw.headers["x-route-reason"] == "last"
    assert raw.headers["x-route-confidence"] == raw.headers["x-route-threshold"] == "null"
    route = json.loads(raw.text)["route"]
    assert [(hop["tier"], hop["reason"]) for hop in route["hops"]] == [("cheap", "unsure"), ("dear", "last")]
    assert route["hops"][0]["confidence"] == pytest.approx(P_UNSURE)
    assert route["null_reason"] == "uncalibrated"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 9  # the served answer alone; the way to it costs more
    assert route["usage_total"]["total_tokens"] == 21
    assert route["cost"]["usd"] == pytest.approx((7 * 1 + 5 * 2 + 7 * 10 + 2 * 20) / 1e6)


def test_who_did_not_ask_for_the_route_or_log_probs_sees_neither(http: httpx2.Client) -> None:
    told = http.post("/v1/chat/completions", json=ask()).json()
    assert "route" not in told
    assert told["choices"][0]["logprobs"] is None


def test_the_upstream_gets_what_is_on_the_list_and_nothing_else(http: httpx2.Client, upstream: Upstream) -> None:
    http.post("/v1/chat/completions", json=ask(user="me", metadata={"a": "b"}, best_of=7, max_tokens=9))
    assert set(upstream.seen[0].body) == {
        "model", "messages", "temperature", "top_p", "presence_penalty", "frequency_penalty", "logprobs",
        "top_logprobs", "n", "stream", "max_tokens",
    }  # fmt: skip
    assert upstream.seen[0].body["temperature"] == 0
    assert upstream.seen[0].headers["accept-encoding"] == "identity"


def test_log_probs_are_asked_for_only_where_somebody_needs_them(http: httpx2.Client, upstream: Upstream) -> None:
    http.post("/v1/chat/completions", json=ask({"nats": UNSURE}))
    assert upstream.asked("small")[0].body["logprobs"] is True
    assert "logprobs" not in upstream.asked("large")[0].body
    http.post("/v1/chat/completions", json=ask({"nats": UNSURE}, logprobs=True, top_logprobs=2))
    assert upstream.asked("large")[1].body["top_logprobs"] == 2


def test_unknown_fields_are_named_in_the_route(http: httpx2.Client) -> None:
    told = http.post("/v1/chat/completions", json=ask(best_of=7, foo=None, route={"debug": True})).json()
    assert told["route"]["ignored"] == ["best_of"]


def test_log_probs_are_the_served_models_own(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="auto", messages=plan({"nats": SURE}), logprobs=True, top_logprobs=2)
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert "".join(entry.token for entry in told.content) == "The answer is 42"
    assert all(entry.logprob == SURE and len(entry.top_logprobs) == 2 for entry in told.content)
    assert bytes(told.content[1].bytes or []) == b" answer"


def test_asking_for_log_probs_does_not_change_the_confidence(http: httpx2.Client) -> None:
    answers = [
        http.post("/v1/chat/completions", json=ask({"nats": SURE}, logprobs=wanted, top_logprobs=k))
        for wanted, k in ((None, None), (True, 0), (True, 20))
    ]
    assert len({answer.headers["x-route-confidence"] for answer in answers}) == 1
    assert answers[1].json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_a_tiers_name_asks_it_alone(http: httpx2.Client, upstream: Upstream) -> None:
    answer = http.post("/v1/chat/completions", json=ask({"nats": UNSURE}) | {"model": "cheap"})
    assert answer.headers["x-route-reason"] == "bypass"
    assert float(answer.headers["x-route-confidence"]) == pytest.approx(P_UNSURE, abs=1e-5)
    assert not upstream.asked("large")


def test_a_policy_is_asked_for_by_name(http: httpx2.Client) -> None:
    answer = http.post("/v1/chat/completions", json=ask({"nats": SURE}) | {"model": "auto:strict"})
    assert answer.headers["x-route-tier"] == "dear"
    assert answer.headers["x-route-policy"] == "auto:strict"


def test_another_sampler_costs_the_confidence(http: httpx2.Client, upstream: Upstream) -> None:
    told = http.post("/v1/chat/completions", json=ask({"nats": SURE}, temperature=0.7, route={"debug": True})).json()
    assert told["route"]["hops"][0]["null_reason"] == "sampler_changed"
    assert told["route"]["tier"] == "dear"
    assert upstream.seen[0].body["temperature"] == 0.7


def test_a_pinned_sampler_is_kept_whatever_is_asked_for_and_that_is_told(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    config = cascade(upstream.url)
    config["server"]["sampler"] = "pin"
    with running(tmp_path, config) as pinned:
        body = ask({"nats": SURE}, temperature=0.7, top_k=5, seed=3, route={"debug": True})
        route = httpx2.post(f"{pinned.url}/v1/chat/completions", json=body, timeout=PATIENCE).json()["route"]
    assert (route["tier"], route["ignored"]) == ("cheap", ["temperature", "top_k"])
    assert route["confidence"] == pytest.approx(P_SURE)
    [seen] = upstream.asked("small")
    assert (seen.body["temperature"], seen.body["seed"], "top_k" in seen.body) == (0, 3, False)


def test_greedy_by_another_name_keeps_it(http: httpx2.Client) -> None:
    answer = http.post("/v1/chat/completions", json=ask({"nats": SURE}, temperature=0, top_p=0.5, seed=3))
    assert answer.headers["x-route-tier"] == "cheap"


def test_further_choices_come_from_the_tier_that_was_served(client: openai.OpenAI, upstream: Upstream) -> None:
    answer = client.chat.completions.create(model="auto", messages=plan({"nats": SURE}), n=3, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert sorted(seen.body["seed"] for seen in upstream.asked("small")) == [5, 6, 7]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 15


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    messages = plan({"nats": SURE, "text": "Grüße 🙂 an dich"})
    whole = client.chat.completions.create(model="auto", messages=messages)
    chunks = list(client.chat.completions.create(model="auto", messages=messages, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 4
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_counts_only_when_asked_and_then_last(http: httpx2.Client) -> None:
    body = ask({"nats": SURE}, stream=True, stream_options={"include_usage": True})
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-route-stream-mode"] == "buffer"
    assert answer.headers["x-route-tier"] == "cheap"
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 12
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_the_route_rides_behind_a_stream(http: httpx2.Client) -> None:
    answer = http.post("/v1/chat/completions", json=ask(stream=True, route={"debug": True}))
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    last = json.loads(events[-2])
    assert last["choices"] == []
    assert last["route"]["tier"] == "cheap"
    assert "usage" not in last


def test_streamed_log_probs_add_up_to_the_whole(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        model="auto", messages=plan({"nats": SURE}), logprobs=True, top_logprobs=1, stream=True
    )
    told = [chunk.choices[0].logprobs for chunk in chunks]
    entries = [entry for one in told if one is not None for entry in one.content or []]
    assert "".join(entry.token for entry in entries) == "The answer is 42"


def test_log_probs_whose_tokens_do_not_spell_the_answer_are_told_all_the_same(http: httpx2.Client) -> None:
    body = ask({"nats": SURE, "fault": "unspelled"}, logprobs=True, top_logprobs=2)
    whole = http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert whole["message"]["content"] == "The \u00e9 42"
    told = whole["logprobs"]["content"]
    assert [entry["token"] for entry in told] == ["The", "\ufffd", "\ufffd", " 42"]
    assert [len(entry["top_logprobs"]) for entry in told] == [2] * 4
    streamed = http.post("/v1/chat/completions", json=body | {"stream": True})
    assert streamed.headers["x-route-tier"] == "cheap", "an answer in letters is judged without them"
    chunks = [json.loads(line[6:])["choices"][0] for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == "The \u00e9 42"
    assert [entry for chunk in chunks for entry in (chunk["logprobs"] or {}).get("content", [])] == told


def test_whether_a_request_to_a_mix_is_right_is_no_matter_of_luck(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    config = cascade(upstream.url)
    config["policies"]["alone"] = {"steps": [{"tier": "dear"}]}
    config["policies"]["mixed"] = {"mix": [{"policy": "default", "share": 0.5}, {"policy": "alone", "share": 0.5}]}
    with running(tmp_path, config) as gateway:
        for tier, statuses in (("cheap", {400}), ("dear", {200})):
            body = ask({"nats": SURE}, route={"max_tier": tier}) | {"model": "auto:mixed"}
            told = [httpx2.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=PATIENCE) for _ in range(12)]
            assert {one.status_code for one in told} == statuses
            assert tier == "dear" or "(there is: dear)" in told[0].json()["error"]["message"]


def test_a_request_id_is_echoed_when_it_is_a_sensible_one(http: httpx2.Client) -> None:
    for sent, kept in (("abc-1.2_3", True), ("a b", False), ("x" * 129, False)):
        answer = http.post("/v1/chat/completions", json=ask(), headers={"x-request-id": sent})
        assert (answer.headers["x-request-id"] == sent) is kept
    assert http.get("/health").headers["x-request-id"]


def test_models_are_the_names_one_may_ask_for(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["auto", "auto:default", "auto:strict", "cheap", "dear"]
    assert client.models.retrieve("auto:strict").owned_by == "confidence-gateway"
    with pytest.raises(openai.NotFoundError, match="auto"):
        client.models.retrieve("atuo")


def test_health_and_readiness(http: httpx2.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    until(lambda: http.get("/ready").json() == {"status": "ready"})


def test_metrics_count_and_never_name_what_a_client_sent(http: httpx2.Client) -> None:
    http.post("/v1/chat/completions", json=ask({"nats": UNSURE}))
    http.post("/v1/chat/completions", json=ask() | {"model": "nonsense-from-a-client"})
    text = http.get("/metrics").text
    assert 'confidence_gateway_hops_total{reason="unsure",tier="cheap"}' in text
    assert 'confidence_gateway_requests_total{reason="",status="404"}' in text
    assert "nonsense" not in text


def test_the_log_has_one_line_per_hop_and_no_prompt(http: httpx2.Client, gateway: Gateway) -> None:
    answer = http.post("/v1/chat/completions", json=ask({"nats": UNSURE, "text": "a secret word"}))
    number = answer.headers["x-route-id"][:NUMBER]
    mine = gateway.logged(lambda line: line.get("route_id") == number, 2)
    assert [(line["tier"], line["reason"]) for line in mine] == [("cheap", "unsure"), ("dear", "last")]
    assert "secret word" not in gateway.log.read_text()


def test_the_description_covers_the_chat_route(http: httpx2.Client) -> None:
    told = http.get("/openapi.json").json()
    chat = told["paths"]["/v1/chat/completions"]["post"]
    assert {"400", "401", "404", "413", "422", "429", "502", "503", "504"} <= set(chat["responses"])
    assert "max_completion_tokens" in told["components"]["schemas"]["ChatRequest"]["properties"]
    assert "{'$ref': '#/components/schemas/ChatMessage'}" in str(told["components"]["schemas"]["ChatRequest"])


def test_fifty_at_once_do_not_mix(client: openai.OpenAI, gateway: Gateway) -> None:
    import asyncio

    async def all_of_them() -> list[str | None]:
        async with openai.AsyncOpenAI(
            base_url=f"{gateway.url}/v1", api_key="x", max_retries=0, timeout=PATIENCE
        ) as sdk:
            asked = [
                sdk.chat.completions.create(model="auto", messages=plan({"text": f"nonce {n}"})) for n in range(50)
            ]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    assert asyncio.run(all_of_them()) == [f"nonce {n}" for n in range(50)]
