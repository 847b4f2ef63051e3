"""From the bytes of a chat completion to text and evidence. Strict about the answer, forgiving about its evidence.

An answer that is not what it should be is garbled. Log-probs that are not what they should be cost the confidence,
never the answer. Only the fields that are needed are decoded: that is most of what a reply costs here.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from gateway.engines._compact import Confidence
from gateway.errors import BadTrace, EngineGarbled
from gateway.nouns import Ability, Ask, Finish, Floats, Source, TokenTrace, ToolCall, falls

MOST_TOKENS = 2**24  # more than any window holds: who counts further would use up a client's budget with one answer
FLOOR_NATS = -9999.0  # vLLM sends max(x, -9999.0), because JSON has no infinity

# These stand once in a proper reply with one choice, its log-probs apart, unless the answer is made of these words: a
# reply with more of them is looked at for keys that are said twice. The decoder would take the last one without a word.
SAID_ONCE = (b'"choices"', b'"message"', b'"finish_reason"', b'"model"', b'"content"')


def spaced(*words: bytes) -> re.Pattern[bytes]:
    """Words with any space between them, and behind the last where that is empty."""
    return re.compile(rb"[ \t\r\n]*".join(words))


LOGPROBS_BEGIN = spaced(b'"logprobs"', b":", b"")
# What most servers write around the list of a reply's log-probs; nothing else can be read into it.
LIST_BEGIN = spaced(b'"logprobs"', b":", rb"(?P<logprobs>\{", b'"content"', b":", b")")
LIST_END = spaced(b"(?P<logprobs>", b"(?:,", b'"refusal"', b":", b"null", rb")?\})", b",", b'"finish_reason"')
MARK = b'"log-probs stood here"'
LONG_BYTES = 2**13  # a reply for which it pays to guess where its log-probs end
NULL = msgspec.Raw(b"null")
WORD = re.compile(rb'"([A-Za-z0-9._:/-]{1,256})"')  # ours that vLLM repeats hold a tier's name

FINISHES = {
    "stop": Finish.STOP,
    "length": Finish.LENGTH,
    "repetition": Finish.LENGTH,  # vLLM gave up on a loop: cut, as far as anyone who reads it is concerned
    "tool_calls": Finish.TOOL_CALLS,
    "function_call": Finish.TOOL_CALLS,
    "content_filter": Finish.CONTENT_FILTER,
}


class Candidate(msgspec.Struct, gc=False):
    logprob: float


class NamedCandidate(msgspec.Struct, gc=False):
    logprob: float
    token: str
    bytes: msgspec.Raw = NULL


class ChosenText(msgspec.Struct, gc=False):
    """A token where nobody asked for candidates, without its bytes: its text does for nearly every answer."""

    logprob: float
    token: str


class ChosenEntry(ChosenText, gc=False):
    bytes: msgspec.Raw = NULL  # a list of ints


class EntryText(ChosenText, gc=False):
    top_logprobs: list[Candidate] = []


class Entry(ChosenEntry, gc=False):
    top_logprobs: tuple[Candidate, ...] = ()


class NamedEntry(Entry, gc=False):
    top_logprobs: tuple[NamedCandidate, ...] = ()  # type: ignore[assignment]


class Logprobs(msgspec.Struct):
    content: list[Entry] | None = None


class NamedLogprobs(msgspec.Struct):
    content: list[NamedEntry] | None = None


class FunctionCalled(msgspec.Struct):
    name: str
    arguments: str = ""


class Called(msgspec.Struct):
    function: FunctionCalled
    id: str = ""


class Message(msgspec.Struct):
    content: str | None
    tool_calls: list[Called] | None = None
    reasoning: Any = None  # what was thought before the answer, kept apart by the server: vLLM's name for it
    reasoning_content: Any = None  # and that of others


Count = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]


class Usage(msgspec.Struct):
    prompt_tokens: Count = 0
    completion_tokens: Count = 0


class BareChoice(msgspec.Struct):
    message: Message
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    stop_reason: Any = None


class Choice(BareChoice):
    logprobs: msgspec.Raw = NULL  # nearly all of a reply, and read apart from the rest
    confidence: Confidence | None = None


class BareReply(msgspec.Struct):
    choices: list[BareChoice]
    model: str
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None
    id: msgspec.Raw = NULL


class Reply(BareReply):
    choices: list[Choice]  # type: ignore[assignment]


T = TypeVar("T", bound=msgspec.Struct)

READ_REPLY = msgspec.json.Decoder(Reply)
READ_LEAN = msgspec.json.Decoder(Logprobs | None)
READ_NAMED = msgspec.json.Decoder(NamedLogprobs | None)
READ_CHOSEN_TEXTS = msgspec.json.Decoder(list[ChosenText])
READ_LEAN_TEXTS = msgspec.json.Decoder(list[EntryText])
READ_CHOSEN_LIST = msgspec.json.Decoder(list[ChosenEntry])
READ_LEAN_LIST = msgspec.json.Decoder(list[Entry])
READ_NAMED_LIST = msgspec.json.Decoder(list[NamedEntry])
READ_BYTES = msgspec.json.Decoder(list[int])
LOGPROB = attrgetter("logprob")
READ_BARE = msgspec.json.Decoder(BareReply)


class Answered(msgspec.Struct, frozen=True):
    """A reply, read. no_trace: why nothing may be judged by its trace, which then is there for a client alone.
    confidence: what our plugin inside the engine added."""

    text: str
    finish: Finish
    model: str
    prompt_tokens: int
    completion_tokens: int
    trace: TokenTrace | None
    no_trace: str
    confidence: Confidence | None = None
    calls: tuple[ToolCall, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    reasoning: str = ""
    stop_reason: str | int | None = None
    response_id: str = ""


def read(body: bytes, ask: Ask, engine: str) -> Answered:
    """Raises EngineGarbled when the body is no finished chat completion."""
    try:
        return answered_by(*decode(body, ask, engine), ask, engine)
    except Unspelled:
        return answered_by(*decode(body, ask, engine, spelled=True), ask, engine)


class Unspelled(Exception):
    """A token's bytes are needed, and were not read."""


def answered_by(reply: BareReply, entries: Sequence[Entry], no_trace: str, ask: Ask, engine: str) -> Answered:
    """What is left to do with a reply that was decoded. Raises EngineGarbled, and Unspelled if it was without bytes."""
    choice = reply.choices[0]
    usage = reply.usage or Usage()
    confidence = getattr(choice, "confidence", None)
    text, reason, calls = choice.message.content, choice.finish_reason, calls_of(choice.message, ask)
    if text is None and not calls and not thought(choice.message):
        raise EngineGarbled(engine, "a reply without a text")
    answered = assemble(
        text or "", entries, reason, reply.model, usage, ask, no_trace, engine, confidence, calls, reply.id
    )
    if choice.stop_reason is not None or thought(choice.message):
        answered = with_extras(answered, thought(choice.message), choice.stop_reason)
    return with_ids(answered, reply.prompt_token_ids, choice.token_ids)


def thought(message: Message) -> object:
    """What was thought, nothing if nothing was. Where tokens were spent on it, no text at all is an answer that was not
    come to."""
    return message.reasoning or message.reasoning_content


def with_extras(answered: Answered, reasoning: object, stop_reason: object) -> Answered:
    """The same with what the server told beside it, as far as that can be what it is said to be."""
    reasoning = reasoning if isinstance(reasoning, str) else ""
    stop_reason = stop_reason if isinstance(stop_reason, str | int) and not isinstance(stop_reason, bool) else None
    return msgspec.structs.replace(answered, reasoning=reasoning, stop_reason=stop_reason)


def calls_of(message: Message, ask: Ask) -> tuple[ToolCall, ...]:
    """What the model wants called; nobody who brought no tools is told of any."""
    if Ability.TOOLS not in ask.needs:
        return ()
    return tuple(ToolCall(one.id, one.function.name, one.function.arguments) for one in message.tool_calls or ())


def with_ids(answered: Answered, prompt: list[int] | None, tokens: list[int] | None) -> Answered:
    """The same with the token ids, where the server told them."""
    if prompt is None and tokens is None:
        return answered
    return msgspec.structs.replace(answered, prompt_token_ids=tuple(prompt or ()), token_ids=tuple(tokens or ()))


def assemble(
    text: str,
    entries: Sequence[Entry],
    finish_reason: str | None,
    model: str,
    usage: Usage,
    ask: Ask,
    no_trace: str,
    engine: str,
    confidence: Confidence | None = None,
    calls: tuple[ToolCall, ...] = (),
    response_id: msgspec.Raw = NULL,
) -> Answered:
    """From an answer's parts, however they came. no_trace: why its log-probs could not be read, "" when they could.
    response_id: as JSON.
    """
    finish = finished(finish_reason, usage, ask, engine)
    if finish is Finish.TOOL_CALLS and not calls:
        finish = Finish.STOP  # nobody is told to look for calls that are not there
    trace = None
    if not entries:
        no_trace = no_trace or untold(ask)
    elif not no_trace:
        try:
            trace = part_of_trace(entries, ask) if calls else read_trace(entries, text, finish, ask)
            no_trace = too_few(0 if trace.top is None else trace.top.shape[1], ask)
            if no_trace and not ask.texts:
                trace = None
        except BadTrace as error:
            no_trace = str(error)
    tokens = usage.completion_tokens or len(entries)
    return Answered(
        text,
        finish,
        model,
        usage.prompt_tokens,
        tokens,
        trace,
        no_trace,
        confidence,
        calls,
        response_id=a_word(response_id),
    )


def a_word(told: msgspec.Raw) -> str:
    """An id, as JSON, that can be shown anywhere; "" for anything else."""
    found = WORD.fullmatch(told)
    return "" if found is None else found[1].decode()


def decode(body: bytes, ask: Ask, engine: str, *, spelled: bool = False) -> tuple[BareReply, Sequence[Entry], str]:
    """The reply, which has a choice, the first one's log-probs, and why these could not be read ("" when they could, or
    when there are none). spelled: with the tokens' bytes, even if their texts seem to do."""
    if len(body) > LONG_BYTES and (parts := decode_parts(body, ask, spelled=spelled)) is not None:
        return parts
    trouble, raw = "", NULL
    reply: BareReply | None = None
    try:
        reply = with_logprobs = READ_REPLY.decode(body)
        raw = with_logprobs.choices[0].logprobs if with_logprobs.choices else NULL
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        trouble = f"unreadable log-probs: {error}"
    if says_twice(body, raw):
        check_twins(body, engine)
    if reply is None:
        reply = decode_bare(body, engine)
    if not reply.choices:
        raise EngineGarbled(engine, "a reply without choices")
    try:
        told = (READ_NAMED if ask.texts else READ_LEAN).decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        return reply, (), f"unreadable log-probs: {error}"
    return reply, (told and told.content) or (), trouble


def decode_parts(body: bytes, ask: Ask, *, spelled: bool = False) -> tuple[Reply, Sequence[Entry], str] | None:
    """The same for a proper reply whose log-probs stand as most servers write them; None for all others.

    To find their end the decoder would read them once more, and they are most of a reply. Where the guessed part is a
    whole list, and the rest with a mark in the log-probs' place a reply whose first choice has that for them, no other
    reading of the body is possible; nor is a key said twice around that list, as its surroundings are known by heart.
    """
    begin = LIST_BEGIN.search(body)
    if begin is None:
        return None
    last = body.rfind(b"]", begin.end(), body.rfind(b'"finish_reason"'))
    end = LIST_END.match(body, last + 1)
    if last < 0 or end is None:
        return None
    told = memoryview(body)[begin.end() : end.start()]
    rest = body[: begin.start("logprobs")] + MARK + body[end.end("logprobs") :]
    try:
        reply = READ_REPLY.decode(rest)
        if not reply.choices or bytes(reply.choices[0].logprobs) != MARK:
            return None
        decoder = list_reader(ask, spelled=spelled or not in_plain_words(reply.choices[0].message))
        entries = decoder.decode(told)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    if rest.count(b'"logprobs"') > 1 or max(map(rest.count, SAID_ONCE)) > 1:
        return None
    return reply, entries, ""


def in_plain_words(message: Message) -> bool:
    """Whether its tokens' texts should do: no part of a character, and no call, whose tokens are spelled by bytes."""
    return not message.tool_calls and (message.content or "").isascii()


def list_reader(ask: Ask, *, spelled: bool) -> msgspec.json.Decoder[Any]:
    """Of a list of log-probs. spelled: with the tokens' bytes, which take a sixth of the time."""
    if ask.texts:
        return READ_NAMED_LIST
    if spelled:
        return READ_LEAN_LIST if ask.top_k else READ_CHOSEN_LIST
    return READ_LEAN_TEXTS if ask.top_k else READ_CHOSEN_TEXTS


def decode_bare(body: bytes, engine: str) -> BareReply:
    """What is left of a reply whose evidence cannot be read."""
    try:
        return READ_BARE.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        pass
    try:  # some servers write NaN and Infinity, which is no JSON, but no reason to lose a good answer either
        return forgiven(body, BareReply)
    except (ValueError, TypeError, RecursionError) as error:
        raise EngineGarbled(engine, f"no chat completion ({type(error).__name__})") from None


def forgiven(body: bytes, kind: type[T]) -> T:
    """What Python's own reader finds, which lets NaN pass, as the log-probs of some servers have it. kind: knows no
    log-probs; what it keeps as JSON is not filled in.  Raises ValueError, TypeError, RecursionError."""
    told = msgspec.convert(json.loads(body.decode(), object_pairs_hook=no_twins), dict[str, Any])
    parts = {field.name for field in msgspec.structs.fields(kind) if field.type is not msgspec.Raw}
    return sayable(msgspec.convert({name: told[name] for name in parts & told.keys()}, kind))


def sayable(found: T) -> T:
    """What Python's reader found, if a client can be told it. Raises ValueError for half a character, which that reader
    lets pass and nobody can write."""
    msgspec.json.encode(found)
    return found


def says_twice(body: bytes, logprobs: msgspec.Raw) -> bool:
    """Whether a key may be said twice. The log-probs are most of a long body, and only one of the keys is theirs."""
    told = bytes(logprobs)
    begin = None if told == b"null" else LOGPROBS_BEGIN.search(body)
    rest = body
    if begin is not None and body.startswith(told, begin.end()):
        rest = body[: begin.end()] + body[begin.end() + len(told) :]
    return told.count(b'"content"') > 1 or max(map(rest.count, SAID_ONCE)) > 1


def check_twins(body: bytes, engine: str) -> None:
    """Raises EngineGarbled for a key that is said twice; of what is no JSON at all others will tell."""
    try:
        json.loads(body, object_pairs_hook=no_twins)
    except TwinKeys:
        raise EngineGarbled(engine, "a reply that says a key twice") from None
    except (ValueError, RecursionError):
        return


class TwinKeys(ValueError):
    """With a key said twice nobody knows which one was meant."""


def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise TwinKeys("a key is written twice")
    return dict(pairs)


def finished(reason: str | None, usage: Usage, ask: Ask, engine: str) -> Finish:
    """How the answer ended. A whole reply without a reason is tolerated; an aborted one was never finished."""
    if reason is None:
        cut = ask.max_tokens is not None and usage.completion_tokens >= ask.max_tokens
        return Finish.LENGTH if cut else Finish.STOP
    if reason not in FINISHES:
        raise EngineGarbled(engine, f"the answer ended with {reason[:40]!r}")
    return FINISHES[reason]


def untold(ask: Ask) -> str:
    """Why there are no log-probs."""
    return "the engine sent no log-probs" if ask.evidence else "log-probs were not asked for"


def too_few(fewest: int, ask: Ask) -> str:
    """Why nothing may be judged by tokens of which one has so few candidates, "" where it has as many as were asked
    for."""
    return f"asked for {ask.top_k} candidates a token, got {fewest}" if fewest < ask.top_k else ""


def another(configured: str) -> str:
    """Why there is no evidence where a reply names another model."""
    return f"another model answered than the configured {configured}"


def read_trace(entries: Sequence[Entry], text: str, finish: Finish, ask: Ask) -> TokenTrace:
    """The evidence for one text. entries: at least one. Raises BadTrace with the reason when there is none."""
    tokens, spelled = spell(entries, text, finish)
    body, tail = entries[: len(tokens)], entries[len(tokens) :]
    if not body:
        raise BadTrace("the answer has no tokens")
    end_nats = float(sum(entry.logprob for entry in tail)) if tail else None
    top, candidates = read_top(body, ask)
    return TokenTrace(
        Source.CHOSEN if top is None else Source.TOP_LOGPROBS,
        floats([entry.logprob for entry in body]),
        top,
        tokens if spelled else (),
        end_nats=end_nats,
        candidates=candidates,
        words=() if spelled else tokens,
    )


def part_of_trace(entries: Sequence[Entry], ask: Ask) -> TokenTrace:
    """The evidence of some of an answer's tokens, whatever comes after them. Raises BadTrace."""
    if not entries:
        raise BadTrace(untold(ask))
    top, candidates = read_top(entries, ask)
    return TokenTrace(
        Source.CHOSEN if top is None else Source.TOP_LOGPROBS,
        floats([entry.logprob for entry in entries]),
        top,
        tuple(token_bytes(entry) for entry in entries),
        candidates=candidates,
    )


def spell(entries: Sequence[Entry], text: str, finish: Finish) -> tuple[tuple[bytes, ...], bool]:
    """The tokens that make up the text, and whether they spell it exactly. What comes after them is the end token.

    vLLM lists the end token (and a stop string, which it cuts from the text) behind the text's own tokens. A token may
    stick out of the text's end when a stop string cut it; it still is one of the text's.
    """
    words = [entry.token for entry in entries]
    told = "".join(words)
    over = len(told) - len(text)
    if over in (0, len(words[-1])) and words[-1] and told.startswith(text):
        return encoded(words[: len(words) - (over > 0)]), True  # nearly always: the text, and at most one token more
    return spell_bytes(entries, encoded(words), text.encode("utf-8", "replace"), finish)


def encoded(words: Sequence[str]) -> tuple[bytes, ...]:
    """Each in UTF-8, and "?" for half a character."""
    tokens = "\0".join(words).encode("utf-8", "replace").split(b"\0")  # in two thirds of the time of one by one
    if len(tokens) != len(words):  # a zero in one of them, or none at all
        return tuple([word.encode("utf-8", "replace") for word in words])
    return tuple(tokens)


def spell_bytes(
    entries: Sequence[Entry], tokens: tuple[bytes, ...], wanted: bytes, finish: Finish
) -> tuple[tuple[bytes, ...], bool]:
    """The same where tokens are parts of characters, or more than one of them came after the text."""
    if not b"".join(tokens).startswith(wanted):
        tokens = tuple(token_bytes(entry) for entry in entries)
    joined = b"".join(tokens)
    if not joined.startswith(wanted):
        # Pieces of one character, each sent as U+FFFD: the tokens can be counted, but not placed in the text.
        ended = finish is Finish.STOP and not wanted.endswith(tokens[-1])
        return tokens[:-1] if ended else tokens, False
    if finish is not Finish.STOP:
        # cut: no end token was drawn, so empty tokens (parts of an unfinished character) are the text's too
        return tokens, joined == wanted
    length = count = 0
    while length < len(wanted):
        length += len(tokens[count])
        count += 1
    return tokens[:count], length == len(wanted)


def token_bytes(entry: Entry | NamedCandidate) -> bytes:
    """A token's bytes, or its text's where the server gives none. Raises Unspelled where nobody has looked."""
    if not hasattr(entry, "bytes"):
        raise Unspelled
    given = unspelled(bytes(entry.bytes))
    return entry.token.encode("utf-8", "replace") if given is None else given


@lru_cache(maxsize=2**14)  # few of a model's tokens make up most of what it considers
def unspelled(raw: bytes) -> bytes | None:
    """What a list of numbers in JSON spells, None for null."""
    try:
        return None if raw == b"null" else bytes(READ_BYTES.decode(raw))
    except (msgspec.DecodeError, ValueError):
        raise BadTrace("a token's bytes are no bytes") from None


def read_top(body: Sequence[Entry], ask: Ask) -> tuple[Floats | None, tuple[tuple[bytes, ...], ...]]:
    """The ask.top_k most likely candidates of every token, falling; and their texts where they were asked for. As many
    as the token with the fewest has, where those are fewer: who judges by them asks `too_few` first.

    vLLM adds the chosen token as one more entry when it is not among the k, so lists are sorted and cut here.
    """
    if ask.top_k == 0:
        return None, ()
    told = [entry.top_logprobs for entry in body]
    widths = set(map(len, told))
    k = min(ask.top_k, *widths)
    if k == 0:
        return None, ()
    if len(widths) > 1:
        top = np.array([sorted(map(LOGPROB, row), reverse=True)[:k] for row in told], dtype=np.float64)
    else:
        flat = floats([candidate.logprob for row in told for candidate in row])
        top = falling_along(flat.reshape(len(told), -1))[:, :k]
    if not ask.texts:
        return top, ()
    falling = [sorted(entry.top_logprobs, key=LOGPROB, reverse=True)[:k] for entry in body]
    return top, tuple(tuple(token_bytes(candidate) for candidate in row) for row in falling)  # type: ignore[arg-type]


def floats(values: list[float]) -> Floats:
    """(N,). `struct` takes them in in a quarter of NumPy's time."""
    return np.frombuffer(struct.pack(f"{len(values)}d", *values))


def falling_along(rows: Floats) -> Floats:
    """Each row from its largest to its smallest; servers mostly send them so. (T, K)"""
    if falls(rows):
        return rows
    return np.asarray(-np.sort(-rows, axis=1))


def clamped_tokens(trace: TokenTrace | None) -> int:
    """How many tokens carry vLLM's floor instead of a log-prob."""
    if trace is None or trace.chosen.item(trace.chosen.argmin()) > FLOOR_NATS:
        return 0  # nearly always
    return int((trace.chosen <= FLOOR_NATS).sum())
