"""A whole answer replayed as a stream of chunks.

Every event is `data: {json}` and an empty line: JSON escapes line breaks, so no text of a model can end an event.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from gateway.http import reply
from gateway.http.reply import Call, Json
from gateway.nouns import Answer, Completion

DONE = b"data: [DONE]\n\n"
SEND_BYTES = 16 * 1024  # one send per event costs ten times the CPU of one per 16 KiB, and looks the same to a client

WORD = re.compile(r"\S+\s*|\s+")


def replay(answer: Answer, call: Call) -> Iterator[bytes]:
    """The stream's bytes, in pieces of about SEND_BYTES."""
    waiting = bytearray()
    for chunk in chunks(answer, call):
        waiting += event(msgspec.json.encode(chunk))
        if len(waiting) >= SEND_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting + DONE)


def event(told: bytes) -> bytes:
    """One event. told: JSON, which has no bare line break that could end it."""
    return b"data: " + told + b"\n\n"


def chunks(answer: Answer, call: Call) -> Iterator[Json]:
    """Role first, then the text, one finish_reason per choice; usage and route last, where they were asked for."""
    frame: Json = {
        "id": f"chatcmpl-{call.route_id}",
        "object": "chat.completion.chunk",
        "created": call.created,
        "model": answer.completion.model,
        "system_fingerprint": reply.system_fingerprint(answer),
    }
    counted = {"usage": None} if call.request.include_usage else {}
    for number, hop in enumerate((answer.served, *answer.siblings)):
        for told in deltas(number, reply.answered(hop), call):
            yield {**frame, "choices": [told], **counted}
    tail: Json = {"usage": reply.usage(answer)} if call.request.include_usage else {}
    if call.debug:
        tail["route"] = reply.route(answer, call)
    if tail:
        yield {**frame, "choices": [], **tail}


def deltas(number: int, completion: Completion, call: Call) -> Iterator[Json]:
    """One choice, piece by piece."""
    yield delta(number, {"role": "assistant", "content": "", "refusal": None})
    for text, span in pieces(completion):
        logprobs = None
        if reply.asked(call.request):
            logprobs = {"content": reply.entries(completion.trace, call.request, span), "refusal": None}
        yield delta(number, {"content": text}, logprobs)
    yield delta(number, {}, finish=completion.finish)


def delta(number: int, told: Json, logprobs: Json | None = None, finish: Any = None) -> Json:
    return {"index": number, "delta": told, "logprobs": logprobs, "finish_reason": finish}


def pieces(completion: Completion) -> Iterable[tuple[str, slice]]:
    """The text cut into pieces, each with the tokens it came from; into words where the tokens do not spell it."""
    tokens = completion.trace.tokens if completion.trace is not None else ()
    if not tokens or b"".join(tokens) != completion.text.encode("utf-8", "replace"):
        return [(word, slice(0, 0)) for word in WORD.findall(completion.text)]
    return by_token(tokens)


def by_token(tokens: tuple[bytes, ...]) -> Iterator[tuple[str, slice]]:
    """Tokens, except that parts of one character stay together."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, start = "", 0
    for place, token in enumerate(tokens):
        text += decoder.decode(token, final=place == len(tokens) - 1)
        if not decoder.getstate()[0] or place == len(tokens) - 1:
            yield text, slice(start, place + 1)
            text, start = "", place + 1
