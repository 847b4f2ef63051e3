"""One gateway process: bind, open the cascade, serve, drain, close."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn

from gateway.config import Config, Server
from gateway.errors import ConfigError
from gateway.http import protocol
from gateway.http.app import create_app
from gateway.http.auth import Keyring
from gateway.snapshot import open_cascade
from gateway.telemetry import Telemetry

KEEP_ALIVE_SECONDS = 65  # longer than the 60 s of common load balancers, so that they, not we, close first


def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError when it cannot start."""
    keyring = Keyring.of(config.keys)
    with listen(config.server) as listener, asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve(config, keyring, listener))


def new_loop() -> asyncio.AbstractEventLoop:
    """The faster loop, where there is one (not for Windows)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def listen(server: Server) -> socket.socket:
    """A bound socket; nobody is let in before the cascade is open. Raises ConfigError that says what to do."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        where = f"port {server.port} on {server.host}"
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{where} is in use; stop what listens there, or choose another with --port") from None
        raise ConfigError(f"cannot listen on {where}: {error.strerror or error}") from None
    return listener


async def serve(config: Config, keyring: Keyring, listener: socket.socket) -> None:
    """Open, serve, and close again, in this order."""
    async with open_cascade(config) as snapshot:
        settings = uvicorn.Config(
            create_app(snapshot, keyring, Telemetry()),
            http=protocol.of(config.server),
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=round(config.server.grace_seconds),
        )
        await Process(settings, invitation(url(listener), config)).serve([listener])


class Process(uvicorn.Server):
    """uvicorn, except that it says how to try it, and that a signal ends it with 0 once everything is closed."""

    def __init__(self, config: uvicorn.Config, invitation: str) -> None:
        super().__init__(config)
        self._invitation = invitation

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:  # somebody else began to listen while we loaded
            raise ConfigError(f"cannot listen any more: {error.strerror or error}") from None
        sys.stdout.write(self._invitation)
        sys.stdout.flush()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn raises a caught signal again when it has ended, which would kill us before engines are closed."""
        loop = asyncio.get_running_loop()
        caught = (signal.SIGTERM, signal.SIGINT)
        for number in caught:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)


def invitation(address: str, config: Config) -> str:
    """One line: where we are, and a command to try it with."""
    key = "" if config.keys.allow_anonymous else " -H 'authorization: Bearer YOUR-KEY'"
    body = '{"model": "auto", "messages": [{"role": "user", "content": "What is 17 + 25?"}]}'
    curl = f"curl -i {address}/v1/chat/completions{key} -H 'content-type: application/json' -d '{body}'"
    return f"ready on {address}   try: {curl}\n"


def url(listener: socket.socket) -> str:
    """Where a client on this machine reaches us."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104  compared with, not bound to
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
