"""A small HTTP/1.1 client for one server: a request's bytes out, a reply in, over connections that are kept.

llhttp reads what comes in, as it does for aiohttp, most of whose work per request is about what no engine needs:
cookies, redirects, proxies, encodings, events for tracers. What stays is strict. A connection is used again only when a
reply was read to its end, said so itself, and left nothing behind it; in all other cases, cancellation first among
them, it is closed, and the server stops its work.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
import ssl
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import httptools
from aiohappyeyeballs import start_connection

from gateway.resilience.limit import Limit

MAX_HEAD_BYTES = 64 * 2**10
MAX_WAITING_BYTES = 2**18  # of a body that nobody has read yet, before the server is slowed down
STAGGER_SECONDS = 0.25  # what an address gets before the next is tried beside it: RFC 8305, section 5
KEEP_SECONDS = 15.0  # servers close idle connections, too: an old one is not worth the risk
KNOWN_SECONDS = 5.0  # a name's addresses: as long as Kubernetes' DNS calls those of a service good

Found = list[Any] | str  # addresses, or why there are none


class Trouble(Exception):
    """There is no reply. The message says why."""


class Broken(Trouble):
    """The connection ended before the reply did."""


class Improper(Trouble):
    """What came is no proper HTTP."""


class TooLarge(Trouble):
    """The body is larger than it may be."""


class Unreachable(Trouble):
    """There is no connection to be had."""


class ConnectTimeout(Trouble):
    """The server did not take a connection in time."""


class Client:
    """One server's. server: its URL, whatever its path.  headers: of every request.  most_bytes: of a reply's body.

    No byte is sent before the first request. Must be used inside one event loop. Raises ValueError for a header that
    cannot be sent.
    """

    def __init__(self, server: str, headers: Mapping[str, str], *, connect_seconds: float, most_bytes: int) -> None:
        url = urlsplit(server)
        assert url.hostname is not None, "a server has a host"
        self._host = url.hostname.encode("idna").decode() if not url.hostname.isascii() else url.hostname
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._port = url.port or (443 if self._tls else 80)
        self._name = None if is_address(self._host) else Name(self._host, self._port)
        self._connect_seconds, self.most_bytes = connect_seconds, most_bytes
        self._idle: deque[tuple[float, Connection]] = deque()  # since when; the latest is used first
        self._sweep: asyncio.TimerHandle | None = None
        self.connections: set[Connection] = set()
        named = url.netloc.rpartition("@")[2]
        told = {"Host": named.encode("idna").decode() if not named.isascii() else named} | dict(headers)
        if url.username is not None and "Authorization" not in told:
            pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
            told["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        for name, value in told.items():
            if not value.isprintable() or not value.isascii():
                raise ValueError(f"the header {name} cannot be sent: it holds more than printable ASCII")
        self._head = "".join(f"{name}: {value}\r\n" for name, value in told.items()).encode()
        self._starts: dict[tuple[str, str], bytes] = {}

    def request(self, method: str, path: str, body: bytes | None = None, more: str = "") -> bytes:
        """A request as it goes over the wire. more: headers of its own, each with its line's end."""
        start = self._starts.get((method, path))
        if start is None:
            start = f"{method} {path} HTTP/1.1\r\n".encode("ascii") + self._head
            self._starts[method, path] = start
        if body is None:
            return b"%b%b\r\n" % (start, more.encode("ascii"))
        kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        return b"".join((start, more.encode("ascii"), kind, body))

    async def ask(self, told: bytes, *, fresh: bool = False) -> Reply:
        """The reply, of which nothing has come yet. Use it as a context manager. told: as `request` makes it.

        fresh: over a new connection.  Raises Unreachable, ConnectTimeout.
        """
        connection = None if fresh else self._kept()
        if connection is None:
            connection = await self._connect()
        return connection.send(told)

    def _kept(self) -> Connection | None:
        while self._idle:
            since, connection = self._idle.pop()
            if connection.usable:
                if connection.loop.time() - since <= KEEP_SECONDS:
                    return connection
                connection.abort()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        where: dict[str, Any] = {"host": self._host, "port": self._port}
        try:
            with Limit(loop.time() + self._connect_seconds):
                if self._name is not None:  # uvloop would try them in turn, and wait for a dead one until time is up
                    found = await self._name.addresses()
                    where = {"sock": await start_connection(found, happy_eyeballs_delay=STAGGER_SECONDS)}
                _, connection = await loop.create_connection(
                    lambda: Connection(self, loop),
                    **where,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )
        except (OSError, RuntimeError) as error:  # the latter from uvloop, for a socket
            if self._name is not None:
                self._name.forget()
            if isinstance(error, TimeoutError):
                raise ConnectTimeout from error
            raise Unreachable(getattr(error, "strerror", None) or str(error)) from error
        return connection

    def keep(self, connection: Connection) -> None:
        """A connection that may be used again."""
        self._idle.append((connection.loop.time(), connection))
        if self._sweep is None:
            self._sweep = connection.loop.call_later(KEEP_SECONDS, self._close_old)

    def _close_old(self) -> None:
        self._sweep = None
        now = asyncio.get_running_loop().time()
        while self._idle and (now - self._idle[0][0] >= KEEP_SECONDS or not self._idle[0][1].usable):
            self._idle.popleft()[1].abort()
        if self._idle:
            self._sweep = self._idle[0][1].loop.call_at(self._idle[0][0] + KEEP_SECONDS, self._close_old)

    def close(self) -> None:
        """Close every connection, those that are in use, too."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._idle.clear()
        for connection in list(self.connections):
            connection.abort()


class Name:
    """Where a host may be reached.

    The system's resolver may hang for minutes, and nobody can stop it. So it is asked in a thread of its own: a loop
    has few, for all servers, and they are waited for when the process ends. Whoever wants to know meanwhile waits for
    the same answer.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._asked: asyncio.Future[Found] | None = None
        self._found: list[Any] = []
        self._found_at = 0.0

    async def addresses(self) -> list[Any]:
        """In the order of preference. Raises Unreachable."""
        loop = asyncio.get_running_loop()
        if self._found and loop.time() - self._found_at <= KNOWN_SECONDS:
            return self._found
        if self._asked is None:
            asked: asyncio.Future[Found] = loop.create_future()
            threading.Thread(target=self._ask, args=(loop, asked), name="resolver", daemon=True).start()
            self._asked = asked
        asked = self._asked
        await asyncio.wait({asked})  # who leaves does not cancel it for the others
        found = asked.result()
        if isinstance(found, str):
            raise Unreachable(found)
        return found

    def forget(self) -> None:
        """What was found led nowhere."""
        self._found = []

    def _ask(self, loop: asyncio.AbstractEventLoop, asked: asyncio.Future[Found]) -> None:
        found: Found
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # the latter for what can be no name
            found = getattr(error, "strerror", None) or str(error)
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._tell, asked, found)

    def _tell(self, asked: asyncio.Future[Found], found: Found) -> None:
        self._asked = None
        if not isinstance(found, str):
            self._found, self._found_at = found, asked.get_loop().time()
        asked.set_result(found)


def is_address(host: str) -> bool:
    """Whether it is an IP address, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Connection(asyncio.Protocol):
    """One exchange at a time. What comes when nothing was asked for spoils it."""

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop) -> None:
        self._client, self.loop = client, loop
        self._transport: asyncio.Transport | None = None
        self._reply: Reply | None = None
        self._lost = False

    @property
    def usable(self) -> bool:
        return not self._lost and self._transport is not None and not self._transport.is_closing()

    def send(self, told: bytes) -> Reply:
        assert self._transport is not None, "it is connected"
        self._reply = reply = Reply(self, self._client.most_bytes)
        if self._lost:
            reply.fail(Broken("closed"))
        else:
            self._transport.write(told)
        return reply

    def release(self, *, reuse: bool) -> None:
        """The exchange is over."""
        self._reply = None
        if reuse and self.usable:
            self._client.keep(self)
        else:
            self.abort()

    def abort(self) -> None:
        self._lost = True
        if self._transport is not None:
            self._transport.abort()

    def pause(self, *, paused: bool) -> None:
        if self.usable and self._transport is not None:
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._client.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._reply is None:
            self.abort()
        else:
            self._reply.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._client.connections.discard(self)
        if self._reply is not None:
            self._reply.end_of_connection(exc)


class Reply:
    """What a server says to one request. Leaving it as a context manager gives the connection back, or closes it."""

    def __init__(self, connection: Connection, most_bytes: int) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}  # names in lower case; of one that is said twice, the first
        self._connection, self._most_bytes = connection, most_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._head_bytes = self._body_bytes = 0
        self.waiting_bytes = 0  # that have come and were not read
        self._begun = self._complete = self._spoiled = self._keep_alive = self._paused = False
        self._all_wanted = False
        self._pieces: list[bytes] = []
        self._failure: Trouble | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(reuse=kind is None)

    def close(self, *, reuse: bool) -> None:
        """reuse: all was well; else the connection is closed."""
        good = self._complete and self._keep_alive and not self._spoiled
        self._connection.release(reuse=reuse and good)
        del self._parser  # which holds us: else every reply waits for the garbage collector, and then all wait for it

    @property
    def complete(self) -> bool:
        """Whether all of it is there."""
        return self._complete

    async def head(self) -> None:
        """Until status and headers are there. Raises Broken, Improper."""
        while not self._begun:
            await self._more()

    async def whole(self) -> bytes:
        """The body, once all of it is there. Raises Broken, Improper, TooLarge."""
        if not self._complete:
            await self.rest()
        return self._taken()

    async def rest(self) -> None:
        """Until all of the body is there. Raises what `whole` does."""
        self._all_wanted = True
        self._go_on()
        while not self._complete:
            await self._more()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes in. Raises Broken, Improper, TooLarge."""
        while True:
            if self._pieces:
                yield self._taken()
            elif self._complete:
                return
            else:
                await self._more()

    def _taken(self) -> bytes:
        pieces, self._pieces, self.waiting_bytes = self._pieces, [], 0
        self._go_on()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _go_on(self) -> None:
        """Read on, where the server was slowed down."""
        if self._paused:
            self._paused = False
            self._connection.pause(paused=False)

    def _more(self) -> asyncio.Future[None]:
        """For something new to have come in."""
        if self._failure is not None:
            raise self._failure
        self._waiter = self._connection.loop.create_future()
        return self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, why: Trouble) -> None:
        """It will never be complete; where it is already, its connection is not used again."""
        if self._failure is None and not self._complete:
            self._failure = why
        self._spoiled = True
        self._wake()

    def feed(self, data: bytes) -> None:
        """Bytes from the server."""
        if self._failure is not None:
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            ours = error.__context__  # raised below, where llhttp had called
            self._give_up(ours if isinstance(ours, Trouble) else Improper(str(error)))
            return
        if not self._begun:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._give_up(Improper("a head without an end"))
            return
        if self._complete or not self._all_wanted:
            self._wake()
        if self.waiting_bytes > MAX_WAITING_BYTES and not self._all_wanted and not self._paused:
            self._paused = True
            self._connection.pause(paused=True)

    def _give_up(self, why: Trouble) -> None:
        self.fail(why)
        self._connection.abort()

    def end_of_connection(self, error: Exception | None) -> None:
        """No byte will come any more: the end of a body only where nothing else told its length."""
        framed = "content-length" in self.headers or "transfer-encoding" in self.headers
        if self._begun and not framed and error is None and self._failure is None:
            self._complete = True  # and its connection is gone
            self._wake()
        elif not self._complete:
            self.fail(Broken(type(error).__name__ if error is not None else "closed"))

    # What llhttp finds

    def on_message_begin(self) -> None:
        if self._complete:
            self._spoiled = True  # more than one reply to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEAD_BYTES:
            raise Improper("headers that are too large")
        if not self._begun:  # else a trailer
            self.headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        self.status = self._parser.get_status_code()
        if self.status >= 200:
            self._begun = True

    def on_body(self, body: bytes) -> None:
        if self._complete:
            return
        self._body_bytes += len(body)
        self.waiting_bytes += len(body)
        if self._body_bytes > self._most_bytes:
            raise TooLarge
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self.status < 200:  # on the way: the reply itself is to come
            self.headers.clear()
        elif not self._complete:
            self._complete, self._keep_alive = True, self._parser.should_keep_alive()
