"""How much a request may weigh and how long it may take to arrive; checked before anything is parsed."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from gateway.errors import ClientGone
from gateway.http.errors import RequestError


async def read_json(scope: Scope, receive: Receive, *, max_bytes: int, deadline: float) -> bytes:
    """A request's body. deadline: seconds on the loop's clock.

    Raises RequestError: 415 for what is not plain JSON, 413 as soon as it is known to be too large, 408 when it takes
    too long to arrive. Raises ClientGone when the client leaves meanwhile.
    """
    headers = Headers(scope=scope)
    check_kind(headers)
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > max_bytes:
        raise too_large(max_bytes)
    try:
        async with asyncio.timeout_at(deadline):
            return await read_all(receive, max_bytes)
    except TimeoutError:
        raise RequestError(408, "The request took too long to arrive.", close=True) from None


def check_kind(headers: Headers) -> None:
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise RequestError(415, "Send the request as content-type: application/json.", close=True)
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "Send the request without a content-encoding.", close=True)


async def read_all(receive: Receive, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > max_bytes:
            raise too_large(max_bytes)
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


def too_large(max_bytes: int) -> RequestError:
    return RequestError(413, f"The request is larger than {max_bytes / 2**20:g} MiB.", close=True)
