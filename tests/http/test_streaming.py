"""Answers that are passed on while they are made, held to every rule of the contract for streams."""

from __future__ import annotations

import contextlib
import json
import re
import time
from functools import partial
from typing import Any

import httpx2
import openai
import pytest

from gateway.http import sse
from tests.faults.ask import ask, plan
from tests.faults.gateway import PATIENCE, SURE, Gateway, cascade, running, soonest, until, whole, write_artifact
from tests.faults.upstream import Upstream

COMMIT: dict[str, Any] = {"stream": True, "route": {"stream_mode": "commit"}}
WORDS = "one two three four five six"


def chunks(text: str) -> list[dict[str, Any]]:
    """The events of a stream that ended as it should."""
    *events, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events if not event.startswith(":")]


def test_the_last_tier_is_passed_on_piece_by_piece(http: httpx2.Client, upstream: Upstream) -> None:
    body = ask(None, {"text": WORDS, "gate": "rest", "before": 4}, **COMMIT)
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        route = {name[8:]: value for name, value in answer.headers.items() if name.startswith("x-route-")}
        lines = []
        for line in answer.iter_lines():
            lines.append(line)
            if 'three"}' in line:  # the server has said no more than this
                upstream.opened.add("rest")
    assert route | {"id": ""} == {
        "schema": "1", "id": "", "model": "large", "tier": "dear", "policy": "auto", "tiers-tried": "1",
        "confidence": "null", "threshold": "null", "reason": "last", "calibrator": "none", "stream-mode": "commit",
    }  # fmt: skip
    assert not upstream.asked("small")
    assert "rest" in upstream.opened, "no piece was passed on while the next was still to come"
    said = chunks("\n".join([*lines, ""]))
    assert {event["id"] for event in said} == {f"chatcmpl-{route['id']}"}
    assert {event["object"] for event in said} == {"chat.completion.chunk"}
    choices = [event["choices"][0] for event in said]
    assert choices[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == WORDS
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert not any("usage" in event or "route" in event for event in said)


def test_usage_and_route_come_last_and_tell_what_was_known_late(http: httpx2.Client) -> None:
    body = ask({"text": WORDS, "nats": SURE}, **COMMIT, stream_options={"include_usage": True}) | {"model": "cheap"}
    body["route"] = {"stream_mode": "commit", "debug": True}
    *before, last = chunks(http.post("/v1/chat/completions", json=body).text)
    assert all(event["usage"] is None for event in before)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 7, "completion_tokens": 7, "total_tokens": 14}
    assert last["route"]["reason"] == "bypass"
    assert last["route"]["confidence"] == pytest.approx(1 / (1 + 2.718281828**-3))


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_a_server_that_tells_usage_beside_null_choices_ends_well(path: str, http: httpx2.Client) -> None:
    body = ask(None, {"text": WORDS, "fault": "null_choices"}, **COMMIT, stream_options={"include_usage": True})
    if path == "completions":
        body["prompt"] = body.pop("messages")[0]["content"]
    said = chunks(http.post(f"/v1/{path}", json=body).text)
    assert said[-1]["usage"]["completion_tokens"] == 7


def test_streamed_log_probs_are_the_whole_answers(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "dear", "logprobs": True, "top_logprobs": 2,
                             "messages": plan(None, {"text": "Ä 日本語 is 42", "nats": -0.25})}  # fmt: skip
    whole = client.chat.completions.create(**asked)
    streamed = list(client.chat.completions.create(**asked, stream=True))
    parts = [chunk.choices[0].logprobs for chunk in streamed]
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.content is not None
    assert [entry for part in parts if part and part.content for entry in part.content] == (
        whole.choices[0].logprobs.content
    )


def test_log_probs_that_were_not_asked_for_are_not_shown(http: httpx2.Client) -> None:
    said = chunks(http.post("/v1/chat/completions", json=ask({"nats": SURE}, **COMMIT) | {"model": "cheap"}).text)
    assert all(choice["logprobs"] is None for event in said for choice in event["choices"])


def test_log_probs_of_another_model_than_the_configured_are_shown_all_the_same(http: httpx2.Client) -> None:
    asked = ask({"nats": SURE, "fault": "other_model"}, **COMMIT, logprobs=True) | {"model": "cheap"}
    said = chunks(http.post("/v1/chat/completions", json=asked).text)
    told = [choice["logprobs"]["content"] for event in said for choice in event["choices"] if choice["logprobs"]]
    assert "".join(entry["token"] for part in told for entry in part) == "The answer is 42"


def test_a_model_asked_by_name_streams_at_once_unless_told_otherwise(http: httpx2.Client) -> None:
    for asked, mode in ((None, "commit"), ("buffer", "buffer")):
        body = ask(stream=True) | {"model": "dear"} | ({"route": {"stream_mode": asked}} if asked else {})
        assert http.post("/v1/chat/completions", json=body).headers["x-route-stream-mode"] == mode


def test_several_choices_are_decided_on_together(http: httpx2.Client) -> None:
    answer = http.post("/v1/chat/completions", json=ask({"nats": SURE}, n=2, **COMMIT))
    assert answer.headers["x-route-stream-mode"] == "buffer"


def test_an_empty_answer_is_a_stream_too(http: httpx2.Client) -> None:
    said = chunks(http.post("/v1/chat/completions", json=ask(None, {"text": ""}, **COMMIT)).text)
    assert [event["choices"][0]["finish_reason"] for event in said] == [None, "stop"]


@pytest.mark.parametrize("fault", ["reset", "hang_up", "500", "html", "stream_as_json", "unauthorized", "no_choices"])
def test_until_the_first_piece_another_tier_may_answer(fault: str, http: httpx2.Client, upstream: Upstream) -> None:
    answer = http.post("/v1/chat/completions", json=ask({"text": WORDS}, {"fault": fault}, **COMMIT))
    assert (answer.status_code, answer.headers["x-route-tier"]) == (200, "cheap")
    assert (answer.headers["x-route-reason"], answer.headers["x-route-tiers-tried"]) == ("fallback", "2")
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in chunks(answer.text)) == WORDS
    assert upstream.asked("large")


def test_no_status_is_told_before_the_first_piece(http: httpx2.Client) -> None:
    broken = {"fault": "500"}
    answer = http.post("/v1/chat/completions", json=ask(broken, broken, **COMMIT))
    assert answer.status_code == 502
    assert answer.json()["error"]["type"] == "server_error"
    assert answer.headers["content-type"] == "application/json"


MUCH = {"text": "x" * 20_000 + " ", "repeat": 1_600}  # 32 MB; the sockets between us take a few

BREAKS = ["cut_off", "reset_in_stream", "error_event", "overflow_event", "refusal_event", "garbled_event", "list_event",
          "half_character_event", "endless_event", "no_finish_reason", "abort"]  # fmt: skip


@pytest.mark.parametrize("fault", BREAKS)
def test_after_the_first_piece_an_error_event_ends_the_stream(
    fault: str, client: openai.OpenAI, http: httpx2.Client, upstream: Upstream, gateway: Gateway
) -> None:
    body = ask({"text": "another"}, {"text": WORDS, "fault": fault, "pause": 0.02}, max_tokens=50, **COMMIT)
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    *events, last, end = answer.text.split("\n\n")
    assert end == ""
    assert "[DONE]" not in answer.text
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    assert "another" not in answer.text  # no other tier, no mixing
    assert len(upstream.asked("large")) == 1  # no second attempt
    assert not upstream.asked("small")
    assert len(events) >= 2
    said = client.chat.completions.create(
        model="auto", messages=body["messages"], stream=True, extra_body={"route": COMMIT["route"]}
    )
    with pytest.raises(openai.APIError):
        list(said)


def sent(gateway: Gateway, body: dict[str, Any]) -> Any:
    """A request on a connection of its own."""
    raw = gateway.connect()
    raw.sendall(whole(body))
    return raw


def test_a_client_who_leaves_in_the_midst_frees_the_server(gateway: Gateway, upstream: Upstream) -> None:
    def leave() -> float:
        asked = len(upstream.asked("large"))
        with sent(gateway, ask(None, {"text": WORDS, "gate": "never", "before": 2}, **COMMIT)) as raw:
            assert raw.recv(15) == b"HTTP/1.1 200 OK"
        return until(lambda: upstream.asked("large")[asked].released_at is not None)

    assert soonest(leave, 1.0) < 1.0


def memory_mib(pid: int) -> float:
    with open(f"/proc/{pid}/status") as status:
        found = re.search(r"VmRSS:\s+(\d+) kB", status.read())
    assert found is not None
    return int(found[1]) / 1024


@pytest.fixture(scope="module")
def slow(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A gateway whose default streams at once, with frequent comments, and tiers with little of one patience each."""
    folder = tmp_path_factory.mktemp("slow")
    write_artifact(folder / "cheap.json")
    told = cascade(upstream.url)
    told["server"] |= {"keep_alive_seconds": 0.2}
    cheap, dear = told["tiers"]
    for tier in (cheap, dear):
        tier["engine"]["max_reply_mib"] = 64
    told["tiers"] += [
        {**cheap, "name": "brief", "patience_seconds": 0.5},
        {**cheap, "name": "calm", "patience_seconds": 3.0},
        {**cheap, "name": "hasty", "engine": cheap["engine"] | {"first_byte_seconds": 0.3}},
        {**cheap, "name": "restless", "engine": cheap["engine"] | {"idle_seconds": 0.3}},
    ]
    commit = {"stream_mode": "commit", "commit_to": "cheap"}
    told["policies"]["default"] |= commit
    told["policies"]["hasty"] = {
        "steps": [{"tier": "hasty", "accept_at": 0.8}, {"tier": "dear"}],
        **commit,
        "commit_to": "hasty",
    }
    with running(folder, told) as process:
        yield process


def post(gateway: Gateway, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=PATIENCE)


def said(answer: httpx2.Response) -> str:
    return "".join(event["choices"][0]["delta"].get("content", "") for event in chunks(answer.text))


def test_a_policy_says_how_and_from_whom_it_streams(slow: Gateway) -> None:
    answer = post(slow, ask({"text": WORDS}, stream=True))
    assert (answer.headers["x-route-stream-mode"], answer.headers["x-route-tier"]) == ("commit", "cheap")


def test_a_silence_in_a_stream_is_filled_with_comments_and_never_one_before_it(
    slow: Gateway, upstream: Upstream
) -> None:
    body = ask({"text": "a b", "gate": "comments", "before": 2}, stream=True)
    lines: list[str] = []
    with httpx2.stream("POST", f"{slow.url}/v1/chat/completions", json=body, timeout=PATIENCE) as answer:
        for line in answer.iter_lines():
            lines.append(line)
            if lines.count(sse.KEEP_ALIVE.decode().strip()) >= 2:
                upstream.opened.add("comments")
    assert not lines[0].startswith(":")
    told = chunks("\n".join([*lines, ""]))
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in told) == "a b"


def test_a_slow_stream_outlives_the_tiers_patience(slow: Gateway, upstream: Upstream) -> None:
    def outlives(patience: float = 0.5) -> bool:
        """Whether it could be seen: the first piece had to come in time."""
        upstream.opened.clear()
        body = ask({"text": WORDS, "gate": "patience", "before": 3}, stream=True) | {"model": "brief"}
        with httpx2.stream("POST", f"{slow.url}/v1/chat/completions", json=body, timeout=PATIENCE) as answer:
            if answer.status_code == 504:
                return False
            time.sleep(1.5 * patience)
            upstream.opened.add("patience")
            answer.read()
        assert said(answer) == WORDS
        return True

    until(outlives)


def test_a_slow_stream_does_not_outlive_the_requests_deadline(slow: Gateway) -> None:
    def ended() -> float:
        body = ask({"text": WORDS, "gate": "never", "before": 3}, stream=True) | {"route": {"deadline_seconds": 1}}
        began = time.monotonic()
        answer = post(slow, body)
        if answer.status_code == 504:  # the first piece did not come in time
            return PATIENCE
        assert '"error"' in answer.text.split("\n\n")[-2]
        return time.monotonic() - began

    assert 0.9 < soonest(ended, 3.0) < 3.0


def test_a_stream_that_falls_silent_is_ended_with_an_error(slow: Gateway, upstream: Upstream) -> None:
    answer = post(slow, ask({"fault": "silent_in_stream"}, stream=True) | {"model": "restless"})
    assert '"error"' in answer.text.split("\n\n")[-2]
    [seen] = upstream.asked("small")
    until(lambda: seen.released_at is not None)
    assert not seen.answered  # the server would have been silent for much longer


def test_the_first_piece_has_a_deadline_of_its_own(slow: Gateway) -> None:
    answer = post(slow, ask({"fault": "silent"}, {"text": "b"}, stream=True) | {"model": "auto:hasty"})
    assert (answer.headers["x-route-tier"], answer.headers["x-route-tiers-tried"]) == ("dear", "2")


def test_a_stream_that_nobody_reads_slows_the_server_down(slow: Gateway, upstream: Upstream) -> None:
    with sent(slow, ask(None, MUCH, stream=True) | {"model": "dear"}) as raw:
        assert raw.recv(15) == b"HTTP/1.1 200 OK"
        time.sleep(1.0)
        assert not upstream.asked("large")[0].answered
        assert memory_mib(slow.process.pid) < 200
    until(lambda: upstream.asked("large")[0].released_at is not None)


def test_a_client_who_does_not_read_is_not_held_against_the_tier(slow: Gateway) -> None:
    body = ask(None, MUCH, stream=True) | {"model": "dear", "route": {"deadline_seconds": 2}}
    gone = 'requests_total{reason="",status="499"}'

    def left() -> bool:
        before = metric(slow, "requests_total")
        with sent(slow, body):
            until(lambda: metric(slow, "requests_total") > before)
        return metric(slow, gone) > 0

    until(left)
    assert metric(slow, 'breaker_open{tier="dear"}') == 0
    assert metric(slow, 'tier_in_flight{tier="dear"}') == 0


def stuffed(raw: Any, body: dict[str, Any], upstream: Upstream) -> int:
    """Ask until the line takes no more of the answers, which nobody reads; how often. The last one has come by then,
    and cannot be told; what was sent behind it waits for its turn."""
    description = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n"  # of which few fill the line
    asked, came = 0, True
    while came:
        asked += 1
        raw.sendall(description + whole(body))
        with contextlib.suppress(AssertionError):
            until(partial(reached, upstream, asked), 1.0)
        came = reached(upstream, asked)
    return asked


def reached(upstream: Upstream, asked: int) -> bool:
    return len(upstream.asked("small")) >= asked


@pytest.mark.parametrize("how", ["late", "never"])
def test_a_client_who_does_not_read_before_the_head_is_not_held_against_the_tier_either(
    how: str, slow: Gateway, upstream: Upstream
) -> None:
    def as_it_should(tier: str, patience: float) -> bool:
        upstream.seen.clear()
        body = ask(stream=True) | {"model": tier}
        if how == "never":
            body["route"] = {"deadline_seconds": 2 * patience}
        with slow.connect() as raw:
            asked = stuffed(raw, body, upstream)
            time.sleep(2 * patience + 0.5)
            said = b"".join(iter(lambda: raw.recv(2**20), b"")) if how == "never" else read_to(raw, asked)
        if how == "late":
            return said.count(b"data: [DONE]\n\n") == asked
        return said.count(b"HTTP/1.1 200 OK") == said.count(b"HTTP/1.1 ")  # and nothing of an answer that is not there

    assert any(
        as_it_should(*each) for each in (("brief", 0.5), ("calm", 3.0))
    )  # a slow machine may lose one's patience


def read_to(raw: Any, asked: int) -> bytes:
    """All that is said to so many requests, or what there is before the line ends."""
    said = b""
    while said.count(b"data: [DONE]\n\n") < asked and (more := raw.recv(2**20)):
        said += more
    return said


def metric(gateway: Gateway, name: str) -> float:
    text = httpx2.get(f"{gateway.url}/metrics", timeout=PATIENCE).text
    found = [line.split()[-1] for line in text.splitlines() if line.startswith(f"confidence_gateway_{name}")]
    return sum(map(float, found))
