"""GET /v1/models: the names a client may put into `model`."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from gateway.http.chat import names
from gateway.http.errors import RequestError
from gateway.http.wire import shown
from gateway.snapshot import Snapshot
from gateway.written import unknown

Json = dict[str, Any]


def router(snapshot: Snapshot) -> APIRouter:
    """Routes over one snapshot."""
    started = int(time.time())
    known = {name: told(name, started) for name in names(snapshot)}
    routes = APIRouter(tags=["models"])

    @routes.get("/v1/models")
    async def list_models() -> Json:
        """Virtual names, which ask the cascade, and tiers, which are asked alone."""
        return {"object": "list", "data": list(known.values())}

    @routes.get("/v1/models/{model:path}")
    async def get_model(model: str) -> Json:
        """One of them."""
        if model not in known:
            message = f"There is {unknown('model', shown(model), known)}."
            raise RequestError(404, message, param="model", code="model_not_found")
        return known[model]

    return routes


def told(name: str, started: int) -> Json:
    return {"id": name, "object": "model", "created": started, "owned_by": "confidence-gateway"}
