"""How much a request may weigh and how deep it may be; checked before anything is parsed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.types import Receive, Scope

from gateway.errors import ClientGone
from gateway.http.errors import RequestError

MAX_DEPTH = 64
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)  # an open one ends where the body does: linear
ROUND = bytes.maketrans(b"[]{}", b"()()")
NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def headers(scope: Scope) -> dict[str, str]:
    """A request's, by name in lower case; of one that is said twice, the first."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}


async def read_json(headers: Mapping[str, str], receive: Receive, *, max_bytes: int) -> bytes:
    """A request's body. How long it may take to arrive is the protocol's business.

    Raises RequestError: 415 for what is not plain JSON, 413 as soon as it is known to be too large, 400 for JSON nested
    too deep. Raises ClientGone when the client leaves meanwhile.
    """
    check_kind(headers)
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > max_bytes:
        raise too_large(max_bytes)
    body = await read_all(receive, max_bytes)
    if too_deep(body):
        raise RequestError(400, f"The request is nested deeper than {MAX_DEPTH} levels.", code="invalid_json")
    return body


def too_deep(body: bytes) -> bool:
    """Whether JSON is nested deeper than MAX_DEPTH, before anything recursive looks at it. Linear, without recursion.

    Strings are taken out, then innermost pairs, round by round: what survives MAX_DEPTH rounds is too deep, or no JSON.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False  # nearly always
    left = STRING.sub(b"", body).translate(ROUND, delete=NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        shorter = left.replace(b"()", b"")
        if len(shorter) == len(left):
            return False  # nothing left, or not even paired: the parser says so better
        left = shorter
    return left != b""


def check_kind(headers: Mapping[str, str]) -> None:
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
