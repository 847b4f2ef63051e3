"""GET /docs: the API's description as a page that works without internet.

A browser cannot send a bearer token when somebody types an address, so here a key may come as a password, too.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from gateway.http.errors import RequestError, problem
from gateway.http.live import Live

FOLDER = Path(__file__).parent / "assets"
FILES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "start.js": "text/javascript; charset=utf-8",
}
# The page needs nothing from elsewhere, and nothing that a model or a client wrote can run in it.
POLICY = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; connect-src 'self'"
HEADERS = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}


def router(live: Live, described: Callable[[], dict[str, Any]]) -> APIRouter:
    """Routes over what is live. described: the API."""
    routes = APIRouter(include_in_schema=False)

    def guarded(request: Request, give: Callable[[], Response]) -> Response:
        try:
            live.keyring.who(bearer(request.headers.get("authorization")))
        except RequestError as error:
            told = problem(error)
            asks = {"www-authenticate": 'Basic realm="any name, and an API key as the password"'}
            return Response(told.body, told.status, told.headers | asks)
        return give()

    @routes.get("/docs")
    async def page(request: Request) -> Response:
        return guarded(request, lambda: FileResponse(FOLDER / "index.html", headers=HEADERS))

    @routes.get("/docs/openapi.json")
    async def description(request: Request) -> Response:
        return guarded(request, lambda: JSONResponse(described()))

    @routes.get("/docs/{name}")
    async def asset(request: Request, name: str) -> Response:
        def file() -> Response:
            if name not in FILES:
                raise RequestError(404, "There is nothing here.")
            return FileResponse(FOLDER / name, headers=HEADERS, media_type=FILES[name])

        return guarded(request, file)

    return routes


def bearer(authorization: str | None) -> str | None:
    """The same header, the password of HTTP's own dialogue taken as the key."""
    scheme, _, told = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        _, _, key = base64.b64decode(told, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return f"Bearer {key}"
