"""`confgate route`: one question through the cascade, in this process, and the whole way to its answer."""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import replace
from typing import Any

from gateway import cascade
from gateway.config import Config
from gateway.http import chat, reply, wire
from gateway.snapshot import open_cascade

Json = dict[str, Any]


def try_one(config: Config, question: str, *, model: str, system: str | None, max_tokens: int | None) -> Json:
    """The route object of the API, the answer's `text`, and the texts of all hops. Raises GatewayError."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    body = {"model": model, "messages": messages, "max_tokens": max_tokens}
    return asyncio.run(ask(config, wire.read(json.dumps(body).encode(), config.server, wire.ChatRequest)))


async def ask(config: Config, request: wire.ChatRequest) -> Json:
    async with open_cascade(config) as snapshot:
        deadline = asyncio.get_running_loop().time() + config.server.request_seconds
        question, ignored = wire.to_ask(request, deadline, pin=False)
        call = reply.Call(request, uuid.uuid4().hex, 0, debug=True, ignored=tuple(ignored))
        question = replace(question, decision=call.route_id)
        answer = await cascade.answer(question, chat.choose(request.model, snapshot))
        told = reply.route(answer, call)
        for row, hop in zip(told["hops"], answer.hops, strict=True):
            row["note"] = hop.note or (str(hop.error) if hop.error else "")
        return told | {"text": answer.completion.text}
