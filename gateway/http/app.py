"""The ASGI application over one snapshot. Modules own nothing: whoever opened the snapshot closes it."""

from __future__ import annotations

import re
import uuid
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import GatewayError
from gateway.http import health, hosts, models, openapi
from gateway.http.auth import Keyring
from gateway.http.chat import Chat
from gateway.http.errors import Problem, problem
from gateway.snapshot import Snapshot
from gateway.telemetry import Telemetry

REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,128}$")


def create_app(snapshot: Snapshot, keyring: Keyring, telemetry: Telemetry) -> ASGIApp:
    """Everything a client can reach."""
    telemetry.start(snapshot.tiers, snapshot.withheld)

    async def known(authorization: Annotated[str | None, Header(include_in_schema=False)] = None) -> None:
        keyring.who(authorization)

    app = FastAPI(title="confidence-gateway", docs_url=None, redoc_url=None, openapi_url=None)
    app.router.routes.append(
        Route("/v1/chat/completions", Chat(snapshot, keyring, telemetry), methods=["POST"], name="chat")
    )
    app.include_router(health.router(snapshot))
    app.include_router(models.router(snapshot), dependencies=[Depends(known)])

    @app.get("/metrics", tags=["operation"], dependencies=[Depends(known)], response_class=Response)
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(telemetry.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/openapi.json", include_in_schema=False, dependencies=[Depends(known)])
    async def described() -> dict[str, Any]:
        return openapi.describe(app)

    for family in (GatewayError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(family, excuse)
    server = snapshot.config.server
    named = hosts.allowed(server.host, server.hosts)
    return Stamp(hosts.Hosts(app, lambda: named))


async def excuse(_: Request, error: Exception) -> Response:
    """Whatever a route or the framework itself raises, in the one shape that clients read."""
    told = framework(error) or problem(error)
    return Response(told.body, told.status, told.headers)


def framework(error: Exception) -> Problem | None:
    """Starlette's and FastAPI's own errors."""
    if isinstance(error, RequestValidationError):
        return Problem(422, "The request does not have the right form.")
    if isinstance(error, HTTPException):
        words = {404: "There is nothing here.", 405: "This method is not allowed here."}
        return Problem(error.status_code, words.get(error.status_code, "The request cannot be served."))
    return None


class Stamp:
    """Every answer carries a request id: the client's own when it is a sensible one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.match(given) else uuid.uuid4().hex

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self._app(scope, receive, stamped)
