"""What the vLLM plugin's middleware takes of the API server's loop, a request; no GPU and no vLLM needed.

    python -m tests.bench.plugin

A stand-in for vLLM's application answers at once with 200 tokens whose records have come. Microseconds of processor
time, the least of ROUNDS, with Python's garbage collector off, as vLLM's server runs with its own objects frozen.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import MutableMapping
from typing import Any

import msgspec
import numpy as np

from gateway.vllm_plugin.middleware import ConfidenceMiddleware, Receive, Send
from gateway.vllm_plugin.signals import ABORTED, COLUMNS

TOKENS, REQUESTS, ROUNDS = 200, 300, 10
ASKED = {"none": None, "summary": {"confidence": 1}, "arrays": {"confidence": 1, "confidence_arrays": 1}}
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "word " * TOKENS, "tool_calls": []},
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
            "token_ids": None,
        }
    ],
    "usage": {"prompt_tokens": 60, "total_tokens": 60 + TOKENS, "completion_tokens": TOKENS},
}


class Engine:
    """In vLLM's place: gives the records of a request to the middleware's own inbox, then answers."""

    def __init__(self) -> None:
        self._records = np.abs(np.random.default_rng(0).normal(size=(TOKENS, COLUMNS))).astype(np.float32)
        self._records[:, ABORTED] = 0.0
        self._body = json.dumps(ANSWER).encode()
        self.middleware = ConfidenceMiddleware(self)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        asked = msgspec.json.decode((await receive())["body"]).get("vllm_xargs")
        if asked:
            told = {"id": asked["confidence_id"], "choice": 0, "start": 0, "greedy": True, "lost": ""}
            assert self.middleware._inbox is not None
            self.middleware._inbox._take(told, self._records)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(self._body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


async def microseconds(xargs: dict[str, Any] | None) -> float:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x" * 200}], "max_tokens": TOKENS}
    raw = json.dumps(body | ({"vllm_xargs": xargs} if xargs else {})).encode()
    middleware, sent = Engine().middleware, []
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [(b"content-length", b"0")]}

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": raw, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    spent = []
    for _ in range(ROUNDS):
        sent.clear()
        began = time.process_time()
        for _ in range(REQUESTS):
            await middleware(scope, receive, send)
        spent.append((time.process_time() - began) / REQUESTS * 1e6)
    assert (b'"confidence"' in sent[-1]["body"]) == bool(xargs)
    await middleware({"type": "lifespan"}, receive, _nothing)
    return min(spent)


async def _nothing(message: MutableMapping[str, Any]) -> None: ...


def main() -> None:
    gc.disable()
    for name, xargs in ASKED.items():
        print(f"{name:8} {asyncio.run(microseconds(xargs)):6.0f} us a request")


if __name__ == "__main__":
    main()
