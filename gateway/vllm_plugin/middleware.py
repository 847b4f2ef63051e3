"""The ASGI middleware of vLLM's API server: adds `confidence` to the answers whose requests asked for it.

    --middleware gateway.vllm_plugin.middleware.ConfidenceMiddleware

A request opts in with `vllm_xargs: {"confidence": 1}` (see `params.py`). Whole answers carry `choices[i].confidence`;
streams carry it in the event with the choice's finish reason, which waits for it. All other traffic passes untouched.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from gateway.vllm_plugin import params
from gateway.vllm_plugin.channel import Inbox, Waiting
from gateway.vllm_plugin.summary import aborted, confidence, missing

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

ROUTES = ("/v1/chat/completions", "/v1/completions")
# Records leave a worker one step after the last token; but a loop that builds large replies comes late to read them.
# So long they are waited for while no worker ever sent any, and so much longer once one did.
FIRST_ARRIVAL_SECONDS, ARRIVAL_SECONDS = 3.0, 12.0
LATE_SECONDS = 0.05  # for a loop that came late to what had arrived in time
SEEDS = 2**31


class ConfidenceMiddleware:
    """Pure ASGI. One per API server process."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._inbox: Inbox | None = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            try:
                await self._app(scope, receive, send)
            finally:
                if self._inbox is not None:
                    await self._inbox.close()
        elif scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith(ROUTES):
            await self._ask(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _ask(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        messages, raw = await read_body(receive)
        body = opted_in(raw)
        if body is None:
            await self._app(scope, replay(messages, receive), send)
            return
        try:
            wanted = params.read(body["vllm_xargs"])
            assert wanted is not None, "opted_in saw to it"
            if speculates(scope):
                raise ValueError("confidence cannot be computed under speculative decoding: start vLLM without it")
            check_one_answer_each(body)
            inbox = await self._open()
        except ValueError as error:
            await refuse(send, 400, str(error))
            return
        except OSError as error:
            told = (
                f"confidence: the channel to the engine cannot be opened ({error}); CONFGATE_VLLM_DIR names its folder"
            )
            await refuse(send, 503, told)
            return
        waiting = inbox.expect()
        try:
            stripper = Stripper(body, waiting.id)
            changed = msgspec.json.encode(body)
            inner = {**scope, "headers": with_length(scope["headers"], len(changed))}
            first: Message = {"type": "http.request", "body": changed, "more_body": False}
            reply = Reply(send, inbox, waiting, wanted, stripper)
            await self._app(inner, replay([first], receive), reply)
        finally:
            inbox.forget(waiting)

    async def _open(self) -> Inbox:
        if self._inbox is None:
            self._inbox = Inbox()
        await self._inbox.open()
        return self._inbox


class Stripper:
    """What we add to a request so that its tokens can be counted, and take out of the answer again."""

    def __init__(self, body: dict[str, Any], id: str) -> None:  # noqa: A002  the field's own name
        xargs = {key: value for key, value in body["vllm_xargs"].items() if key not in (params.ID, params.SEED)}
        xargs[params.ID] = id
        several = isinstance(body.get("n"), int) and body["n"] > 1
        self.ids = several and not body.get("return_token_ids")
        self.count_ids = several or bool(body.get("return_token_ids"))
        if self.ids:
            body["return_token_ids"] = True
        if several:
            if body.get("seed") is None:
                body["seed"] = secrets.randbelow(SEEDS)
            xargs[params.SEED] = body["seed"]
        options = body.get("stream_options") or {}
        self.usage = bool(body.get("stream")) and not self.count_ids and not options.get("include_usage")
        if self.usage:
            body["stream_options"] = options | {"include_usage": True}
        body["vllm_xargs"] = xargs

    def strip(self, answer: dict[str, Any]) -> None:
        """Takes the token ids out again."""
        if self.ids:
            answer.pop("prompt_token_ids", None)
            for choice in answer.get("choices", ()):
                choice.pop("token_ids", None)
                choice.pop("prompt_token_ids", None)


class Reply:
    """`send` for the inner application: holds back what must carry the confidence."""

    def __init__(self, send: Send, inbox: Inbox, waiting: Waiting, wanted: params.Wanted, stripper: Stripper) -> None:
        self._send, self._inbox, self._waiting, self._wanted, self._stripper = send, inbox, waiting, wanted, stripper
        self._start: Message | None = None
        self._streams = self._plain = False
        self._body = b""
        self._held: list[dict[str, Any]] = []
        self._counts: dict[int, int] = {}

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._streams = kind.startswith(b"text/event-stream")
            self._plain = message["status"] != 200 or not (self._streams or kind.startswith(b"application/json"))
            if self._plain or self._streams:
                await self._send(message)
            else:
                self._start = message
        elif message["type"] != "http.response.body" or self._plain:
            await self._send(message)
        elif self._streams:
            await self._stream(message.get("body", b""), last=not message.get("more_body", False))
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._whole()

    async def _whole(self) -> None:
        assert self._start is not None
        answer = msgspec.json.decode(self._body)
        if not isinstance(answer, dict):  # vLLM answers `null` to a client that has left
            await self._send(self._start)
            await self._send({"type": "http.response.body", "body": self._body, "more_body": False})
            return
        total = (answer.get("usage") or {}).get("completion_tokens", 0)
        for choice in answer.get("choices", ()):
            tokens = len(choice.get("token_ids") or ()) if self._stripper.count_ids else total
            await self._add(choice, tokens)
        self._stripper.strip(answer)
        body = msgspec.json.encode(answer)
        await self._send({**self._start, "headers": with_length(self._start["headers"], len(body))})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _stream(self, piece: bytes, *, last: bool) -> None:
        self._body += piece
        *events, self._body = self._body.split(b"\n\n")
        out = [said for event in events if (said := await self._event(event + b"\n\n"))]
        if last:
            out += [encode(await self._late(held)) for held in self._release()] + [self._body]
        if out or last:
            await self._send({"type": "http.response.body", "body": b"".join(out), "more_body": not last})

    async def _event(self, event: bytes) -> bytes:
        """What to send now in an event's place, maybe nothing."""
        if not event.startswith(b"data: {"):
            return b"".join([encode(await self._late(held)) for held in self._release()]) + event
        ends = b'"finish_reason":null' not in event or self._stripper.count_ids
        if not ends and b'"usage":{' not in event:
            return event
        chunk = msgspec.json.decode(event[6:])
        for choice in chunk.get("choices", ()):
            at = choice.get("index", 0)
            self._counts[at] = self._counts.get(at, 0) + len(choice.get("token_ids") or ())
        usage = chunk.get("usage")
        if usage and not self._stripper.count_ids:
            self._counts[0] = usage["completion_tokens"]
        self._stripper.strip(chunk)
        if any(choice.get("finish_reason") for choice in chunk.get("choices", ())):
            self._held.append(chunk)
            return b"" if not self._stripper.count_ids else b"".join(
                [encode(await self._late(held)) for held in self._release()]
            )  # fmt: skip
        told = b"".join([encode(await self._late(held)) for held in self._release()]) if usage else b""
        return told if usage and self._stripper.usage and not chunk.get("choices") else told + encode(chunk)

    def _release(self) -> list[dict[str, Any]]:
        held, self._held = self._held, []
        return held

    async def _late(self, chunk: dict[str, Any]) -> dict[str, Any]:
        for choice in chunk["choices"]:
            if choice.get("finish_reason"):
                await self._add(choice, self._counts.get(choice.get("index", 0), 0))
        return chunk

    async def _add(self, choice: dict[str, Any], tokens: int) -> None:
        """Puts the confidence into a finished choice; one that was given up says so by its finish reason too."""
        found = await self._records(choice.get("index", 0), tokens)
        if isinstance(found, str):
            choice["confidence"] = missing(found)
            return
        records, greedy = found
        ended = choice.get("finish_reason") == "stop" and not isinstance(choice.get("stop_reason"), str)
        choice["confidence"] = confidence(records, self._wanted, greedy=greedy, ended=ended)
        if self._wanted.abort_below > -math.inf and aborted(records):
            choice["finish_reason"], choice["stop_reason"] = "length", "confidence"

    async def _records(self, choice: int, tokens: int) -> Any:
        if not tokens:
            return "the answer has no tokens"
        if (found := self._waiting.records(choice, tokens)) is not None:
            return found
        waited = 0.0
        for seconds in (FIRST_ARRIVAL_SECONDS, ARRIVAL_SECONDS):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while (found := self._waiting.records(choice, tokens)) is None:
                        self._waiting.came.clear()
                        await self._waiting.came.wait()
                    return found
            waited += seconds
            await asyncio.sleep(LATE_SECONDS)
            if (found := self._waiting.records(choice, tokens)) is not None:
                return found
            if not self._inbox.delivered:
                break
        log.warning("confidence: records did not arrive within %s s", waited)
        return f"the engine sent no records within {waited:g} s; is its logits processor loaded?"


async def read_body(receive: Receive) -> tuple[list[Message], bytes]:
    """The messages of a request's body, and the body."""
    messages: list[Message] = []
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request" or not message.get("more_body", False):
            return messages, b"".join(m.get("body", b"") for m in messages)


def opted_in(raw: bytes) -> dict[str, Any] | None:
    """The body of a request that asks for confidence; None for all others, malformed ones too: vLLM tells those."""
    if b'"confidence"' not in raw:
        return None
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    asks = isinstance(body, dict) and isinstance(body.get("vllm_xargs"), dict) and body["vllm_xargs"].get("confidence")
    return body if asks else None


def speculates(scope: MutableMapping[str, Any]) -> bool:
    """vLLM drops logits processors found by entry point without a word when it decodes speculatively."""
    config = getattr(getattr(scope.get("app"), "state", None), "vllm_config", None)
    return getattr(config, "speculative_config", None) is not None


def check_one_answer_each(body: dict[str, Any]) -> None:
    """Raises ValueError for a request whose answers could not be told apart: vLLM gives them the same seed and name."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) > 1 and isinstance(prompt[0], str | list):
        raise ValueError("confidence is told of one prompt a request: send each by itself")
    if body.get("use_beam_search"):
        raise ValueError("confidence cannot be computed under beam search: ask without one of the two")


def replay(messages: list[Message], receive: Receive) -> Receive:
    """`receive` that first gives these messages again."""
    again = iter(messages)

    async def next_message() -> Message:
        for message in again:
            return message
        return await receive()

    return next_message


def with_length(headers: Any, length: int) -> list[tuple[bytes, bytes]]:
    """The same headers with another content-length."""
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    return [*kept, (b"content-length", str(length).encode("ascii"))]


def encode(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


async def refuse(send: Send, status: int, message: str) -> None:
    """An error in vLLM's own shape."""
    kind = "BadRequestError" if status == 400 else "ServiceUnavailableError"
    error = {"message": message, "type": kind, "param": "vllm_xargs", "code": status}
    body = msgspec.json.encode({"error": error})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode("ascii"))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
