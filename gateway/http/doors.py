"""What both listeners have in common: one shape for every error, and an id on every answer."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import GatewayError
from gateway.http.errors import Problem, problem
from gateway.http.hangup import WHOLE, line

REQUEST_ID = re.compile(rb"^[A-Za-z0-9._-]{1,128}\Z")


def excuse_all(app: Starlette) -> None:
    """Whatever goes wrong in the application is told by `excuse`."""
    for family in (GatewayError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(family, excuse)


async def excuse(_: Request, error: Exception) -> Response:
    """Whatever a route or the framework itself raises, in the one shape that clients read."""
    told = framework(error) or problem(error)
    more = error.headers if isinstance(error, HTTPException) else None  # Allow, of a 405
    return Response(told.body, told.status, told.headers | dict(more or {}))


def framework(error: Exception) -> Problem | None:
    """Starlette's and FastAPI's own errors."""
    if isinstance(error, RequestValidationError):
        return Problem(422, "The request does not have the right form.")
    if isinstance(error, HTTPException):
        words = {404: "There is nothing here.", 405: "This method is not allowed here."}
        return Problem(error.status_code, words.get(error.status_code, "The request cannot be served."))
    return None


class Origins(CORSMiddleware):
    """Which other sites' pages may ask. What they may not is told in the one shape, too."""

    def preflight_response(self, request_headers: Headers) -> Response:
        found = super().preflight_response(request_headers)
        if found.status_code < 400:
            return found
        told = Problem(found.status_code, f"{bytes(found.body).decode()}.")
        return Response(
            told.body, told.status, {**found.headers, **told.headers, "content-length": str(len(told.body))}
        )


class Stamp:
    """Every answer carries a request id: the client's own when it is a sensible one. The outermost of all: what comes
    whole goes from here straight to the connection."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        given = [value for name, value in scope["headers"] if name == b"x-request-id"]
        request_id = given[0] if given and REQUEST_ID.match(given[0]) else os.urandom(16).hex().encode()

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"x-request-id", request_id)]
                if WHOLE in message:
                    line(scope).whole(message["status"], headers, *message[WHOLE])
                    return
                message = {**message, "headers": headers}
            await send(message)

        return self._app(scope, receive, stamped)
