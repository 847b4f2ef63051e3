"""From the bytes of a streamed chat completion to its pieces, and to the same text and evidence as of a whole one.

Server-sent events by the standard (WHATWG HTML, 9.2): any line ends, comments, several data lines, anything split
anywhere. What is no event of a chat completion is garbled; log-probs that are not what they should be cost the
confidence, never the answer.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.engines import _refusals, _reply
from gateway.engines._compact import Confidence
from gateway.engines._reply import Answered, Entry, Logprobs, NamedLogprobs, Usage
from gateway.errors import BadTrace, EngineDown, EngineError, EngineGarbled
from gateway.nouns import Ability, Ask, CallPart, Piece, TokenTrace, ToolCall

MAX_EVENT_BYTES = 2**20  # one token with twenty candidates takes 3 KB
DONE = b"[DONE]"
BOM = b"\xef\xbb\xbf"

# These stand once in a proper event with one choice; see _reply.SAID_ONCE.
SAID_ONCE = (b'"choices"', b'"delta"', b'"finish_reason"', b'"model"')


class EventTooLarge(ValueError):
    """More than MAX_EVENT_BYTES without an end of the event."""


class Events:
    """Bytes in, the data of complete events out. What the end of the stream cuts off is no event, says the standard."""

    def __init__(self) -> None:
        self._rest = bytearray()  # of an event that is not complete; line ends are \n by now
        self._after_cr = False  # a \n that comes now belongs to a \r that was a whole line end already
        self._at_start = True

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of every event that this piece completes. Raises EventTooLarge."""
        if self._after_cr and piece:
            piece = piece.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in piece:
            self._after_cr = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        seam = self._rest[-1:] + piece
        self._rest += piece
        if b"\n\n" not in seam:
            if len(self._rest) > MAX_EVENT_BYTES:
                raise EventTooLarge
            return []
        *blocks, rest = bytes(self._rest).split(b"\n\n")
        self._rest = bytearray(rest)
        if self._at_start:
            blocks[0] = blocks[0].removeprefix(BOM)
            self._at_start = False
        if max(map(len, blocks)) > MAX_EVENT_BYTES or len(rest) > MAX_EVENT_BYTES:
            raise EventTooLarge
        return [told for block in blocks if (told := data(block)) is not None]


def data(block: bytes) -> bytes | None:
    """What an event's data lines say, joined; None for one without any."""
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]  # nearly always
    lines = []
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None


class FunctionPart(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class CalledPart(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: FunctionPart = msgspec.field(default_factory=FunctionPart)


class Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: list[CalledPart] | None = None
    reasoning: Any = None  # as in _reply.Message
    reasoning_content: Any = None


class BareChoice(msgspec.Struct):
    delta: Delta
    index: int = 0
    finish_reason: str | None = None


class Choice(BareChoice):
    logprobs: Logprobs | None = None
    confidence: Confidence | None = None


class NamedChoice(BareChoice):
    logprobs: NamedLogprobs | None = None
    confidence: Confidence | None = None


class BareChunk(msgspec.Struct):
    """One event. All may be absent: the last one has usage only, one that tells an error nothing else."""

    model: str = ""
    choices: list[BareChoice] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"")
    id: msgspec.Raw = _reply.NULL


class Chunk(BareChunk):
    choices: list[Choice] | None = None  # type: ignore[assignment]


class NamedChunk(BareChunk):
    choices: list[NamedChoice] | None = None  # type: ignore[assignment]


READ_LEAN = msgspec.json.Decoder(Chunk)
READ_NAMED = msgspec.json.Decoder(NamedChunk)
READ_BARE = msgspec.json.Decoder(BareChunk)


class Assembly:
    """One answer while it comes in. `take` gives what is new, `finished` the whole. model: whose it should be."""

    def __init__(self, ask: Ask, engine: str, model: str) -> None:
        self._ask, self._engine, self._configured = ask, engine, model
        self._decoder = READ_NAMED if ask.texts else READ_LEAN
        self._events = Events()
        self._texts: list[str] = []
        self._entries: list[Entry] = []
        self._calls: list[CallPart] = []
        self._told = self._told_tokens = self._told_calls = 0  # texts, entries and parts of calls that pieces have told
        self._ready = (0, 0, 0)  # texts, entries and calls before the event that ends the answer: which of its entries
        self._model = self._no_trace = ""  # are the text's, and which the end token's, is known when all is there
        self._too_few = ""
        self._finish_reason: str | None = None
        self._confidence: Confidence | None = None
        self._usage = Usage()
        self._id = _reply.NULL
        self._thought = False  # something was, before the answer
        self.done = False  # [DONE] came; whatever follows is nobody's business

    @property
    def begun(self) -> bool:
        """Whether a token has come, be it of a thought or without a text."""
        return bool(self._thought or self._texts or self._calls or self._entries or self._usage.completion_tokens)

    def take(self, raw: bytes) -> Piece | None:
        """What these bytes add to an answer that goes on. Raises EngineError leaves."""
        try:
            events = self._events.feed(raw)
        except EventTooLarge:
            raise EngineGarbled(self._engine, f"an event larger than {MAX_EVENT_BYTES} bytes") from None
        for event in events:
            if event == DONE:
                self.done = True
                break
            self._add(self._decode(event))
        return self._piece(*self._ready) if self._finish_reason is None else None

    def finished(self) -> tuple[Answered, Piece | None]:
        """The whole answer, and its end. Raises EngineDown when it was cut short, EngineGarbled when it is none."""
        if self._finish_reason is None:
            raise EngineDown(self._engine, "the stream ended before the answer did", again=True)
        answered = _reply.assemble(
            "".join(self._texts),
            self._entries,
            self._finish_reason,
            self._model,
            self._usage,
            self._ask,
            self._no_trace,
            self._engine,
            self._confidence,
            joined(self._calls, self._engine),
            self._id,
        )
        tokens = self._told_tokens if answered.trace is None else answered.trace.chosen.size
        return answered, self._piece(len(self._texts), tokens, len(self._calls), ends=True)

    def _piece(self, texts: int, tokens: int, calls: int, *, ends: bool = False) -> Piece | None:
        text, parts = "".join(self._texts[self._told : texts]), tuple(self._calls[self._told_calls : calls])
        bare = ends and self._ask.texts and tokens > self._told_tokens  # log-probs of what closes a call, say
        if not text and not parts and not bare:
            return None
        if self._ask.top_k and not self._too_few:
            widths = [len(entry.top_logprobs) for entry in self._entries[self._told_tokens : tokens]]
            self._too_few = _reply.too_few(min(widths, default=self._ask.top_k), self._ask)
        self._told, self._told_tokens, self._told_calls = texts, tokens, calls
        other = self._model != self._configured
        why = _reply.another(self._configured) if other else self._too_few
        return Piece(text, tokens, self._model, self._trace, self._usage.prompt_tokens, parts, why, ends, other)

    def _trace(self, start: int, stop: int) -> TokenTrace:
        if self._no_trace:
            raise BadTrace(self._no_trace)
        return _reply.part_of_trace(self._entries[start:stop], self._ask)

    def _add(self, chunk: BareChunk) -> None:
        if chunk.error and bytes(chunk.error) != b"null":
            raise complaint(self._engine, bytes(chunk.error))
        self._model = chunk.model or self._model
        self._usage = chunk.usage or self._usage
        self._id = self._id if chunk.id is _reply.NULL else chunk.id
        for choice in chunk.choices or ():
            if choice.index or self._finish_reason is not None:
                raise EngineGarbled(self._engine, "a second choice, or more text after the answer's end")
            if choice.delta.content:
                self._texts.append(choice.delta.content)
            if choice.delta.reasoning or choice.delta.reasoning_content:
                self._thought = True
            if choice.delta.tool_calls and Ability.TOOLS in self._ask.needs:
                self._calls += map(part_of_call, choice.delta.tool_calls)
            logprobs = getattr(choice, "logprobs", None)
            if logprobs is not None and logprobs.content:
                self._entries += logprobs.content
            self._confidence = getattr(choice, "confidence", None)  # comes with the finish_reason
            if choice.finish_reason is None:
                self._ready = len(self._texts), len(self._entries), len(self._calls)
            self._finish_reason = choice.finish_reason

    def _decode(self, event: bytes) -> BareChunk:
        """As _reply.decode does for a whole reply."""
        if says_twice(event):
            _reply.check_twins(event, self._engine)
        try:
            return self._decoder.decode(event)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            self._no_trace = f"unreadable log-probs: {error}"
        try:
            return READ_BARE.decode(event)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            pass
        try:
            return _reply.forgiven(event, BareChunk)
        except (ValueError, TypeError, RecursionError) as error:
            raise EngineGarbled(self._engine, f"no part of a chat completion ({type(error).__name__})") from None


def says_twice(event: bytes) -> bool:
    """Whether a key may be said twice. The list of log-probs is called as the text is."""
    texts = event.count(b'"content"')
    if texts > 1 and (texts > 2 or _reply.LIST_BEGIN.search(event) is None):
        return True
    return max(map(event.count, SAID_ONCE)) > 1


def part_of_call(told: CalledPart) -> CallPart:
    return CallPart(told.index, told.function.arguments or "", told.id or "", told.function.name or "")


def joined(parts: list[CallPart], engine: str) -> tuple[ToolCall, ...]:
    """Whole calls. Raises EngineGarbled for one without a name."""
    calls: dict[int, ToolCall] = {}
    for part in parts:
        known = calls.get(part.index, ToolCall("", "", ""))
        calls[part.index] = ToolCall(known.id or part.id, known.name + part.name, known.arguments + part.arguments)
    if not all(call.name for call in calls.values()):
        raise EngineGarbled(engine, "a tool call without a name")
    return tuple(calls[index] for index in sorted(calls))


def complaint(engine: str, error: bytes) -> EngineError:
    """What an error that a server tells in the midst of its stream means."""
    body = b'{"error": ' + error + b"}"
    code = _refusals.read(body).code
    status = int(code) if isinstance(code, int) and 400 <= code < 600 else 500
    return _refusals.refusal(engine, status, {}, body)
