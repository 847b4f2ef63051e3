"""The request model on its own."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import Server
from gateway.http import wire
from gateway.http.errors import RequestError
from gateway.nouns import GREEDY

SMALL = {"model": "auto", "messages": [{"role": "user", "content": "x"}]}


def read(**fields: object) -> wire.ChatRequest:
    return wire.read(json.dumps(SMALL | fields).encode(), Server(), wire.ChatRequest)


def test_nothing_said_about_the_sampler_means_the_calibrators_own() -> None:
    ask, ignored = wire.to_ask(read(temperature=None), 1.0, pin=False)
    assert (ask.sampling, ignored) == (GREEDY, [])


def test_a_pinned_sampler_ignores_the_clients_and_says_so() -> None:
    ask, ignored = wire.to_ask(read(temperature=0.7, top_p=0.9, seed=3, stop="x"), 1.0, pin=True)
    assert ask.sampling.draws_like(GREEDY)
    assert (ask.sampling.seed, ask.sampling.stop) == (3, ("x",))
    assert ignored == ["temperature", "top_p"]


def test_max_completion_tokens_wins() -> None:
    assert wire.to_ask(read(max_completion_tokens=5, max_tokens=9), 1.0, pin=False)[0].max_tokens == 5


def test_parts_of_a_message_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = read(messages=[{"role": "system", "content": parts}])
    assert wire.to_ask(request, 1.0, pin=False)[0].messages[0].content == "ab"


def test_strict_fields_refuse_what_is_unknown() -> None:
    body = json.dumps(SMALL | {"best_of": 3}).encode()
    with pytest.raises(RequestError, match="best_of"):
        wire.read(body, Server(strict_fields=True), wire.ChatRequest)


def test_a_wrong_word_in_our_own_field_is_answered_with_the_right_ones() -> None:
    with pytest.raises(RequestError, match=r"did you mean 'deadline_seconds'.*max_tier") as caught:
        read(route={"deadline_ms": 500})
    assert (caught.value.status, caught.value.param) == (400, "route.deadline_ms")


def test_a_clients_words_come_back_short_and_printable() -> None:
    with pytest.raises(RequestError) as caught:
        wire.read(json.dumps(SMALL | {"x\r\ny" + "z" * 500: 1}).encode(), Server(strict_fields=True), wire.ChatRequest)
    assert "\r" not in str(caught.value)
    assert len(str(caught.value)) < 200


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*wire.ChatRequest.model_fields, "tools", "best_of"]), anything, max_size=6))
def test_no_field_makes_anything_but_an_ask_or_a_400(fields: dict[str, object]) -> None:
    refused = None
    try:
        wire.to_ask(read(**fields), 1.0, pin=False)
    except RequestError as error:
        refused = error.status
    assert refused in (None, 400)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_no_bytes_make_anything_but_a_400(body: bytes) -> None:
    with pytest.raises(RequestError):
        wire.read(body, Server(), wire.ChatRequest)
