"""Long replies are read in a way of their own, which must say what the usual one says, of rubbish too."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from gateway.engines import _reply, _stream, _text
from gateway.errors import EngineGarbled
from gateway.nouns import Ability, Ask, falls
from tests.bench.answers import CANDIDATES, body

BODIES = {kind: body(kind, np.random.default_rng(3)) for kind in ("chosen", "top-5")}
WORDS = (b'"content":', b'"logprobs":', b'"logprobs":null,', b'"finish_reason":"stop",', b'"choices":[', b"{", b"}")
PIECES = (*WORDS, b"[", b"]", b",", b'"', b"\\", b" ", b"null", b"NaN", b"-1e999", b"0.5", b"\xff", b'{"content":[]}')


def said(raw: bytes, ask: Ask) -> Any:
    """What a reply is read as, in a form that can be compared."""
    try:
        found = _reply.read(raw, ask, "x")
    except EngineGarbled as error:
        return str(error)
    trace = found.trace
    told = (
        None if trace is None else (trace.chosen.tolist(), trace.top is not None and trace.top.tolist(), trace.tokens)
    )
    return found.text, found.finish, found.model, found.completion_tokens, told, trace is None and bool(found.no_trace)


def both(raw: bytes, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch.setattr(_reply, "LONG_BYTES", 0)
    quick = said(raw, ask)
    monkeypatch.setattr(_reply, "LONG_BYTES", 10**9)
    return quick, said(raw, ask)


def asking(kind: str, **more: Any) -> Ask:
    return Ask(messages=(), deadline=0.0, top_k=CANDIDATES[kind], **more)


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("chatcmpl-AbC_9.x:1", "chatcmpl-AbC_9.x:1"),
        *((strange, "") for strange in (None, 7, ["x"], {"id": "x"}, "", "a b", "x\n", "\u00e4", "\0", "x" * 257)),
    ],
)
def test_a_replys_id_is_a_word_or_none(told: Any, kept: str) -> None:
    choice = {"message": {"content": "42"}, "text": "42", "finish_reason": "stop"}
    raw = json.dumps({"id": told, "model": "small", "choices": [choice]}).encode()
    assert _reply.read(raw, asking("chosen"), "x").response_id == kept
    assert _text.read(raw, asking("chosen"), "x").response_id == kept
    stream = _stream.Assembly(asking("chosen"), "x", "small")
    stream.take(b"data: " + raw.replace(b'"message"', b'"delta"') + b"\n\n")
    assert stream.finished()[0].response_id == kept


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("texts", [False, True])
def test_a_proper_reply_is_read_at_once_and_as_otherwise(
    kind: str, texts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaced = json.dumps(json.loads(BODIES[kind]), indent=1).encode()
    refusal = BODIES[kind].replace(b'}]},"finish_reason"', b'}],"refusal":null},"finish_reason"')
    assert refusal != BODIES[kind]
    for raw in (BODIES[kind], spaced, refusal):
        quick, usual = both(raw, asking(kind, texts=texts), monkeypatch)
        assert quick == usual
        assert quick[4] is not None
        assert _reply.decode_parts(raw, asking(kind, texts=texts)) is not None, "else it was not quick"


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("kept", [200, 150])
def test_tokens_whose_texts_do_not_spell_the_answer_are_read_by_their_bytes(
    kind: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.loads(BODIES[kind])
    choice = told["choices"][0]
    entries = choice["logprobs"]["content"]
    choice["message"]["content"] = "".join(entry["token"] for entry in entries[:kept])
    spelled = tuple(entry["token"].encode() for entry in entries[:kept])
    for number, entry in enumerate(entries):
        entry["token"] = f"token_id:{number}"
    quick, usual = both(json.dumps(told).encode(), asking(kind), monkeypatch)
    assert quick == usual
    assert quick[4][2] == spelled


@pytest.mark.parametrize("kind", BODIES)
def test_tokens_of_a_long_reply_that_calls_a_function_are_read_by_their_bytes(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.loads(BODIES[kind])
    choice = told["choices"][0]
    choice["message"]["tool_calls"] = [{"id": "1", "function": {"name": "add", "arguments": "{}"}}]
    choice["logprobs"]["content"][0]["bytes"] = [255]
    asked = asking(kind, needs=frozenset({Ability.TOOLS}))
    quick, usual = both(json.dumps(told).encode(), asked, monkeypatch)
    assert quick == usual
    assert quick[4][2][0] == b"\xff"


@pytest.mark.parametrize(
    ("standing", "instead"),
    [
        (b'"logprobs":{"content":[', b'"logprobs":{"content":[],"content":['),
        (b'}]},"finish_reason"', b'}],"content":[]},"finish_reason"'),
        (b'}]},"finish_reason"', b'}],"refusal":null},"logprobs":{"content":[]},"finish_reason"'),
        (b'"logprobs":{"content":[', b'"logprobs":{"content":[]},"logprobs":{"content":['),
    ],
)
def test_log_probs_that_are_said_twice_are_no_proper_reply(
    standing: bytes, instead: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert BODIES["chosen"].count(standing) == 1
    quick, usual = both(BODIES["chosen"].replace(standing, instead), asking("chosen"), monkeypatch)
    assert quick == usual
    assert "twice" in quick


def test_rows_fall_where_no_neighbour_in_them_rises() -> None:
    chance = np.random.default_rng(5)
    for _ in range(1000):
        wide = chance.integers(0, 3, chance.integers(1, 6, 2)).astype(np.float64)
        if chance.random() < 0.5:
            wide = -np.sort(-wide, axis=1)
        for rows in (wide, wide[:, : chance.integers(1, 6)]):
            assert falls(rows) == (np.diff(rows, axis=1) <= 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_damaged_replies_are_read_alike(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces put in, taken out and written over, most often about where the log-probs begin and end."""
    chance = random.Random(seed)
    whole = BODIES["chosen"]
    edges = [whole.index(b'"logprobs"'), whole.index(b'"content"'), whole.index(b'"finish_reason"'), len(whole)]
    differing = 0
    for _ in range(150):
        raw = whole
        for _ in range(chance.randint(1, 3)):
            at = chance.choice([*edges, chance.randrange(len(raw))]) + chance.randint(-14, 30)
            at = min(max(at, 0), len(raw))
            raw = raw[:at] + chance.choice(PIECES) * chance.randint(0, 1) + raw[at + chance.randint(0, 12) :]
        quick, usual = both(raw, asking("chosen"), monkeypatch)
        assert quick == usual
        differing += quick != said(whole, asking("chosen"))
    assert differing > 50, "nearly nothing was damaged"


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["choices"][0].update(message=told["choices"][0]["message"] | {"logprobs": LOGPROBS}),
        lambda told: told.update(logprobs=LOGPROBS),
        lambda told: told["choices"].append(told["choices"][0]),
        lambda told: told["choices"].insert(0, {"message": {"content": "other"}, "finish_reason": "stop"}),
        lambda told: told["choices"][0].update(logprobs={"content": None}),
        lambda told: told["choices"][0].update(logprobs=[]),
    ],
)
def test_log_probs_in_another_place_are_not_taken_for_the_answers(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for emptied in (False, True):
        told = json.loads(BODIES["chosen"])
        if emptied:
            told["choices"][0]["logprobs"] = None
        change(told)
        quick, usual = both(json.dumps(told).encode(), asking("chosen"), monkeypatch)
        assert quick == usual


LOGPROBS = json.loads(BODIES["chosen"])["choices"][0]["logprobs"]
