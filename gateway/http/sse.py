"""Answers as streams of chunks: whole ones replayed, and others passed on while they are made.

Every event is `data: {json}` and an empty line: JSON escapes line breaks, so no text of a model can end an event.
"""

from __future__ import annotations

import asyncio
import codecs
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from itertools import chain, repeat

import msgspec

from gateway.errors import BadTrace, ClientGone
from gateway.http import reply
from gateway.http.reply import Call, Json
from gateway.nouns import Answer, CallPart, Completion, Opening, Piece

HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
KEEP_ALIVE = b": keep-alive\n\n"
TIMER_SECONDS = 0.01  # by which a loop's timer may be early: uvloop's count in milliseconds
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
    frame = frame_of(answer.opening, call)
    counted = {"usage": None} if call.request.include_usage else {}
    for number, hop in enumerate((answer.served, *answer.siblings)):
        for told in deltas(number, reply.answered(hop), call):
            yield {**frame, "choices": [told], **counted}
    yield from tail(frame, answer, call)


def frame_of(opening: Opening, call: Call) -> Json:
    """What all chunks of a stream have in common."""
    return {
        "id": f"{call.form.prefix}-{call.route_id}",
        "object": call.form.part,
        "created": call.created,
        "model": opening.model,
        "system_fingerprint": reply.system_fingerprint(opening.tier, opening.model, opening.calibrator_id),
    }


def tail(frame: Json, answer: Answer, call: Call) -> Iterator[Json]:
    """The last chunk, where usage or the route were asked for."""
    told: Json = {"usage": reply.usage(answer)} if call.request.include_usage else {}
    if call.debug:
        told["route"] = reply.route(answer, call)
    if told:
        yield {**frame, "choices": [], **told}


def deltas(number: int, completion: Completion, call: Call) -> Iterator[Json]:
    """One choice, piece by piece."""
    form, wanted = call.form, reply.asked(call.request)
    first, offset = form.first(number), 0
    if first is not None:
        yield first
    for text, span in pieces(completion):
        told = form.logprobs(reply.entries(completion.trace, call.request, span), offset) if wanted else None
        yield form.delta(number, text, told)
        offset += len(text)
    for place, one in enumerate(completion.calls):
        alone = wanted and not place and not completion.text
        told = form.logprobs(reply.entries(completion.trace, call.request)) if alone else None
        yield form.delta(number, "", told, [CallPart(place, one.arguments, one.id, one.name)])
    yield form.last(number, completion.finish)


def pieces(completion: Completion) -> Iterable[tuple[str, slice]]:
    """The text cut into pieces, each with the tokens it came from; into words where the tokens do not spell it."""
    tokens = completion.trace.tokens if completion.trace is not None else ()
    if not tokens or b"".join(tokens) != completion.text.encode("utf-8", "replace"):
        spans = chain([slice(None)], repeat(slice(0, 0)))  # no token can be placed: all are told with the first word
        return zip(WORD.findall(completion.text), spans, strict=False)
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


class Passing:
    """One answer passed on to one client while it is made; a streaming.Listener.

    named: the call, under the id that names the decision.  start: sends status 200 and these headers.
    send: sends bytes, and waits for the client to take them.
    deadline: the request's own, seconds on the loop's clock.  silence_seconds: after so long a comment is sent.
    """

    def __init__(
        self,
        named: Callable[[Opening], Call],
        start: Callable[[Mapping[str, str]], Awaitable[None]],
        send: Callable[[bytes], Awaitable[None]],
        deadline: float,
        silence_seconds: float,
    ) -> None:
        self._named, self._start, self._send, self._deadline = named, start, send, deadline
        self._silence_seconds = silence_seconds
        self._frame: Json = {}
        self._parts = (b"", b"", b"")  # of a chunk: before its text, between it and its log-probs, behind them
        self._shown = self._characters = 0  # tokens and characters that were passed on
        self._silent_since = math.inf
        self.begun = False

    async def begin(self, opening: Opening) -> None:
        """Headers, and the role."""
        self._call = self._named(opening)
        self._frame = frame_of(opening, self._call) | {"choices": []} | self._counted
        form, text, logprobs = self._call.form, "\0text", "\0logprobs"
        pattern = event(self._chunk(form.delta(0, text, logprobs)))
        before, rest = pattern.split(msgspec.json.encode(text))
        between, behind = rest.split(msgspec.json.encode(logprobs))
        self._parts = before, between, behind
        self.begun = True
        await self._taken(self._start(reply.headers(opening, self._call) | HEADERS))
        first = form.first(0)
        if first is not None:
            await self._out(event(self._chunk(first)))

    async def hear(self, piece: Piece) -> None:
        """One piece as one chunk, the log-probs of its tokens with it where they were asked for."""
        before, between, behind = self._parts
        logprobs = self._logprobs(piece) if reply.asked(self._call.request) else None
        self._characters += len(piece.text)
        if piece.calls:
            await self._out(event(self._chunk(self._call.form.delta(0, piece.text, logprobs, piece.calls))))
            return
        await self._out(
            b"".join((before, msgspec.json.encode(piece.text), between, msgspec.json.encode(logprobs), behind))
        )

    async def end(self, answer: Answer) -> None:
        """What follows the text."""
        frame = {name: told for name, told in self._frame.items() if name not in ("choices", "usage")}
        last = [self._chunk(self._call.form.last(0, answer.completion.finish))]
        last += [msgspec.json.encode(chunk) for chunk in tail(frame, answer, self._call)]
        await self._out(b"".join(map(event, last)) + DONE)

    async def keep_alive(self) -> None:
        """For ever: a comment whenever the stream was silent for long, so that nobody on the way takes it for dead.

        Never before its beginning: until then the status may still be an error's.
        """
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._silence_seconds / 2)
            if now() - self._silent_since >= self._silence_seconds:
                await self._out(KEEP_ALIVE)

    @property
    def _counted(self) -> Json:
        return {"usage": None} if self._call.request.include_usage else {}

    def _chunk(self, choice: Json) -> bytes:
        return msgspec.json.encode(self._frame | {"choices": [choice]})

    def _logprobs(self, piece: Piece) -> Json:
        """Of the tokens since the last piece; null where there are none, as in a whole answer."""
        start, self._shown = self._shown, piece.tokens
        try:
            found = reply.entries(piece.trace(start, piece.tokens), self._call.request)
        except BadTrace:
            found = None
        return self._call.form.logprobs(found, self._characters)

    async def _out(self, told: bytes) -> None:
        self._silent_since = math.inf  # while the client takes it, it is he who is slow
        await self._taken(self._send(told))
        self._silent_since = asyncio.get_running_loop().time()

    async def _taken(self, sending: Awaitable[None]) -> None:
        """Raises ClientGone when the client broke off, or when it was he for whom we waited until the deadline."""
        try:
            await sending
        except OSError:
            raise ClientGone from None
        except asyncio.CancelledError:
            if asyncio.get_running_loop().time() >= self._deadline - TIMER_SECONDS:
                raise ClientGone from None
            raise
