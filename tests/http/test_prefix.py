"""Streams that are decided on by their first tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.faults.ask import ask
from tests.faults.gateway import (
    P_SURE,
    PATIENCE,
    SURE,
    UNSURE,
    Gateway,
    cascade,
    confgate_ends,
    running,
    until,
    write_artifact,
)
from tests.faults.upstream import Upstream
from tests.http.test_streaming import chunks

WORDS = "one two three four five six"
TOKENS = 3


@pytest.fixture(scope="module")
def held(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("prefix")
    write_artifact(folder / "cheap.json")
    write_artifact(folder / "first.json", span=f"prefix-{TOKENS}")
    told = cascade(upstream.url)
    told["tiers"][0] |= {"prefix_calibrator": "first.json"}
    told["tiers"][0]["engine"]["continuous_usage"] = True
    told["policies"]["default"]["stream_mode"] = "prefix"
    with running(folder, told) as process:
        yield process


def post(gateway: Gateway, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=PATIENCE)


def text(answer: httpx2.Response) -> str:
    events = [event for event in chunks(answer.text) if event["choices"]]
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events)


def test_a_sure_beginning_is_passed_on_before_the_end_is_known(held: Gateway, upstream: Upstream) -> None:
    body = ask({"text": WORDS, "nats": SURE, "gate": "rest", "before": 1 + TOKENS}, stream=True)
    with httpx2.stream("POST", f"{held.url}/v1/chat/completions", json=body, timeout=PATIENCE) as answer:
        route = {name[8:]: value for name, value in answer.headers.items() if name.startswith("x-route-")}
        upstream.opened.add("rest")  # three more words
        whole = answer.read().decode()
    assert (route["stream-mode"], route["reason"], route["tier"]) == ("prefix", "confident", "cheap")
    assert float(route["confidence"]) == pytest.approx(P_SURE, abs=1e-5)
    assert route["threshold"] == "0.8"
    assert route["calibrator"].startswith("first@")
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in chunks(whole)) == WORDS
    assert not upstream.asked("large")


def test_an_unsure_beginning_is_given_up_at_once_and_nothing_of_it_shown(held: Gateway, upstream: Upstream) -> None:
    wrong = {"text": "wrong " * 40, "nats": UNSURE, "gate": "never", "before": 1 + TOKENS}
    body = ask(wrong, {"text": WORDS}, stream=True)
    answer = post(held, body | {"route": {"debug": True}})
    assert (text(answer), answer.headers["x-route-tier"], answer.headers["x-route-reason"]) == (WORDS, "dear", "last")
    until(lambda: upstream.asked("small")[0].released_at is not None)
    first, last = chunks(answer.text)[-1]["route"]["hops"]
    assert (first["reason"], last["reason"]) == ("unsure", "last")
    assert 7 + TOKENS <= first["tokens"] < 7 + 20  # the prompt's seven, and what had come


@pytest.mark.parametrize(("nats", "tier"), [(SURE, "cheap"), (UNSURE, "dear")])
def test_an_answer_that_is_over_before_is_decided_on_as_it_is(nats: float, tier: str, held: Gateway) -> None:
    answer = post(held, ask({"text": "42", "nats": nats}, {"text": "43"}, stream=True))
    assert (answer.headers["x-route-tier"], text(answer)) == (tier, "42" if tier == "cheap" else "43")


@pytest.mark.parametrize("fault", ["no_logprobs", "other_model"])
def test_without_evidence_a_beginning_is_not_passed_on(fault: str, held: Gateway) -> None:
    asked = ask({"text": WORDS, "nats": SURE, "fault": fault, "pause": 0.01}, {"text": "43"}, stream=True)
    answer = post(held, asked | {"route": {"debug": True}})
    assert (answer.headers["x-route-tier"], text(answer)) == ("dear", "43")
    assert chunks(answer.text)[-1]["route"]["hops"][0]["reason"] == "no_evidence"


@pytest.mark.parametrize("fault", ["cut_off", "overflow_event", "refusal_event"])
def test_a_beginning_that_breaks_before_its_decision_costs_nobody_anything(fault: str, held: Gateway) -> None:
    broken = {"text": WORDS, "fault": fault, "pause": 0.02}
    answer = post(held, ask(broken, {"text": "43"}, stream=True, max_tokens=50, route={"debug": True}))
    assert (answer.headers["x-route-tier"], text(answer)) == ("dear", "43")
    assert chunks(answer.text)[-1]["route"]["hops"][0]["reason"] == "failed"


@pytest.mark.parametrize("said", ["42", "one two three"])
def test_a_complete_answer_may_be_the_fallback(said: str, held: Gateway) -> None:
    complete = {"text": said, "nats": UNSURE, "ends_with_text": True}
    answer = post(held, ask(complete, {"fault": "500"}, stream=True))
    assert (answer.headers["x-route-reason"], answer.headers["x-route-tier"]) == ("fallback", "cheap")
    assert text(answer) == said


def test_an_answer_that_is_cut_at_the_token_it_would_be_decided_on_is_not_passed_on(held: Gateway) -> None:
    cut = {"text": "one two three", "nats": SURE, "fault": "length", "ends_with_text": True}
    answer = post(held, ask(cut, {"text": "43"}, stream=True, route={"debug": True}))
    assert (answer.headers["x-route-tier"], text(answer)) == ("dear", "43")
    first = chunks(answer.text)[-1]["route"]["hops"][0]
    assert (first["reason"], first["given_up"]) == ("truncated", False)


@pytest.mark.parametrize("mode", ["prefix", "commit"])
def test_an_answer_of_a_cheaper_tier_for_want_of_money_says_so(mode: str, held: Gateway) -> None:
    route = {"stream_mode": mode, "budget_usd": 0.0001, "debug": True}
    answer = post(held, ask({"nats": UNSURE}, stream=True, max_tokens=10, route=route))
    assert (answer.headers["x-route-tier"], answer.headers["x-route-reason"]) == ("cheap", "budget")
    assert chunks(answer.text)[-1]["route"]["reason"] == "budget"


def test_half_an_answer_is_never_the_fallback(held: Gateway) -> None:
    half = {"text": WORDS, "nats": UNSURE, "gate": "never", "before": 1 + TOKENS}
    answer = post(held, ask(half, {"fault": "500"}, stream=True))
    assert answer.status_code == 502


def test_without_calibrators_for_first_tokens_the_mode_is_refused(gateway: Gateway) -> None:
    answer = post(gateway, ask(stream=True, route={"stream_mode": "prefix"}))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "route.stream_mode"


@pytest.mark.parametrize(
    ("field", "span", "words"),
    [
        ("calibrator", f"prefix-{TOKENS}", "fitted on first tokens"),
        ("prefix_calibrator", "", "fitted on whole answers"),
        ("prefix_calibrator", "answer", "fitted on whole answers"),
    ],
)
def test_neither_calibrator_takes_the_others_place(
    field: str, span: str, words: str, upstream: Upstream, tmp_path: Path
) -> None:
    write_artifact(tmp_path / "cheap.json")
    write_artifact(tmp_path / "other.json", **({"span": span} if span else {}))
    told = cascade(upstream.url)
    told["tiers"][0][field] = "other.json"
    (tmp_path / "cascade.yaml").write_text(json.dumps(told, indent=1))
    code, _, err = confgate_ends("serve", "-c", str(tmp_path / "cascade.yaml"))
    assert code == 1
    assert words in err


def test_a_policy_cannot_decide_on_beginnings_without_a_calibrator_for_them(tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    told = cascade("http://127.0.0.1:1/v1")
    told["policies"]["default"]["stream_mode"] = "prefix"
    (tmp_path / "cascade.yaml").write_text(json.dumps(told, indent=1))
    code, _, err = confgate_ends("check", "-c", str(tmp_path / "cascade.yaml"))
    assert code == 1
    assert "policies.default.steps[0]" in err
    assert "prefix_calibrator" in err
