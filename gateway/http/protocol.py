"""The connection itself: a request arrives whole and in time, its head is of sensible size, answers keep their order.

uvicorn's own protocol waits for ever for the rest of a request, takes heads of any size, answers garbage in the middle
of another answer, takes the body behind a wish for another protocol for a second request, sends chunks to clients that
know none, and does not tell a request that is being answered that its pipelining client has left.
"""

from __future__ import annotations

import asyncio
import re
import uuid
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.config import Server
from gateway.http.errors import Problem
from gateway.http.hangup import LINE, Headers, Line

MAX_HEAD_BYTES = 64 * 2**10
MAX_HEADERS = 128
MAX_FRAMING = 8  # bytes on the wire for one of a body: chunks of a single byte take six
MAX_PIPELINED = 16  # requests waiting for the answer to an earlier one of their connection
LINGER_SECONDS = 5.0  # for who is answered while he sends

# The wish for another protocol than ours, as Java's client has it; not heard, it is answered in ours. In JSON no line
# begins so.
UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)

PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}

BAD_REQUEST = Problem(400, "This is no valid HTTP request.", close=True)
CODED = Problem(400, "A body may be sent as it is or chunked, in no other transfer coding.", close=True)
TOO_LATE = Problem(408, "The request took too long to arrive.", close=True)
HEAD_TOO_LARGE = Problem(431, "The request's headers are too large.", close=True)


def of(server: Server) -> type[asyncio.Protocol]:
    """What uvicorn takes for its `http`; anything that makes connections will do, whatever its annotation says."""
    made = partial(Protocol, receive_seconds=server.receive_seconds, max_body_bytes=int(server.max_body_mib * 2**20))
    return cast("type[asyncio.Protocol]", made)


class Protocol(HttpToolsProtocol):
    """One connection. receive_seconds: from a request's first byte to its last."""

    def __init__(self, *arguments: Any, receive_seconds: float, max_body_bytes: int, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._receive_seconds, self._max_body_bytes = receive_seconds, max_body_bytes
        self._receiving: asyncio.TimerHandle | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._head_bytes = 0  # of a head that is not complete
        self._bytes = 0  # since the latest request began, whatever they are
        self._arriving = self._in_head = self._refused = False  # arriving: a request that is not complete
        self._running: Any = None  # the request that is being answered; `cycle` is the one that came last
        self._idle: asyncio.TimerHandle | None = None
        self._idle_since: float | None = None  # on the loop's clock; None while there is something to do

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._exit: Exit | None = Exit(transport, self._leave)
        self._wait_for_a_request()

    def _wait_for_a_request(self) -> None:
        """From now on. The timer is that of an earlier wait if one still runs: to stop it and set another for every
        request would cost as much as the request's head."""
        self._idle_since = self.loop.time()
        if self._idle is None:
            self._idle = self.loop.call_later(self.timeout_keep_alive, self._waited)

    def _waited(self) -> None:
        """A timer has ended, the wait that it was set for perhaps long before."""
        self._idle = None
        if self._idle_since is None:
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._idle = self.loop.call_later(left, self._waited)
        else:
            self.timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
            running.scope["extensions"][LINE].end()
        super().connection_lost(exc)
        if self._idle is not None:
            self._idle.cancel()
        self._stop_receiving()
        if self._lingering is not None:
            self._lingering.cancel()
        # These point back at us. Left so, a closed connection would be thirty objects for the garbage collector.
        self._exit = self._running = None
        self.cycle = None  # type: ignore[assignment]
        self.pipeline.clear()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(UPGRADE.sub(b"\r\nignored:", data))
        if self._in_head and not self._refused:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(HEAD_TOO_LARGE)
        self._bytes += len(data)
        if self._bytes > MAX_FRAMING * self._max_body_bytes + 2**20:
            self.transport.abort()
        if self._arriving and self._receiving is None:  # nearly every request comes in one piece, and needs no timer
            self._receiving = self.loop.call_later(self._receive_seconds, self._too_late)
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._arriving or answering:  # else it was an empty line, say
            self._idle_since = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._stop_receiving()
        self._arriving = self._in_head = True
        self._head_bytes = self._bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else a trailer, which whoever looked at the head did not see
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._refused:
            return
        head = len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers])
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if head > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._refuse(HEAD_TOO_LARGE)
        elif len(self.pipeline) >= MAX_PIPELINED or self.parser.should_upgrade():
            self._refuse(BAD_REQUEST)  # of an upgrade the parser leaves the body, which would be a request of its own
        elif codings not in ([], [b"chunked"]):
            self._refuse(CODED)
        else:
            super().on_headers_complete()
            self._in_head = False

    def _unsupported_upgrade_warning(self) -> None:
        """It was refused by then."""

    def on_body(self, body: bytes) -> None:
        if self._refused:
            return
        super().on_body(body)
        if len(self.cycle.body) > self._max_body_bytes + 2**20:  # nobody reads a body whose turn has not come
            self.transport.abort()

    def on_message_complete(self) -> None:
        self._stop_receiving()
        if not self._refused:
            super().on_message_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        cycle.transport = self._exit
        scope = cycle.scope
        scope["extensions"] = {LINE: Wire(cycle)}
        if scope["path"].endswith("\n"):  # which the `$` at the end of a route's pattern overlooks
            scope["path"] = scope["raw_path"].decode("ascii")
        super()._start_asgi_task(cycle, unchunked(app, cycle) if scope["http_version"] < "1.1" else app)

    def on_response_complete(self) -> None:
        """uvicorn's, but for its timer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._wait_for_a_request()

    def _stop_receiving(self) -> None:
        self._arriving = False
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None

    def _too_late(self) -> None:
        """The time is up, unless it was we who did not read on, because an earlier request is being answered."""
        own = None if self._in_head else self.cycle  # what is being received; without its head it has no cycle yet
        if self._running is not None and self._running is not own and not self._running.response_complete:
            self._receiving = self.loop.call_later(self._receive_seconds, self._too_late)
        else:
            self._refuse(TOO_LATE)

    def _leave(self) -> None:
        """Close behind an answer. Where the client is still sending, a closed socket would meet his bytes with a reset,
        and that may take the answer from him before he has read it: so we say that nothing more will come, and for a
        moment read on and forget."""
        if not self._arriving or self.transport.is_closing():
            self.transport.close()
            return
        self._refused = True
        self._stop_receiving()
        self.pipeline.clear()
        self.transport.write_eof()
        self._lingering = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's words, in plain text
        self._refuse(BAD_REQUEST)

    def _refuse(self, told: Problem) -> None:
        """Take nothing more from this connection; tell why, unless that would land in the midst of an answer."""
        if self._refused:
            return
        self._refused = True
        sending = self._arriving
        if sending and not self._in_head:
            self._end_unread()
        self._stop_receiving()
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False  # the last good request's answer closes the connection
            return
        self._arriving = sending
        headers = told.headers | {"content-length": str(len(told.body)), "x-request-id": uuid.uuid4().hex}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        start = f"HTTP/1.1 {told.status} {PHRASES[told.status]}\r\n{lines}\r\n"
        self.transport.write(start.encode("latin-1") + told.body)
        self._leave()

    def _end_unread(self) -> None:
        """The latest request ends here: of its body the rest will never be had."""
        if self.cycle is not self._running:  # its turn has not come
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running
        elif self.cycle.response_started:
            self.transport.close()  # answered without its body
        else:
            self.cycle.disconnected = self.cycle.response_complete = True
            self.cycle.message_event.set()


def unchunked(app: Any, cycle: Any) -> Any:
    """The application for a client older than HTTP/1.1, who knows no chunks: an answer of unknown length ends with its
    connection. cycle: uvicorn's, of this request, which comes to take every piece for all that was left."""

    async def answered(scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            cycle.chunked_encoding = False
            cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, sent)

    return answered


class Exit:
    """A connection's transport as the answer to one request sees it: it writes, and leaves by `close`."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, leave: Callable[[], None]) -> None:
        self.write, self.is_closing, self.close = transport.write, transport.is_closing, leave


class Wire(Line):
    """The line of one request. cycle: uvicorn's, which writes an answer's head and its body each by itself. Its scope
    holds us; held in turn, each request would be left to the garbage collector. It lasts as long as its task does."""

    def __init__(self, cycle: Any) -> None:
        super().__init__(cycle.flow.resume_reading)
        self._cycle = weakref.ref(cycle)

    @property
    def free(self) -> bool:  # type: ignore[override]
        cycle = self._cycle()
        return cycle is not None and not (cycle.flow.write_paused or cycle.response_started)

    def close(self) -> None:
        cycle = self._cycle()
        if cycle is not None:
            cycle.disconnected = True  # else uvicorn would say in our name that we failed
            cycle.transport.close()

    def whole(self, status: int, headers: Headers, more: Mapping[str, str], body: bytes) -> None:
        """What uvicorn does when both are sent, in one write. headers, more: without any about length or connection."""
        cycle = self._cycle()
        if cycle is None or cycle.disconnected:
            return
        lines = [b"%b: %b\r\n" % pair for pair in (*cycle.default_headers, *headers)]
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append("".join([f"{name}: {value}\r\n" for name, value in more.items()]).encode("latin-1"))
        head, ends = b"".join(lines), len(lines) - 1 + len(more)
        if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
            raise ValueError("a header that would end its line")
        length = b"content-length: %d\r\n\r\n" % len(body)
        cycle.transport.write(b"".join((STATUS_LINE[status], head, length, body)))
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
