"""From vLLM's workers to its API servers: a Unix socket per API server, a frame per request that left the batch.

An id names the API server that waits for it, so any number of API servers and engines on one host find each other
without being told: the socket's folder is CONFGATE_VLLM_DIR, by default one of the user's own in the temporary folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import re
import secrets
import socket
import struct
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from gateway.vllm_plugin.recorder import Leaving
from gateway.vllm_plugin.signals import COLUMNS

log = logging.getLogger(__name__)

Records = npt.NDArray[np.float32]

SIZES = struct.Struct(">II")  # bytes of the header, bytes of the records
LARGEST = 64 * 2**20
ID = re.compile(r"^([0-9a-f]{16})-[0-9a-f]{1,16}$")
SEND_SECONDS = 5.0
FIRST_FRAMES = 8  # of a crowd


def folder() -> Path:
    """Where the sockets lie; made if need be. Raises PermissionError when it is not ours alone."""
    path = Path(os.environ.get("CONFGATE_VLLM_DIR") or Path(tempfile.gettempdir()) / f"confgate-vllm-{os.getuid()}")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = path.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise PermissionError(f"{path} must belong to this user and be closed to all others (chmod 700)")
    return path


@dataclass(slots=True)
class Piece:
    """What was recorded of one choice while it sat in the batch once: tokens start to start + len(records)."""

    choice: int
    start: int
    greedy: bool
    lost: str
    records: Records  # (T, COLUMNS)


@dataclass(slots=True)
class Waiting:
    """A request whose records are on their way. Pieces come once per stay in the batch, in any number."""

    id: str
    pieces: list[Piece] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    def records(self, choice: int, tokens: int) -> tuple[Records, bool] | str | None:
        """All records of a choice of so many tokens, and whether they were drawn greedily. None: not all there yet.
        A sentence: they will never be."""
        if len(self.pieces) == 1 and (one := self.pieces[0]).choice == choice and not one.lost and not one.start:
            return (one.records[:tokens], one.greedy) if len(one.records) >= tokens > 0 else None
        whole = np.zeros((tokens, COLUMNS), dtype=np.float32)
        seen = np.zeros(tokens, dtype=bool)
        greedy = True
        for piece in self.pieces:
            if piece.choice != choice:
                continue
            if piece.lost:
                return piece.lost
            stop = min(tokens, piece.start + len(piece.records))
            if stop > piece.start:
                whole[piece.start : stop] = piece.records[: stop - piece.start]
                seen[piece.start : stop] = True
            greedy = greedy and piece.greedy
        return (whole, greedy) if tokens and bool(seen.all()) else None


class Inbox:
    """The API server's end. delivered: whether any worker ever sent something."""

    def __init__(self) -> None:
        self.delivered = False
        self._token = secrets.token_hex(8)
        self._count = 0
        self._waiting: dict[str, Waiting] = {}
        self._open: set[asyncio.BaseTransport] = set()
        self._server: asyncio.AbstractServer | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        """Listens; once is enough. Raises OSError when the folder cannot be used."""
        async with self._opening:
            if self._server is None:
                self._path = folder() / f"{self._token}.sock"
                loop = asyncio.get_running_loop()
                self._server = await loop.create_unix_server(lambda: Frames(self._take, self._open), str(self._path))

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for transport in tuple(self._open):
                transport.close()
            await self._server.wait_closed()
            self._path.unlink(missing_ok=True)
            self._server = None

    def expect(self) -> Waiting:
        """A new id, and what will come under it. `forget` it whatever happens."""
        self._count += 1
        waiting = Waiting(f"{self._token}-{self._count:x}")
        self._waiting[waiting.id] = waiting
        return waiting

    def forget(self, waiting: Waiting) -> None:
        self._waiting.pop(waiting.id, None)

    def _take(self, told: dict[str, Any], records: Records) -> None:
        self.delivered = True
        if (waiting := self._waiting.get(told["id"])) is not None:  # else the client has left
            waiting.pieces.append(Piece(told["choice"], told["start"], told["greedy"], told["lost"], records))
            waiting.came.set()


class Frames(asyncio.Protocol):
    """One worker's connection. Frames are taken as their bytes arrive: the loop of a busy server comes back late.

    A crowd that ends at the same step arrives together. After the first few frames the loop is given a turn, and again
    after twice as many: the first replies leave, and the clients' next requests reach the engine, before the last
    replies are made, and a loop whose turns are long keeps nobody waiting for many of them.
    """

    def __init__(self, take: Callable[[dict[str, Any], Records], None], open_: set[asyncio.BaseTransport]) -> None:
        self._take, self._open = take, open_
        self._pending = bytearray()
        self._at_once = FIRST_FRAMES
        self._goes_on = False  # whether it will be this connection's turn again

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._open.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._open.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._pending += data
        if not self._goes_on:
            self._take_some()

    def _take_some(self) -> None:
        self._goes_on = False
        try:
            for _ in range(self._at_once):
                if (frame := self._next()) is None:
                    self._at_once = FIRST_FRAMES
                    return
                self._take(*frame)
        except (ValueError, KeyError, msgspec.DecodeError) as error:
            log.warning("confidence: a worker sent what is no frame (%s)", error)
            self._transport.close()
            return
        self._at_once *= 2
        self._goes_on = True
        asyncio.get_running_loop().call_soon(self._take_some)

    def _next(self) -> tuple[dict[str, Any], Records] | None:
        """The next whole frame, None if it is not there yet. Raises ValueError or DecodeError when it is none."""
        if len(self._pending) < SIZES.size:
            return None
        head, body = SIZES.unpack_from(self._pending)
        if head + body > LARGEST:
            raise ValueError(f"a frame of {head + body} bytes")
        end = SIZES.size + head + body
        if len(self._pending) < end:
            return None
        frame = bytes(self._pending[SIZES.size : end])
        del self._pending[:end]
        return msgspec.json.decode(frame[:head]), np.frombuffer(frame[head:], np.float32).reshape(-1, COLUMNS)


def frame(leaving: Leaving) -> bytes:
    """A request that left the batch, as it goes over the socket."""
    seat, body = leaving.seat, leaving.read()
    told = {"id": seat.wanted.id, "choice": seat.choice, "start": seat.start, "greedy": seat.greedy, "lost": seat.lost}
    head = msgspec.json.encode(told)
    return SIZES.pack(len(head), len(body)) + head + body


class Outbox:
    """The worker's end: a thread that waits for the device and for the socket, so that the engine waits for neither."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[list[Leaving]] = queue.SimpleQueue()
        self._sockets: dict[str, socket.socket] = {}
        self._thread: threading.Thread | None = None

    def send(self, leaving: list[Leaving]) -> None:
        """Returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="confidence-outbox", daemon=True)
            self._thread.start()
        self._queue.put(leaving)

    def _run(self) -> None:
        while True:
            leaving = self._queue.get()
            try:
                self._deliver(leaving)
            except Exception:  # the thread must outlive whatever one request did
                log.exception("confidence: could not be delivered")

    def _deliver(self, leaving: list[Leaving]) -> None:
        """All frames of one API server in one go."""
        frames: dict[str, list[bytes]] = {}
        for one in leaving:
            match = ID.match(one.seat.wanted.id)
            if match is None:
                log.warning("confidence: an id that no middleware made")
                one.release()
                continue
            frames.setdefault(match[1], []).append(frame(one))
        for token, several in frames.items():
            try:
                self._socket(token).sendall(b"".join(several))
            except OSError as error:
                self._drop(token)
                log.warning("confidence: the API server that asked is not there (%s)", error.strerror or error)

    def _socket(self, token: str) -> socket.socket:
        if token not in self._sockets:
            mine = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            mine.settimeout(SEND_SECONDS)
            try:
                mine.connect(str(folder() / f"{token}.sock"))
            except OSError:
                mine.close()
                raise
            self._sockets[token] = mine
        return self._sockets[token]

    def _drop(self, token: str) -> None:
        with contextlib.suppress(KeyError, OSError):
            self._sockets.pop(token).close()
