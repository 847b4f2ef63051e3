"""POST /v1/feedback and GET /v1/feedback/{id}: what an answer turned out to be worth, said by those it was served to.

Who may say it is decided by the id alone, without a look-up; it is acknowledged after it was committed.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, ValidationError
from pydantic_core import from_json
from starlette.responses import JSONResponse

from gateway.errors import BadId, ForeignId, LabelConflict, RateLimited
from gateway.http import limits, openapi, wire
from gateway.http.auth import Caller
from gateway.http.errors import CONTRARY, Draining, RequestError
from gateway.http.journal import Journal
from gateway.http.live import Generation, Live
from gateway.ids import Decision
from gateway.resilience.ledger import LABELS, Bucket
from gateway.store import telling
from gateway.store.base import Channel, LabelRow, Outcome, Source, Wish

Json = dict[str, Any]

MAX_ITEMS = 1000
MAX_COMMENT_BYTES = 1024
MAX_BODY_BYTES = 4 * 2**20  # a thousand labels with the longest ids and comments are two thirds of it


def _short(comment: str) -> str:
    if len(comment.encode("utf-8", "surrogatepass")) > MAX_COMMENT_BYTES:
        raise ValueError(f"a comment may have {MAX_COMMENT_BYTES} bytes")
    return comment


class Item(BaseModel):
    """One label."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    id: str = Field(max_length=1024, strict=True, description="x-route-id, or the completion's id")
    label: StrictBool = Field(description="whether the answer was right")
    source: Literal["user", "verifier", "operator", "proxy"] = Field(
        default="user", description="operator needs an admin's key; proxy, say a larger model, never counts as truth"
    )
    comment: Annotated[str, AfterValidator(_short)] | None = Field(default=None, description="at most 1 KiB")
    revise: StrictBool = Field(
        default=False, description="replace a contrary label instead of being refused, and a comment by another"
    )


class Batch(BaseModel):
    """Several labels: all are stored, or none."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    items: list[Item] = Field(min_length=1, max_length=MAX_ITEMS)


def router(live: Live, journal: Journal) -> APIRouter:
    """Both routes. Keys are checked in here, because an admin's are taken too."""
    routes = APIRouter(tags=["feedback"])
    refusals: dict[int | str, Json] = {
        status: openapi.refusal(str(status)) for status in (400, 401, 403, 404, 409, 413, 415, 422, 429, 503)
    }

    @routes.post(
        "/v1/feedback",
        status_code=201,
        summary="Say whether answers were right",
        responses={200: {"description": "all of it was known already"}, **refusals},
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": DESCRIBED}}}},
    )
    async def post(request: Request) -> Response:
        if live.draining:
            raise Draining
        with live.held() as held:
            caller, operator = who(held, request)
            body = await limits.read_json(request.headers, request.receive, max_bytes=MAX_BODY_BYTES)
            items, several = read(body)
            charge(live, held, caller, len(items))
            now = time.time()
            at = [f"items.{place}." if several else "" for place in range(len(items))]
            wishes = [
                wish(held, caller, way, item, now, operator=operator) for way, item in zip(at, items, strict=True)
            ]
            try:
                done = await journal.desk.put(wishes)
            except LabelConflict as error:
                raise RequestError(409, CONTRARY, param=f"{at[error.place]}id", code="conflicting_label") from None
        told = [
            told_of(item.id, row) | {"status": str(outcome)} for item, (outcome, row) in zip(items, done, strict=True)
        ]
        status = 200 if all(outcome is Outcome.UNCHANGED for outcome, _ in done) else 201
        return JSONResponse({"object": "list", "data": told} if several else told[0], status)

    @routes.get(
        "/v1/feedback/{id}",
        summary="Read a label back",
        responses={status: refusals[status] for status in (401, 403, 404, 503)},
    )
    async def get(id: str, request: Request) -> JSONResponse:  # noqa: A002  the path's own word
        with live.held() as held:
            caller, operator = who(held, request)
            found = opened(held, caller, id, operator=operator)
            rows = await journal.desk.ask(lambda store: store.labels(found.number))
        seen = [row for row in rows if operator or row.channel is not Channel.OPERATOR]
        if not seen:
            raise RequestError(404, "This decision has no label.", param="id", code="no_label")
        return JSONResponse({"object": "list", "data": [told_of(id, row) for row in seen]})

    return routes


ONE: Json = Item.model_json_schema()
SEVERAL: Json = Batch.model_json_schema() | {
    "properties": {"items": {"type": "array", "minItems": 1, "maxItems": MAX_ITEMS, "items": ONE}}
}
SEVERAL.pop("$defs")
DESCRIBED: Json = {"anyOf": [ONE, SEVERAL]}


def who(held: Generation, request: Request) -> tuple[Caller, bool]:
    """Who labels, and whether he is an operator. Raises RequestError with 401."""
    authorization = request.headers.get("authorization")
    admin = held.admins.known(authorization)
    return (held.keyring.who(authorization), False) if admin is None else (admin, True)


def read(body: bytes) -> tuple[list[Item], bool]:
    """The labels in a body, and whether they were sent as a list. Raises RequestError: 400 for what is no JSON object,
    422 for one with impossible values."""
    try:
        raw = from_json(body)
    except ValueError:
        raw = None
    if not isinstance(raw, dict):
        raise RequestError(400, "The body is no JSON object.", code="invalid_json")
    try:
        return (Batch.model_validate(raw).items, True) if "items" in raw else ([Item.model_validate(raw)], False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = wire.shown(".".join(str(part) for part in first["loc"]))
        raise RequestError(422, f"{where}: {first['msg']}", param=where) from None


def charge(live: Live, held: Generation, caller: Caller, labels: int) -> None:
    """Count labels against their key, before anything is done for them. Raises RateLimited."""
    store = held.snapshot.config.store
    most = caller.limits.labels_per_minute or (store.labels_per_minute if store is not None else None)
    if most is None:
        return
    ledger = live.lasting.ledger
    with ledger.locked():
        now = asyncio.get_running_loop().time()
        bucket = Bucket(ledger.numbers(caller.name), LABELS, most)
        if bucket.left(now) < min(labels, most):
            raise RateLimited(f"{most} labels per minute", bucket.wait_seconds(now, min(labels, most)))
        bucket.take(labels, now)


def opened(held: Generation, caller: Caller, given: str, *, operator: bool, param: str = "id") -> Decision:
    """What the id says. Raises RequestError with 404 for an invented one, 403 for another client's."""
    try:
        return held.seal.read(given) if operator else held.seal.open(given, caller.name)
    except BadId:
        raise RequestError(404, "There is no such decision.", param=param, code="no_such_decision") from None
    except ForeignId:
        raise RequestError(403, "This decision was not made for this key.", param=param) from None


def wish(held: Generation, caller: Caller, way: str, item: Item, now: float, *, operator: bool) -> Wish:
    """One label as it is to be stored. way: to it in the body. Raises what `opened` does, and RequestError with 403 for
    a false operator."""
    source = Source(item.source)
    if source is Source.OPERATOR and not operator:
        raise RequestError(403, "Labels of operators need an admin's key.", param=f"{way}source")
    found = opened(held, caller, item.id, operator=operator, param=f"{way}id")
    label = LabelRow(
        found.number,
        source.channel,
        0,
        item.label,
        source,
        caller.name,
        item.comment,
        now,
        found.unix_seconds,
        found.tier,
        found.calibrator,
        found.p_correct,
    )
    return Wish(label, item.revise)


def told_of(given: str, row: LabelRow) -> Json:
    """A label as clients see it."""
    return {
        "object": "label",
        "id": given,
        "label": row.label,
        "source": str(row.source),
        "comment": telling.printable(row.comment),
        "revision": row.revision,
        "created": int(row.at),
        "decided": int(row.decided_at),
        "tier": row.tier,
        "calibrator": row.calibrator,
        "confidence": row.p_correct,
    }
