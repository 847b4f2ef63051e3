"""OpenAI's older completions: a raw prompt goes on, without messages and chat template.

Their log-probs are written otherwise, in parallel lists and with candidates as an object from token to log-prob. Here
they become what a chat completion would have said, and all the rest is as for that. Candidates that are written alike
(parts of characters) make one entry of such an object, so a row may come short, and then counts as missing.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.engines import _reply, _stream
from gateway.engines._reply import Answered, NamedCandidate, NamedEntry, NamedLogprobs, Usage
from gateway.errors import BadTrace, EngineGarbled
from gateway.nouns import Ask

SAID_ONCE = {b'"choices"': 1, b'"finish_reason"': 1, b'"model"': 1, b'"text"': 1}


class Logprobs(msgspec.Struct):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class BareChoice(msgspec.Struct):
    text: str
    index: int = 0
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    stop_reason: Any = None


class Choice(BareChoice):
    logprobs: msgspec.Raw = msgspec.Raw(b"null")  # read apart: what is wrong in it costs the confidence alone


class BareReply(msgspec.Struct):
    """A whole one, and an event of a streamed one: the last has usage only, one that tells an error nothing else."""

    choices: list[BareChoice] | None = None
    model: str = ""
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"")
    id: msgspec.Raw = _reply.NULL


class Reply(BareReply):
    choices: list[Choice] | None = None  # type: ignore[assignment]


READ = msgspec.json.Decoder(Reply)
READ_LOGPROBS = msgspec.json.Decoder(Logprobs | None)


def decode(body: bytes, engine: str) -> BareReply:
    """Without log-probs where these spoil it. Raises EngineGarbled."""
    if any(body.count(key) > most for key, most in SAID_ONCE.items()):
        _reply.check_twins(body, engine)
    try:
        return READ.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        pass
    try:
        return _reply.forgiven(body, BareReply)
    except (ValueError, TypeError, RecursionError) as error:
        raise EngineGarbled(engine, f"no completion ({type(error).__name__})") from None


def entries(choice: BareChoice) -> list[NamedEntry]:
    """Its tokens as a chat completion tells them. Raises BadTrace."""
    if not isinstance(choice, Choice):
        raise BadTrace("unreadable log-probs: the reply is no JSON with them")
    try:
        told = READ_LOGPROBS.decode(choice.logprobs)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadTrace(f"unreadable log-probs: {error}") from None
    if told is None:
        return []
    tops = told.top_logprobs or [None] * len(told.tokens)
    if not len(told.tokens) == len(told.token_logprobs) == len(tops):
        raise BadTrace("as many tokens as log-probs are needed")
    return [entry(*one) for one in zip(told.tokens, told.token_logprobs, tops, strict=True)]


def entry(token: str, nats: float | None, top: dict[str, float] | None) -> NamedEntry:
    if nats is None:
        raise BadTrace("a token without a log-prob")
    return NamedEntry(nats, token, top_logprobs=tuple(NamedCandidate(n, rival) for rival, n in (top or {}).items()))


def read(body: bytes, ask: Ask, engine: str) -> Answered:
    """A whole answer. Raises EngineGarbled when the body is no finished completion."""
    reply = decode(body, engine)
    if not reply.choices or not reply.model:
        raise EngineGarbled(engine, "a reply without choices or model")
    choice = reply.choices[0]
    try:
        told, why = entries(choice), ""
    except BadTrace as error:
        told, why = [], str(error)
    usage = reply.usage or Usage()
    answered = _reply.assemble(
        choice.text, told, choice.finish_reason, reply.model, usage, ask, why, engine, response_id=reply.id
    )
    if choice.stop_reason is not None:
        answered = _reply.with_extras(answered, None, choice.stop_reason)
    return _reply.with_ids(answered, choice.prompt_token_ids, choice.token_ids)


class Assembly(_stream.Assembly):
    """A streamed one while it comes in."""

    def _decode(self, event: bytes) -> _stream.BareChunk:
        told = decode(event, self._engine)
        return _stream.NamedChunk(
            model=told.model,
            choices=[self._choice(one) for one in told.choices or ()],
            usage=told.usage,
            error=told.error,
            id=told.id,
        )

    def _choice(self, told: BareChoice) -> _stream.NamedChoice:
        logprobs = None
        try:
            logprobs = NamedLogprobs(entries(told))
        except BadTrace as error:
            self._no_trace = str(error)
        return _stream.NamedChoice(_stream.Delta(told.text), told.index, told.finish_reason, logprobs)
