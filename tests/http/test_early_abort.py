"""Answers that are given up before their end, because they would not be accepted whatever comes."""

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

TOKENS = 3
BOUNDS = {"tokens": TOKENS, "at_most": -0.5, "n": 300, "accepted": 0}
LEARNED = {
    "feature": "lp_mean",
    "confidence": 0.95,
    "levels": [{"threshold": 0.7, "epsilon": 0.05, "bounds": [BOUNDS]}],
}


def plan(url: str, folder: Path, **step: Any) -> dict[str, Any]:
    write_artifact(folder / "cheap.json", early_abort=LEARNED)
    told = cascade(url)
    told["tiers"][0]["engine"]["continuous_usage"] = True
    told["policies"]["default"]["steps"][0] |= step
    return told


@pytest.fixture(scope="module")
def watching(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("early")
    with running(folder, plan(upstream.url, folder, early_abort=0.05)) as process:
        yield process


def post(gateway: Gateway, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(f"{gateway.url}/v1/chat/completions", json={"route": {"debug": True}} | body, timeout=PATIENCE)


def test_a_hopeless_answer_is_cancelled_and_the_next_tier_asked_at_once(watching: Gateway, upstream: Upstream) -> None:
    hopeless = {
        "text": "wrong " * 40,
        "nats": UNSURE,
        "gate": "never",
        "before": 1 + TOKENS,
    }  # and says no more
    answer = post(watching, ask(hopeless, {"text": "43"}))
    assert answer.json()["choices"][0]["message"]["content"] == "43"
    until(lambda: upstream.asked("small")[0].released_at is not None)
    first, last = answer.json()["route"]["hops"]
    assert (first["reason"], first["given_up"], first["confidence"]) == ("unsure", True, None)
    assert (last["reason"], last["given_up"]) == ("last", False)
    assert 7 + TOKENS <= first["tokens"] < 7 + 30  # the prompt's seven, and what had come
    assert answer.json()["route"]["usage_total"]["total_tokens"] == first["tokens"] + last["tokens"]
    metrics = httpx2.get(f"{watching.url}/metrics", timeout=PATIENCE).text
    assert 'confidence_gateway_given_up_hops_total{tier="cheap"}' in metrics
    [line] = watching.logged(lambda told: told.get("given_up"))
    assert "lp_mean of the first 3 tokens is -0.8" in line["why"]


def test_a_hopeful_answer_is_waited_for_and_served(watching: Gateway) -> None:
    answer = post(watching, ask({"text": "one two three four", "nats": SURE}))
    assert answer.json()["choices"][0]["message"]["content"] == "one two three four"
    assert float(answer.headers["x-route-confidence"]) == pytest.approx(P_SURE, abs=1e-5)
    assert not answer.json()["route"]["hops"][0]["given_up"]


def test_a_shorter_answer_is_decided_on_as_a_whole(watching: Gateway) -> None:
    answer = post(watching, ask({"text": "42", "nats": UNSURE}, {"text": "43"}))
    first = answer.json()["route"]["hops"][0]
    assert (first["reason"], first["given_up"]) == ("unsure", False)
    assert first["confidence"] is not None


def test_an_answer_that_is_complete_by_then_is_not_given_up_and_may_be_the_fallback(watching: Gateway) -> None:
    answer = post(watching, ask({"text": "one two three", "nats": UNSURE, "ends_with_text": True}, {"fault": "500"}))
    first = answer.json()["route"]["hops"][0]
    assert (first["reason"], first["given_up"]) == ("unsure", False)
    assert (answer.headers["x-route-reason"], answer.headers["x-route-tier"]) == ("fallback", "cheap")


@pytest.mark.parametrize("fault", ["no_logprobs", "other_model"])
def test_without_evidence_on_the_way_the_answer_is_waited_for(fault: str, watching: Gateway) -> None:
    answer = post(watching, ask({"text": "one two three four", "nats": UNSURE, "fault": fault}, {"text": "43"}))
    first = answer.json()["route"]["hops"][0]
    assert (first["reason"], first["given_up"]) == ("no_evidence", False)


def test_where_less_is_asked_for_than_was_learned_nothing_is_given_up(upstream: Upstream, tmp_path: Path) -> None:
    told = plan(upstream.url, tmp_path, early_abort=0.05)
    told["overrides"] = {"threshold": [0.0, 1.0]}
    body = ask({"text": "a wrong one of six words", "nats": UNSURE}) | {"route": {"threshold": 0.01, "debug": True}}
    with running(tmp_path, told) as gateway:
        answer = httpx2.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=PATIENCE)
    assert answer.headers["x-route-reason"] == "confident"  # of .018, and .01 were enough


def test_it_is_off_unless_a_policy_says_so(upstream: Upstream, tmp_path: Path) -> None:
    with running(tmp_path, plan(upstream.url, tmp_path)) as gateway:
        answer = post(gateway, ask({"text": "a wrong one of six words", "nats": UNSURE}, {"text": "43"}))
    assert not answer.json()["route"]["hops"][0]["given_up"]
    assert not upstream.asked("small")[0].body["stream"]


@pytest.mark.parametrize("wanted", [{"return_token_ids": True}, {"route": {"debug": True, "extras": ["reasoning"]}}])
def test_what_only_a_whole_reply_tells_is_waited_for(
    wanted: dict[str, Any], watching: Gateway, upstream: Upstream
) -> None:
    answer = post(watching, ask({"text": "one two three four", "nats": SURE, "reasoning": "well"}) | wanted)
    assert [seen.body["stream"] for seen in upstream.asked("small")] == [False]
    choice = answer.json()["choices"][0]
    assert choice.get("token_ids") or choice["message"]["reasoning"] == "well"


def test_an_answer_that_broke_off_was_paid_for_too(watching: Gateway) -> None:
    answer = post(watching, ask({"text": "one two three four", "nats": SURE, "fault": "cut_off"}, {"text": "43"}))
    first = answer.json()["route"]["hops"][0]
    assert first["reason"] == "failed"
    assert first["tokens"] > 7


@pytest.mark.parametrize(
    ("step", "learned", "words"),
    [
        ({"early_abort": 0.05}, None, "has not learned it; fit it with `confgate fit --early-abort`"),
        ({"early_abort": 0.01}, LEARNED, "nothing was learned for 0.01 at 0.8 or below"),
        ({"early_abort": 0.05, "accept_at": 0.6}, LEARNED, "nothing was learned for 0.05 at 0.6 or below"),
        ({"early_abort": 1.5}, LEARNED, "less than 1"),
    ],
)
def test_it_is_refused_where_nothing_says_when(
    step: dict[str, Any], learned: dict[str, Any] | None, words: str, upstream: Upstream, tmp_path: Path
) -> None:
    told = plan(upstream.url, tmp_path, **step)
    write_artifact(tmp_path / "cheap.json", early_abort=learned)
    (tmp_path / "cascade.yaml").write_text(json.dumps(told, indent=1))
    for command in ("check", "serve"):
        code, _, err = confgate_ends(command, "-c", str(tmp_path / "cascade.yaml"))
        assert code == 1
        assert words in err
        assert "Traceback" not in err
