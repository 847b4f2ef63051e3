"""The operator's page and the figures it shows. The page itself is no secret; every figure takes an admin's key.

Figures are read from the store, which all workers share, in bounded queries, counted in a thread, and kept for some
seconds, so that many open pages cost no more than one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from starlette.responses import FileResponse, RedirectResponse, Response

import gateway.console
from gateway.console import figures, replay
from gateway.http.errors import RequestError
from gateway.http.journal import Journal
from gateway.http.live import Live
from gateway.nouns import Mix, Policy
from gateway.snapshot import Snapshot
from gateway.store.base import DecisionRow, HopRow, Kind, Store, Whole
from gateway.store.telling import truth

Json = dict[str, Any]

HOME = "/admin/console"
FOLDER = Path(gateway.console.__file__).parent / "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FILES = {file.name: KINDS[file.suffix] for file in FOLDER.iterdir() if file.suffix in KINDS}
# Nothing from elsewhere, nothing inline, and no text can be made markup: what models and clients wrote stays text.
POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}

WINDOWS = {"15m": 900.0, "1h": 3600.0, "6h": 6 * 3600.0, "24h": 86400.0, "7d": 7 * 86400.0, "30d": 30 * 86400.0}
REQUESTS, STORIES = 10_000, 2_000  # rows of one look, the newest: up to a fifth of a second of the store's time each
LIKELY = 500  # decisions that a likely saving is made of: their hops come with features
SOON, LATER = 4.0, 20.0  # how long an answer is given again, s: what came in, and what it turned out to be worth


def page() -> APIRouter:
    """The files, for anybody."""
    routes = APIRouter(include_in_schema=False)

    @routes.get(HOME)
    async def home() -> Response:
        return RedirectResponse(f"{HOME}/")

    @routes.get(HOME + "/")
    async def index() -> Response:
        return FileResponse(FOLDER / "index.html", headers=HEADERS, media_type=KINDS[".html"])

    @routes.get(HOME + "/page/{name}")
    async def asset(name: str) -> Response:
        if name not in FILES:
            raise RequestError(404, "There is nothing here.")
        return FileResponse(FOLDER / name, headers=HEADERS, media_type=FILES[name])

    return routes


def data(live: Live, journal: Journal) -> APIRouter:
    """The figures. Whoever includes these routes checks the key."""
    routes = APIRouter(include_in_schema=False)
    kept = Kept()

    @routes.get(HOME + "/data")
    async def look(window: Annotated[str, Query()] = "1h", policy: str | None = None) -> Json:
        """Traffic, costs and calibration over a window. policy: of this one alone."""
        begun, snapshot = since(window), live.snapshot
        known = chains(snapshot)
        if policy is not None:
            chain(known, policy)
        told = {
            "at": time.time(),
            "window": window,
            "windows": list(WINDOWS),
            "policy": policy,
            "policies": [shown(one) for one in known.values()],
            "explored_share": getattr(snapshot.config.exploration, "share", None),
            "kept": journal.keeps,
        }
        if not journal.keeps:
            return told
        traffic = await kept.get(("traffic", window, policy), SOON, lambda: counted(journal, begun, policy))
        judged = await kept.get(("judged", window, policy), LATER, lambda: judgement(journal, known, begun, policy))
        return told | traffic | judged

    @routes.get(HOME + "/replay")
    async def other_thresholds(policy: str, tier: str, window: Annotated[str, Query()] = "7d") -> Json:
        """What other thresholds of one tier would have cost and got right on explored traffic."""
        begun, route = since(window), chain(chains(live.snapshot), policy)
        if tier not in [step.name for step in route.tiers[:-1]]:
            raise RequestError(400, "This policy has no threshold for such a tier.", param="tier")

        async def count() -> Json:
            explored = await journal.desk.ask(lambda store: store.stories(Kind.EXPLORED, begun, STORIES))
            return await asyncio.to_thread(replay.told, explored, route, tier)

        thresholds = tuple(step.threshold for step in route.tiers)
        return await kept.get(("replay", window, policy, tier, thresholds), LATER, count)

    @routes.get(HOME + "/decisions")
    async def decisions(limit: Annotated[int, Query(ge=1, le=200)] = 20, before: float | None = None) -> Json:
        """The latest, newest first, with their hops; without texts and features. before: seconds since 1970."""

        def read(store: Store) -> list[Whole]:
            return [store.whole(row.number) for row in store.recent(limit, before=before)]

        found = await journal.desk.ask(read)
        return {"object": "list", "data": [brief(one.decision, one) for one in found if one.decision is not None]}

    return routes


SHOWN = ("number", "at", "policy", "status", "tier", "seconds", "usd", "explored")
SHOWN_OF_HOPS = ("tier", "role", "reason", "p_correct", "threshold")


def brief(decision: DecisionRow, whole: Whole) -> Json:
    """A line of the list of decisions."""
    told = {name: getattr(decision, name) for name in SHOWN}
    return told | {
        "hops": [{name: getattr(hop, name) for name in SHOWN_OF_HOPS} for hop in whole.hops],
        "truth": truth(whole.labels),
    }


async def counted(journal: Journal, begun: float, policy: str | None) -> Json:
    """Read the latest requests, then count."""
    now = time.time()
    briefs = await journal.desk.ask(lambda store: store.briefs(begun, REQUESTS, policy))
    return {"traffic": await asyncio.to_thread(figures.traffic, briefs, begun, now, most=REQUESTS)}


async def judgement(journal: Journal, known: dict[str, Policy], begun: float, policy: str | None) -> Json:
    """Read what was explored and what was labelled, then judge."""
    desk = journal.desk
    explored = await desk.ask(lambda store: store.stories(Kind.EXPLORED, begun, STORIES))
    labelled = await desk.ask(lambda store: store.stories(Kind.LABELLED, begun, STORIES))
    most = {"explored": len(explored) >= STORIES, "labels": len(labelled) >= STORIES}
    if policy is not None:
        explored, labelled = (
            [one for one in some if one.decision is not None and one.decision.policy == policy]
            for some in (explored, labelled)
        )
    largest = {name: route.tiers[-1] for name, route in known.items() if len(route.tiers) > 1}
    names = {name: tier.name for name, tier in largest.items()}
    saving = figures.saving(explored, names, replay.LEAST_ROWS)
    log = await desk.ask(partial(latest, begun)) if saving["figure"] is None and not saving["free"] else []
    if policy is not None:
        log = [one for one in log if one[0].policy == policy]

    def count() -> Json:
        judged = figures.judged(labelled)
        return {
            "saving": saving | {"likely": figures.likely_saving(log, largest, replay.LEAST_ROWS)},
            "calibration": figures.calibration(judged, np.random.default_rng(0)),
            "labels": {"n": len(labelled), "judged": len(judged), "cut": most["labels"]},
            "explored": {"n": len(explored), "cut": most["explored"]},
        }

    return await asyncio.to_thread(count)


def latest(begun: float, store: Store) -> list[tuple[DecisionRow, tuple[HopRow, ...]]]:
    """The latest decisions of a window with their hops; to be asked of a store."""
    rows = store.recent(LIKELY)
    return store.decisions((max(begun, rows[-1].at), "", ""), LIKELY) if rows else []


def since(window: str) -> float:
    """Raises RequestError for a window there is not."""
    if window not in WINDOWS:
        raise RequestError(400, f"There is no window of that name; there are {', '.join(WINDOWS)}.", param="window")
    return time.time() - WINDOWS[window]


def chains(snapshot: Snapshot) -> dict[str, Policy]:
    """The policies that decisions can follow, by name; a mix is one of its parts every time."""
    return {name: route for name, route in snapshot.policies.items() if not isinstance(route, Mix)}


def chain(known: dict[str, Policy], policy: str) -> Policy:
    """Raises RequestError for a policy there is not."""
    if policy not in known:
        raise RequestError(404, "There is no such policy.", param="policy", code="no_such_policy")
    return known[policy]


def shown(route: Policy) -> Json:
    steps = [{"tier": tier.name, "threshold": tier.threshold, "calibrator": tier.calibrator_id} for tier in route.tiers]
    return {"policy": route.name, "steps": steps}


class Kept:
    """Answers that are given again for some seconds. Who asks while one is being made waits for that one.

    Keys come from lists of our own, and those of a configuration that has changed are forgotten with the next look.
    """

    def __init__(self) -> None:
        self._answers: dict[object, tuple[float, Json]] = {}
        self._making: dict[object, asyncio.Lock] = {}

    async def get(self, key: object, seconds: float, make: Callable[[], Awaitable[Json]]) -> Json:
        """Raises what `make` does; a failure is not kept."""
        now = asyncio.get_running_loop().time
        async with self._making.setdefault(key, asyncio.Lock()):
            until, answer = self._answers.get(key, (0.0, {}))
            if now() >= until:
                answer = await make()
                self._forget(now())
                self._answers[key] = now() + seconds, answer
            return answer

    def _forget(self, now: float) -> None:
        for key in [key for key, (until, _) in self._answers.items() if until <= now]:
            del self._answers[key]
        for key in [key for key, lock in self._making.items() if key not in self._answers and not lock.locked()]:
            del self._making[key]
