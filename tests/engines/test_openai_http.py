"""The HTTP engine against a server that speaks, or does not."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engines import _refusals, _reply
from gateway.engines.openai_http import OpenAIHttp, Options, open_engine
from gateway.errors import (
    ConfigError,
    EngineDown,
    EngineGarbled,
    EngineRefused,
    EngineTooSmall,
)
from gateway.nouns import GREEDY, Ask, Finish, Message, Sampling, Source
from tests.faults.ask import plan
from tests.faults.gateway import WAITS, until
from tests.faults.upstream import SILENCE, Upstream

T = TypeVar("T")


def options(url: str, **changes: object) -> Options:
    return Options.model_validate({"kind": "openai_http", "url": url, "model": "small", **WAITS, **changes})


def use(upstream: Upstream, act: Callable[[OpenAIHttp], Awaitable[T]], **changes: object) -> T:
    async def work() -> T:
        engine = await open_engine(options(upstream.url, **changes), name="e")
        try:
            return await act(engine)
        finally:
            await engine.close()

    return asyncio.run(work())


def ask(content: str = "?", **changes: object) -> Ask:
    return Ask((Message("user", content),), deadline=0.0, **changes)  # type: ignore[arg-type]


def told(**small: object) -> str:
    return str(plan(small)[0]["content"])


def test_text_and_evidence_come_back_apart_from_the_end_token() -> None:
    with Upstream() as upstream:
        got = use(upstream, lambda engine: engine.complete(ask(told(nats=-0.25), top_k=3)))
    assert (got.text, got.finish, got.model) == ("The answer is 42", Finish.STOP, "small")
    assert (got.prompt_tokens, got.completion_tokens) == (7, 5)
    assert got.trace is not None
    assert got.trace.source is Source.TOP_LOGPROBS
    assert got.trace.chosen.tolist() == [-0.25] * 4
    assert got.trace.top is not None
    assert got.trace.top.shape == (4, 3)
    assert (np.diff(got.trace.top, axis=1) <= 0).all()
    assert b"".join(got.trace.tokens).decode() == got.text
    assert got.trace.end_nats == -0.25
    assert got.trace.candidates == ()


def test_only_the_chosen_tokens_are_asked_for_when_they_do() -> None:
    with Upstream() as upstream:
        got = use(upstream, lambda engine: engine.complete(ask()))
        body = upstream.seen[0].body
    assert (body["logprobs"], body["top_logprobs"]) == (True, 0)
    assert got.trace is not None
    assert (got.trace.source, got.trace.top) == (Source.CHOSEN, None)


def test_texts_of_candidates_come_on_demand() -> None:
    with Upstream() as upstream:
        got = use(upstream, lambda engine: engine.complete(ask(top_k=2, texts=True)))
    assert got.trace is not None
    assert got.trace.candidates[0] == (b"The", b"The1")


def test_the_sampler_is_written_out_and_the_operators_fields_go_along() -> None:
    sampling = Sampling(0.5, 0.9, 7, ("x",), 0.1, 0.2, ((5, -100.0),))
    with Upstream() as upstream:
        use(
            upstream,
            lambda engine: engine.complete(ask(sampling=sampling, max_tokens=9)),
            extra_body={"repetition_penalty": 1.0},
        )
        body = upstream.seen[0].body
    wanted = {
        "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["x"], "presence_penalty": 0.1, "frequency_penalty": 0.2,
        "logit_bias": {"5": -100.0}, "max_tokens": 9, "repetition_penalty": 1.0,
    }  # fmt: skip
    assert {key: body[key] for key in wanted} == wanted


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with Upstream() as upstream:
        monkeypatch.setenv("TEST_UPSTREAM_KEY", "sk-up")
        use(upstream, lambda engine: engine.complete(ask()), api_key="env:TEST_UPSTREAM_KEY")
        assert upstream.seen[0].headers["authorization"] == "Bearer sk-up"
        monkeypatch.delenv("TEST_UPSTREAM_KEY")
        with pytest.raises(ConfigError, match="TEST_UPSTREAM_KEY"):
            use(upstream, lambda engine: engine.ready(), api_key="env:TEST_UPSTREAM_KEY")


def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with Upstream() as upstream:
        assert use(upstream, lambda engine: engine.complete(ask())).text


def test_it_says_who_it_is() -> None:
    with Upstream() as upstream:
        assert use(upstream, lambda engine: engine.fingerprint()) == {
            "model": "small",
            "engine": "vllm",
            "engine_version": "0.33.0",
        }
        assert use(upstream, lambda engine: engine.ready())
        assert not use(upstream, lambda engine: engine.ready(), model="huge")
        with pytest.raises(EngineRefused, match="it serves: small, large"):
            use(upstream, lambda engine: engine.fingerprint(), model="huge")


def test_a_server_that_is_away_is_down_and_not_ready() -> None:
    upstream = Upstream(port=1)
    assert not use(upstream, lambda engine: engine.ready())
    with pytest.raises(EngineDown, match=r"127\.0\.0\.1:1"):
        use(upstream, lambda engine: engine.complete(ask()))


def test_a_cancelled_call_closes_its_connection() -> None:
    with Upstream() as upstream:

        async def act(engine: OpenAIHttp) -> None:
            call = asyncio.ensure_future(engine.complete(ask(told(fault="silent"))))
            await asyncio.to_thread(until, lambda: upstream.seen)
            call.cancel()
            await asyncio.wait([call])
            await asyncio.to_thread(until, lambda: upstream.seen[0].released_at is not None, SILENCE / 2)
            assert (await engine.complete(ask())).text

        use(upstream, act)


def test_answers_do_not_mix_under_random_cancels() -> None:
    """redis-py CVE-2023-28858: a cancelled call left its reply for the next user."""
    rng = np.random.default_rng(0)
    with Upstream() as upstream:

        async def one(engine: OpenAIHttp, n: int) -> None:
            got = await engine.complete(ask(told(text=f"nonce {n}", seconds=0.01)))
            assert got.text == f"nonce {n}"

        async def act(engine: OpenAIHttp) -> int:
            """In each round every second call leaves; the others must get their own answers."""
            left = 0
            for first in range(0, 200, 10):
                calls = [asyncio.ensure_future(one(engine, n)) for n in range(first, first + 10)]
                for leaver in calls[::2]:
                    await asyncio.sleep(rng.uniform(0, 0.006))
                    left += leaver.cancel()
                await asyncio.wait(calls)
                assert not any(call.exception() for call in calls if not call.cancelled())
                assert not any(call.cancelled() for call in calls[1::2])
            return left

        assert use(upstream, act) > 20, "calls were left in the midst"


# The reader, on bytes


def body(*entries: tuple[str, float], text: str, finish: str | None = "stop", k: int = 0) -> bytes:
    content = [
        {
            "token": token,
            "logprob": nats,
            "bytes": list(token.encode()),
            "top_logprobs": [{"token": f"{n}", "logprob": nats - n, "bytes": None} for n in range(k)],
        }
        for token, nats in entries
    ]
    choice = {"message": {"content": text}, "finish_reason": finish, "logprobs": {"content": content}}
    return json.dumps({"model": "small", "choices": [choice], "usage": {"completion_tokens": len(entries)}}).encode()


def test_a_stop_string_behind_the_text_is_no_part_of_it() -> None:
    got = _reply.read(body(("a", -1.0), (" b", -2.0), ("##", -3.0), ("#", -4.0), text="a b"), ask(), "e")
    assert got.trace is not None
    assert (got.trace.chosen.tolist(), got.trace.end_nats) == ([-1.0, -2.0], -7.0)


def test_a_token_cut_by_a_stop_string_still_counts() -> None:
    got = _reply.read(body(("a", -1.0), (" b#", -2.0), text="a b"), ask(), "e")
    assert got.trace is not None
    assert (got.trace.chosen.tolist(), got.trace.tokens, got.trace.end_nats) == ([-1.0, -2.0], (), None)


def test_a_cut_answer_has_no_end_token() -> None:
    got = _reply.read(body(("a", -1.0), (" b", -2.0), text="a b", finish="length"), ask(), "e")
    assert got.trace is not None
    assert (got.trace.chosen.size, got.trace.end_nats, got.finish) == (2, None, Finish.LENGTH)


def test_pieces_of_a_character_are_counted_though_they_cannot_be_placed() -> None:
    got = _reply.read(body(("�", -1.0), ("�", -2.0), ("<end>", -3.0), text="🙂"), ask(), "e")
    assert got.trace is not None
    assert (got.trace.chosen.tolist(), got.trace.tokens, got.trace.end_nats) == ([-1.0, -2.0], (), -3.0)


def test_a_list_with_one_candidate_too_many_is_cut() -> None:
    got = _reply.read(body(("a", -1.0), text="a", k=21), ask(top_k=20), "e")
    assert got.trace is not None
    assert got.trace.top is not None
    assert got.trace.top.shape == (1, 20)


def test_candidates_in_any_order_are_sorted() -> None:
    raw = json.loads(body(("a", -1.0), text="a", k=3))
    raw["choices"][0]["logprobs"]["content"][0]["top_logprobs"].reverse()
    got = _reply.read(json.dumps(raw).encode(), ask(top_k=2), "e")
    assert got.trace is not None
    assert got.trace.top is not None
    assert got.trace.top.tolist() == [[-1.0, -2.0]]


@given(st.text(min_size=1), st.integers(1, 4), st.booleans())
def test_tokens_cut_anywhere_spell_the_text(text: str, width: int, ended: bool) -> None:
    raw = text.encode("utf-8", "replace")
    cuts = [raw[at : at + width] for at in range(0, len(raw), width)] + ([b"<end>"] if ended else [])
    content = [{"token": cut.decode("utf-8", "replace"), "logprob": -1.0, "bytes": list(cut)} for cut in cuts]
    choice = {"message": {"content": raw.decode()}, "finish_reason": "stop", "logprobs": {"content": content}}
    got = _reply.read(json.dumps({"model": "m", "choices": [choice]}).encode(), ask(), "e")
    assert got.trace is not None
    assert b"".join(got.trace.tokens) == raw
    assert (got.trace.end_nats is not None) is ended


@given(st.binary(max_size=200))
def test_no_bytes_make_anything_but_an_answer_or_an_engine_error(raw: bytes) -> None:
    with pytest.raises(EngineGarbled):
        _reply.read(raw, ask(), "e")


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(junk, st.integers(0, 3), st.booleans())
def test_no_log_probs_cost_more_than_the_confidence(logprobs: object, k: int, texts: bool) -> None:
    choice = {"message": {"content": "a"}, "finish_reason": "stop", "logprobs": {"content": logprobs}}
    raw = json.dumps({"model": "m", "choices": [choice]}).encode()
    got = _reply.read(raw, ask(top_k=k, texts=texts), "e")
    assert got.text == "a"
    assert got.trace is None
    assert got.no_trace


# Refusals


@pytest.mark.parametrize(
    ("message", "window", "prompt"),
    [
        ("This model's maximum context length is 4096 tokens. However, you requested 4100 tokens (4000 in the "
         "messages, 100 in the completion). Please reduce the length.", 4096, 4000),
        ("'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context length is 4096 "
         "tokens and your request has 20 input tokens (5000 > 4096 - 20).", 4096, 20),
        ("This model's maximum context length is 128000 tokens. However, your messages resulted in 130000 tokens.",
         128000, 130000),
        ("The decoder prompt (length 5000) is longer than the maximum model length of 4096.", 4096, 5000),
        ("request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it", 4096, 5000),
        ("This model's maximum context length is 4096 tokens. However, you requested 4000 output tokens and your "
         "prompt contains at least 97 input tokens, for a total of at least 4097 tokens.", 4096, None),
        ("This model's maximum context length is 4096 tokens. However, you requested 4000 output tokens and your "
         "prompt contains 98 input tokens, for a total of 4098 tokens.", 4096, 98),
        ("This model's maximum context length is 4096 tokens. However, you requested 0 output tokens and your prompt "
         "contains 90000 characters (more than 40960 characters, which is the upper bound for 4096 input tokens).",
         4096, None),
        ("max_tokens=5000 cannot be greater than max_model_len=max_total_tokens=4096. Please request fewer output "
         "tokens. (parameter=max_tokens, value=5000)", 4096, None),
        ("Input length (5000) exceeds model's maximum context length (4096).", 4096, 5000),
    ],
)  # fmt: skip
def test_overflow_is_understood_in_every_dialect(message: str, window: int, prompt: int | None) -> None:
    raw = json.dumps({"error": {"message": message, "type": "BadRequestError", "code": 400}}).encode()
    error = _refusals.refusal("e", 400, {}, raw)
    assert isinstance(error, EngineTooSmall)
    assert (error.window_tokens, error.prompt_tokens) == (window, prompt)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("1", 1.0), ("0.5", 0.5), ("86400", 60.0), ("-3", 0.0), ("junk", None), ("nan", None),
        ("inf", 60.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("Wed, 21 Oct 2099 07:28:00 GMT", 60.0),
        ("", None),
    ],
)  # fmt: skip
def test_retry_after_is_read_and_bounded(value: str | None, seconds: float | None) -> None:
    assert _refusals.retry_after(value) == seconds


@given(st.integers(100, 599).filter(lambda status: status != 200), st.binary(max_size=100))
def test_every_status_is_some_engine_error(status: int, raw: bytes) -> None:
    assert "e: " in str(_refusals.refusal("e", status, {}, raw))


def test_an_answer_too_long_for_the_window_is_asked_for_shorter() -> None:
    from gateway.engines.openai_http import fitting

    assert fitting(ask(max_tokens=100), EngineTooSmall("e", 30, 64)) == ask(max_tokens=34)
    assert fitting(ask(max_tokens=100), EngineTooSmall("e", 90, 64)) is None
    assert fitting(ask(max_tokens=100), EngineTooSmall("e", None, 64)) == ask()
    assert fitting(ask(), EngineTooSmall("e", 30, 64)) is None
    raw = dataclasses.replace(ask(max_tokens=100), prompt="1 + 1 =")
    assert fitting(raw, EngineTooSmall("e", 30, 64)) == dataclasses.replace(raw, max_tokens=34)
    assert fitting(raw, EngineTooSmall("e", None, 64)) is None
    assert GREEDY.draws_like(Sampling(top_p=0.5))
