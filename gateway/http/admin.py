"""The admin listener: metrics, the running configuration, tiers as they are, reload and drain. Admin keys only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, FastAPI, Header, Query, Response
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from gateway import card as cards
from gateway import ids
from gateway.engines._replicas import Replicas
from gateway.errors import ConfigError
from gateway.http import console, hosts, rollouts
from gateway.http.doors import Stamp, excuse_all
from gateway.http.errors import Draining, RequestError
from gateway.http.journal import Journal
from gateway.http.live import Live
from gateway.monitor.outlying import distances
from gateway.monitoring import Monitoring
from gateway.nouns import Tier
from gateway.rolling import Rolling
from gateway.store import telling
from gateway.store.base import DecisionRow
from gateway.telemetry import MEDIA_TYPE, Telemetry

log = logging.getLogger(__name__)

Json = dict[str, Any]

CARD_TYPES = {"html": "text/html", "md": "text/markdown", "json": "application/json"}


def create_admin(
    live: Live,
    telemetry: Telemetry,
    journal: Journal,
    monitoring: Monitoring,
    rolling: Rolling | None,
    group: asyncio.TaskGroup,
    drain: Callable[[], object],
    *,
    of_many: bool = False,
) -> ASGIApp:
    """Everything an operator can reach. group: for what a reload leaves to be done.  drain: begins the end.

    of_many: it is one worker's, reached by its supervisor alone.
    """

    async def admin(authorization: Annotated[str | None, Header(include_in_schema=False)] = None) -> None:
        live.admins.who(authorization)

    app = FastAPI(
        title="confidence-gateway admin", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    routes = APIRouter(dependencies=[Depends(admin)])

    @routes.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(telemetry.text(), media_type=MEDIA_TYPE)

    @routes.get("/admin/config")
    async def config() -> Json:
        """What is served by now. Keys appear as references or hashes, because the file holds nothing else."""
        return live.snapshot.config.model_dump(mode="json", exclude_none=True)

    @routes.get("/admin/tiers")
    async def tiers() -> list[Json]:
        """Every tier's health."""
        snapshot = live.snapshot
        now = asyncio.get_running_loop().time()
        return [state(tier, now) | {"withheld": snapshot.withheld.get(name)} for name, tier in snapshot.tiers.items()]

    def looked() -> Json:
        if not monitoring.report:
            raise RequestError(503, "The monitors have not looked yet; try again.", code="not_looked_yet")
        return monitoring.report

    @routes.get("/admin/monitors")
    async def monitors() -> Json:
        """What the monitors found at their latest look: alarms, the state of each, how fast budgets burn."""
        return looked()

    @routes.get("/admin/card")
    async def card(policy: str = "default", format: Literal["html", "md", "json"] = "html") -> Response:  # noqa: A002
        """What is claimed of a policy's confidence as of now, on what evidence, and what is not known."""
        return written(looked(), policy, format)

    if of_many:

        @routes.post("/admin/card")
        async def card_of_all(
            report: Annotated[Json, Body()],
            policy: str = "default",
            format: Literal["html", "md", "json"] = "html",  # noqa: A002
        ) -> Response:
            """The same, of what all workers together have seen."""
            return written(report, policy, format)

    def written(report: Json, policy: str, form: Literal["html", "md", "json"]) -> Response:
        try:
            made = cards.make(live.snapshot, report, policy)
        except ConfigError as error:
            raise RequestError(404, str(error), param="policy", code="no_such_policy") from None
        text = {"html": made.html, "md": made.markdown, "json": made.json}[form]()
        return Response(text, media_type=CARD_TYPES[form])

    @routes.get("/admin/decisions")
    async def decisions(
        limit: Annotated[int, Query(ge=1, le=1000)] = 50, before: float | None = None, wanting: bool = False
    ) -> Json:
        """The latest, newest first. before: seconds since 1970.  wanting: those explored that still want a label."""
        rows = await journal.desk.ask(lambda store: store.recent(limit, wanting=wanting, before=before))
        return {"object": "list", "data": [{"id": id_of(live, row)} | telling.decision_json(row) for row in rows]}

    @routes.get("/admin/decisions/{id}")
    async def decision(id: str) -> Json:  # noqa: A002  the path's own word
        """One decision with its hops and labels, by its id or its number."""
        number = ids.number_of(id)
        whole = await journal.desk.ask(lambda store: store.whole(number))
        if not whole.known:
            raise RequestError(404, "Nothing is known of this decision.", param="id", code="no_such_decision")
        return telling.as_json(whole, distances(live.snapshot.reference, whole))

    @routes.post("/admin/reload")
    async def reload() -> JSONResponse:
        """Serve by the file as it is now; 400 with file and line, and nothing changed, when it is wrong; 500 when
        something goes wrong that was not foreseen."""
        try:
            await live.reload(group)
        except ConfigError as error:
            raise RequestError(400, str(error), code="bad_configuration") from None
        except asyncio.CancelledError:  # this process ends
            raise Draining from None
        except Exception:  # whatever a file can do to us, what is served goes on
            log.exception("not reloaded")
            message = "The file could not be loaded. What was served goes on; the log says what happened."
            raise RequestError(500, message, code="not_reloaded") from None
        return JSONResponse({"status": "reloaded", "withheld": dict(live.snapshot.withheld)})

    @routes.post("/admin/drain")
    async def begin_drain() -> JSONResponse:
        """Take no new requests, let those in flight end, and exit; what SIGTERM does."""
        drain()
        return JSONResponse({"status": "draining"}, 202)

    routes.include_router(rollouts.router(live, rolling))
    app.include_router(routes)
    app.include_router(console.data(live, journal), dependencies=[Depends(admin)])
    app.include_router(console.page())
    excuse_all(app)
    return Stamp(hosts.Hosts(hosts.Pages(app), lambda: live.admin_hosts, "admin.hosts"))


def id_of(live: Live, row: DecisionRow) -> str:
    """The id that a label for a decision can be sent with."""
    with live.held() as held:
        return held.seal.seal(row.number, row.client, tier=row.tier, calibrator=row.calibrator, p_correct=row.p_correct)


def state(tier: Tier, now: float) -> Json:
    """One tier as it is. now: seconds on the loop's clock."""
    guard = tier.guard
    return {
        "tier": tier.name,
        "calibrator": tier.calibrator_id,
        "breaker": "open" if guard.breaker.is_open else "closed",
        "barred_seconds": round(guard.breaker.left(now), 3),
        "resting_seconds": round(guard.pause.left(now), 3),
        "in_flight": guard.bulkhead.in_flight,
        "waiting": guard.bulkhead.waiting,
    } | ({"replicas": tier.engine.states(now)} if isinstance(tier.engine, Replicas) else {})
