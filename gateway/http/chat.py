"""POST /v1/chat/completions and /v1/completions. A plain ASGI endpoint: a framework's handler costs more than all the
rest of it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from gateway import cascade, ids, streaming
from gateway.errors import ClientGone
from gateway.http import limits, overrides, reply, sse, wire
from gateway.http.errors import Draining, RequestError, problem
from gateway.http.hangup import WHOLE, Line, beside, line, or_hangup
from gateway.http.journal import Journal
from gateway.http.live import Generation, Live
from gateway.http.quota import Estimate, Visit
from gateway.http.reply import Call
from gateway.noun import noun
from gateway.nouns import Answer, Ask, Hop, Mix, Mode, Opening, Policy
from gateway.policy import canaried, drawn
from gateway.snapshot import Snapshot
from gateway.store.story import Story, fingerprint
from gateway.telemetry import Telemetry
from gateway.written import unknown

log = logging.getLogger(__name__)

CANARY = "canary"  # what the lot is for; see Seal.lot
SMALL_BYTES = 2**14  # a body that the connection's buffer takes in any case: what is sent need not be waited for


class Chat:
    """The endpoint over what is live. kind: of its requests.  form: how its answers are written."""

    def __init__(
        self,
        live: Live,
        telemetry: Telemetry,
        journal: Journal,
        kind: type[wire.Request] = wire.ChatRequest,
        form: reply.Form = reply.CHAT,
    ) -> None:
        self._live, self._telemetry, self._journal, self._kind, self._form = live, telemetry, journal, kind, form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, whatever becomes of it: an answer, an error, or nobody left to tell."""
        now = asyncio.get_running_loop().time
        began, arrived = now(), time.time()
        route_id = ids.number(arrived)
        story = Story(route_id, arrived)
        status, reason = 499, ""
        headers = limits.headers(scope)
        self._journal.begin(scope["path"], headers, story)
        with self._live.held() as held, self._visit(held) as visit:
            out = Out(send, line(scope))
            self._telemetry.in_flight += 1
            try:
                status, reason = await self._serve(held, visit, headers, receive, out, story, began)
            except asyncio.CancelledError:
                if not self._live.draining:
                    raise
                status, reason = 503, ""
                await out.end_with(Draining(), story)
            except (ClientGone, OSError, TimeoutError):  # left, broke off, or does not read
                status = 499
                if not out.begun:
                    out.line.close()
            finally:
                self._telemetry.in_flight -= 1
                self._telemetry.ended(status, reason, now() - began)
                if out.streamed_at is not None:
                    story.first_seconds = out.streamed_at - began
                    self._telemetry.first_token(str(story.mode), story.first_seconds)
                self._journal.end(held, story, status, now() - began)

    def _visit(self, held: Generation) -> Visit:
        return Visit(self._live.lasting.ledger, held.dearest, time.time)

    async def _serve(
        self,
        held: Generation,
        visit: Visit,
        headers: Mapping[str, str],
        receive: Receive,
        out: Out,
        story: Story,
        began: float,
    ) -> tuple[int, str]:
        """Answer, and say with what status and why. Raises what ends a request without an answer."""
        sending: Coroutine[Any, Any, None]
        route_id = story.number
        at_once = False
        try:
            asked = await self._read(held, visit, headers, receive, story, began)
            note = self._noting(visit, story, began)
            if asked.mode is Mode.BUFFER:
                several = asked.request.choices > 1
                deciding = decided(asked, note) if several else cascade.answer(asked.ask, asked.route, note)
                answer = await or_hangup(deciding, out.line)
                heads, pieces = asked.written(answer)
                visit.settle()
                heads |= visit.headers()
                at_once = out.takes(pieces)
                sending = out.whole(200, heads, pieces) if at_once else respond(200, heads, pieces, out)
            else:
                passing = passed_on(asked, visit, out, held.snapshot.config.server.keep_alive_seconds)
                job = streaming.MODES[asked.mode](asked.ask, asked.route, passing, note)
                answer = await or_hangup(beside(job, passing.keep_alive()), out.line)
                visit.settle()
                if passing.begun:
                    sending = end(passing, answer, out)
                else:  # a fallback, complete by now
                    heads, pieces = asked.written(answer)
                    sending = respond(200, heads | visit.headers(), pieces, out)
            self._telemetry.served(answer)
            story.answer = answer
            status, reason = 200, str(answer.reason)
        except ClientGone:
            visit.abandon()
            raise
        except Exception as error:
            told = problem(error)
            if told.status >= 500:
                ours = error if told.status == 500 else None
                log.error("request failed", extra={"route_id": route_id, "error": str(error)}, exc_info=ours)
            if out.begun:
                visit.abandon()
            visit.settle()
            status, reason, sending = told.status, "", out.end_with(error, story, visit.headers())
        if at_once:
            await sending
        else:
            seconds = held.snapshot.config.server.request_seconds
            async with asyncio.timeout(seconds):  # no task of its own: what it held is free before a next request
                await sending
        return status, reason

    async def _read(
        self,
        held: Generation,
        visit: Visit,
        headers: Mapping[str, str],
        receive: Receive,
        story: Story,
        began: float,
    ) -> Asked:
        """Everything before the first tier, by one snapshot whatever is reloaded meanwhile."""
        if self._live.draining:
            raise Draining
        snapshot, route_id = held.snapshot, story.number
        config = snapshot.config
        server = config.server
        client = held.keyring.who(headers.get("authorization"))
        visit.enter(client)
        body = await limits.read_json(headers, receive, max_bytes=int(server.max_body_mib * 2**20))
        request = wire.read(body, server, self._kind)
        model = overrides.policy_asked(request)
        chosen = choose(model, snapshot, "model" if model == request.model else "route.policy")
        if isinstance(chosen, Mix):
            overrides.check_mix(chosen, request)
        route = drawn(chosen, route_id)
        client.check(model)
        debug = overrides.debug(request, headers.get("x-route-debug", ""), config)
        deadline = began + overrides.seconds(request, config)
        pin = server.sampler == "pin"
        needs = wire.needed(request, pin=pin)
        salt = held.seal.salt(client.name)
        ask, ignored = wire.to_ask(
            request,
            deadline,
            pin=pin,
            needs=needs,
            decision=route_id,
            trace=story.traceparent,
            salt=salt,
            priority=client.priority,
        )
        if debug:
            ignored = sorted({*ignored, *wire.unread(body, request)})
        route = canaried(route, partial(place, held, client.name, ask))
        estimate = Estimate.of(ask.characters, ask.max_tokens, request.choices)
        wanted = overrides.apply(route, request, config, estimate, needs)
        route = visit.reserve(wanted, estimate)
        mode = overrides.mode(route, request, config)
        kept = config.monitors.slices.kept(request.metadata)
        story.asked(client.name, ask, route, model, mode, request.choices, kept)
        created = int(time.time())
        return Asked(
            request, mode, ask, route, held.seal, client.name, created, debug, tuple(ignored), self._form, story
        )

    def _noting(self, visit: Visit, story: Story, began: float) -> cascade.Observer:
        now = asyncio.get_running_loop().time

        def note(hop: Hop) -> None:
            visit.note(hop)
            story.note(hop, now() - began)
            self._telemetry.note(hop, story.number)

        return note


@noun(frozen=True, slots=True, eq=False)
class Asked:
    """One request, read and within its client's means. mode: how a stream comes about.

    client: its name.  created, debug, ignored, form: as in the Call.
    """

    request: wire.Request
    mode: Mode
    ask: Ask
    route: Policy
    seal: ids.Seal
    client: str
    created: int
    debug: bool
    ignored: tuple[str, ...]
    form: reply.Form
    story: Story

    def written(self, answer: Answer) -> tuple[dict[str, str], Iterable[bytes]]:
        """The answer's headers and body, whole or replayed as a stream."""
        opening = answer.opening
        call = self.named(opening)
        headers = reply.headers(opening, call)
        if call.request.stream:
            return headers | sse.HEADERS, sse.replay(answer, call)
        return headers | {"content-type": "application/json"}, [reply.whole(answer, call)]

    def named(self, opening: Opening) -> Call:
        """The call under the id that its client is told, with the facts inside that a label needs to be of use."""
        route_id = self.seal.seal(
            self.ask.decision,
            self.client,
            tier=opening.tier,
            calibrator=opening.calibrator_id,
            p_correct=opening.p_correct,
        )
        self.story.response_id = f"{self.form.prefix}-{route_id}"
        return Call(self.request, route_id, self.created, self.debug, self.ignored, self.mode, self.form)


async def decided(asked: Asked, note: cascade.Observer) -> Answer:
    """A whole answer, and its siblings."""
    answer = await cascade.answer(asked.ask, asked.route, note)
    return await cascade.with_siblings(answer, asked.ask, asked.request.choices, note)


def passed_on(asked: Asked, visit: Visit, out: Out, silence_seconds: float) -> sse.Passing:
    """The client as a listener."""

    async def start(headers: Mapping[str, str]) -> None:
        await out.start(200, {**headers, **visit.headers()})

    return sse.Passing(asked.named, start, out.body, asked.ask.deadline, silence_seconds)


def place(held: Generation, client: str, ask: Ask, tier: str) -> float:
    """Where a client's conversation stands among all, in [0, 1), for the canary of a tier: the same in all its turns
    and on every replica, and nobody without the secret can tell."""
    first = next((at for at, message in enumerate(ask.messages) if message.role == "user"), len(ask.messages) - 1)
    opening = fingerprint(replace(ask, messages=ask.messages[: first + 1]))
    return held.seal.lot(json.dumps([tier, client, opening]), CANARY)


def choose(model: str, snapshot: Snapshot, param: str = "model") -> Policy | Mix:
    """The policy a model name stands for: `auto`, `auto:<policy>`, or a tier alone. Raises RequestError with 404, about
    the field that named it."""
    if model == "auto":
        return snapshot.policies["default"]
    if model.startswith("auto:") and model[5:] in snapshot.policies:
        return snapshot.policies[model[5:]]
    if model in snapshot.tiers:
        tier = snapshot.tiers[model]
        return Policy(name="bypass", tiers=(replace(tier, threshold=None),), bypass=True, stream_mode=Mode.COMMIT)
    told = unknown("model", wire.shown(model), dict.fromkeys(names(snapshot)))
    raise RequestError(404, f"There is {told}.", param=param, code="model_not_found")


def names(snapshot: Snapshot) -> list[str]:
    """Every model name a client may use."""
    return ["auto", *(f"auto:{policy}" for policy in snapshot.policies), *snapshot.tiers]


class Out:
    """The way to the client, which knows what has been said. streamed_at: when a stream began, s on the loop's
    clock."""

    def __init__(self, send: Send, line: Line) -> None:
        self._send, self.line = send, line
        self.begun = self._streams = False
        self.streamed_at: float | None = None

    async def __call__(self, message: Message) -> None:
        await self._send(message)  # which first waits until the client has taken what was said before
        if message["type"] == "http.response.start":
            self.begun = True
            self._streams = not any(name == b"content-length" for name, _ in message["headers"])
            if self._streams:
                self.streamed_at = asyncio.get_running_loop().time()

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        await self({"type": "http.response.start", "status": status, "headers": raw(headers)})

    async def body(self, told: bytes) -> None:
        """Waits for the client to take it, when too much waits for him already."""
        await self._send({"type": "http.response.body", "body": told, "more_body": True})

    async def last(self, told: bytes) -> None:
        """All that there is, at once. Waits for nobody to take it."""
        await self._send({"type": "http.response.body", "body": told})

    def takes(self, pieces: Iterable[bytes]) -> bool:
        """Whether this can be said without waiting for the client to take it."""
        small = isinstance(pieces, list) and sum(map(len, pieces)) <= SMALL_BYTES
        return small and self.line.free

    async def whole(self, status: int, headers: Mapping[str, str], pieces: Iterable[bytes]) -> None:
        """An answer that the line takes, in one message."""
        self.begun = True
        body = b"".join(pieces)
        await self._send({"type": "http.response.start", "status": status, "headers": [], WHOLE: (headers, body)})

    async def finish(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def end_with(self, error: Exception, story: Story, more: Mapping[str, str] | None = None) -> None:
        """A whole error, an error event in a stream that has begun, and of a body cut short nothing: it just ends.

        more: headers beside the error's own.
        """
        told = problem(error)
        if not self.begun:
            headers = told.headers | reply.of_refusal(story) | dict(more or {})
            await respond(told.status, headers, [told.body], self)
        elif self._streams:
            await self._send({"type": "http.response.body", "body": sse.event(told.body), "more_body": False})


def raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """As ASGI has them."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


async def end(passing: sse.Passing, answer: Answer, out: Out) -> None:
    """The end of an answer that was passed on."""
    await passing.end(answer)
    await out.finish()


async def respond(status: int, headers: Mapping[str, str], pieces: Iterable[bytes], out: Out) -> None:
    """Send all of it. Waits for the client to take it."""
    length = {"content-length": str(sum(map(len, pieces)))} if isinstance(pieces, list) else {}
    await out.start(status, {**headers, **length})
    if isinstance(pieces, list) and len(pieces) == 1 and len(pieces[0]) <= SMALL_BYTES:
        await out.last(pieces[0])
        return
    for piece in pieces:
        await out.body(piece)
    await out.finish()
