"""The least a Python proxy of streams can be: Starlette and aiohttp, bytes on as they come in."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from tests.bench.peers.passthrough import UPSTREAM, lifespan


async def chat(request: Request) -> StreamingResponse:
    body = await request.body()
    session: aiohttp.ClientSession = request.state.session

    async def pieces() -> AsyncIterator[bytes]:
        headers = {"content-type": "application/json"}
        async with session.post(f"{UPSTREAM}/chat/completions", data=body, headers=headers) as reply:
            async for piece in reply.content.iter_any():
                yield piece

    return StreamingResponse(pieces(), media_type="text/event-stream")


app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])], lifespan=lifespan)
