"""What a client sees of an answer's log-probs, whatever was fetched to judge it by."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gateway.config import Server
from gateway.http import reply, wire
from gateway.nouns import CallPart, Source, TokenTrace

TOKENS = (b"4", b"2")
RIVALS = ((b"4", b"5", b"6"), (b"2", b"3", b"1"))
TOP = np.array([[-0.1, -2.5, -4.0], [-0.2, -2.0, -3.0]])
TRACE = TokenTrace(Source.TOP_LOGPROBS, TOP[:, 0].copy(), TOP, TOKENS, candidates=RIVALS)


@pytest.mark.parametrize("wanted", [0, 1, 2, 3])
def test_of_the_candidates_that_were_fetched_a_client_sees_as_many_as_it_asked_for(wanted: int) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": wanted}
    told = reply.entries(TRACE, wire.read(json.dumps(body).encode(), Server(), wire.ChatRequest))
    assert told is not None
    assert [entry.logprob for entry in told] == [-0.1, -0.2]
    for entry, rivals, nats in zip(told, RIVALS, TOP.tolist(), strict=True):
        shown = [(json.loads(bytes(one.token)).encode(), one.logprob) for one in entry.top_logprobs]
        assert shown == list(zip(rivals, nats, strict=True))[:wanted]


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (CallPart(0, "", "a", "f"), {"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}),
        (CallPart(0, "", "a"), {"id": "a", "type": "function", "function": {"arguments": ""}}),
        (CallPart(0, "", "", "f"), {"function": {"name": "f", "arguments": ""}}),
        (CallPart(0, "{}"), {"function": {"arguments": "{}"}}),
    ],
)
def test_a_part_of_a_call_tells_what_has_come_and_no_more(part: CallPart, told: dict[str, Any]) -> None:
    assert reply.call_part(part) == {"index": 0, **told}
