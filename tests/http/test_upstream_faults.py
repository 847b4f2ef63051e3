"""Every way in which a model server can fail, met by a real gateway: the client gets a good answer all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.faults.ask import ask, leave_idle
from tests.faults.gateway import (
    PATIENCE,
    SURE,
    UNSURE,
    Gateway,
    cascade,
    running,
    soonest,
    timed,
    until,
    write_artifact,
)
from tests.faults.upstream import EDIT, SILENCE, STATUS, WIRE, Upstream


@pytest.fixture(scope="module")
def hurried(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that soon loses its patience with the cheap tier, and not with the one after it."""
    folder = tmp_path_factory.mktemp("hurried")
    write_artifact(folder / "cheap.json")
    config = cascade(upstream.url)
    config["tiers"][0]["patience_seconds"] = 0.5
    with running(folder, config) as process:
        yield process


# What the hop at the broken tier is called. Everything here is hidden from the client behind the next tier's answer.
BROKEN = {
    **dict.fromkeys(WIRE, "failed"),
    **dict.fromkeys((fault for fault in STATUS if not fault.startswith("429")), "failed"),
    "silent": "slow",
    "silent_in_body": "slow",
    "drip": "slow",
    "overflow": "too_small",
    "overflow_openai": "too_small",
    "no_choices": "failed",
    "null_content": "failed",
    "number_content": "failed",
    "abort": "failed",
    "negative_usage": "failed",
    "huge_usage": "failed",
    "half_character": "failed",
}
ASKED_TWICE = {"reset", "hang_up", "reset_in_body", "end_in_body"}  # the connection was to blame
SAYS_NO = {"bad_request", "unprocessable"}

# The answer is good, its evidence is not: the confidence is null and the next tier is asked.
NO_EVIDENCE = {
    "no_logprobs": "no_evidence",
    "null_logprob": "no_evidence",
    "nan_logprob": "no_evidence",
    "infinite_logprob": "no_evidence",
    "positive_logprob": "no_evidence",
    "string_logprob": "no_evidence",
    "other_model": "no_evidence",
    "length": "truncated",
    "filtered": "truncated",
}
HARMLESS = {"no_finish", "no_usage", "calls_untold", "unspelled"}
OF_SET_UP = {"processed", "penalised"}  # test_doctor.py: one answer alone does not show them
LIMITED = {fault for fault in STATUS if fault.startswith("429")}  # test_resilience.py: they outlast their request


def test_every_fault_of_the_upstream_has_its_place_here() -> None:
    placed = set(BROKEN) | set(NO_EVIDENCE) | HARMLESS | OF_SET_UP | LIMITED | {"floor_logprob", "too_few_candidates"}
    placed |= {"only_thought"}  # an answer of a kind
    assert placed == set(WIRE) | set(STATUS) | set(EDIT)


@pytest.mark.parametrize("fault", sorted(set(BROKEN) - SAYS_NO))
def test_a_broken_tier_is_passed_over(fault: str, gateway: Gateway, hurried: Gateway, upstream: Upstream) -> None:
    url = (hurried if BROKEN[fault] == "slow" else gateway).url
    body = ask({"fault": fault}, {"text": "43"}, route={"debug": True})
    told = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE)
    assert told.status_code == 200, told.text
    route = told.json()["route"]
    assert [hop["reason"] for hop in route["hops"]] == [BROKEN[fault], "last"]
    assert told.json()["choices"][0]["message"]["content"] == "43"
    asked = upstream.asked("small")
    assert len(asked) == (2 if fault in ASKED_TWICE else 1), "the fault was never reached, or too often"
    assert {seen.headers["accept-encoding"] for seen in asked} == {"identity"}


@pytest.mark.parametrize("fault", sorted(NO_EVIDENCE))
def test_bad_evidence_costs_the_confidence_not_the_answer(fault: str, http: httpx2.Client) -> None:
    body = ask({"fault": fault}, {"text": "43"}, route={"debug": True})
    hop = http.post("/v1/chat/completions", json=body).json()["route"]["hops"][0]
    assert (hop["reason"], hop["confidence"]) == (NO_EVIDENCE[fault], None)
    alone = http.post("/v1/chat/completions", json=body | {"model": "cheap"})
    assert alone.json()["choices"][0]["message"]["content"] == "The answer is 42"
    assert alone.headers["x-route-confidence"] == "null"


@pytest.mark.parametrize("mode", [None, "prefix"])
def test_another_model_in_a_servers_answers_is_an_error_once_and_counted_each_time(
    mode: str | None, upstream: Upstream, tmp_path: Path
) -> None:
    write_artifact(tmp_path / "cheap.json")
    write_artifact(tmp_path / "first.json", span="prefix-2")
    plan = cascade(upstream.url)
    plan["tiers"][0]["prefix_calibrator"] = "first.json"
    more = {"stream": True, "route": {"stream_mode": mode}} if mode else {}
    with running(tmp_path, plan) as gateway, httpx2.Client(base_url=gateway.url, timeout=PATIENCE) as http:

        def answered(*faults: str) -> None:
            for fault in faults:
                body = ask({"fault": fault, "nats": SURE, "pause": 0.01}, **more)
                told = http.post("/v1/chat/completions", json=body)
                assert told.headers["x-route-tier"] == ("dear" if fault else "cheap")

        answered("other_model", "other_model", "", "other_model", "other_model")
        counted = 'confidence_gateway_other_model_hops_total{tier="cheap"} 4.0'
        assert counted in http.get("/metrics").text
        told = [line for line in gateway.lines() if line["logger"] == "gateway.engines.openai_http"]
    assert [(line["level"], line["event"]) for line in told] == [
        ("error", "another model answers"),
        ("warning", "the configured model answers again"),
        ("error", "another model answers"),
    ]
    assert {line["model"] for line in told if line["level"] == "error"} == {"an-impostor"}


@pytest.mark.parametrize("fault", sorted(HARMLESS))
def test_what_is_merely_sloppy_is_tolerated(fault: str, http: httpx2.Client) -> None:
    told = http.post("/v1/chat/completions", json=ask({"fault": fault, "nats": SURE}))
    assert told.headers["x-route-tier"] == "cheap"
    assert told.json()["usage"]["completion_tokens"] == 5
    assert told.json()["choices"][0]["finish_reason"] == "stop"


def test_a_clamped_log_prob_is_legal_and_counted(http: httpx2.Client) -> None:
    told = http.post("/v1/chat/completions", json=ask({"fault": "floor_logprob"}, route={"debug": True})).json()
    assert 0 <= told["route"]["hops"][0]["confidence"] < 0.01
    assert 'clamped_tokens_total{tier="cheap"}' in http.get("/metrics").text


def test_too_few_candidates_are_no_evidence(http: httpx2.Client) -> None:
    body = ask({"fault": "too_few_candidates"}, logprobs=True, top_logprobs=3, route={"debug": True})
    assert http.post("/v1/chat/completions", json=body).json()["route"]["hops"][0]["reason"] == "no_evidence"


@pytest.mark.parametrize("mode", [None, "buffer", "commit"])
@pytest.mark.parametrize("fault", ["too_few_candidates", "other_model"])
def test_log_probs_that_nothing_may_be_judged_by_are_shown_to_who_asked_for_them(
    fault: str, mode: str | None, http: httpx2.Client
) -> None:
    route: dict[str, Any] = {"debug": True} | ({"stream_mode": mode} if mode else {})
    body = ask({"fault": fault, "nats": SURE}, logprobs=True, top_logprobs=3, stream=bool(mode), route=route)
    told = http.post("/v1/chat/completions", json=body | {"model": "cheap"})
    whole = [json.loads(line.removeprefix("data: ")) for line in told.text.splitlines() if line.startswith("data: {")]
    events = whole if mode else [told.json()]
    choices = [choice for event in events for choice in event["choices"]]
    shown = [entry for choice in choices for entry in (choice["logprobs"] or {"content": []})["content"]]
    assert [(entry["token"], entry["logprob"]) for entry in shown] == [
        (token, SURE) for token in ("The", " answer", " is", " 42")
    ]
    first, *others = [len(entry["top_logprobs"]) for entry in shown]
    assert first == (0 if fault == "too_few_candidates" else 3)
    assert set(others) <= {0, 3}  # in `commit` mode as many as the poorest token of what came together
    assert mode == "commit" or len(set(others)) == 1
    assert events[-1]["route"]["null_reason"] == "no_evidence"


@pytest.mark.parametrize("fault", sorted(SAYS_NO))
def test_a_request_no_model_would_take_is_refused_in_our_words(fault: str, http: httpx2.Client) -> None:
    told = http.post("/v1/chat/completions", json=ask({"fault": fault}))
    assert told.status_code == 400
    assert told.json()["error"]["type"] == "invalid_request_error"
    assert "secret" not in told.text


def test_a_prompt_that_fits_nowhere_is_told_in_the_words_clients_look_for(http: httpx2.Client) -> None:
    told = http.post("/v1/chat/completions", json=ask({"fault": "overflow"}, {"fault": "overflow"}))
    assert told.status_code == 400
    assert told.json()["error"]["code"] == "context_length_exceeded"
    assert "maximum context length is 64 tokens" in told.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("wanted", "sent"), [(44, [44]), (45, [45, None]), (65, [65, None]), (2**40, [2**20, None])])
def test_an_answer_longer_than_the_window_gets_what_is_left(
    wanted: int, sent: list[int | None], stream: bool, http: httpx2.Client, upstream: Upstream
) -> None:
    body = ask({"window": 64, "nats": SURE}, max_tokens=wanted, stream=stream)
    told = http.post("/v1/chat/completions", json=body)
    assert (told.status_code, told.headers.get("x-route-tier")) == (200, "cheap"), told.text
    assert [seen.body.get("max_tokens") for seen in upstream.asked("small")] == sent
    assert upstream.asked("large") == []


def test_a_prompt_that_the_server_does_not_count_to_its_end_is_no_number_for_a_client(http: httpx2.Client) -> None:
    told = http.post("/v1/chat/completions", json=ask({"window": 19}, {"window": 19}, max_tokens=9))
    assert (told.status_code, told.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert told.json()["error"]["message"] == (
        "This model's maximum context length is 19 tokens. Please shorten the messages."
    )


@pytest.mark.parametrize(
    ("fault", "status"),
    [("500", 502), ("reset", 502), ("null_content", 502), ("half_character", 502), ("unauthorized", 502)],
)
def test_when_every_tier_is_down_the_status_says_how(fault: str, status: int, http: httpx2.Client) -> None:
    told = http.post("/v1/chat/completions", json=ask({"fault": fault}, {"fault": fault}))
    assert told.status_code == status
    assert "secret" not in told.text
    assert "127.0.0.1" not in told.text


@pytest.mark.parametrize(("fault", "level"), [("unauthorized", "error"), ("not_found", "error"), ("500", "warning")])
def test_a_server_that_does_not_let_us_in_is_told_loudly(
    fault: str, level: str, http: httpx2.Client, gateway: Gateway
) -> None:
    answer = http.post("/v1/chat/completions", json=ask({"fault": fault}))
    number = answer.headers["x-route-id"]
    hops = [line for line in gateway.lines() if line["event"] == "hop"]
    told = [hop for hop in hops if hop["tier"] == "cheap" and number.startswith(hop["route_id"])]
    assert [line["level"] for line in told] == [level]


def test_an_unsure_answer_is_served_when_the_last_tier_is_down(http: httpx2.Client) -> None:
    told = http.post("/v1/chat/completions", json=ask({"nats": UNSURE}, {"fault": "500"}))
    assert told.headers["x-route-reason"] == "fallback"
    assert told.headers["x-route-tier"] == "cheap"


@pytest.mark.parametrize(("fault", "pause"), [("500", "1"), ("429", "7")])
def test_or_withheld_where_the_policy_serves_no_such_answer(
    fault: str, pause: str, upstream: Upstream, tmp_path: Path
) -> None:
    write_artifact(tmp_path / "cheap.json")
    with running(tmp_path, cascade(upstream.url)) as gateway:  # one of its own: who is told to wait is not asked again
        body = ask({"nats": UNSURE}, {"fault": fault}) | {"model": "auto:strict"}
        told = httpx2.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=PATIENCE)
    assert (told.status_code, told.headers["retry-after"]) == (503, pause)
    assert told.json()["error"] == {
        "message": "No model that could answer was sure.", "type": "server_error", "param": None, "code": None,
    }  # fmt: skip


def test_a_silent_last_tier_ends_in_a_504(hurried: Gateway) -> None:
    body = ask({"fault": "silent"}) | {"model": "cheap"}
    told = httpx2.post(f"{hurried.url}/v1/chat/completions", json=body, timeout=PATIENCE)
    assert told.status_code == 504
    assert told.json()["error"]["type"] == "server_error"


def test_the_whole_request_has_one_deadline(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    config = cascade(upstream.url)
    config["server"]["request_seconds"] = 0.5
    with running(tmp_path, config) as late:

        def wait() -> None:
            told = httpx2.post(f"{late.url}/v1/chat/completions", json=ask({"fault": "silent"}), timeout=PATIENCE)
            assert told.status_code == 504

        assert 0.4 < soonest(lambda: timed(wait), 2.0) < 2.0
        assert not upstream.asked("large"), "there was no time left for it"


def test_an_errors_stream_is_an_ordinary_error(http: httpx2.Client) -> None:
    told = http.post("/v1/chat/completions", json=ask({"fault": "500"}, {"fault": "500"}, stream=True))
    assert told.status_code == 502
    assert told.headers["content-type"] == "application/json"


def test_an_empty_answer_is_legal_and_says_nothing_about_itself(http: httpx2.Client) -> None:
    told = http.post("/v1/chat/completions", json=ask({"text": ""}, route={"debug": True})).json()
    assert told["route"]["hops"][0]["reason"] == "no_evidence"


def test_a_model_that_thought_and_came_to_no_answer_is_not_broken(http: httpx2.Client) -> None:
    body = ask({"fault": "only_thought"}, route={"debug": True})
    assert http.post("/v1/chat/completions", json=body).json()["route"]["hops"][0]["reason"] == "no_evidence"
    alone = http.post("/v1/chat/completions", json=body | {"model": "cheap"})
    assert (alone.status_code, alone.json()["choices"][0]["message"]["content"]) == (200, "")
    assert alone.headers["x-route-confidence"] == "null"


def test_a_slow_tier_is_let_go_of(hurried: Gateway, upstream: Upstream) -> None:
    httpx2.post(f"{hurried.url}/v1/chat/completions", json=ask({"fault": "silent"}), timeout=PATIENCE)
    until(lambda: upstream.asked("small")[0].released_at is not None, SILENCE / 2)


@pytest.fixture(scope="module")
def watchful(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with all patience for its first tier, but little for silence; the second one, and a calm one that has
    the first one's calibrator, are asked for whole answers by stream, too."""
    folder = tmp_path_factory.mktemp("watchful")
    write_artifact(folder / "cheap.json")
    config = cascade(upstream.url)
    cheap, dear = config["tiers"]
    cheap["patience_seconds"] = 3 * SILENCE  # the server would give up before
    calm = {**cheap, "name": "calm", "engine": {**cheap["engine"], "whole_by": "stream"}}
    config["tiers"] += [calm, {**cheap, "name": "replying", "engine": {**cheap["engine"], "idle_seconds": 0.5}}]
    dear["engine"]["whole_by"] = "stream"
    cheap["engine"] |= {"whole_by": "stream", "first_byte_seconds": 0.5, "idle_seconds": 0.5}
    config["policies"]["by_reply"] = {"steps": [{"tier": "replying", "accept_at": 0.8}, {"tier": "dear"}]}
    with running(folder, config) as process:
        yield process


@pytest.mark.parametrize(
    ("policy", "fault"), [("auto", "silent"), ("auto", "silent_in_stream"), ("auto:by_reply", "silent_in_body")]
)
def test_a_server_that_falls_silent_is_let_go_of_long_before_the_tiers_patience_ends(
    policy: str, fault: str, watchful: Gateway, upstream: Upstream
) -> None:
    body = ask({"fault": fault}, {"text": "43"}, route={"debug": True}) | {"model": policy}
    told = httpx2.post(f"{watchful.url}/v1/chat/completions", json=body, timeout=PATIENCE).json()
    assert [hop["reason"] for hop in told["route"]["hops"]] == ["slow", "last"]
    assert told["choices"][0]["message"]["content"] == "43"
    [seen] = upstream.asked("small")
    assert seen.body["stream"] is (policy == "auto")
    until(lambda: seen.released_at is not None)


def test_an_answer_asked_for_by_stream_is_the_same(watchful: Gateway, http: httpx2.Client, upstream: Upstream) -> None:
    body = ask({"nats": -0.15, "text": "one two three"}, logprobs=True, top_logprobs=2, n=2, route={"debug": True})
    whole = http.post("/v1/chat/completions", json=body | {"model": "cheap"}).json()
    by_stream = httpx2.post(
        f"{watchful.url}/v1/chat/completions", json=body | {"model": "calm"}, timeout=PATIENCE
    ).json()
    assert [seen.body["stream"] for seen in upstream.asked("small")] == [False, False, True, True]
    assert (by_stream["choices"], by_stream["usage"]) == (whole["choices"], whole["usage"])
    assert by_stream["route"]["confidence"] == whole["route"]["confidence"] is not None
    ids = httpx2.post(
        f"{watchful.url}/v1/chat/completions", json=ask(return_token_ids=True) | {"model": "calm"}, timeout=PATIENCE
    )
    assert ids.json()["choices"][0]["token_ids"], "told by whole replies alone"


def test_a_pooled_connection_that_died_is_replaced_unseen(http: httpx2.Client, upstream: Upstream) -> None:
    leave_idle(2, lambda plan: http.post("/v1/chat/completions", json=ask(plan)), upstream)
    told = http.post("/v1/chat/completions", json=ask({"fault": "stale", "nats": SURE}))
    assert told.headers["x-route-tier"] == "cheap"
    assert [seen.reused for seen in upstream.asked("small")[-2:]] == [True, False]


def test_there_is_one_more_try_and_no_third(http: httpx2.Client, upstream: Upstream) -> None:
    told = http.post("/v1/chat/completions", json=ask({"fault": "hang_up"}, route={"debug": True})).json()
    assert len(upstream.asked("small")) == 2
    assert told["route"]["hops"][0]["reason"] == "failed"
