"""POST /v1/chat/completions. A plain ASGI endpoint: a framework's handler costs more than all the rest of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from gateway import cascade, ids
from gateway.errors import ClientGone
from gateway.http import limits, overrides, reply, sse, wire
from gateway.http.errors import Draining, Problem, RequestError, problem
from gateway.http.hangup import or_hangup
from gateway.http.live import Generation, Live
from gateway.http.quota import Estimate, Visit
from gateway.http.reply import Call
from gateway.nouns import Answer, Ask, Hop, Mix, Policy
from gateway.policy import drawn
from gateway.snapshot import Snapshot
from gateway.telemetry import Telemetry
from gateway.written import unknown

log = logging.getLogger(__name__)


class Chat:
    """The endpoint over what is live."""

    def __init__(self, live: Live, telemetry: Telemetry) -> None:
        self._live, self._telemetry = live, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, whatever becomes of it: an answer, an error, or nobody left to tell."""
        now = asyncio.get_running_loop().time
        began, route_id = now(), ids.number(time.time())
        status, reason = 499, ""
        counted = self._telemetry.in_flight.track_inprogress()
        with counted, self._live.held() as held, self._visit(held) as visit:
            out = Out(send)
            try:
                status, reason, headers, pieces = await self._reply(held, visit, scope, receive, route_id, began)
                seconds = held.snapshot.config.server.request_seconds
                async with asyncio.timeout(seconds):  # no task of its own: what it held is free before a next request
                    await respond(status, headers, pieces, out)
            except asyncio.CancelledError:
                if not self._live.draining:
                    raise
                status, reason = 503, ""
                await out.end_with(Draining(), route_id)
            except (ClientGone, OSError, TimeoutError):  # left, broke off, or does not read
                status = 499
            finally:
                self._telemetry.ended(status, reason, now() - began)

    def _visit(self, held: Generation) -> Visit:
        return Visit(self._live.lasting.ledger, held.dearest, time.time)

    async def _reply(
        self, held: Generation, visit: Visit, scope: Scope, receive: Receive, route_id: str, began: float
    ) -> tuple[int, str, Mapping[str, str], Iterable[bytes]]:
        """Status, why the answer was served, headers and body. Raises ClientGone only."""
        try:
            call, answer = await self._decide(held, visit, scope, receive, route_id, began)
            self._telemetry.served(answer)
            visit.settle()
            headers, pieces = written(answer, call)
            return 200, str(answer.reason), headers | visit.headers(), pieces
        except ClientGone:
            visit.abandon()
            raise
        except Exception as error:
            told = problem(error)
            if told.status >= 500:
                ours = error if told.status == 500 else None
                log.error("request failed", extra={"route_id": route_id, "error": str(error)}, exc_info=ours)
            return told.status, "", refusal_headers(told, route_id) | visit.headers(), [told.body]

    async def _decide(
        self, held: Generation, visit: Visit, scope: Scope, receive: Receive, route_id: str, began: float
    ) -> tuple[Call, Answer]:
        """Everything up to the answer, by one snapshot whatever is reloaded meanwhile."""
        if self._live.draining:
            raise Draining
        snapshot, headers = held.snapshot, Headers(scope=scope)
        config, server = snapshot.config, snapshot.config.server
        client = held.keyring.who(headers.get("authorization"))
        visit.enter(client)
        body = await limits.read_json(scope, receive, max_bytes=int(server.max_body_mib * 2**20))
        request = wire.read(body, server)
        model = overrides.policy_asked(request)
        route = drawn(choose(model, snapshot), route_id)
        client.check(model)
        debug = overrides.debug(request, headers.get("x-route-debug", ""), config)
        deadline = began + overrides.seconds(request, config)
        ask, ignored = wire.to_ask(request, deadline, pin=server.sampler == "pin")
        estimate = Estimate.of(sum(len(one.content) for one in ask.messages), ask.max_tokens, request.choices)
        route = visit.reserve(overrides.apply(route, request, config, estimate), estimate)
        answer = await or_hangup(self._answer(ask, route, request.choices, route_id, visit), receive)
        sealed = seal(held, route_id, client.name, answer.served)
        return Call(request, sealed, int(time.time()), debug, tuple(ignored)), answer

    async def _answer(self, ask: Ask, route: Policy, choices: int, route_id: str, visit: Visit) -> Answer:
        def note(hop: Hop) -> None:
            visit.note(hop)
            self._telemetry.note(hop, route_id)

        answer = await cascade.answer(replace(ask, decision=route_id), route, note)
        return answer if choices == 1 else await cascade.with_siblings(answer, ask, choices, note)


def seal(held: Generation, number: str, client: str, served: Hop) -> str:
    """The decision's id, with the facts that a label needs to be of use inside."""
    return held.seal.seal(number, client, tier=served.tier, calibrator=served.calibrator_id, p_correct=served.p_correct)


def choose(model: str, snapshot: Snapshot) -> Policy | Mix:
    """The policy a model name stands for: `auto`, `auto:<policy>`, or a tier alone. Raises RequestError with 404."""
    if model == "auto":
        return snapshot.policies["default"]
    if model.startswith("auto:") and model[5:] in snapshot.policies:
        return snapshot.policies[model[5:]]
    if model in snapshot.tiers:
        tier = snapshot.tiers[model]
        return Policy(name="bypass", tiers=(replace(tier, threshold=None),), bypass=True)
    told = unknown("model", wire.shown(model), dict.fromkeys(names(snapshot)))
    raise RequestError(404, f"There is {told}.", param="model", code="model_not_found")


def names(snapshot: Snapshot) -> list[str]:
    """Every model name a client may use."""
    return ["auto", *(f"auto:{policy}" for policy in snapshot.policies), *snapshot.tiers]


def written(answer: Answer, call: Call) -> tuple[dict[str, str], Iterable[bytes]]:
    """An answer's headers and body, whole or replayed as a stream."""
    headers = reply.headers(answer, call)
    if call.request.stream:
        return headers | {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}, sse.replay(
            answer, call
        )
    return headers | {"content-type": "application/json"}, [reply.whole(answer, call)]


def refusal_headers(told: Problem, route_id: str) -> dict[str, str]:
    return {"x-route-schema": reply.SCHEMA, "x-route-id": route_id} | told.headers


class Out:
    """The way to the client, which knows what has been said."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = self._streams = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun = True
            self._streams = not any(name == b"content-length" for name, _ in message["headers"])
        await self._send(message)

    async def end_with(self, error: Exception, route_id: str) -> None:
        """A whole error, an error event in a stream that has begun, and of a body cut short nothing: it just ends."""
        told = problem(error)
        if not self._begun:
            await respond(told.status, refusal_headers(told, route_id), [told.body], self._send)
        elif self._streams:
            await self._send({"type": "http.response.body", "body": sse.event(told.body), "more_body": False})


async def respond(status: int, headers: Mapping[str, str], pieces: Iterable[bytes], send: Send) -> None:
    """Send all of it. Waits for the client to take it."""
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    if isinstance(pieces, list):
        raw.append((b"content-length", str(sum(map(len, pieces))).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
