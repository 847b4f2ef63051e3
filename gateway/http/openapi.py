"""The API's description. Two routes are plain ASGI, so their part is put together here from their requests' models."""

from __future__ import annotations

from typing import Any, cast

from fastapi import FastAPI

from gateway.http.completions import CompletionRequest
from gateway.http.journal import Journal
from gateway.http.live import Live
from gateway.http.wire import ChatRequest, Request
from gateway.telemetry import Telemetry

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
    "405": "this method is not allowed here",
    "431": "the headers are too large",
}
ANYWHERE = ("400", "405", "408", "431", "500")  # told before a route is looked for, or by any of them

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

FINISH: Json = {"enum": ["stop", "length", "tool_calls", "content_filter", None]}


def answer(kind: str, part: Json) -> Json:
    """What an answer looks like. kind: its `object`.  part: what a choice has beside its number."""
    choice: Json = {
        "type": "object",
        "required": ["index", "finish_reason", "logprobs", *part],
        "properties": {
            "index": {"type": "integer"},
            "finish_reason": FINISH,
            "logprobs": MAYBE,
            "stop_reason": {"type": ["string", "integer", "null"], "description": "on demand: route.extras"},
        }
        | part,
    }
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": {"type": "string", "description": "the model that answered"},
            "choices": {"type": "array", "minItems": 1, "items": choice},
            "usage": {
                "type": "object",
                "required": list(counts),
                "properties": {name: {"type": "integer", "minimum": 0} for name in counts},
            },
            "system_fingerprint": {"type": ["string", "null"]},
            "route": {"type": "object", "description": "on demand: x-route-debug: true"},
        },
    }


MAYBE: Json = {"type": ["object", "null"]}
MESSAGE: Json = {
    "type": "object",
    "required": ["role", "content", "refusal"],
    "properties": {
        "role": {"const": "assistant"},
        "content": {"type": ["string", "null"]},
        "refusal": {"type": "null"},
        "tool_calls": {"type": "array", "items": {"type": "object"}},
        "reasoning": {"type": ["string", "null"], "description": "on demand: route.extras"},
    },
}

# path, request, the answer's name, the answer, what it does
POSTS: list[tuple[str, type[Request], str, Json, str]] = [
    (
        "/v1/chat/completions",
        ChatRequest,
        "ChatCompletion",
        answer("chat.completion", {"message": MESSAGE}),
        "Answer with the cheapest model that is sure enough",
    ),
    (
        "/v1/completions",
        CompletionRequest,
        "Completion",
        answer("text_completion", {"text": {"type": "string"}}),
        "Go on with a raw prompt; without a confidence, so the policy's last model answers",
    ),
]


def describe(app: FastAPI) -> Json:
    """The whole description; FastAPI caches what it made and so do we."""
    if app.openapi_schema is None:
        described = app.openapi()
        schemas = described.setdefault("components", {}).setdefault("schemas", {})
        schemas["Error"] = ERROR
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, kind, name, told, summary in POSTS:
            request = kind.model_json_schema(ref_template=REFS)
            schemas |= request.pop("$defs", {}) | {kind.__name__: request, name: told}
            described["paths"][path] = {"post": post(kind.__name__, name, summary)}
        for path, methods in described["paths"].items():
            for told in methods.values():
                told["responses"] |= {status: refusal(status) for status in ANYWHERE}
                if path.startswith(("/v1/", "/metrics")):
                    told["security"] = [{"key": []}]
                    told["responses"] |= {status: refusal(status) for status in ("401", "404", "422")}
    assert app.openapi_schema is not None, "FastAPI has just made it"
    return app.openapi_schema


def printed() -> Json:
    """The description of what clients can reach, without a gateway that runs."""
    from gateway.http.app import public  # the other way round it describes itself
    from gateway.http.chat import Chat

    nothing, telemetry, journal = cast(Live, None), Telemetry(), Journal()  # nobody will ask these routes
    return describe(public(nothing, telemetry, journal, Chat(nothing, telemetry, journal), metrics=False))


def post(request: str, answered: str, summary: str) -> Json:
    return {
        "tags": ["answers"],
        "summary": summary,
        "operationId": answered,
        "requestBody": {"required": True, "content": {"application/json": {"schema": ref(request)}}},
        "responses": {
            "200": {
                "description": "the answer, whole or as server-sent events",
                "content": {"application/json": {"schema": ref(answered)}, "text/event-stream": {}},
            },
            **{status: refusal(status) for status in STATUSES},
        },
    }


def refusal(status: str) -> Json:
    return {"description": STATUSES[status], "content": {"application/json": {"schema": ref("Error")}}}


def ref(model: str) -> Json:
    return {"$ref": REFS.format(model=model)}
