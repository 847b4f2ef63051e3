"""One load generator for all: keep-alive connections over plain sockets, closed loop or at a fixed rate."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

KEY = f"sk-{hashlib.sha256(b'bench').hexdigest()}"  # LiteLLM refuses to start without one


def request(body: dict[str, object], host: str) -> bytes:
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


class Connection(asyncio.Protocol):
    """One request at a time. `ask` gives the reply, head and all."""

    def __init__(self) -> None:
        self._done: asyncio.Future[bytes] | None = None
        self._pieces: list[bytes] = []
        self._missing = -1  # bytes of the reply still to come; -1 before its head is whole

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def ask(self, told: bytes) -> asyncio.Future[bytes]:
        self._done, self._pieces, self._missing = asyncio.get_running_loop().create_future(), [], -1
        self._transport.write(told)
        return self._done

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        if self._missing < 0:
            sofar = b"".join(self._pieces)
            end = sofar.find(b"\r\n\r\n")
            if end < 0:
                return
            lower = sofar[:end].lower()
            at = lower.find(b"content-length:")
            if at < 0:
                self._fail(f"a reply of unknown length: {sofar[:200]!r}")
                return
            self._missing = end + 4 + int(lower[at + 15 :].partition(b"\r\n")[0]) - len(sofar)
            self._pieces = [sofar]
        else:
            self._missing -= len(data)
        if self._missing <= 0 and self._done is not None and not self._done.done():
            self._done.set_result(b"".join(self._pieces))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the connection was closed")

    def _fail(self, why: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError(why))

    def close(self) -> None:
        self._transport.close()


async def connect(port: int, count: int) -> list[Connection]:
    loop = asyncio.get_running_loop()
    made = []
    for _ in range(count):
        _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
        made.append(connection)
    return made


async def warmed(port: int, told: bytes, count: int) -> list[Connection]:
    """Connections that have each been answered once: taking a new one is work, which those who are there already would
    wait for."""
    made = await connect(port, count)
    for connection in made:
        check(await connection.ask(told))
    return made


def check(reply: bytes) -> None:
    if not reply.startswith(b"HTTP/1.1 200"):
        raise ConnectionError(f"not a 200: {reply[:600]!r}")


async def closed_loop(port: int, told: bytes, connections: int, seconds: float) -> tuple[int, float]:
    """As many requests as go through, at least one on each connection. Returns how many, and the seconds they took."""
    loop = asyncio.get_running_loop()
    answered = 0

    async def work(connection: Connection) -> None:
        nonlocal answered
        while True:
            check(await connection.ask(told))
            answered += 1
            if loop.time() >= ends:
                return

    made = await connect(port, connections)
    began = loop.time()
    ends = began + seconds
    async with asyncio.TaskGroup() as group:
        for connection in made:
            group.create_task(work(connection))
    took = loop.time() - began
    for connection in made:
        connection.close()
    return answered, took


@dataclass
class Timed:
    """Latencies of requests that were sent when they were due, seconds from then. late: sent over 1 ms after."""

    seconds: list[float] = field(default_factory=list)
    late: int = 0


async def at_rate(
    connections: Sequence[Connection], told: bytes, per_second: float, seconds: float, seed: int
) -> Timed:
    """Poisson arrivals; one that finds no free connection waits for one, and its wait counts."""
    loop = asyncio.get_running_loop()
    gaps = np.random.default_rng(seed).exponential(1 / per_second, size=max(1, int(per_second * seconds)))
    free = deque(connections)
    freed = asyncio.Event()
    timed = Timed()

    async def one(due: float) -> None:
        while not free:
            freed.clear()
            await freed.wait()
        connection = free.popleft()
        check(await connection.ask(told))
        timed.seconds.append(loop.time() - due)
        free.append(connection)
        freed.set()

    due = loop.time()
    async with asyncio.TaskGroup() as group:
        for gap in gaps:
            due += gap
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            timed.late += loop.time() - due > 0.001
            group.create_task(one(due))
    return timed
