"""The API's description. The chat route is plain ASGI, so its part is put together here from the request's model."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from gateway.http.wire import ChatRequest

Json = dict[str, Any]

REFS = "#/components/schemas/{model}"

STATUSES = {
    "400": "a wrong field, or messages that exceed every model's context",
    "401": "no key, or a wrong one",
    "403": "the key is not for this model",
    "404": "no such model",
    "409": "the contrary label is there already",
    "408": "the request took too long to arrive",
    "413": "the request is too large",
    "415": "the request is not JSON",
    "422": "a well-formed request with an impossible value",
    "429": "a limit of the key, or the models are busy",
    "500": "a mistake of the gateway",
    "502": "a model server broke off",
    "503": "no model can be asked",
    "504": "no answer in time",
}

ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

COMPLETION: Json = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": {"type": "string", "description": "the model that answered"},
        "choices": {"type": "array", "minItems": 1, "items": {"type": "object"}},
        "usage": {"type": "object"},
        "system_fingerprint": {"type": ["string", "null"]},
        "route": {"type": "object", "description": "on demand: x-route-debug: true"},
    },
}


def describe(app: FastAPI) -> Json:
    """The whole description; FastAPI caches what it made and so do we."""
    if app.openapi_schema is None:
        described = app.openapi()
        schemas = described.setdefault("components", {}).setdefault("schemas", {})
        request = ChatRequest.model_json_schema(ref_template=REFS)
        schemas |= request.pop("$defs", {})
        schemas |= {"ChatRequest": request, "Error": ERROR, "ChatCompletion": COMPLETION}
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        described["paths"]["/v1/chat/completions"] = {"post": chat()}
        for path, methods in described["paths"].items():
            if path.startswith(("/v1/", "/metrics")):
                for told in methods.values():
                    told["security"] = [{"key": []}]
                    told["responses"] |= {status: refusal(status) for status in ("401", "404", "422")}
    assert app.openapi_schema is not None, "FastAPI has just made it"
    return app.openapi_schema


def chat() -> Json:
    return {
        "tags": ["chat"],
        "summary": "Answer with the cheapest model that is sure enough",
        "operationId": "chat_completions",
        "requestBody": {"required": True, "content": {"application/json": {"schema": ref("ChatRequest")}}},
        "responses": {
            "200": {
                "description": "the answer, whole or as server-sent events",
                "content": {"application/json": {"schema": ref("ChatCompletion")}, "text/event-stream": {}},
            },
            **{status: refusal(status) for status in STATUSES},
        },
    }


def refusal(status: str) -> Json:
    return {"description": STATUSES[status], "content": {"application/json": {"schema": ref("Error")}}}


def ref(model: str) -> Json:
    return {"$ref": REFS.format(model=model)}
