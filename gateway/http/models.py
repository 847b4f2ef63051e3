"""GET /v1/models: the names a client may put into `model`."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from gateway.http.chat import names
from gateway.http.errors import RequestError
from gateway.http.live import Live
from gateway.http.wire import shown
from gateway.written import unknown

Json = dict[str, Any]


def router(live: Live) -> APIRouter:
    """Routes over what is live."""
    started = int(time.time())
    routes = APIRouter(tags=["models"])

    @routes.get("/v1/models")
    async def list_models() -> Json:
        """Virtual names, which ask the cascade, and tiers, which are asked alone."""
        return {"object": "list", "data": [told(name, started) for name in names(live.snapshot)]}

    @routes.get("/v1/models/{model:path}")
    async def get_model(model: str) -> Json:
        """One of them."""
        known = dict.fromkeys(names(live.snapshot))
        if model not in known:
            message = f"There is {unknown('model', shown(model), known)}."
            raise RequestError(404, message, param="model", code="model_not_found")
        return told(model, started)

    return routes


def told(name: str, started: int) -> Json:
    return {"id": name, "object": "model", "created": started, "owned_by": "confidence-gateway"}
