"""What the vLLM plugin writes is what the gateway reads, and anything else costs the confidence, never the answer."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from gateway.engines import _reply
from gateway.engines.openai_http import Options, evidence, request_body
from gateway.nouns import Ask, Message, Sampling, Source
from gateway.vllm_plugin import params
from gateway.vllm_plugin.signals import COLUMNS, SIGNALS
from gateway.vllm_plugin.summary import confidence, missing

OPTIONS = Options.model_validate(
    {"kind": "openai_http", "url": "http://127.0.0.1:1/v1", "model": "m", "confidence": "engine"}
)
TOKENS = 6


def ask(**changes: Any) -> Ask:
    return Ask((Message("user", "?"),), deadline=0.0, **changes)


def records() -> np.ndarray[Any, np.dtype[np.float32]]:
    made = np.zeros((TOKENS, COLUMNS), dtype=np.float32)
    made[:, : len(SIGNALS)] = np.random.default_rng(1).uniform(0.01, 9.0, (TOKENS, len(SIGNALS)))
    made[:, 1] *= -1
    return made


def written(**changes: Any) -> dict[str, Any]:
    wanted = params.Wanted(arrays=True)
    return confidence(records(), wanted, greedy=True, ended=True) | changes


def reply(told: Any, **choice: Any) -> bytes:
    message = {"role": "assistant", "content": "abcde"}
    choices = [{"index": 0, "message": message, "finish_reason": "stop", "confidence": told} | choice]
    usage = {"prompt_tokens": 1, "completion_tokens": TOKENS}
    return json.dumps({"choices": choices, "model": "m", "usage": usage}).encode()


def test_the_plugins_arrays_become_the_trace_without_the_end_token() -> None:
    answered = _reply.read(reply(written()), ask(), "e")
    trace, summary, why = evidence(answered, ask(), OPTIONS)
    assert trace is not None, why
    assert summary is None
    assert trace.source is Source.PLUGIN
    made = records()
    np.testing.assert_allclose(trace.chosen, made[:-1, 1], rtol=1e-3)
    np.testing.assert_allclose(trace.signals["confidence_k20"], made[:-1, 0], rtol=1e-3)
    assert set(trace.signals) == {"confidence_k20", "margin", "entropy", "self_certainty"}
    assert trace.end_nats == pytest.approx(made[-1, 1], rel=1e-3)
    assert trace.top is None


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (None, "sent no confidence"),
        (missing("the pool was full"), "the pool was full"),
        (written(schema="confgate.confidence/9"), "schema"),
        (written(k=5), "asked for the 20 most likely"),
        (written(greedy=False), "greedy"),
        (written(tokens=TOKENS + 1), "is of 7 tokens, the answer has 6"),
        (written(arrays=None), "no arrays"),
        (written(arrays=written()["arrays"] | {"margin": "!!"}), "no base64"),
        (written(arrays=written()["arrays"] | {"margin": "AAAA"}), "holds|no base64"),
        (written(arrays=written()["arrays"] | {"entropy": written()["arrays"]["entropy"][:-8] + "AAB8AHw="}), "."),
        (written(arrays=written()["arrays"] | {"dtype": "float64"}), "float64"),
    ],
)
def test_what_is_not_the_plugins_object_costs_the_confidence_and_says_why(told: Any, why: str) -> None:
    answered = _reply.read(reply(told), ask(), "e")
    trace, summary, told_why = evidence(answered, ask(), OPTIONS)
    assert answered.text == "abcde"
    assert (trace, summary) == (None, None)
    assert re.search(why, told_why)


def summed(**changes: Any) -> dict[str, Any]:
    return confidence(records(), params.Wanted(), greedy=True, ended=True) | changes


def view(signal: str, **numbers: Any) -> dict[str, Any]:
    views = summed()["summary"]
    return summed(summary=views | {signal: views[signal] | numbers})


def test_the_plugins_summary_is_enough_where_no_more_is_asked_for() -> None:
    asked = ask(window=32)
    trace, summary, why = evidence(_reply.read(reply(summed()), asked, "e"), asked, OPTIONS)
    assert summary is not None, why
    assert (trace, summary.source, summary.length, summary.k, summary.window) == (None, Source.PLUGIN, 5, 20, 32)
    made = records().astype(np.float16).astype(np.float64)
    assert summary.end_nats == pytest.approx(made[-1, 1], abs=1e-6)
    assert summary.views["confidence"]["mean"] == pytest.approx(made[:-1, 0].mean(), abs=1e-6)
    assert summary.views["top1"]["bottom_tokens"] == pytest.approx(made[:-1, 1].min(), abs=1e-6)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (None, "sent no confidence"),
        (missing("the pool was full"), "the pool was full"),
        (summed(schema="confgate.confidence/9"), "schema"),
        (summed(k=5), "asked for the 20 most likely"),
        (summed(window=16), "asked for groups of 32 tokens, the engine's are of 16"),
        (summed(greedy=False), "greedy"),
        (summed(tokens=TOKENS + 1), "is of 7 tokens, the answer has 6"),
        (summed(summary=None), "cannot be read"),
        (summed(summary=[1]), "cannot be read"),
        (view("top1", mean="high"), "cannot be read"),
        (view("top1", mean=None), "cannot be read"),
        (view("top1", max=0.2), "must be <= 0"),
        (summed(summary={}), "older than this gateway"),
        (view("top1", end=float("nan")), "."),
    ],
)
def test_what_is_not_the_plugins_summary_costs_the_confidence_and_says_why(told: Any, why: str) -> None:
    asked = ask(window=32)
    answered = _reply.read(reply(told), asked, "e")
    trace, summary, told_why = evidence(answered, asked, OPTIONS)
    assert answered.text == "abcde"
    assert (trace, summary) == (None, None)
    assert re.search(why, told_why)


def test_an_object_of_the_wrong_type_leaves_the_answer_whole() -> None:
    answered = _reply.read(reply("sure"), ask(), "e")
    assert (answered.text, evidence(answered, ask(), OPTIONS)[:2]) == ("abcde", (None, None))


def test_log_probs_that_a_client_asked_for_stay_beside_the_signals() -> None:
    entry = {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}],
    }
    entries = [entry | {"token": letter, "bytes": [ord(letter)]} for letter in "abcde"]
    raw = reply(written(), logprobs={"content": [*entries, entry | {"token": "<end>", "bytes": []}]})
    asked = ask(texts=True, top_k=1)
    trace, _, why = evidence(_reply.read(raw, asked, "e"), asked, OPTIONS)
    assert trace is not None, why
    assert trace.source is Source.PLUGIN
    assert trace.tokens == (b"a", b"b", b"c", b"d", b"e")
    assert trace.chosen.tolist() == [-0.5] * 5
    assert len(trace.signals["margin"]) == 5


def test_the_engine_is_asked_for_one_kind_of_evidence_and_for_none_that_it_cannot_give() -> None:
    body = request_body(ask(top_k=20), OPTIONS)
    assert body["vllm_xargs"] == {"confidence": 1, "confidence_k": 20, "confidence_arrays": 1}
    assert "logprobs" not in body
    summed_up = request_body(ask(top_k=20, window=16), OPTIONS)
    assert summed_up["vllm_xargs"] == {"confidence": 1, "confidence_k": 20, "confidence_window": 16}
    warm = request_body(ask(sampling=Sampling(temperature=0.7)), OPTIONS)
    assert "vllm_xargs" not in warm
    assert "logprobs" not in warm
    assert request_body(ask(texts=True, top_k=2), OPTIONS)["top_logprobs"] == 2
    assert "vllm_xargs" not in request_body(ask(evidence=False), OPTIONS)
