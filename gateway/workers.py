"""Several gateway processes on one port: the kernel deals connections out among them (SO_REUSEPORT), this one watches.

The supervisor answers no client. It starts workers anew when they die, passes signals on, and stands for all of them on
the admin listener: metrics are summed, lists are joined, commands go to each. What keys have used is shared exactly
(resilience.ledger); breakers, seats and pauses are each worker's own, and so is an even part of a tier's `limits`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway import config as configs
from gateway.config import Config
from gateway.errors import ConfigError
from gateway.http.doors import Stamp, excuse_all
from gateway.http.errors import Problem
from gateway.http.live import Lasting
from gateway.monitor.telling import joined
from gateway.resilience.ledger import Ledger
from gateway.serving import OPEN, Berth, beside, invitation, listen, looped, on_signal, run, settings, url
from gateway.telemetry import MEDIA_TYPE, PREFIX, log_to_stderr

log = logging.getLogger(__name__)

GAUGES = ("in_flight", "tier_in_flight", "tier_waiting", "drift_missed_rows")
SUMMED = frozenset(f"{PREFIX}_{name}" for name in GAUGES)
WEAKEST = frozenset(f"{PREFIX}_{name}" for name in ("certificate_holds", "store_up"))  # as low as anybody's
RESTART_SECONDS, RESTART_MAX_SECONDS = 0.2, 10.0  # before a dead worker is replaced; doubles while it dies young
YOUNG_SECONDS = 10.0
FORWARD_SECONDS = 60.0
CALIBRATORS = "/admin/calibrators/"  # a step that one worker takes, all the others read from the shared folder
SHARED = ("/admin/console", "/admin/decisions")  # files, and what all read from one store: any worker's answer will do
MONITORS, CARD, RELOAD, DRAIN = "/admin/monitors", "/admin/card", "/admin/reload", "/admin/drain"
PASSED = (  # of the headers of an answer that is a worker's alone, or a refusal
    "cache-control",
    "content-security-policy",
    "location",
    "referrer-policy",
    "retry-after",
    "www-authenticate",
    "x-content-type-options",
)
FROM_PAGE = ("origin", "sec-fetch-site")
KEPT = ("authorization", "content-type", "host", "accept", "x-request-id", *FROM_PAGE)  # of the headers of a request
KILL_SECONDS = 5.0  # beyond the grace, for a worker that does not end
RELOADED = "reloaded "  # a worker's word to the supervisor; the text that it serves by now follows, as JSON
LINE_BYTES = 2**26  # longer than any text

Json = dict[str, Any]
Told = tuple[int, Response]  # a worker's seat, and its answer


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is told, as JSON on its standard input; a second line, that it may let clients in. That this ends
    tells it that the supervisor has.

    config: the file, for reloads.  text: what to serve by until then.
    """

    config: str
    text: str
    given: Json
    log_level: str
    port: int
    seat: int
    ledger: str
    spare: str


def written(path: Path, given: Json) -> Config:
    """The configuration as it is now, with what the command line said instead. Raises ConfigError."""
    return adapted(configs.read(path), given)


def adapted(config: Config, given: Json) -> Config:
    return config.model_copy(update={"server": config.server.model_copy(update=given)})


def supervise(path: Path, given: Json, log_level: str) -> None:
    """Serve with as many workers as the configuration says, until SIGTERM or SIGINT. Raises ConfigError."""
    config = written(path, given)
    if config.admin is None:
        raise ConfigError(f"{path}: several workers need an admin listener; say `admin: {{}}` and list keys.admins")
    if config.store is not None and config.store.sqlite is not None:
        raise ConfigError(f"{path}: SQLite has one writer; several workers need store.postgres, or serve with one")
    with contextlib.ExitStack() as stack:
        server = config.server
        listen(server.host, server.port).close()  # told now when somebody has it: SO_REUSEPORT would share it with him
        held = stack.enter_context(listen(server.host, server.port, shared=True))  # never listens: keeps the port ours
        admin = stack.enter_context(listen(*config.admin.address, said="admin.port"))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="confgate-"))
        ledger = config.keys.ledger or Path(folder, "ledger")
        Ledger(ledger).vacate()
        spare = secrets.token_hex(32)
        orders = [
            Orders(str(path.resolve()), config.text, given, log_level, held.getsockname()[1], seat, str(ledger), spare)
            for seat in range(server.workers)
        ]
        runner = stack.enter_context(looped())
        ready = invitation(url(held), config, admin)
        runner.run(Supervisor(config, orders, lambda: written(path, given)).serve(admin, ready))


class Worker:
    """One place among the workers, and the process that has it now. admin_port: 0 until it has loaded."""

    def __init__(self, orders: Orders) -> None:
        self.orders, self.admin_port, self.ended = orders, 0, False
        self.process: asyncio.subprocess.Process | None = None

    async def load(self) -> bool:
        """Whether it has come so far that it could let clients in."""
        command = (sys.executable, *(f"-W{option}" for option in sys.warnoptions), "-m", "gateway.workers")
        pipe = asyncio.subprocess.PIPE
        try:
            self.process = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, limit=LINE_BYTES, start_new_session=True
            )
        except OSError as error:  # no memory, or nothing more can be opened
            log.error("a worker could not be started", extra={"worker": self.orders.seat, "why": str(error)})
            return False
        told = await self._say(json.dumps(asdict(self.orders)) + "\n")
        self.admin_port = json.loads(told)["admin_port"] if told else 0
        return bool(told)

    async def open(self) -> bool:
        """Whether it lets clients in."""
        return bool(await self._say(OPEN))

    async def _say(self, line: str) -> bytes:
        """What it says to that, nothing if it has ended."""
        assert self.process is not None, "it was started"
        assert self.process.stdin is not None, "asked for"
        assert self.process.stdout is not None, "asked for"
        if self.process.stdin.is_closing():
            return b""
        self.process.stdin.write(line.encode())
        return await self.process.stdout.readline()

    async def reloads(self) -> AsyncIterator[str]:
        """Every text that it comes to serve by."""
        assert self.process is not None, "it was started"
        assert self.process.stdout is not None, "asked for"
        async for line in self.process.stdout:
            if line.startswith(RELOADED.encode()):
                yield json.loads(line[len(RELOADED) :])

    def tell(self, number: int) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)


class Supervisor:
    """Over its workers. read: the configuration as it is written now.

    _text: the one in service, which is what a worker that replaces another gets.  _reloads: how many there have been.
    """

    def __init__(self, config: Config, orders: Sequence[Orders], read: Any) -> None:
        self._config, self._read = config, read
        self._workers = [Worker(one) for one in orders]
        self._text, self._reloads = config.text, 0
        self._ending = False

    async def serve(self, admin: socket.socket, ready: str) -> None:
        """Until every worker has ended. Raises ConfigError when one cannot even start."""
        for number in (signal.SIGTERM, signal.SIGINT):
            on_signal(number, self.end)
        async with aiohttp.ClientSession(trust_env=False) as self._http:
            try:
                for step in (Worker.load, Worker.open):  # all of them first: the first to listen would get everybody
                    up = await asyncio.gather(*(step(worker) for worker in self._workers))
                    if self._ending:
                        return
                    if not all(up):
                        raise ConfigError("a worker could not start; what it found wrong stands above")
                on_signal(signal.SIGHUP, self.reload)
                wanted = settings(self.app(), self._config.server)
                async with asyncio.TaskGroup() as group, beside(wanted, admin, group):
                    sys.stdout.write(ready)
                    sys.stdout.flush()
                    await asyncio.gather(*(self._keep(worker) for worker in self._workers))
            finally:
                await self._stop_all()

    def end(self) -> None:
        """Each drains in its own order, all at the same time; one that does not end in time is killed."""
        if not self._ending:
            seconds = self._config.server.grace_seconds + KILL_SECONDS
            asyncio.get_running_loop().call_later(seconds, self._tell_all, signal.SIGKILL)
        self._ending = True
        self._tell_all(signal.SIGTERM)

    def _tell_all(self, number: int) -> None:
        for worker in self._workers:
            worker.tell(number)

    def reload(self) -> None:
        """A file that is wrong is logged once, and reaches nobody."""
        try:
            self._read()
        except ConfigError as error:
            log.error("not reloaded", extra={"why": str(error)})
            return
        self._spread()

    def _spread(self, told: Collection[int] = ()) -> None:
        """A reload to all but those who were told: those who load still, once they have."""
        self._reloads += 1
        for worker in self._workers:
            if worker.admin_port and worker.orders.seat not in told:
                worker.tell(signal.SIGHUP)

    async def _keep(self, worker: Worker) -> None:
        """Start it anew whenever it dies; until it ends as it was told to."""
        now = asyncio.get_running_loop().time
        pause, began = RESTART_SECONDS, now()
        while True:
            code = await self._end_of(worker)
            worker.admin_port = 0
            if code == 0 or self._ending:
                worker.ended = True
                return
            pause = RESTART_SECONDS if now() - began > YOUNG_SECONDS else min(2 * pause, RESTART_MAX_SECONDS)
            log.error("a worker died", extra={"worker": worker.orders.seat, "code": code, "again_in_seconds": pause})
            await asyncio.sleep(pause)
            if self._ending:
                worker.ended = True
                return
            began, reloads = now(), self._reloads
            worker.orders = replace(worker.orders, text=self._text)
            if await worker.load():
                await worker.open()
            if self._ending:
                worker.tell(signal.SIGTERM)
            elif reloads != self._reloads:
                worker.tell(signal.SIGHUP)

    async def _end_of(self, worker: Worker) -> int:
        """Its exit code, once it has one. What it has reloaded until then is in service."""
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self._listen_to(worker))
            assert worker.process is not None, "it was started"
            code = await worker.process.wait()
            listening.cancel()
        return code

    async def _listen_to(self, worker: Worker) -> None:
        async for text in worker.reloads():
            self._text = text

    async def _stop_all(self) -> None:
        """Nobody is left behind, whatever happened."""
        self.end()
        await asyncio.gather(*(one.process.wait() for one in self._workers if one.process is not None))

    # The admin listener. Workers check the key, the host and the page; nothing is decided here.

    def app(self) -> ASGIApp:
        app = Starlette(routes=[Route("/{path:path}", self.forward, methods=["GET", "POST", "PUT", "DELETE"])])
        excuse_all(app)
        return Stamp(app)

    async def forward(self, request: Request) -> Response:
        """To every worker, one after another, and their answers as one; the first refusal ends it."""
        body, path = await request.body(), request.url.path
        if path == CARD and request.method == "GET":
            return await self._card(request)
        if path == CARD:
            refusal = Problem(405, "A card is read with GET.")
            return Response(refusal.body, refusal.status, refusal.headers | {"allow": "GET"})
        once = path.startswith((*SHARED, CALIBRATORS))
        told = await self._ask(request, request.method, path, body, once=once)
        if isinstance(told, Response):
            return told
        if path == RELOAD:
            self._spread({seat for seat, _ in told})
        if path == DRAIN:
            self.end()  # those who could not be told, too
        answers = [(seat, bytes(answer.body)) for seat, answer in told]
        if once:
            return told[0][1]
        if path == "/metrics":
            return Response(summed([answer.decode() for _, answer in answers]), media_type=MEDIA_TYPE)
        if path == MONITORS:
            return JSONResponse(joined([(seat, json.loads(answer)) for seat, answer in answers]))
        first = told[0][1]
        if first.media_type == "application/json":
            lists = [(seat, json.loads(answer)) for seat, answer in answers]
            if all(isinstance(rows, list) for _, rows in lists):
                return JSONResponse([{"worker": seat} | row for seat, rows in lists for row in rows])
        return Response(first.body, first.status_code, media_type=first.media_type)

    async def _card(self, request: Request) -> Response:
        """Of what all workers together have seen: one writes it down from the reports of all."""
        reports = await self._ask(request, "GET", MONITORS, b"")
        if isinstance(reports, Response):
            return reports
        whole = joined([(seat, json.loads(bytes(answer.body))) for seat, answer in reports])
        told = await self._ask(request, "POST", CARD, json.dumps(whole).encode(), once=True)
        return told if isinstance(told, Response) else told[0][1]

    async def _ask(
        self, request: Request, method: str, path: str, body: bytes, *, once: bool = False
    ) -> list[Told] | Response:
        """What every worker answers, or the first that does; the first refusal as it is."""
        told: list[Told] = []
        for worker in [one for one in self._workers if one.admin_port]:
            try:
                status, headers, kind, answer = await self._put(worker, request, method, path, body)
            except (aiohttp.ClientError, TimeoutError, OSError):
                continue  # it has just died; another takes its place
            if status >= 400:
                return Response(answer, status, headers, kind)
            told.append((worker.orders.seat, Response(answer, status, headers, kind)))
            if once:
                break
        if told:
            return told
        problem = Problem(503, "No worker is ready.", retry_after_seconds=1)
        return Response(problem.body, problem.status, problem.headers)

    async def _put(
        self, worker: Worker, request: Request, method: str, path: str, body: bytes
    ) -> tuple[int, dict[str, str], str, bytes]:
        headers = {name: value for name, value in request.headers.items() if name in KEPT}
        if method != request.method:  # what we ask for by ourselves, whatever page it is for
            headers = {name: value for name, value in headers.items() if name not in FROM_PAGE}
            headers["content-type"] = "application/json"
        where = f"http://127.0.0.1:{worker.admin_port}{path}"
        query = f"?{request.url.query}" if request.url.query else ""
        limit = aiohttp.ClientTimeout(total=FORWARD_SECONDS)
        async with self._http.request(
            method, where + query, data=body, headers=headers, timeout=limit, allow_redirects=False
        ) as answer:
            passed = {name: answer.headers[name] for name in PASSED if name in answer.headers}
            return answer.status, passed, answer.content_type, await answer.read()


def summed(texts: Sequence[str]) -> bytes:
    """Metrics of several processes as one's: counts and what is in flight add up; of what is either so or not, one
    process is enough for 1, except for what `holds`, which has to hold everywhere."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], list[float]]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            families.setdefault(family.name, family)
            found = values.setdefault(family.name, {})
            for sample in family.samples:
                found.setdefault((sample.name, tuple(sorted(sample.labels.items()))), []).append(sample.value)
    for name, family in families.items():
        sums = family.type in ("counter", "histogram", "summary") or name in SUMMED
        family.samples = []
        for (series, labels), all_of in values[name].items():
            joined = sum if sums and not series.endswith("_created") else min if name in WEAKEST else max
            family.add_sample(series, dict(labels), joined(all_of))
    registry = CollectorRegistry()
    registry.register(Collected(list(families.values())))
    return generate_latest(registry)


class Collected:
    """Families that are known already, in the form that prometheus_client writes out."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def work() -> None:
    """One worker, by the orders on standard input. Exits with 1, having said why, when it cannot start."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it can reload
    orders = Orders(**json.loads(sys.stdin.readline()))
    log_to_stderr(orders.log_level)
    path, given = Path(orders.config), orders.given | {"port": orders.port}

    def reloaded(config: Config) -> None:
        sys.stdout.write(f"{RELOADED}{json.dumps(config.text)}\n")
        sys.stdout.flush()

    try:
        config = adapted(configs.parse(orders.text, path), given)
        with (
            listen(config.server.host, orders.port, shared=True) as listener,
            listen("127.0.0.1", 0) as admin,
        ):
            ledger = Ledger(Path(orders.ledger), orders.seat).vacate([orders.seat])
            lasting = Lasting(bytes.fromhex(orders.spare), ledger)
            loaded = json.dumps({"admin_port": admin.getsockname()[1]}) + "\n"
            berth = Berth(config, listener, admin, lasting, OPEN, sys.stdin.fileno(), loaded, reloaded)
            run(lambda: written(path, given), berth)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        logging.shutdown()
        os._exit(1)


if __name__ == "__main__":
    work()
