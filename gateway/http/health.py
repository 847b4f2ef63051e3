"""Is the process alive, and can it answer? Neither says anything about hosts or models to whoever asks."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse

from gateway.http.live import Live


def router(live: Live) -> APIRouter:
    """Routes over what is live."""
    routes = APIRouter(tags=["health"])

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @routes.get("/ready", responses={503: {"description": "no tier can answer, or the process is about to end"}})
    async def ready() -> JSONResponse:
        """200 when at least one tier can answer; `degraded` when not all of them can, `draining` before the end."""
        if live.draining:
            return JSONResponse({"status": "draining"}, 503)
        some, of = await live.readiness.look()
        word = "ready" if some == of else "degraded" if some else "unavailable"
        return JSONResponse({"status": word}, 200 if some else 503)

    return routes
