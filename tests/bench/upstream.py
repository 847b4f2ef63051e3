"""An upstream that costs nothing to speak of: replies written beforehand, sent as soon as a request is whole."""

from __future__ import annotations

import asyncio
import json
import sys

import numpy as np
import uvloop

from tests.bench.answers import KINDS, MODEL, body, kind_of, words


def reply(payload: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
    return head.encode() + payload


def stream(part: dict[str, object], end: dict[str, object]) -> bytes:
    """The answer as a stream that is there at once, for those who ask for one; nothing is measured on it."""
    choices = ({"index": 0, "finish_reason": None} | part, {"index": 0, "finish_reason": "stop"} | end)
    events = [json.dumps({"model": MODEL, "choices": [one]}) for one in choices] + ["[DONE]"]
    payload = "".join(f"data: {event}\n\n" for event in events).encode()
    return reply(payload).replace(b"application/json", b"text/event-stream", 1)


def completion() -> bytes:
    """The same as a text completion."""
    told = json.loads(body("plain", np.random.default_rng(7)))
    told |= {"object": "text_completion", "choices": [{"index": 0, "text": "".join(words()), "finish_reason": "stop"}]}
    return reply(json.dumps(told).encode())


STREAM, COMPLETION = stream({"delta": {"content": "".join(words())}}, {"delta": {}}), completion()
COMPLETION_STREAM = stream({"text": "".join(words())}, {"text": ""})
ANSWERS = {kind: reply(body(kind, np.random.default_rng(7))) for kind in KINDS}
MODELS = reply(json.dumps({"object": "list", "data": [{"id": MODEL, "owned_by": "vllm"}]}).encode())
VERSION = reply(b'{"version":"0.33.0"}')


class Connection(asyncio.Protocol):
    """Requests one after the other; none is pipelined by those who ask here."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport, self._waiting = transport, b""

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        head, found, rest = self._waiting.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        at = lower.find(b"content-length:")
        length = int(lower[at + 15 :].partition(b"\r\n")[0]) if at >= 0 else 0
        if len(rest) < length:
            return
        self._waiting = b""
        if head.startswith(b"GET"):
            self._transport.write(VERSION if b"/version" in head[:30] else MODELS)
        elif b"/completions" in head[:40] and b"/chat/" not in head[:40]:
            self._transport.write(COMPLETION_STREAM if b'"stream":true' in rest else COMPLETION)
        else:
            self._transport.write(STREAM if b'"stream":true' in rest else ANSWERS[kind_of(rest)])


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
