"""A closed-loop load: so many requests in flight, each answered before the next is sent."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np


@dataclass(frozen=True, slots=True)
class Load:
    """What came of it. seconds: of each request; bytes_each: mean size of a reply."""

    requests: int
    wall_seconds: float
    tokens: int
    bytes_each: float
    seconds: tuple[float, ...]
    replies: tuple[Any, ...] = ()

    def as_json(self) -> dict[str, float]:
        p50, p95, p99 = np.quantile(self.seconds, (0.5, 0.95, 0.99))
        return {
            "requests": self.requests,
            "wall_seconds": round(self.wall_seconds, 3),
            "tokens_per_second": round(self.tokens / self.wall_seconds, 1),
            "requests_per_second": round(self.requests / self.wall_seconds, 2),
            "reply_bytes": round(self.bytes_each),
            "p50_seconds": round(float(p50), 4),
            "p95_seconds": round(float(p95), 4),
            "p99_seconds": round(float(p99), 4),
        }


async def run(url: str, bodies: list[dict[str, Any]], in_flight: int, *, keep: bool = False) -> Load:
    """Posts all bodies. Raises RuntimeError on the first reply that is no 200. keep: return the parsed replies too."""
    waiting = list(reversed(list(enumerate(bodies))))
    seconds, sizes, tokens = [], [], 0
    replies: list[Any] = [None] * len(bodies)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=600)
    ) as session:

        async def worker() -> None:
            nonlocal tokens
            while waiting:
                nth, body = waiting.pop()
                began = time.perf_counter()
                async with session.post(url, json=body) as reply:
                    raw = await reply.read()
                seconds.append(time.perf_counter() - began)
                if reply.status != 200:
                    raise RuntimeError(f"{reply.status}: {raw[:500]!r}")
                sizes.append(len(raw))
                parsed = json.loads(raw) if keep else None
                tokens += parsed["usage"]["completion_tokens"] if parsed else body.get("max_tokens", 0)
                replies[nth] = parsed

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(worker())
        wall = time.perf_counter() - began
    return Load(len(bodies), wall, tokens, float(np.mean(sizes)), tuple(seconds), tuple(replies) if keep else ())
