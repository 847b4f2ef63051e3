"""The ASGI application that clients reach. Modules own nothing: whoever opened what is live closes it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http import feedback, health, hosts, models, openapi
from gateway.http.chat import Chat
from gateway.http.doors import Stamp, excuse_all
from gateway.http.journal import Journal
from gateway.http.live import Live
from gateway.telemetry import MEDIA_TYPE, Telemetry

CHAT = "/v1/chat/completions"


def create_app(live: Live, telemetry: Telemetry, journal: Journal) -> ASGIApp:
    """Everything a client can reach. Without a listener for admins, the metrics too."""

    async def known(authorization: Annotated[str | None, Header(include_in_schema=False)] = None) -> None:
        live.keyring.who(authorization)

    app = FastAPI(title="confidence-gateway", docs_url=None, redoc_url=None, openapi_url=None)
    chat = Chat(live, telemetry, journal)
    app.router.routes.append(Route(CHAT, chat, methods=["POST"], name="chat"))
    app.include_router(health.router(live))
    app.include_router(models.router(live), dependencies=[Depends(known)])

    app.include_router(feedback.router(live, journal))

    @app.get("/openapi.json", include_in_schema=False, dependencies=[Depends(known)])
    async def described() -> dict[str, Any]:
        return openapi.describe(app)

    if live.snapshot.config.admin is None:

        @app.get("/metrics", tags=["operation"], dependencies=[Depends(known)], response_class=Response)
        async def metrics() -> Response:
            """Prometheus' text format."""
            return Response(telemetry.text(), media_type=MEDIA_TYPE)

    excuse_all(app)

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        """The one route that is hot, past seven layers of the framework's that do nothing for it; then all others."""
        hot = scope["type"] == "http" and scope["path"] == CHAT and scope["method"] == "POST"
        await (chat if hot else app)(scope, receive, send)

    return Stamp(hosts.Hosts(front, lambda: live.hosts))
