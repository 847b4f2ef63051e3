"""Streamed answers of an HTTP engine: by the standard, in time, and the same as whole ones."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engines import _stream, openai_http
from gateway.engines.openai_http import open_engine
from gateway.errors import BadTrace, EngineDown, EngineError, EngineGarbled, EngineRefused, EngineSlow
from gateway.nouns import Ability, Ask, Completion, Finish, Piece, TokenTrace
from tests.engines.test_openai_http import ask, options, told
from tests.faults.gateway import PATIENCE, until
from tests.faults.upstream import FRAMING, IN_STREAM, Upstream

TEXT = "Ä 日本語 answer 🙂 is\n\n42"


def by_the_book(raw: bytes) -> list[bytes]:
    """An independent reading of the same standard: line by line over all of it at once."""
    found, lines = [], []
    *complete, _ = re.split(rb"\r\n|\r|\n", raw.removeprefix(b"\xef\xbb\xbf"))
    for line in complete:
        if not line:
            found += [b"\n".join(lines)] if lines else []
            lines = []
        elif line == b"data" or line.startswith(b"data:"):
            value = line[5:]
            lines.append(value[1:] if value[:1] == b" " else value)
    return found


PARTS = st.sampled_from([b"data: ", b"data:", b"data", b"\n", b"\r", b"\r\n", b"\n\n", b":", b" ", b"x", "ä".encode(),
                         b"event: y", b"{}", b"[DONE]"])  # fmt: skip


@given(raw=st.lists(PARTS, max_size=40).map(b"".join), bom=st.booleans(), cuts=st.lists(st.integers(0, 200)))
def test_events_are_read_by_the_standard_wherever_they_are_cut(raw: bytes, bom: bool, cuts: list[int]) -> None:
    raw = b"\xef\xbb\xbf" * bom + raw
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    events = _stream.Events()
    found = [told for start, stop in itertools.pairwise(places) for told in events.feed(raw[start:stop])]
    # A line end that may be the half of one is only sure when more has come; the book reads with hindsight.
    assert found == by_the_book(raw)


def test_an_event_without_an_end_is_not_kept_for_ever() -> None:
    events = _stream.Events()
    for _ in range(_stream.MAX_EVENT_BYTES // 2**10):
        assert events.feed(b"x" * 2**10) == []
    with pytest.raises(_stream.EventTooLarge):
        events.feed(b"x")


def heard(upstream: Upstream, question: Ask, **changes: object) -> tuple[Completion, list[Piece]]:
    """An answer streamed, and its pieces."""

    async def work() -> tuple[Completion, list[Piece]]:
        engine = await open_engine(options(upstream.url, **changes), name="e")
        pieces: list[Piece] = []

        async def hear(piece: Piece) -> None:
            pieces.append(piece)

        try:
            return await engine.stream(question, hear), pieces
        finally:
            await engine.close()

    return asyncio.run(work())


def whole(upstream: Upstream, question: Ask) -> Completion:
    async def work() -> Completion:
        engine = await open_engine(options(upstream.url), name="e")
        try:
            return await engine.complete(question)
        finally:
            await engine.close()

    return asyncio.run(work())


def facts(trace: TokenTrace) -> list[object]:
    top = None if trace.top is None else trace.top.tolist()
    return [trace.source, trace.chosen.tolist(), top, trace.tokens, trace.end_nats, trace.candidates]


@pytest.mark.parametrize("fault", ["", "split", "text_after_done", "length", *FRAMING])
@pytest.mark.parametrize(("top_k", "texts"), [(0, False), (3, False), (2, True)])
def test_a_streamed_answer_is_the_whole_one_in_pieces(fault: str, top_k: int, texts: bool) -> None:
    with Upstream() as upstream:
        asked = ask(told(text=TEXT, fault=fault), top_k=top_k, texts=texts)
        streamed, pieces = heard(upstream, asked)
        at_once = whole(
            upstream, ask(told(text=TEXT, fault="length" if fault == "length" else ""), top_k=top_k, texts=texts)
        )
    assert "".join(piece.text for piece in pieces) == streamed.text == at_once.text == TEXT
    assert streamed.finish is at_once.finish
    assert (streamed.prompt_tokens, streamed.completion_tokens) == (at_once.prompt_tokens, at_once.completion_tokens)
    assert streamed.trace is not None
    assert at_once.trace is not None
    assert facts(streamed.trace) == facts(at_once.trace)
    stops = [piece.tokens for piece in pieces]
    parts = [piece.trace(start, stop) for piece, start, stop in zip(pieces, [0, *stops], stops, strict=False)]
    assert [token for part in parts for token in part.tokens] == list(streamed.trace.tokens)
    assert np.concatenate([part.chosen for part in parts]).tolist() == streamed.trace.chosen.tolist()


@pytest.mark.parametrize(
    ("fault", "error", "pieces"),
    [
        ("silent", EngineSlow, 0),
        ("silent_in_stream", EngineSlow, 1),
        ("cut_off", EngineDown, 1),
        ("reset_in_stream", EngineDown, 1),
        ("no_finish_reason", EngineDown, 4),
        ("error_event", EngineDown, 1),
        ("error_words", EngineDown, 1),
        ("overflow_event", EngineDown, 1),
        ("refusal_event", EngineDown, 1),
        ("garbled_event", EngineGarbled, 1),
        ("twin_event", EngineGarbled, 1),
        ("twin_text_event", EngineGarbled, 1),
        ("second_choice", EngineGarbled, 1),
        ("endless_event", EngineGarbled, 1),
        ("bad_chunk_in_stream", EngineGarbled, 1),
        ("abort", EngineGarbled, 4),
        ("negative_usage", EngineGarbled, 4),
        ("stream_as_json", EngineGarbled, 0),
        ("html", EngineGarbled, 0),
        ("500", EngineDown, 0),
        ("429", EngineRefused, 0),
        ("reset", EngineDown, 0),
    ],
)
def test_a_stream_that_breaks_says_how_and_its_connection_is_not_used_again(
    fault: str, error: type[EngineError], pieces: int
) -> None:
    got: list[Piece] = []

    async def work(upstream: Upstream) -> EngineError:
        seconds = 0.4 if error is EngineSlow else PATIENCE
        slow = options(upstream.url, first_byte_seconds=PATIENCE if pieces else seconds, idle_seconds=seconds)
        engine = await open_engine(slow, name="e")

        async def hear(piece: Piece) -> None:
            got.append(piece)

        try:
            with pytest.raises(error) as caught:
                await engine.stream(ask(told(fault=fault, pause=0.1), max_tokens=50), hear)
            if fault in IN_STREAM:  # the others ended as HTTP wants it
                await engine.complete(ask())
                assert upstream.seen[0].connection != upstream.seen[-1].connection
            return caught.value
        finally:
            await engine.close()

    with Upstream() as upstream:
        found = asyncio.run(work(upstream))
    assert len(got) <= max(pieces, 0)
    assert bool(got) == bool(pieces)
    if isinstance(found, EngineDown):  # what was told cannot be told again
        assert not (found.again and got)
    assert "secret" not in str(found)


def test_a_good_streams_connection_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_http, "DRAIN_SECONDS", PATIENCE)  # of a server that stands still before its last bytes

    async def work(upstream: Upstream) -> None:
        engine = await open_engine(options(upstream.url), name="e")

        async def hear(_: Piece) -> None: ...

        try:
            for _ in range(3):
                await engine.stream(ask(), hear)
        finally:
            await engine.close()

    with Upstream() as upstream:
        asyncio.run(work(upstream))
        assert {seen.connection for seen in upstream.seen} == {1}


class Enough(BadTrace):
    """What a listener says who has heard enough."""


@pytest.mark.parametrize("how", ["raised", "cancelled"])
def test_a_listener_who_has_heard_enough_frees_the_server(how: str) -> None:
    async def work(upstream: Upstream) -> None:
        engine = await open_engine(options(upstream.url), name="e")
        begun = asyncio.Event()

        async def hear(_: Piece) -> None:
            begun.set()
            if how == "raised":
                raise Enough

        try:
            job = asyncio.ensure_future(engine.stream(ask(told(text="word " * 100, gate="never", before=3)), hear))
            await begun.wait()
            if how == "cancelled":
                job.cancel()
            await asyncio.wait([job])
            assert job.cancelled() if how == "cancelled" else isinstance(job.exception(), Enough)
            await asyncio.to_thread(until, lambda: upstream.seen[0].released_at is not None)
        finally:
            await engine.close()

    with Upstream() as upstream:
        asyncio.run(work(upstream))


def test_who_hears_slowly_is_not_held_against_the_server_and_slows_it_down() -> None:
    async def work(upstream: Upstream, idle_seconds: float) -> Completion:
        engine = await open_engine(options(upstream.url, idle_seconds=idle_seconds, max_reply_mib=64), name="e")
        first = True

        async def hear(_: Piece) -> None:
            nonlocal first
            if first:
                first = False
                await asyncio.sleep(2 * idle_seconds)

        try:
            return await engine.stream(ask(told(text="x" * 20_000 + " ", repeat=100)), hear)
        finally:
            await engine.close()

    def heard_to_its_end(idle_seconds: float) -> bool:
        with Upstream() as upstream, contextlib.suppress(EngineSlow):  # a slow machine may be silent as well
            return asyncio.run(work(upstream, idle_seconds)).finish is Finish.STOP
        return False

    assert any(map(heard_to_its_end, (0.4, 1.0, 5.0)))


def test_a_model_that_thinks_aloud_is_not_silent() -> None:
    def heard_to_its_end(first_byte_seconds: float) -> bool:
        with Upstream() as upstream, contextlib.suppress(EngineSlow):  # a slow machine may be silent as well
            asked = ask(told(reasoning="well it is a sum", pause=first_byte_seconds / 3))
            got, pieces = heard(upstream, asked, first_byte_seconds=first_byte_seconds)
            return got.text == "".join(piece.text for piece in pieces) == "The answer is 42"
        return False

    assert any(map(heard_to_its_end, (0.3, 1.0, 5.0)))


def event(delta: dict[str, Any], usage: dict[str, int] | None = None, **choice: Any) -> bytes:
    told = {"model": "small", "choices": [{"index": 0, "delta": delta, "finish_reason": None, **choice}]}
    return b"data: " + json.dumps({**told, "usage": usage}).encode() + b"\n\n"


ENTRY = {"token": "a", "logprob": -0.1, "bytes": None, "top_logprobs": []}


@pytest.mark.parametrize(
    ("first", "begun"),
    [
        (event({"role": "assistant", "content": ""}), False),
        (event({"role": "assistant", "content": None, "reasoning_content": ""}, logprobs={"content": []}), False),
        (event({}, usage={"prompt_tokens": 7, "completion_tokens": 0}), False),
        (b": still here\n\n", False),
        (event({}, usage={"prompt_tokens": 7, "completion_tokens": 1}), True),
        (event({"reasoning": "well"}), True),
        (event({"reasoning_content": "well"}), True),
        (event({"content": ""}, logprobs={"content": [ENTRY]}), True),
        (event({"content": "a"}), True),
    ],
)
def test_an_answer_has_begun_with_its_first_token_whatever_that_is(first: bytes, begun: bool) -> None:
    assembly = _stream.Assembly(ask(), "e", "small")
    assembly.take(first)
    assert assembly.begun is begun


def test_what_is_over_when_it_comes_is_told_as_an_end() -> None:
    assembly = _stream.Assembly(ask(), "e", "small")
    middle = assembly.take(event({"content": "a"}, logprobs={"content": [ENTRY]}))
    assert middle is not None
    assert not middle.ends
    more = event({"content": "a"}, logprobs={"content": [ENTRY]})
    assert assembly.take(more + event({"content": "a"}, logprobs={"content": [ENTRY]}, finish_reason="stop")) is None
    _, end = assembly.finished()
    assert end is not None
    assert (end.text, end.tokens, end.ends) == ("aa", 3, True)


@pytest.mark.parametrize("texts", [True, False])
def test_log_probs_of_what_closes_a_call_are_told_to_who_asked_for_them(texts: bool) -> None:
    assembly = _stream.Assembly(ask(needs=frozenset({Ability.TOOLS}), texts=texts), "e", "small")
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    piece = assembly.take(event({"tool_calls": [call]}, logprobs={"content": [ENTRY]}))
    assert piece is not None
    assert assembly.take(event({}, logprobs={"content": [ENTRY] * 2}, finish_reason="tool_calls")) is None
    _, end = assembly.finished()
    assert (end and (end.text, end.calls, end.tokens)) == (("", (), 3) if texts else None)


@pytest.mark.parametrize("fault", ["nan_logprob", "string_logprob", "no_logprobs", "too_few_candidates"])
def test_bad_log_probs_cost_a_stream_its_evidence_and_not_its_text(fault: str) -> None:
    with Upstream() as upstream:
        got, pieces = heard(upstream, ask(told(fault=fault), top_k=2))
    assert got.text == "".join(piece.text for piece in pieces) == "The answer is 42"
    assert got.trace is None
    assert got.no_trace


def test_a_stream_asks_for_usage_and_for_running_usage_where_the_server_is_said_to_know_it() -> None:
    with Upstream() as upstream:
        heard(upstream, ask())
        heard(upstream, ask(), continuous_usage=True)
        sent: list[Any] = [seen.body for seen in upstream.seen]
    assert [body["stream_options"] for body in sent] == [
        {"include_usage": True},
        {"include_usage": True, "continuous_usage_stats": True},
    ]


def test_a_prompt_that_leaves_less_room_than_asked_for_is_asked_again_with_what_there_is() -> None:
    with Upstream() as upstream:
        with pytest.raises(EngineError):
            heard(upstream, ask(told(fault="overflow"), max_tokens=5))
        until(lambda: len(upstream.seen) == 1)
