"""A tier whose server computes confidence itself: what it is asked for, and what is made of what it tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.faults.ask import ask
from tests.faults.gateway import P_SURE, PATIENCE, SURE, UNSURE, Gateway, cascade, running, write_artifact
from tests.faults.upstream import Upstream

SUMMARY, ARRAYS = {"confidence_window": 32}, {"confidence_arrays": 1}
FEATURES = {"summed": "lp_mean", "whole": "lp_quantile"}  # of an answer whose tokens are all alike, the same number


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("engine")
    plan: dict[str, Any] = cascade(upstream.url)
    cheap, dear = plan["tiers"]
    cheap["engine"]["confidence"] = "engine"
    cheap["allows"] = ["response_format", "tools"]
    plan["tiers"] = [*(cheap | {"name": name, "calibrator": f"{name}.json"} for name in FEATURES), dear]
    steps = {name: [{"tier": name, "accept_at": 0.8}, {"tier": "dear"}] for name in FEATURES}
    plan["policies"] = {name: {"steps": step} for name, step in steps.items()} | {"default": {"steps": steps["summed"]}}
    for name, feature in FEATURES.items():
        write_artifact(home / f"{name}.json", feature=feature, source="plugin")
    with running(home, plan) as gateway:
        yield gateway


def told(gateway: Gateway, policy: str, small: dict[str, Any], **fields: Any) -> dict[str, Any]:
    body = ask(small, {"text": "from the dear one"}, **fields) | {"model": f"auto:{policy}"}
    url, debug = f"{gateway.url}/v1/chat/completions", {"x-route-debug": "true"}
    return dict(httpx2.post(url, json=body, headers=debug, timeout=PATIENCE).raise_for_status().json())


@pytest.mark.parametrize(("policy", "wish"), [("summed", SUMMARY), ("whole", ARRAYS)])
def test_the_server_is_asked_for_no_more_than_the_calibrator_looks_at(
    policy: str, wish: dict[str, int], served: Gateway, upstream: Upstream
) -> None:
    before = len(upstream.asked("small"))
    route = told(served, policy, {"nats": SURE})["route"]
    assert (route["reason"], route["tier"], route["source"]) == ("confident", policy, "plugin")
    assert route["confidence"] == pytest.approx(P_SURE, abs=1e-3)
    [asked] = upstream.asked("small")[before:]
    assert asked.body["vllm_xargs"] == {"confidence": 1, "confidence_k": 20} | wish
    assert "logprobs" not in asked.body
    assert told(served, policy, {"nats": UNSURE})["route"]["tier"] == "dear"


@pytest.mark.parametrize("policy", FEATURES)
def test_a_client_who_asks_for_log_probs_gets_the_servers_beside_it(policy: str, served: Gateway) -> None:
    answer = told(served, policy, {"nats": SURE, "text": "it is 4"}, logprobs=True, top_logprobs=2)
    assert answer["route"]["confidence"] == pytest.approx(P_SURE, abs=1e-3)
    assert answer["route"]["source"] == "plugin"
    entries = answer["choices"][0]["logprobs"]["content"]
    assert [(entry["token"], entry["logprob"]) for entry in entries] == [("it", SURE), (" is", SURE), (" 4", SURE)]
    assert {len(entry["top_logprobs"]) for entry in entries} == {2}


def test_a_plugin_that_tells_less_than_is_needed_costs_the_confidence_and_the_reason_is_told(served: Gateway) -> None:
    route = told(served, "summed", {"nats": SURE, "older_plugin": True})["route"]
    assert route["tier"] == "dear"
    assert route["hops"][0]["null_reason"] == "no_evidence"
    assert served.logged(lambda line: "older than this gateway" in line.get("why", ""))
    assert told(served, "whole", {"nats": SURE, "older_plugin": True})["route"]["tier"] == "whole"


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "wish",
    [
        {"logit_bias": {"5": 1}},
        {"min_tokens": 3},
        {"response_format": {"type": "json_object"}},
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    ],
    ids=lambda wish: ",".join(wish),
)
def test_what_changes_the_logits_is_asked_for_without_confidence(wish: dict[str, Any], served: Gateway) -> None:
    """The plugin would refuse the request: docs/vllm_plugin.md."""
    calls = [["weather", "{}"]] if "tools" in wish else []
    body = ask({"nats": SURE, "calls": calls}, **wish) | {"model": "summed"}
    url, debug = f"{served.url}/v1/chat/completions", {"x-route-debug": "true"}
    answer = httpx2.post(url, json=body, headers=debug, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    assert answer.json()["route"]["confidence"] is None
