"""A replayed stream, without a network."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gateway.http import sse
from gateway.http.reply import Call
from gateway.http.wire import ChatMessage, ChatRequest
from gateway.nouns import Answer, Completion, Finish, Hop, Policy, Reason, Source, TokenTrace


def completion(text: str, tokens: tuple[bytes, ...]) -> Completion:
    trace = TokenTrace(Source.CHOSEN, np.full(len(tokens), -0.1), tokens=tokens) if tokens else None
    return Completion(text, Finish.STOP, 1, len(tokens), "e", "m", 0.1, trace)


@given(st.text(max_size=40), st.integers(1, 5))
def test_pieces_are_whole_characters_and_make_the_text(text: str, width: int) -> None:
    """Tokens cut anywhere, also inside a character."""
    raw = text.encode("utf-8", "replace")
    tokens = tuple(raw[at : at + width] for at in range(0, len(raw), width))
    pieces = list(sse.pieces(completion(raw.decode(), tokens)))
    assert "".join(piece for piece, _ in pieces) == raw.decode()
    assert [place for _, span in pieces for place in range(span.start, span.stop)] == list(range(len(tokens)))


@given(st.text())
def test_tokens_that_do_not_spell_the_text_are_left_out(text: str) -> None:
    pieces = list(sse.pieces(completion(text, (b"something else",))))
    assert "".join(piece for piece, _ in pieces) == text


@given(st.text(alphabet="a\r\n\u2028\u0085:data"))
def test_no_text_can_end_an_event(text: str) -> None:
    hop = Hop("t", Reason.LAST, 0.1, completion=completion(text, ()))
    answer = Answer((hop,), hop, Reason.LAST, Policy("p", ()))
    request = ChatRequest(model="auto", messages=[ChatMessage(role="user", content="x")], stream=True)
    stream = b"".join(sse.replay(answer, Call(request, "id", 0)))
    events = stream.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    told = [json.loads(event.removeprefix(b"data: ")) for event in events[:-2]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in told) == text
    assert b"\r" not in stream


def test_long_streams_come_in_pieces() -> None:
    tokens = tuple(b"word " for _ in range(1000))
    hop = Hop("t", Reason.LAST, 0.1, completion=completion("word " * 1000, tokens))
    answer = Answer((hop,), hop, Reason.LAST, Policy("p", ()))
    request = ChatRequest(model="auto", messages=[ChatMessage(role="user", content="x")], stream=True)
    sizes = [len(piece) for piece in sse.replay(answer, Call(request, "id", 0))]
    assert len(sizes) > 5
    assert max(sizes) < 2 * sse.SEND_BYTES
