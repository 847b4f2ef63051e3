"""What the HTTP client makes of servers that keep to the standard, and of those that do not."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gc
import ipaddress
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gateway.engines import _http
from tests.faults.gateway import PATIENCE

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BIG = b"x" * 2**20
DAY = dt.timedelta(days=1)
LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


async def with_server(
    said: bytes,
    work: Callable[[_http.Client], Awaitable[object]],
    *,
    closes: bool = False,
    most_bytes: int = 2**19,
    connect_seconds: float = PATIENCE,
    tls: ssl.SSLContext | None = None,
) -> int:
    """How many connections a server took that says the same to every request; closes: and then hangs up."""
    taken = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        taken += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(said)
                if closes:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    scheme = "http" if tls is None else "https"
    client = _http.Client(f"{scheme}://127.0.0.1:{port}/v1", {}, connect_seconds=connect_seconds, most_bytes=most_bytes)
    try:
        await asyncio.wait_for(work(client), PATIENCE)
    finally:
        client.close()
        server.close()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
    return taken


async def get(client: _http.Client) -> tuple[int, bytes]:
    with await client.ask(client.request("GET", "/v1/models")) as reply:
        await reply.head()
        return reply.status, await reply.whole()


def twice(said: bytes, *, closes: bool = False) -> int:
    """How many connections two requests took, both of which were answered with `ok`."""

    async def work(client: _http.Client) -> None:
        for _ in range(2):
            assert await get(client) == (200, b"ok")
            await asyncio.sleep(0.05)

    return asyncio.run(with_server(said, work, closes=closes))


@pytest.mark.parametrize(
    "said",
    [
        OK,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\nx-sum: 9\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\n" + OK,
    ],
    ids=["length", "chunks", "trailer", "continue"],
)
def test_a_reply_that_ends_where_it_says_leaves_its_connection_for_the_next_request(said: bytes) -> None:
    assert twice(said) == 1


@pytest.mark.parametrize(
    ("said", "closes"),
    [
        (OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), False),
        (OK.replace(b"1.1", b"1.0"), False),
        (OK + b"HTTP", False),
        (OK + OK, False),
        (OK + b"\x00garbage", False),
        (b"HTTP/1.1 200 OK\r\n\r\nok", True),
    ],
    ids=["close", "1.0", "half a reply more", "a second reply", "garbage behind it", "until the end"],
)
def test_a_connection_that_may_not_be_clean_is_not_used_again(said: bytes, closes: bool) -> None:
    assert twice(said, closes=closes) == 2


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", _http.Broken),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", _http.Broken),
        (b"HTTP/1.1 200 OK\r\ncontent-", _http.Broken),
        (b"", _http.Broken),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!", _http.Improper),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", _http.Improper),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", _http.Improper),
        (b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: %b\r\n" % (n, b"y" * 999) for n in range(99)), _http.Improper),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 99999, _http.Improper),
        (b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(BIG) + BIG, _http.TooLarge),
        (b"nonsense\r\n\r\n", _http.Improper),
    ],
    ids=[
        "short body", "no last chunk", "half a head", "nothing", "two lengths", "length and chunks", "upgrade",
        "many headers", "endless header", "too large", "nonsense",
    ],
)  # fmt: skip
def test_what_is_no_whole_reply_is_trouble(said: bytes, trouble: type[_http.Trouble]) -> None:
    async def work(client: _http.Client) -> None:
        with pytest.raises(trouble):
            await get(client)

    asyncio.run(with_server(said, work, closes=True))


def test_a_request_that_is_given_up_takes_its_connection_with_it() -> None:
    async def work(client: _http.Client) -> None:
        async def hurried() -> None:
            async with asyncio.timeout(None) as patience:
                with await client.ask(client.request("GET", "/v1/models")) as reply:
                    patience.reschedule(0.0)  # it has been sent; half a head is all that comes
                    await reply.head()

        with pytest.raises(TimeoutError):
            await hurried()
        assert not client.connections or all(not one.usable for one in client.connections)

    assert asyncio.run(with_server(b"HTTP/1.1 200 OK\r\n", work)) == 1


def test_a_body_that_nobody_reads_slows_its_server_down() -> None:
    async def work(client: _http.Client) -> None:
        with await client.ask(client.request("GET", "/")) as reply:
            await reply.head()
            await asyncio.sleep(0.2)
            assert reply.waiting_bytes < 2**20, "of sixteen"
            assert sum([len(piece) async for piece in reply.pieces()]) == 2**24

    said = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (2**24) + BIG * 16
    asyncio.run(with_server(said, work, most_bytes=2**24))


def test_a_body_of_which_much_came_before_it_was_asked_for_comes_whole() -> None:
    """As on a busy loop, which hears of a long reply's head together with so much of its body that reading stops."""

    async def work(client: _http.Client) -> None:
        with await client.ask(client.request("GET", "/")) as reply:
            await reply.head()
            while reply.waiting_bytes <= _http.MAX_WAITING_BYTES:  # noqa: ASYNC110  nobody is told of them
                await asyncio.sleep(0.01)
            assert len(await reply.whole()) == 2**24

    said = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (2**24) + BIG * 16
    asyncio.run(with_server(said, work, most_bytes=2**24))


def test_a_header_that_would_end_the_line_is_refused() -> None:
    with pytest.raises(ValueError, match="Authorization"):
        _http.Client("http://x", {"Authorization": "Bearer a\r\nx: y"}, connect_seconds=1, most_bytes=1)


def test_a_server_that_is_not_there_is_unreachable() -> None:
    client = _http.Client("http://127.0.0.1:9", {}, connect_seconds=PATIENCE, most_bytes=1)
    with pytest.raises(_http.Unreachable):
        asyncio.run(get(client))


def test_a_connection_that_was_made_in_time_is_one_though_we_stood_still() -> None:
    async def work(client: _http.Client) -> None:
        asyncio.get_running_loop().call_soon(time.sleep, 1.0)
        assert await get(client) == (200, b"ok")

    assert uvloop.run(with_server(OK, work, connect_seconds=0.5)) == 1


def certified(folder: Path, address: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate that a server at this address made for itself, and what it serves with."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a model server")])
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - DAY, now + DAY)
    owner = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    signed = made.add_extension(owner, critical=False).sign(key, hashes.SHA256())
    public, private = folder / "cert.pem", folder / "key.pem"
    public.write_bytes(signed.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(public, private)
    return public, context


@LOOPS
@pytest.mark.parametrize(
    ("address", "trusted", "taken"),
    [("127.0.0.1", True, True), ("127.0.0.1", False, False), ("127.0.0.2", True, False)],
    ids=["trusted", "unknown", "another's"],
)
def test_a_server_is_believed_by_its_certificate_alone(
    address: str, trusted: bool, taken: bool, new_loop: NewLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, tls = certified(tmp_path, address)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    async def work(client: _http.Client) -> None:
        with contextlib.nullcontext() if taken else pytest.raises(_http.Unreachable, match="certificate"):
            assert await get(client) == (200, b"ok")

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(with_server(OK, work, tls=tls)) == int(taken)


@contextlib.contextmanager
def silent() -> Iterator[tuple[str, int]]:
    """An address whose host drops what it is sent: two connections fill the queue of one that nobody takes from."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for one in (first, second):
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield listener.getsockname()


@contextlib.contextmanager
def refusing() -> Iterator[tuple[str, int]]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()


Resolve = Callable[..., None]


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Says what the system finds for a name that ends in `.internal`. asked: is told of every such look-up."""
    real = socket.getaddrinfo

    def say(*addresses: tuple[str, int], asked: Callable[[], object] = lambda: None) -> None:
        def found(host: str, *arguments: Any, **more: Any) -> Any:
            if not host.endswith(".internal"):
                return real(host, *arguments, **more)
            asked()
            return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", found)

    return say


@LOOPS
@pytest.mark.parametrize("dead", [silent, refusing])
def test_of_a_name_with_a_dead_and_a_live_address_the_live_one_is_taken_in_time(
    dead: Callable[[], contextlib.AbstractContextManager[tuple[str, int]]],
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    resolve: Resolve,
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        writer.close()

    async def work(dead_address: tuple[str, int]) -> float:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        resolve(dead_address, server.sockets[0].getsockname())
        client = _http.Client("http://model.internal:8000/v1", {}, connect_seconds=PATIENCE, most_bytes=2**19)
        began = asyncio.get_running_loop().time()
        assert await get(client) == (200, b"ok")
        client.close()
        server.close()
        return asyncio.get_running_loop().time() - began

    with dead() as address, asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(work(address)) < PATIENCE / 2, "the dead one alone would take all of it"


@LOOPS
def test_a_name_all_of_whose_addresses_are_silent_is_given_up_when_the_time_is_up(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    resolve: Resolve,
) -> None:
    async def work(*addresses: tuple[str, int]) -> None:
        resolve(*addresses)
        client = _http.Client("http://model.internal", {}, connect_seconds=0.5, most_bytes=1)
        with pytest.raises(_http.ConnectTimeout):
            await get(client)

    with silent() as first, silent() as second, asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(work(first, second))


def test_a_name_all_of_whose_addresses_refuse_is_unreachable(resolve: Resolve) -> None:
    async def work(*addresses: tuple[str, int]) -> None:
        resolve(*addresses)
        client = _http.Client("http://model.internal", {}, connect_seconds=PATIENCE, most_bytes=1)
        with pytest.raises(_http.Unreachable, match="Connect call failed"):
            await get(client)

    with refusing() as first, refusing() as second:
        asyncio.run(work(first, second))


@LOOPS
def test_a_resolver_that_hangs_holds_up_one_thread_and_nobody_longer_than_a_connection_may_take(
    new_loop: Callable[[], asyncio.AbstractEventLoop], resolve: Resolve
) -> None:
    asked: list[bool] = []
    answers = threading.Event()

    def hang() -> None:
        asked.append(threading.current_thread().daemon)
        answers.wait(PATIENCE)

    async def work() -> None:
        client = _http.Client("http://model.internal", {}, connect_seconds=0.5, most_bytes=1)
        found = await asyncio.gather(*(get(client) for _ in range(30)), return_exceptions=True)
        assert {type(one) for one in found} == {_http.ConnectTimeout}
        other = _http.Client("http://localhost:9", {}, connect_seconds=PATIENCE, most_bytes=1)
        with pytest.raises(_http.Unreachable):
            await get(other)

    resolve(asked=hang)
    began = time.monotonic()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(work())
    assert time.monotonic() - began < PATIENCE / 2, "nobody waits for it, the loop's end neither"
    answers.set()  # and nobody is there to be told
    assert asked == [True], "a daemon: nor does the process's end wait"


def test_a_names_addresses_are_kept_until_they_are_of_no_use(resolve: Resolve) -> None:
    asked: list[None] = []

    async def work(listener: socket.socket) -> None:
        resolve(listener.getsockname(), asked=lambda: asked.append(None))
        client = _http.Client("http://model.internal", {}, connect_seconds=PATIENCE, most_bytes=1)
        for _ in range(3):
            with await client.ask(b"", fresh=True):
                assert len(asked) == 1
        listener.close()
        for n in (1, 2):
            with pytest.raises(_http.Unreachable):
                await client.ask(b"", fresh=True)
            assert len(asked) == n, "what led nowhere is not used again"
        client.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(work(listener))


def test_a_name_that_cannot_be_looked_up_is_unreachable() -> None:
    with pytest.raises(_http.Unreachable):
        asyncio.run(get(_http.Client("http://vllm..svc:8000", {}, connect_seconds=PATIENCE, most_bytes=1)))


def test_a_reply_that_was_read_leaves_nothing_to_the_garbage_collector() -> None:
    """A cycle a request adds up to pauses in which nobody is answered."""

    async def work(client: _http.Client) -> None:
        with await client.ask(client.request("GET", "/")) as reply:
            await reply.whole()
            gone = weakref.ref(reply)
        del reply
        assert gone() is None

    gc.disable()
    try:
        asyncio.run(with_server(OK, work))
    finally:
        gc.enable()
