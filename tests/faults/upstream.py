"""A chat-completions server that breaks on command: the wire is faked, nothing inside the gateway is.

What happens is chosen per request, so that concurrent ones may differ: the last message is JSON,
`{"<model>": {"fault": "...", "text": "...", "nats": -0.1, "seconds": 0.0}, ...}`; plain text gets a plain answer. Every
request is recorded with what it held and when its peer let go.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

MODELS = ("small", "large")
VERSION = "0.33.0"
SILENCE = 60.0  # s, which a silent server holds out; who is let go of earlier was let go of
END = "<|im_end|>"


@dataclass
class Seen:
    """One request that arrived. released_at: monotonic s when its peer closed the connection, None while it is open."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float
    connection: int
    reused: bool = False
    released_at: float | None = None
    answered: bool = False

    @property
    def model(self) -> str:
        return str(self.body.get("model"))


@dataclass
class Plan:
    """What one request gets. times: how often the same request meets the fault, before all is well; None: always.
    pause: before every event of a stream but the first, s.  repeat: how often the text is said.
    gate: held back until the test opens a gate of this name; before: so many events of a stream.
    calls: instead of the text, functions to be called, [name, arguments] each, if the request brought tools.
    reasoning, stop_reason: as vLLM tells them; a stream tells a text that was thought word by word.
    window: tokens that prompt and answer may have together, where the prompt has 20.
    ends_with_text: the event of a stream's last word ends the answer, too, as it does where no end token is drawn.
    """

    fault: str = ""
    text: str = "The answer is 42"
    nats: float = -0.1
    seconds: float = 0.0
    pause: float = 0.0
    gate: str = ""
    before: int = 0
    repeat: int = 1
    times: int | None = None
    calls: list[list[str]] = field(default_factory=list)
    reasoning: Any = None
    stop_reason: Any = None
    window: int | None = None
    ends_with_text: bool = False
    template_tokens: int = 0
    older_plugin: bool = False
    hold: Callable[[], Awaitable[None]] | None = field(default=None, init=False)


@dataclass
class Upstream:
    """Runs in a thread of its own. Use as a context manager."""

    seen: list[Seen] = field(default_factory=list)
    port: int = 0
    version: str = VERSION
    breaks: str = ""  # a fault that every question meets
    forgets: str = ""  # a fault that everybody but the first meets who asks for its models
    raw: bool = True  # False: log-probs are those of the sampler
    penalised: bool = False  # the model's own defaults change what is chosen
    max_logprobs: int = 20
    swapped_nats: float = 0.0  # other weights behind the same name: every log-prob is so much lower
    template_tokens: int = 0  # another chat template: every prompt is so much longer
    older_plugin: bool = False  # its summaries tell less than today's
    opened: set[str] = field(default_factory=set)  # gates
    closed: set[int] = field(default_factory=set)  # connections
    _connections: int = 0
    _open: dict[asyncio.Task[None], asyncio.StreamWriter] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def asked(self, model: str) -> list[Seen]:
        """The questions that reached one model."""
        return [seen for seen in self.seen if seen.path.endswith("/completions") and seen.model == model]

    def __enter__(self) -> Upstream:
        begun: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(begun)), daemon=True)
        self._thread.start()
        begun.result()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _serve(self, begun: Future[None]) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        try:
            server = await asyncio.start_server(self._taken, "127.0.0.1", self.port)
        except OSError as error:
            begun.set_exception(error)
            return
        self.port = server.sockets[0].getsockname()[1]
        begun.set_result(None)
        await self._over.wait()
        server.close()
        await turns()  # of the loop, until who was just let in has arrived
        open_ones = dict(self._open)
        for task, writer in open_ones.items():  # as when a process ends: whoever is connected is told at once
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)
        await turns()  # until their sockets are closed

    def _taken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection. Its task is ours: the stream protocol's own complains of being cancelled."""
        task = asyncio.ensure_future(self._connection(reader, writer))
        self._open[task] = writer
        task.add_done_callback(self._open.pop)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        number, reused = self._connections, False
        try:
            while await self._exchange(reader, writer, number, reused=reused):
                reused = True
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.closed.add(number)
            writer.close()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, *, reused: bool
    ) -> bool:
        """One request and its answer; whether the connection may be used again."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        body = json.loads(raw) if raw else {}
        seen = Seen(method, path, headers, body, time.monotonic(), number, reused)
        self.seen.append(seen)
        watching = asyncio.ensure_future(self._watch(reader, seen))
        try:
            return await self._answer(seen, writer)
        except ConnectionError:
            seen.released_at = time.monotonic()
            raise
        finally:
            seen.answered = True
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self, reader: asyncio.StreamReader, seen: Seen) -> None:
        """Notice the peer's hang-up while the answer is still being made. No client of ours pipelines."""
        # A StreamReader tells nobody; one that was reset, as by who leaves without reading all, is never at its end.
        while not reader.at_eof() and reader.exception() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        seen.released_at = time.monotonic()

    async def _answer(self, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        if seen.path == "/version":
            return await send_json(writer, {"version": self.version})
        listing = seen.path == "/v1/models"
        first = not any(other.path == seen.path for other in self.seen if other is not seen)
        if listing and (first or not self.forgets):
            return await send_json(writer, {"data": [{"id": model, "owned_by": "vllm"} for model in MODELS]})
        if seen.path == "/tokenize":
            return await send_json(writer, {"count": PROMPT_TOKENS, "max_model_len": 64, "tokens": []})
        plan = plan_of(seen.body) if not listing else Plan(self.forgets)
        plan.fault = self.breaks or plan.fault
        plan.nats -= self.swapped_nats
        plan.template_tokens = self.template_tokens
        plan.older_plugin |= self.older_plugin
        if plan.times is not None and sum(other.body == seen.body for other in self.seen) > plan.times:
            plan.fault = ""
        if plan.seconds:
            await asyncio.sleep(plan.seconds)
        streams = bool(seen.body.get("stream"))
        if plan.gate:
            plan.hold = partial(self._passing, plan.gate)
            if not (streams and plan.before):
                await plan.hold()
        if plan.fault == "stale":  # as if an idle connection had been closed just when it was used again
            return not seen.reused and await (send_stream if streams else send_whole)(writer, seen.body, plan)
        if plan.fault in WIRE:
            return await WIRE[plan.fault](writer, seen.body, plan)
        if plan.fault in STATUS:
            status, headers, told = STATUS[plan.fault]
            return await send_json(writer, told, status=status, headers=headers)
        if plan.window is not None and (told := overflow(plan.window, seen.body)):
            return await send_json(writer, complaint(told), status=400)
        if "prompt" in seen.body and seen.body.get("max_tokens", 16) is None:  # vLLM 0.22: an assertion
            return await send_json(writer, complaint("", 500, "InternalServerError"), status=500)
        if "vllm_xargs" in seen.body and (what := changes(seen.body)):
            words = f"confidence is read from raw logits, which {what} changes: ask without one of the two"
            return await send_json(writer, complaint(words), status=400)
        if seen.body.get("logprobs") and (seen.body.get("top_logprobs") or 0) > self.max_logprobs:
            return await send_json(writer, complaint("too many logprobs"), status=400)
        if self.penalised:
            plan.fault = "penalised"
        if not self.raw and seen.body["top_p"] < 0.01:
            plan.fault = "processed"
        if plan.fault and plan.fault not in (EDIT.keys() | (STREAMED if streams else set())):
            raise KeyError(f"the fake upstream has no fault {plan.fault!r}")
        return await (send_stream if streams else send_whole)(writer, seen.body, plan)

    async def _passing(self, gate: str) -> None:
        while gate not in self.opened:  # noqa: ASYNC110  it is opened in another thread
            await asyncio.sleep(0.005)


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def send_whole(writer: asyncio.StreamWriter, body: dict[str, Any], plan: Plan) -> bool:
    told = completion(body, plan)
    if plan.fault in EDIT:
        EDIT[plan.fault](told)
    return await send(writer, json.dumps(told).encode())  # NaN and Infinity go out as Python writes them


def plan_of(body: dict[str, Any]) -> Plan:
    text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    try:
        told = json.loads(text)
        plan = Plan(**told.get(body["model"], {}))
        plan.text *= plan.repeat
        return plan
    except (ValueError, AttributeError):
        return Plan()


def completion(body: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """What vLLM would say: log-probs with the end token last, candidates with the chosen token among them."""
    tokens = [*split(plan.text), END]
    told = tokens if body.get("logprobs") else []
    if "prompt" in body:
        return text_completion(body, plan, tokens)
    entries = [spoken(token, plan.nats, body.get("top_logprobs", 0)) for token in told]
    message: dict[str, Any] = {"role": "assistant", "content": plan.text, "reasoning": plan.reasoning}
    if body.get("tools") and plan.calls:
        message |= {"content": None, "tool_calls": called(plan)}
    return {
        "id": "chatcmpl-upstream",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": {"content": entries} if body.get("logprobs") else None,
                "finish_reason": "tool_calls" if message["content"] is None else "stop",
                "stop_reason": plan.stop_reason,
                **({"token_ids": [ord(token[-1]) for token in tokens]} if body.get("return_token_ids") else {}),
                **in_engine(body, plan, len(tokens)),
            }
        ],
        "usage": usage(plan, tokens),
        **({"prompt_token_ids": [1, 2, 3]} if body.get("return_token_ids") else {}),
    }


def in_engine(body: dict[str, Any], plan: Plan, tokens: int) -> dict[str, Any]:
    """What our plugin adds for who asks for it, written by the plugin's own code, which needs PyTorch."""
    if "vllm_xargs" not in body:
        return {}
    import numpy as np

    from gateway.vllm_plugin import params
    from gateway.vllm_plugin.signals import COLUMNS, TOP1
    from gateway.vllm_plugin.summary import confidence

    wanted = params.read(body["vllm_xargs"])
    assert wanted is not None
    records = np.zeros((tokens, COLUMNS), dtype=np.float32)
    records[:, TOP1] = plan.nats
    told = confidence(records, wanted, greedy=True, ended=True)
    for views in told["summary"].values() if plan.older_plugin else ():
        del views["bottom_tokens"], views["end"]
    return {"confidence": told}


def usage(plan: Plan, tokens: list[str]) -> dict[str, int]:
    prompt = 7 + plan.template_tokens
    return {"prompt_tokens": prompt, "completion_tokens": len(tokens), "total_tokens": prompt + len(tokens)}


def called(plan: Plan) -> list[dict[str, Any]]:
    return [
        {"id": f"call-{place}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for place, (name, arguments) in enumerate(plan.calls)
    ]


def text_completion(body: dict[str, Any], plan: Plan, tokens: list[str]) -> dict[str, Any]:
    """The older form: log-probs in parallel lists, the candidates of a token as an object."""
    k = body.get("logprobs")
    tops = [{f"{token}{rank or ''}": plan.nats - rank for rank in range(k)} for token in tokens] if k else None
    told = {"tokens": tokens, "token_logprobs": [plan.nats] * len(tokens), "top_logprobs": tops, "text_offset": []}
    return {
        "id": "cmpl-upstream",
        "object": "text_completion",
        "created": 1,
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "text": plan.text,
                "logprobs": None if k is None else told,
                "finish_reason": "stop",
                "stop_reason": plan.stop_reason,
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": len(tokens), "total_tokens": 7 + len(tokens)},
    }


def split(text: str) -> list[str]:
    """Tokens: words with the space before them."""
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])] if text else []


def spoken(token: str, nats: float, k: int) -> dict[str, Any]:
    rivals = [candidate(f"{token}{rank}", nats - rank) for rank in range(1, k)]
    return {**candidate(token, nats), "top_logprobs": [candidate(token, nats), *rivals][:k]}


def candidate(token: str, nats: float) -> dict[str, Any]:
    return {"token": token, "logprob": nats, "bytes": list(token.encode())}


async def send_json(
    writer: asyncio.StreamWriter, told: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> bool:
    return await send(writer, json.dumps(told).encode(), status=status, headers=headers)


async def send(
    writer: asyncio.StreamWriter, body: bytes, *, status: int = 200, headers: dict[str, str] | None = None
) -> bool:
    told = {"content-type": "application/json", "content-length": str(len(body))} | (headers or {})
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    writer.write(f"HTTP/1.1 {status} Whatever\r\n{lines}\r\n".encode("latin-1") + body)
    await writer.drain()
    return True


async def send_stream(writer: asyncio.StreamWriter, body: dict[str, Any], plan: Plan) -> bool:
    """The same answer as server-sent events, chunked; the connection can be used again after the last one."""
    fault = plan.fault
    if fault == "stream_as_json":
        return await send_json(writer, completion({**body, "stream": False}, plan))
    kind = "text/event-stream; charset=utf-8"
    writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
    written = FRAMING.get(fault, lambda event: b"data: " + event + b"\n\n")
    for place, event in enumerate(events(body, plan)):
        if plan.pause and place:
            await asyncio.sleep(plan.pause)
        if plan.hold is not None and place == plan.before > 0:
            await plan.hold()
        if place == 2 and fault in IN_STREAM:
            if not await IN_STREAM[fault](writer, body, plan):
                return False
            continue
        told = written(event)
        for part in [told[at : at + 1] for at in range(len(told))] if fault == "split" else [told]:
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await writer.drain()
            if fault == "split":
                await asyncio.sleep(0)
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


def events(body: dict[str, Any], plan: Plan) -> Iterator[bytes]:
    """vLLM's: a role, a token each with its log-probs, the end token's with the finish_reason, usage if asked, [DONE].

    Tokens that are parts of a character come without a text until the last of them.
    """
    told = completion(body, plan)
    if plan.fault in EDIT:
        EDIT[plan.fault](told)
    if not told["choices"]:
        yield json.dumps({**chunk(told["model"], {}), "choices": []}).encode()
        yield b"[DONE]"
        return
    [choice], usage, model = told["choices"], told["usage"], told["model"]
    if "prompt" in body:
        yield from text_events(told, body)
        return
    entries = (choice["logprobs"] or {}).get("content") or []
    words = split(choice["message"]["content"] or "")
    yield json.dumps(chunk(model, {"role": "assistant", "content": ""})).encode()
    thought = choice["message"]["reasoning"]
    for word in split(thought) if isinstance(thought, str) else ():
        yield json.dumps(chunk(model, {"reasoning": word})).encode()
    step = body.get("stream_interval", 1)
    for place, end in pairwise(sorted({0, *range(1, len(words), step), len(words)})):  # the first comes alone
        last = plan.ends_with_text and end == len(words)
        finish, stop = (choice["finish_reason"], len(entries)) if last else (None, end)
        said = chunk(model, {"content": "".join(words[place:end])}, entries[place:stop], finish)
        if body.get("stream_options", {}).get("continuous_usage_stats"):
            said["usage"] = {**usage, "completion_tokens": end}
        yield json.dumps(said).encode()
    for place, call in enumerate(choice["message"].get("tool_calls", ())):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        for part in (
            {**call, "function": {"name": name, "arguments": ""}},
            *({"function": {"arguments": letter}} for letter in arguments),
        ):
            yield json.dumps(chunk(model, {"tool_calls": [{"index": place, **part}]})).encode()
    if plan.fault != "no_finish_reason" and not plan.ends_with_text:
        yield json.dumps(
            chunk(model, {"content": ""}, entries[len(words) :], choice["finish_reason"] or "stop")
        ).encode()
    if body.get("stream_options", {}).get("include_usage"):
        yield json.dumps({**chunk(model, {}), "choices": [], "usage": usage}).encode()
    yield b"[DONE]"
    if plan.fault == "text_after_done":
        yield json.dumps(chunk(model, {"content": "never"})).encode()


def text_events(told: dict[str, Any], body: dict[str, Any]) -> Iterator[bytes]:
    """A token each, then the end token's with the finish_reason."""
    [choice], frame = told["choices"], {name: told[name] for name in ("id", "object", "created", "model")}
    logprobs = choice["logprobs"]
    words = [*split(choice["text"]), ""]
    for place, word in enumerate(words):
        mine = (
            {name: (values or [None] * len(words))[place : place + 1] for name, values in logprobs.items()}
            if logprobs
            else None
        )
        last = place == len(words) - 1
        one = {"index": 0, "text": word, "logprobs": mine, "finish_reason": choice["finish_reason"] if last else None}
        yield json.dumps({**frame, "choices": [one]}).encode()
    if body.get("stream_options", {}).get("include_usage"):
        yield json.dumps({**frame, "choices": [], "usage": told["usage"]}).encode()
    yield b"[DONE]"


def chunk(
    model: str, delta: dict[str, Any], entries: list[dict[str, Any]] | None = None, finish: str | None = None
) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": {"content": entries} if entries else None}
    told = {"id": "chatcmpl-upstream", "object": "chat.completion.chunk", "created": 1, "model": model}
    return {**told, "choices": [{**choice, "finish_reason": finish}]}


def raw_event(*told: bytes) -> Callable[..., Any]:
    """These bytes instead of an event; then the stream goes on."""

    async def write(writer: asyncio.StreamWriter, *_: object) -> bool:
        for part in told:
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        await writer.drain()
        return True

    return write


async def endless_event(writer: asyncio.StreamWriter, *_: object) -> bool:
    while True:
        writer.write(b"10000\r\n" + b"x" * 2**16 + b"\r\n")
        await writer.drain()


# How one event may be written, all of it the same by the standard; and by who says null where there is no choice.
FRAMING: dict[str, Callable[[bytes], bytes]] = {
    "crlf": lambda event: b"data: " + event + b"\r\n\r\n",
    "lone_cr": lambda event: b"data: " + event + b"\r\r",
    "no_space": lambda event: b"data:" + event + b"\n\n",
    "comments": lambda event: b": still here\n\n: and here\nevent: x\nid: 1\ndata: " + event + b"\n: there\n\n",
    "null_choices": lambda event: b"data: " + event.replace(b'"choices": []', b'"choices": null') + b"\n\n",
    "two_lines": lambda event: b"data: " + event.replace(b', "choices"', b'\ndata: , "choices"') + b"\n\n",
}

# Faults of the connection and of HTTP itself. Each returns whether the connection may be used again.


async def reset(writer: asyncio.StreamWriter, *_: object) -> bool:
    """RST instead of an answer."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


async def hang_up(*_: object) -> bool:
    """FIN instead of an answer."""
    return False


async def reset_in_body(writer: asyncio.StreamWriter, body: dict[str, Any], plan: Plan) -> bool:
    await end_in_body(writer, body, plan)
    return await reset(writer)


async def end_in_body(writer: asyncio.StreamWriter, body: dict[str, Any], plan: Plan) -> bool:
    whole = json.dumps(completion(body, plan)).encode()
    await send(writer, whole[: len(whole) // 2], headers={"content-length": str(len(whole))})
    return False


async def silent_in_body(writer: asyncio.StreamWriter, body: dict[str, Any], plan: Plan) -> bool:
    await end_in_body(writer, body, plan)
    return await silent(writer)


async def silent(writer: asyncio.StreamWriter, *_: object) -> bool:
    await asyncio.sleep(SILENCE)
    return False


async def drip(writer: asyncio.StreamWriter, body: dict[str, Any], plan: Plan) -> bool:
    whole = json.dumps(completion(body, plan)).encode()
    await send(writer, b"", headers={"content-length": str(len(whole))})
    for byte in whole:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.2)
    return False


def raw(reply: bytes) -> Callable[..., Any]:
    async def write(writer: asyncio.StreamWriter, *_: object) -> bool:
        writer.write(reply)
        await writer.drain()
        return False

    return write


def bodied(body: bytes, status: int = 200, **headers: str) -> Callable[..., Any]:
    async def write(writer: asyncio.StreamWriter, *_: object) -> bool:
        return await send(writer, body, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return write


async def endless(writer: asyncio.StreamWriter, *_: object) -> bool:
    """A body that never ends, until the peer has had enough."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n")
    while True:
        writer.write(b" " * 2**20)
        await writer.drain()


async def huge_header(writer: asyncio.StreamWriter, body: dict[str, Any], plan: Plan) -> bool:
    """A good answer, but for its head."""
    return await send(writer, json.dumps(completion(body, plan)).encode(), headers={"x": "a" * 2**20})


async def cut_json(writer: asyncio.StreamWriter, body: dict[str, Any], plan: Plan) -> bool:
    return await send(writer, json.dumps(completion(body, plan)).encode()[:-20])


async def utf16(writer: asyncio.StreamWriter, body: dict[str, Any], plan: Plan) -> bool:
    return await send(writer, json.dumps(completion(body, plan)).encode("utf-16"))


async def as_text(writer: asyncio.StreamWriter, body: dict[str, Any], plan: Plan) -> bool:
    """A good answer that is said to be something else."""
    return await send(writer, json.dumps(completion(body, plan)).encode(), headers={"content-type": "text/plain"})


async def twin_text(writer: asyncio.StreamWriter, body: dict[str, Any], plan: Plan) -> bool:
    whole = json.dumps(completion(body, plan))
    return await send(writer, whole.replace('"content": ', '"content": "43", "content": ', 1).encode())


async def twin_keys(writer: asyncio.StreamWriter, body: dict[str, Any], plan: Plan) -> bool:
    """A twin key and a NaN: the careful reader has to notice the first on its way to forgive the second."""
    told = completion(body, plan)
    told["choices"][0]["logprobs"]["content"][0]["logprob"] = math.nan
    whole = json.dumps(told)
    return await send(writer, f'{whole[:-1]}, "choices": {json.dumps(told["choices"])}}}'.encode())


# What may come in the place of a stream's third event. Each returns whether the stream goes on.
IN_STREAM: dict[str, Callable[..., Any]] = {
    "cut_off": hang_up,
    "reset_in_stream": reset,
    "silent_in_stream": silent,
    "error_event": raw_event(b'data: {"error": {"message": "secret-host.internal", "type": "x", "code": 500}}\n\n'),
    "error_words": raw_event(b'data: {"error": "secret-host.internal"}\n\n'),
    "overflow_event": raw_event(
        b'data: {"error": {"message": "This model\'s maximum context length is 100 tokens. However, your request has '
        b'60 input tokens.", "type": "BadRequestError", "code": 400}}\n\n'
    ),
    "refusal_event": raw_event(b'data: {"error": {"message": "secret-host.internal", "code": 400}}\n\n'),
    "garbled_event": raw_event(b"data: <html>\n\n"),
    "twin_event": raw_event(b'data: {"choices": [], "choices": []}\n\n'),
    "twin_text_event": raw_event(
        b'data: {"choices": [{"index": 0, "delta": {"content": "x", "content": "y"}, "logprobs": null}]}\n\n'
    ),
    "list_event": raw_event(b"data: []\n\n"),
    "half_character_event": raw_event(b'data: {"choices": [{"index": 0, "delta": {"content": "\\ud83d"}}]}\n\n'),
    "second_choice": raw_event(b'data: {"choices": [{"index": 1, "delta": {"content": "x"}}]}\n\n'),
    "endless_event": endless_event,
    "bad_chunk_in_stream": raw(b"zz\r\n"),
}

WIRE: dict[str, Callable[..., Any]] = {
    "reset": reset,
    "hang_up": hang_up,
    "reset_in_body": reset_in_body,
    "end_in_body": end_in_body,
    "silent": silent,
    "silent_in_body": silent_in_body,
    "drip": drip,
    "bad_status_line": raw(b"ICY 200 OK\r\n\r\n"),
    "bad_chunk": raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
    "two_lengths": raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}x"),
    "huge_header": huge_header,
    "bad_gzip": bodied(b"\x1f\x8b garbage", content_encoding="gzip"),
    "gzip_bomb": bodied(gzip.compress(b" " * 2**24), content_encoding="gzip"),
    "endless": endless,
    "redirect": bodied(b"", 302, location="http://127.0.0.1:1/"),
    "no_content": bodied(b"", 204),
    "html": bodied(b"<html>ok</html>", content_type="text/html"),
    "plain_text": bodied(b"ok", content_type="text/plain"),
    "json_list": bodied(b"[]"),
    "json_null": bodied(b"null"),
    "cut_json": cut_json,
    "twin_keys": twin_keys,
    "twin_text": twin_text,
    "utf16": utf16,
    "as_text": as_text,
    "bad_utf8": bodied(b'{"choices": [{"message": {"content": "\xff"}}], "model": "small"}'),
    "deep_json": bodied(b"[" * 200_000 + b"]" * 200_000),
    "huge_integer": bodied(b'{"created": ' + b"9" * 20_000 + b', "choices": ' + b"9" * 20_000 + b"}"),
    "error_in_200": bodied(b'{"error": {"message": "secret-host.internal failed", "code": 500}}'),
}


def complaint(message: str, code: object = 400, kind: str = "BadRequestError") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


WINDOW = "This model's maximum context length is 64 tokens. However, your request has 90 input tokens. Please reduce."


def changes(body: dict[str, Any]) -> str:
    """What of a request keeps the plugin from reading its logits, as in gateway/vllm_plugin/processor.py."""
    if body.get("tool_choice", "auto") not in ("auto", "none"):
        return "structured outputs"
    return next((name for name in ("logit_bias", "min_tokens", "response_format") if body.get(name)), "")


PROMPT_TOKENS = 20  # of a prompt that meets a window


def overflow(window: int, body: dict[str, Any], prompt: int = PROMPT_TOKENS) -> str:
    """What vLLM 0.16 and later say of a request that is too long for the window, "" of one that is not. They stop
    counting the prompt one token above what would fit (vllm/renderers/params.py)."""
    wanted = body.get("max_tokens", 16 if "prompt" in body else None) or 0
    if wanted > window:
        return f"max_tokens={wanted} cannot be greater than max_model_len=max_total_tokens={window}. Ask for fewer."
    if prompt <= window - wanted:
        return ""
    return (
        f"This model's maximum context length is {window} tokens. However, you requested {wanted} output tokens and "
        f"your prompt contains at least {window - wanted + 1} input tokens, at least {window + 1} in all."
    )


STATUS: dict[str, tuple[int, dict[str, str], object]] = {
    "500": (500, {}, complaint("Traceback: /srv/secret.py", 500, "InternalServerError")),
    "502": (502, {}, {}),
    "503": (503, {}, {}),
    "429": (429, {"retry-after": "7"}, complaint("slow down", 429)),
    "429_at_once": (429, {"retry-after": "0"}, complaint("slow down", 429)),
    "429_second": (429, {"retry-after": "1"}, complaint("slow down", 429)),
    "429_day": (429, {"retry-after": "86400"}, complaint("slow down", 429)),
    "429_date": (429, {"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}, complaint("slow down", 429)),
    "429_junk": (429, {"retry-after": "soon"}, complaint("slow down", 429)),
    "429_untold": (429, {}, {}),
    "overflow": (400, {}, complaint(WINDOW)),
    "overflow_openai": (400, {}, complaint("too long", "context_length_exceeded", "invalid_request_error")),
    "bad_request": (400, {}, complaint("secret-host.internal does not like it")),
    "unprocessable": (422, {}, complaint("no", 422)),
    "unauthorized": (401, {}, {"error": "Unauthorized"}),
    "forbidden": (403, {}, complaint("no", 403)),
    "not_found": (404, {}, complaint("The model `x` does not exist.", 404, "NotFoundError")),
}


# Faults inside a well-formed body.


def choice(told: dict[str, Any]) -> dict[str, Any]:
    return told["choices"][0]  # type: ignore[no-any-return]


def logprobs(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each token; where none were asked for, there are none to spoil."""
    return (choice(told)["logprobs"] or {"content": []})["content"]  # type: ignore[no-any-return]


def first(told: dict[str, Any]) -> dict[str, Any]:
    return next(iter(logprobs(told)), {"logprob": 0.0})


def processed(told: dict[str, Any]) -> None:
    """Log-probs as they are after a tiny top_p."""
    for entry in logprobs(told):
        entry["logprob"] = entry["top_logprobs"][0]["logprob"] = 0.0
        for rival in entry["top_logprobs"][1:]:
            rival["logprob"] = -9999.0


def unspelled(told: dict[str, Any]) -> None:
    """A character of two tokens, each told as half of one: as vLLM does."""
    choice(told)["message"]["content"] = choice(told)["message"]["content"].replace("answer is", "\u00e9")
    for entry in logprobs(told)[1:3]:
        entry["token"], entry["bytes"] = "\ufffd", list("\ufffd".encode())


EDIT: dict[str, Callable[[dict[str, Any]], object]] = {
    "processed": processed,
    "penalised": lambda told: first(told).update(logprob=first(told)["logprob"] - 1),
    "no_choices": lambda told: told.update(choices=[]),
    "null_content": lambda told: choice(told)["message"].update(content=None),
    "number_content": lambda told: choice(told)["message"].update(content=42),
    "abort": lambda told: choice(told).update(finish_reason="abort"),
    "no_finish": lambda told: choice(told).update(finish_reason=None),
    "length": lambda told: choice(told).update(finish_reason="length"),
    "other_model": lambda told: told.update(model="an-impostor"),
    "no_logprobs": lambda told: choice(told).update(logprobs=None),
    "null_logprob": lambda told: first(told).update(logprob=None),
    "nan_logprob": lambda told: first(told).update(logprob=math.nan),
    "infinite_logprob": lambda told: first(told).update(logprob=-math.inf),
    "positive_logprob": lambda told: first(told).update(logprob=0.5),
    "string_logprob": lambda told: first(told).update(logprob="-0.1"),
    "floor_logprob": lambda told: first(told).update(logprob=-9999.0),
    "too_few_candidates": lambda told: first(told).update(top_logprobs=[]),
    "unspelled": unspelled,
    "no_usage": lambda told: told.update(usage=None),
    "negative_usage": lambda told: told["usage"].update(prompt_tokens=-1),
    "only_thought": lambda told: choice(told)["message"].update(content=None, reasoning="Well, 6 times 7"),
    "huge_usage": lambda told: told["usage"].update(completion_tokens=10**30),
    "half_character": lambda told: choice(told)["message"].update(content="\ud83d"),
    "filtered": lambda told: choice(told).update(finish_reason="content_filter"),
    "calls_untold": lambda told: choice(told).update(finish_reason="tool_calls"),
}

STREAMED = FRAMING.keys() | IN_STREAM.keys() | {"split", "no_finish_reason", "text_after_done", "stream_as_json"}
