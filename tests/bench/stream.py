"""What one chunk of a live stream costs, beside a bare pass-through: `python -m tests.bench.stream`.

The upstream sends one token an event, log-probs with it, each in a write of its own. The gateway is asked for a tier by
name, so it passes on what comes, and asks for log-probs because the tier's calibrator needs them; the pass-through is
asked for the same and passes bytes on. CPU is the kernel's own count, of the server's process alone; rounds alternate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

from tests.bench import servers
from tests.bench.answers import MODEL
from tests.bench.servers import Server, free_port

SERVER_CORE, LOAD_CORE = servers.two_cores()
CHUNKS = 200
PAUSE_SECONDS = 0.01  # between two events of one stream
KINDS = {"chosen": 0, "top-5": 5}
MOST = 2.5  # times the pass-through's CPU


def event(place: int, candidates: int) -> bytes:
    """One token as vLLM sends it."""

    def spoken(rank: int) -> dict[str, Any]:
        token = f" word{place % 90}{rank or ''}"
        return {"token": token, "logprob": -0.1234567 - rank, "bytes": list(token.encode())}

    entry = spoken(0) | {"top_logprobs": [spoken(rank) for rank in range(candidates)]}
    choice = {"index": 0, "delta": {"content": entry["token"]}, "logprobs": {"content": [entry]}, "finish_reason": None}
    return framed(choice)


def framed(choice: dict[str, Any]) -> bytes:
    told = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return b"data: " + json.dumps(told | {"choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"


END = framed({"index": 0, "delta": {"content": ""}, "logprobs": None, "finish_reason": "stop"}) + b"data: [DONE]\n\n"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Requests of one connection, one after the other."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            at = head.lower().find(b"content-length:")
            body = await reader.readexactly(int(head[at + 15 :].partition(b"\r\n")[0])) if at >= 0 else b""
            if head.startswith(b"GET"):
                told = {"version": "0.33.0"} if b"/version" in head[:30] else {"data": [{"id": MODEL}]}
                raw = json.dumps(told).encode()
                kind = b"content-type: application/json\r\n"
                writer.write(b"HTTP/1.1 200 OK\r\n%scontent-length: %d\r\n\r\n%s" % (kind, len(raw), raw))
                continue
            candidates = json.loads(body).get("top_logprobs") or 0
            kind = b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            writer.write(b"HTTP/1.1 200 OK\r\n" + kind)
            for part in [*(event(place, candidates) for place in range(CHUNKS)), END]:
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                await writer.drain()
                await asyncio.sleep(PAUSE_SECONDS)
            writer.write(b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def serve(port: int) -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", port)
    await server.serve_forever()


async def load(server: Server, body: dict[str, Any], streams: int, at_once: int) -> float:
    """CPU of the server, microseconds a chunk."""
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    seats = asyncio.Semaphore(at_once)

    async def one(session: aiohttp.ClientSession) -> None:
        async with seats, session.post(url, json=body) as reply:
            told = await reply.read()
            assert reply.status == 200, told[:300]
            assert told.count(b" word") >= CHUNKS, told[-300:]  # a busy server may find several in one read
            assert told.endswith(b"[DONE]\n\n")

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        before = server.cpu_seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(streams):
                group.create_task(one(session))
        return 1e6 * (server.cpu_seconds - before) / (streams * CHUNKS)


def asked(kind: str, *, ours: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Say two hundred words."}], "stream": True}
    if ours:
        return body | {"model": kind}
    return body | {"model": MODEL, "logprobs": True, "top_logprobs": KINDS[kind]}


async def measure(ours: Server, bare: Server, rounds: int, streams: int, at_once: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {f"{name} {kind}": [] for kind in KINDS for name in ("gateway", "pass-through")}
    for turn in range(rounds + 1):
        for kind in KINDS:
            for name, server in (("gateway", ours), ("pass-through", bare)):
                cost = await load(server, asked(kind, ours=server is ours), streams, at_once)
                if turn:  # the first warms up
                    found[f"{name} {kind}"].append(cost)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=16, help="in a round")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--upstream", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.upstream:
        asyncio.run(serve(given.upstream))
        return
    os.sched_setaffinity(0, {LOAD_CORE})
    port = free_port()
    upstream = f"http://127.0.0.1:{port}/v1"
    with (
        tempfile.TemporaryDirectory() as name,
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.stream", "--upstream", str(port)], preexec_fn=servers.core(LOAD_CORE)
        ) as process,
    ):
        folder = Path(name)
        try:
            with (
                servers.gateway(upstream, SERVER_CORE, folder) as ours,
                servers.uvicorn("bare", sys.executable, "streaming", upstream, SERVER_CORE, folder) as bare,
            ):
                found = asyncio.run(measure(ours, bare, given.rounds, given.streams, given.at_once))
        finally:
            process.terminate()
    for kind in KINDS:
        mine, least = (statistics.median(found[f"{name} {kind}"]) for name in ("gateway", "pass-through"))
        for name in ("gateway", "pass-through"):
            costs = found[f"{name} {kind}"]
            told = f"{statistics.median(costs):6.1f} us a chunk [{min(costs):.1f}, {max(costs):.1f}]"
            print(f"{name:13} {kind:7} {told}")
        verdict = "within" if mine <= MOST * least else "over"
        print(f"{'':13} {kind:7} {mine / least:.2f} times the pass-through, {verdict} {MOST:g}")


if __name__ == "__main__":
    main()
