"""The least a Python proxy can be: Starlette and aiohttp, bytes in, bytes out."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

UPSTREAM = os.environ["BENCH_UPSTREAM"]


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, object]]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False) as session:
        yield {"session": session}


async def chat(request: Request) -> Response:
    body = await request.body()
    session: aiohttp.ClientSession = request.state.session
    async with session.post(
        f"{UPSTREAM}/chat/completions", data=body, headers={"content-type": "application/json"}
    ) as reply:
        return Response(await reply.read(), reply.status, media_type="application/json")


app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])], lifespan=lifespan)
