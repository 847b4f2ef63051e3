"""The ASGI application that clients reach. Modules own nothing: whoever opened what is live closes it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http import docs, feedback, health, hosts, models, openapi, reply
from gateway.http.chat import Chat
from gateway.http.completions import TEXT, CompletionRequest
from gateway.http.doors import Origins, Stamp, excuse_all
from gateway.http.journal import Journal
from gateway.http.live import Live
from gateway.telemetry import MEDIA_TYPE, Telemetry

CHAT = "/v1/chat/completions"


def create_app(live: Live, telemetry: Telemetry, journal: Journal) -> ASGIApp:
    """Everything a client can reach. Without a listener for admins, the metrics too."""
    config = live.snapshot.config
    chat = Chat(live, telemetry, journal)
    app = public(live, telemetry, journal, chat, metrics=config.admin is None)

    def front(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """The one route that is hot, past seven layers of the framework's that do nothing for it; then all others."""
        hot = scope["type"] == "http" and scope["path"] == CHAT and scope["method"] == "POST"
        return (chat if hot else app)(scope, receive, send)

    inside: ASGIApp = front
    if config.server.cors_origins:
        inside = Origins(
            front,
            allow_origins=config.server.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=reply.EXPOSED,
        )
    return Stamp(hosts.Hosts(inside, lambda: live.hosts))


def public(live: Live, telemetry: Telemetry, journal: Journal, chat: Chat, *, metrics: bool) -> FastAPI:
    """The routes. None of them looks at what is live before it is asked."""

    async def known(authorization: Annotated[str | None, Header(include_in_schema=False)] = None) -> None:
        live.keyring.who(authorization)

    app = FastAPI(title="confidence-gateway", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    raw = Chat(live, telemetry, journal, CompletionRequest, TEXT)
    for path, endpoint in ((CHAT, chat), ("/v1/completions", raw)):
        app.router.routes.append(Route(path, endpoint, methods=["POST"]))
    app.include_router(health.router(live))
    app.include_router(models.router(live), dependencies=[Depends(known)])
    app.include_router(feedback.router(live, journal))
    app.include_router(docs.router(live, lambda: openapi.describe(app)))

    @app.get("/openapi.json", include_in_schema=False, dependencies=[Depends(known)])
    async def described() -> dict[str, Any]:
        return openapi.describe(app)

    if metrics:

        @app.get("/metrics", tags=["operation"], dependencies=[Depends(known)], response_class=Response)
        async def numbers() -> Response:
            """Prometheus' text format."""
            return Response(telemetry.text(), media_type=MEDIA_TYPE)

    excuse_all(app)
    return app
