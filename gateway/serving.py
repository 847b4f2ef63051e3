"""One gateway process: bind, open the cascade, serve, drain, close."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from gateway import doctor
from gateway.config import Config, Ids, Server
from gateway.errors import ConfigError
from gateway.exploration import Explorer
from gateway.http import protocol
from gateway.http.admin import create_admin
from gateway.http.app import create_app
from gateway.http.journal import Journal
from gateway.http.live import Lasting, Live, open_generation
from gateway.monitoring import Monitoring
from gateway.resilience.ledger import Ledger
from gateway.rolling import Rolling
from gateway.snapshot import Snapshot
from gateway.store.desk import DAY_SECONDS, Aside, Desk
from gateway.store.story import Keep
from gateway.telemetry import Telemetry

if TYPE_CHECKING:
    from gateway.tracing import Traces

log = logging.getLogger(__name__)

FIRST_LOOK_SECONDS = 5.0  # what clients wait for monitors to read labels of before
FAREWELL_SECONDS = 1.0  # the end of the grace, in which those whose time is up are told
# A reply with candidates is thousands of objects, none of them in a cycle. A connection is two dozen that stay: looked
# at often, they are few each time; after 20 rounds, those of ten thousand took 60 ms in which nobody was answered.
GC_THRESHOLD = (10_000, 2, 100)
SWITCH_SECONDS = 0.0005  # until a thread that computes, as monitors do, lets the loop on; Python's own are 5 ms
OPEN = "open\n"  # a supervisor's word to its workers, and theirs when it is done
KEEP_ALIVE_SECONDS = 65  # longer than the 60 s of common load balancers, so that they, not we, close first


@dataclass(frozen=True, slots=True, eq=False)
class Berth:
    """What one of several workers gets from its supervisor.

    config: what to serve by at first.  ready: what to write to stdout once clients are let in.  loaded: what to write
    once they could be; whether they may is then told on `lifeline`, and that the supervisor has ended, too.
    reloaded: as Live has it.
    """

    config: Config
    listener: socket.socket
    admin: socket.socket | None
    lasting: Lasting
    ready: str
    lifeline: int | None = None
    loaded: str = ""
    reloaded: Callable[[Config], object] = lambda _: None


def run(read: Callable[[], Config], berth: Berth | None = None) -> None:
    """Serve until SIGTERM or SIGINT. read: the configuration as it is written now; called again for every reload.

    Raises ConfigError when it cannot start.
    """
    with contextlib.ExitStack() as stack:
        if berth is None:
            config = read()
            listener = stack.enter_context(listen(config.server.host, config.server.port))
            admin = stack.enter_context(listen(*config.admin.address, said="admin.port")) if config.admin else None
            lasting = Lasting(secrets.token_bytes(32), Ledger(config.keys.ledger).vacate())
            berth = Berth(config, listener, admin, lasting, invitation(url(listener), config, admin))
        runner = stack.enter_context(looped())
        runner.run(serve(berth.config, read, berth))


@contextlib.contextmanager
def looped() -> Iterator[asyncio.Runner]:
    """A loop to run in; signals that come when all in it is over come to nothing."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        try:
            yield runner
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)


def on_signal(number: int, act: Callable[[], object]) -> None:
    """Do this in the loop whenever the signal comes. A loop's own handlers would give way to the system's, which kill,
    before all is closed."""
    loop = asyncio.get_running_loop()
    signal.signal(number, lambda *_: loop.call_soon_threadsafe(act))


def new_loop() -> asyncio.AbstractEventLoop:
    """The faster loop, where there is one (not for Windows)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def listen(host: str, port: int, *, shared: bool = False, said: str = "--port") -> socket.socket:
    """A bound socket; nobody is let in before the cascade is open. shared: with other processes that share it, too.
    said: how another port is chosen.

    Raises ConfigError that says what to do.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        where = f"port {port} on {host}"
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{where} is in use; stop what listens there, or choose another with {said}") from None
        raise ConfigError(f"cannot listen on {where}: {error.strerror or error}") from None
    return listener


async def serve(config: Config, read: Callable[[], Config], berth: Berth) -> None:
    """Open room after room, serve, and leave them in reverse: listeners, jobs, monitors, store, engines, tracer."""
    if config.ids == Ids():
        log.warning("decision ids end with this process; name a secret under ids, or a file to keep one in")
    telemetry = Telemetry()
    async with contextlib.AsyncExitStack() as rooms:
        enter = rooms.enter_async_context
        traces = await enter(traced(config))
        live = await enter(opened(config, read, berth.lasting))
        live.reloaded = berth.reloaded
        desk = await enter(kept(config, telemetry))
        rolling = await rolled(config, live, desk, telemetry)
        monitoring = await enter(watched(live, desk, telemetry))
        await consult(live.snapshot)
        explorer = None if desk is None else Explorer(desk, telemetry)
        journal = Journal(desk, explorer, keep(config), traces, monitoring)
        public = Process(settings(create_app(live, telemetry, journal), config.server), live, berth.ready)
        stop = partial(public.handle_exit, signal.SIGTERM, None)
        group = await enter(asyncio.TaskGroup())
        endless = [live.heal(), live.readiness.run(), on_hangup_signal(live, group)]
        endless += [one.run() for one in (desk, explorer, rolling) if one is not None]
        await enter(at_work(group, endless))
        if berth.lifeline is not None:
            await allowed(berth.lifeline, berth.loaded)
        await enter(tied(berth.lifeline, stop))
        if berth.admin is not None:
            private = create_admin(
                live, telemetry, journal, monitoring, rolling, group, stop, of_many=berth.lifeline is not None
            )
            await enter(beside(settings(private, config.server), berth.admin, group))
        await public.serve([berth.listener])


@contextlib.asynccontextmanager
async def traced(config: Config) -> AsyncIterator[Traces | None]:
    """The tracer, where spans are wanted; what waits is sent at the end."""
    traces = config.tracing.open() if config.tracing is not None else None
    try:
        yield traces
    finally:
        if traces is not None:
            await asyncio.to_thread(traces.close, FAREWELL_SECONDS / 2)


@contextlib.asynccontextmanager
async def opened(config: Config, read: Callable[[], Config], lasting: Lasting) -> AsyncIterator[Live]:
    """What is served, with its engines. Raises ConfigError."""
    live = Live(await open_generation(config, lasting.spare), read, lasting)
    try:
        yield live
    finally:
        await live.close()


@contextlib.asynccontextmanager
async def kept(config: Config, telemetry: Telemetry) -> AsyncIterator[Desk | None]:
    """The store, where there is to be one; what waits is written at the end."""
    desk = open_desk(config, telemetry)
    try:
        yield desk
    finally:
        if desk is not None:
            await desk.close(FAREWELL_SECONDS / 2)  # the other half was for clients


async def rolled(config: Config, live: Live, desk: Desk | None, telemetry: Telemetry) -> Rolling | None:
    """What decides about rollouts, where they are wanted; from now on calibrators are those that they have come to."""
    if config.rollout is None or desk is None:
        return None
    rolling = Rolling(config.rollout, Aside(desk, asyncio.get_running_loop()), telemetry.registry)
    live.dress, rolling.redress = rolling.dress, live.redress
    await live.redress()
    return rolling


@contextlib.asynccontextmanager
async def watched(live: Live, desk: Desk | None, telemetry: Telemetry) -> AsyncIterator[Monitoring]:
    """The monitors, over whatever comes into service; they have looked once, unless that takes too long."""
    loop = asyncio.get_running_loop()
    store = None if desk is None else Aside(desk, loop)
    monitoring = Monitoring(telemetry.registry, store, trouble=lambda: telemetry.store_trouble)

    def watch(now: Snapshot) -> None:
        telemetry.start(now.tiers, now.withheld, {name: one.holds for name, one in now.certificates.items()})
        monitoring.serve(now)

    monitoring.serve(live.snapshot)
    try:
        await asyncio.to_thread(monitoring.start, FIRST_LOOK_SECONDS)
        live.amended, live.changed = monitoring.amended, watch
        monitoring.changed = partial(loop.call_soon_threadsafe, live.amend)
        live.begin()
        yield monitoring
    finally:
        telemetry.settle()
        await asyncio.to_thread(monitoring.stop, FAREWELL_SECONDS)  # a look under way changes nothing any more


@contextlib.asynccontextmanager
async def at_work(group: asyncio.TaskGroup, endless: Sequence[Coroutine[None, None, None]]) -> AsyncIterator[None]:
    """What goes on until clients have been served. Where something fails, the group ends it."""
    jobs = [group.create_task(one) for one in endless]
    yield
    for job in jobs:
        job.cancel()


async def allowed(lifeline: int, loaded: str) -> None:
    """Say that all is loaded, and wait for the supervisor's word, or its end."""
    sys.stdout.write(loaded)
    sys.stdout.flush()
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(lifeline, told.set)
    try:
        await told.wait()
    finally:
        loop.remove_reader(lifeline)
    os.read(lifeline, len(OPEN))


@contextlib.asynccontextmanager
async def tied(lifeline: int | None, stop: Callable[[], None]) -> AsyncIterator[None]:
    """Drain when the supervisor has ended, where there is one."""
    if lifeline is None:
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_reader(lifeline, stop)
    try:
        yield
    finally:
        loop.remove_reader(lifeline)


@contextlib.asynccontextmanager
async def beside(wanted: uvicorn.Config, listener: socket.socket, group: asyncio.TaskGroup) -> AsyncIterator[None]:
    """The admin listener: open before anybody is told that this process is ready, and until the last client has left,
    so that the end can be watched; but nobody there holds it up. Where something fails, the group ends it."""
    server = Beside(wanted)
    serving = group.create_task(server.serve([listener]))
    await server.open.wait()
    yield
    server.should_exit = True
    await serving


def keep(config: Config) -> Keep | None:
    """How texts are kept, where they are."""
    texts = config.store.texts if config.store is not None else None
    return None if texts is None else Keep(texts.function(), texts.max_kib * 1024)


def open_desk(config: Config, telemetry: Telemetry) -> Desk | None:
    """The store, where there is to be one. Raises ConfigError when it cannot be ours."""
    wanted = config.store
    if wanted is None:
        log.warning("decisions and labels are not kept; say where under store")
        return None
    return Desk(
        wanted.open(telemetry.store_moved_aside),
        telemetry,
        seconds=wanted.seconds,
        queue=wanted.queue,
        keep_seconds=(wanted.retention_days * DAY_SECONDS, wanted.labelled_retention_days * DAY_SECONDS),
    )


async def consult(snapshot: Snapshot) -> None:
    """The doctor, where the configuration wants one. Raises ConfigError with a line for each thing that is wrong."""
    wanted = snapshot.config.server.doctor
    wrong = [] if wanted == "off" else doctor.faults(await doctor.examine(snapshot))
    for told in wrong:
        log.error("the doctor found a fault", extra={"why": told})
    if wrong and wanted == "refuse":
        raise ConfigError("\n".join(["the doctor found (server.doctor: refuse):", *wrong]))


def settings(app: ASGIApp, server: Server) -> uvicorn.Config:
    """One listener's."""
    return uvicorn.Config(
        app,
        interface="asgi3",
        http=protocol.of(server),
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )


async def on_hangup_signal(live: Live, group: asyncio.TaskGroup) -> None:
    """For ever: reload when told to by SIGHUP. What goes wrong is logged, and changes nothing."""
    told = asyncio.Event()
    on_signal(signal.SIGHUP, told.set)
    while True:
        await told.wait()
        told.clear()
        try:
            await live.reload(group)
        except ConfigError as error:
            log.error("not reloaded", extra={"why": str(error)})
        except Exception:  # whatever a file can do to us, what is served goes on
            log.exception("not reloaded")


class Patient(uvicorn.Server):
    """uvicorn, except that whoever is cut short at the end has a moment to be told so."""

    async def dismiss(self, sockets: list[socket.socket] | None, patience_seconds: float) -> None:
        """Close the doors, wait for requests in flight, tell the rest."""
        self.config.timeout_graceful_shutdown = patience_seconds  # type: ignore[assignment]  # parts of a second, too
        await super().shutdown(sockets)
        tasks = set(self.server_state.tasks)  # cancelled by now: they say so to their clients
        if tasks:
            await asyncio.wait(tasks, timeout=FAREWELL_SECONDS / 2)
            for connection in list(self.server_state.connections):  # whoever does not even read that
                connection.transport.abort()
            await asyncio.wait(tasks)


class Beside(Patient):
    """A listener next to the main one, which alone listens to signals. open: set once it takes connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.open = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.open.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.dismiss(sockets, FAREWELL_SECONDS)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Process(Patient):
    """uvicorn, except that it says how to try it, and that a signal ends it in good order and with 0."""

    def __init__(self, config: uvicorn.Config, live: Live, invitation: str) -> None:
        super().__init__(config)
        self._live, self._invitation = live, invitation

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Readiness goes down and new requests are refused at once; the rest follows in `shutdown`."""
        self._live.draining = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Be seen as not ready, close the doors, wait for requests in flight, tell the rest; all inside the grace."""
        server = self._live.snapshot.config.server
        await asyncio.sleep(server.linger_seconds)
        await self.dismiss(sockets, max(0.0, server.grace_seconds - server.linger_seconds - FAREWELL_SECONDS))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:  # somebody else began to listen while we loaded
            raise ConfigError(f"cannot listen any more: {error.strerror or error}") from None
        sys.stdout.write(self._invitation)
        sys.stdout.flush()

    async def main_loop(self) -> None:
        """What was loaded stays for good: the collector need not look at it again and again. And clients come first."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLD)
        sys.setswitchinterval(SWITCH_SECONDS)
        await super().main_loop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn raises a caught signal again when it has ended, which would kill us before engines are closed."""
        for number in (signal.SIGTERM, signal.SIGINT):
            on_signal(number, partial(self.handle_exit, number, None))
        yield


EXAMPLE = "Mia has 12 apples. Mia buys 5 more apples. How many apples does Mia have now?"


def invitation(address: str, config: Config, admin: socket.socket | None) -> str:
    """One line: where we are, where the console is, and a command to try us with."""
    key = "" if config.keys.allow_anonymous else " -H 'authorization: Bearer YOUR-KEY'"
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": EXAMPLE}]})
    curl = f"curl -i {address}/v1/chat/completions{key} -H 'content-type: application/json' -d '{body}'"
    console = "" if admin is None else f"   console: {url(admin)}/admin/console"
    return f"ready on {address}{console}   try: {curl}\n"


def url(listener: socket.socket) -> str:
    """Where a client on this machine reaches us."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104  compared with, not bound to
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
