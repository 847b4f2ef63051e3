"""What clients hide: requests sent by half, by drips, by heaps, in a row, and connections left in the middle."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from asyncio import Transport
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from gateway.http import hosts, limits
from gateway.http.protocol import Protocol, Wire
from tests.faults.ask import ask
from tests.faults.gateway import (
    HEAD,
    PATIENCE,
    SURE,
    Gateway,
    cascade,
    running,
    soonest,
    timed,
    until,
    whole,
    write_artifact,
)
from tests.faults.upstream import SILENCE, Upstream

RECEIVE_SECONDS = 0.7  # of `hurried`
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


def rest(raw: socket.socket) -> bytes:
    """Everything until the gateway closes. A reset counts as an end."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while piece := raw.recv(65536):
            got += piece
    return got


def statuses(got: bytes) -> list[int]:
    return [int(piece.split(b" ", 1)[0]) for piece in got.split(b"HTTP/1.1 ")[1:]]


@pytest.fixture(scope="module")
def hurried(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that does not wait long for a request."""
    folder = tmp_path_factory.mktemp("hurried")
    write_artifact(folder / "cheap.json")
    config = cascade(upstream.url)
    config["server"]["receive_seconds"] = RECEIVE_SECONDS
    with running(folder, config) as process:
        yield process


CUT = [b"P", HEAD, HEAD + b"content-length: 9\r\n\r\n", HEAD + b"content-length: 9\r\n\r\n{", HEAD + b"x"]


def test_two_hundred_half_sent_requests_are_closed_in_time_and_harm_nobody(hurried: Gateway) -> None:
    def close() -> None:
        with contextlib.ExitStack() as stack:
            half_sent = [stack.enter_context(hurried.connect()) for _ in range(200)]
            for number, raw in enumerate(half_sent):
                with contextlib.suppress(ConnectionError):  # where we are so slow that its time is up
                    raw.sendall(CUT[number % len(CUT)])
            assert answers(hurried)
            assert {tuple(statuses(rest(raw))) for raw in half_sent} == {(408,)}

    assert soonest(lambda: timed(close), RECEIVE_SECONDS + 6) < RECEIVE_SECONDS + 6


def answers(gateway: Gateway) -> bool:
    """To a client who had the time to send a request in."""
    url = f"{gateway.url}/v1/chat/completions"
    return any(httpx2.post(url, json=ask({"nats": SURE}), timeout=PATIENCE).status_code == 200 for _ in range(9))


@pytest.mark.parametrize("start", [b"", HEAD + b"x: ", HEAD + b"content-length: 999\r\n\r\n"], ids=len)
def test_dripping_bytes_win_no_time(start: bytes, hurried: Gateway) -> None:
    """Each comes sooner than the whole may take."""

    told: list[int] = []

    def drip() -> None:
        with hurried.connect() as raw:
            with contextlib.suppress(ConnectionError):
                raw.sendall(start)
                for byte in b"GET /nowhere/very/slowly/" + b"a" * 99:
                    raw.sendall(bytes([byte]))
                    if select.select([raw], [], [], 0.1)[0]:
                        break
            told[:] = statuses(rest(raw)) or told  # a reset overtakes it where we send all the same

    assert soonest(lambda: timed(drip), RECEIVE_SECONDS + 6, tries=4) < RECEIVE_SECONDS + 6
    assert told == [408]


def test_a_refusal_of_the_protocol_has_our_shape(gateway: Gateway) -> None:
    with gateway.connect() as raw:
        raw.sendall(b"NONSENSE\r\n\r\n")
        head, _, body = rest(raw).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 200 + b"\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 400_000,
    ],
    ids=["one long", "many", "long path", "never ends"],
)
def test_a_huge_head_is_a_431(head: bytes, gateway: Gateway, hurried: Gateway) -> None:
    with gateway.connect() as raw:
        with contextlib.suppress(ConnectionError):
            raw.sendall(head)
        assert statuses(rest(raw)) in ([431], [])  # a reset may overtake it while we still send
    with hurried.connect() as raw:
        raw.sendall(head[:66_000])
        assert statuses(rest(raw))[0] in (431, 408)


@pytest.mark.parametrize(
    "lengths",
    [
        b"content-length: 2\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 2\r\ncontent-length: 3\r\n",
        b"content-length: -1\r\n",
        b"transfer-encoding: chunked, identity\r\n",
    ],
)
def test_two_opinions_on_the_length_are_refused_and_the_connection_closed(lengths: bytes, gateway: Gateway) -> None:
    with gateway.connect() as raw:
        raw.sendall(HEAD + lengths + b"\r\n{}" + HEALTH)
        assert statuses(rest(raw)) == [400]


@pytest.mark.parametrize("codings", [b"gzip, chunked", b"gzip\r\ntransfer-encoding: chunked", b"chunked, chunked"])
def test_a_body_in_a_coding_that_nobody_takes_off_is_refused_and_the_connection_closed(
    codings: bytes, gateway: Gateway
) -> None:
    body = json.dumps(ask({"nats": SURE})).encode()
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    with gateway.connect() as raw:
        raw.sendall(HEAD + b"transfer-encoding: " + codings + b"\r\n\r\n" + chunks + HEALTH)
        assert statuses(rest(raw)) == [400]
    with gateway.connect() as raw:
        raw.sendall(HEAD + b"connection: close\r\nTransfer-Encoding: Chunked\r\n\r\n" + chunks)
        assert statuses(rest(raw)) == [200]


BROKEN_BODIES = [b"transfer-encoding: chunked\r\n\r\nzz\r\n", b"transfer-encoding: xchunked\r\n\r\n{}"]


@pytest.mark.parametrize("broken", BROKEN_BODIES, ids=["chunk", "coding"])
def test_a_body_that_turns_to_garbage_ends_its_request(broken: bytes, gateway: Gateway) -> None:
    with gateway.connect() as raw:
        raw.sendall(HEAD + broken)
        assert statuses(rest(raw)) == [400]
    with gateway.connect() as raw:  # behind a good one, which alone is answered
        raw.sendall(whole(ask({"nats": SURE, "seconds": 0.2})) + HEALTH + HEAD + broken)
        assert statuses(rest(raw)) == [200, 200]


@pytest.mark.parametrize(
    "other", [b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__", b"upgrade: websocket", b"UPGRADE: h2c"]
)
def test_who_would_rather_speak_another_protocol_is_answered_in_this_one(other: bytes, gateway: Gateway) -> None:
    told = whole(ask({"nats": SURE, "text": "An Upgrade: why not"}))
    wish = b"\r\nConnection: Upgrade, HTTP2-Settings\r\n" + other + b"\r\n"
    with gateway.connect() as raw:
        raw.sendall(told.replace(b"\r\n", wish, 1) + HEALTH.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
        got = rest(raw)
    assert statuses(got) == [200, 200]
    assert b"An Upgrade: why not" in got


def test_what_comes_behind_a_body_is_no_header(gateway: Gateway) -> None:
    body = json.dumps(ask({"nats": SURE})).encode()
    trailer = b"x-request-id: from-behind\r\nx-route-debug: true\r\nhost: evil.example\r\n"
    with gateway.connect() as raw:
        start = HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        raw.sendall(start + b"%x\r\n%b\r\n0\r\n" % (len(body), body) + trailer + b"\r\n")
        got = rest(raw)
    assert statuses(got) == [200]
    assert b"from-behind" not in got
    assert b'"route":' not in got


@pytest.mark.parametrize("endless", [b"0\r\nx: ", b"1;", b""], ids=["trailer", "extension", "line ends"])
def test_what_is_no_body_and_never_ends_is_not_taken_for_ever(endless: bytes, gateway: Gateway) -> None:
    filling = 256 * (b"a" * 2**20 if endless else b"\r\n" * 2**19)
    with gateway.connect() as raw:
        if endless:
            raw.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + endless)
        with pytest.raises(ConnectionError):
            raw.sendall(filling)


def test_pipelined_requests_are_answered_in_order(gateway: Gateway) -> None:
    slow = whole(ask({"nats": SURE, "seconds": 0.3, "text": "first"}))
    with gateway.connect() as raw:
        raw.sendall(slow + HEALTH + b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        got = rest(raw)
    assert statuses(got) == [200, 200, 404]
    assert got.index(b"first") < got.index(b'"ok"')


def test_an_answer_longer_in_coming_than_a_request_may_be_does_not_cost_the_next_one(
    hurried: Gateway, upstream: Upstream
) -> None:
    def answered() -> list[int]:
        """What we get who send the rest of the second request as soon as the first has its answer."""
        upstream.opened.clear()
        asked = len(upstream.asked("large"))
        with hurried.connect() as raw, contextlib.suppress(ConnectionError):
            raw.sendall(whole(ask({}, {"gate": "late"}) | {"model": "dear"}) + HEALTH[:20])
            until(lambda: len(upstream.asked("large")) > asked or select.select([raw], [], [], 0)[0])
            time.sleep(RECEIVE_SECONDS + 0.2)
            upstream.opened.add("late")
            raw.sendall(HEALTH[20:-2] + b"connection: close\r\n\r\n")
            return statuses(rest(raw))
        return []

    assert any(answered() == [200, 200] for _ in range(5)), "a slow machine may be too late itself, now and then"


@pytest.mark.parametrize(
    ("version", "more", "closes"),
    [(b"1.1", b"", False), (b"1.1", b"connection: close\r\n", True), (b"1.0", b"", True)],
)
def test_an_answer_says_whether_its_connection_ends_and_then_it_does(
    version: bytes, more: bytes, closes: bool, gateway: Gateway
) -> None:
    told = whole(ask({"nats": SURE})).replace(b"HTTP/1.1\r\n", b"HTTP/%b\r\n%b" % (version, more), 1)
    with gateway.connect() as raw:
        raw.sendall(told if closes else told + told.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nconnection: close\r\n", 1))
        answers = rest(raw).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert len(answers) == (1 if closes else 2)
    assert [b"connection: close" in answer for answer in answers] == [*[False] * (len(answers) - 1), True]
    for answer in answers:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"content-length: %d" % len(body) in head
        assert json.loads(body)["object"] == "chat.completion"


@pytest.mark.parametrize("model", ["auto", "dear"], ids=["replayed", "passed on"])
def test_a_stream_for_who_knows_no_chunks_ends_with_its_connection(model: str, gateway: Gateway) -> None:
    told = whole(ask({"nats": SURE}, stream=True) | {"model": model}).replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\n", 1)
    with gateway.connect() as raw:
        raw.sendall(told)
        head, _, body = rest(raw).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    events = body.split(b"\n\n")
    assert all(event.startswith(b"data: {") for event in events[:-2])
    assert events[-2:] == [b"data: [DONE]", b""]


@pytest.mark.parametrize("path", ["/health%0a", "/v1/chat/completions%0A", "/v1/models/auto%0a", "/health%0a%0a"])
def test_a_path_with_an_end_of_line_leads_nowhere(path: str, http: httpx2.Client) -> None:
    told = http.get(path)
    assert (told.status_code, told.json()["error"]["type"]) == (404, "invalid_request_error")


class Cycle(SimpleNamespace):
    """As much of uvicorn's as an answer needs, and unlike its base something that a weak reference can be made to."""


@pytest.mark.parametrize("value", ["a\r\nset-cookie: b", "a\nb", "a\rb", "a\0b"])
@pytest.mark.parametrize("raw", [True, False])
def test_no_header_ends_its_own_line(value: str, raw: bool) -> None:
    written: list[bytes] = []
    transport, flow = SimpleNamespace(write=written.append), FlowControl(Transport())
    cycle = Cycle(disconnected=False, keep_alive=True, default_headers=[], transport=transport, flow=flow)
    pair = (b"x-bad", value.encode())
    with pytest.raises(ValueError, match="end its line"):
        Wire(cycle).whole(200, [(b"x-good", b"1"), *[pair] * raw], {"x-other": "1" if raw else value}, b"{}")
    assert not written


class Clock:
    """As much of a loop as a connection's timers need."""

    def __init__(self) -> None:
        self._now, self._due = 0.0, list[tuple[float, Callable[[], None]]]()

    def time(self) -> float:
        return self._now

    def call_later(self, seconds: float, told: Callable[[], None]) -> SimpleNamespace:
        entry = (self._now + seconds, told)
        self._due.append(entry)
        return SimpleNamespace(cancel=lambda: self._due.remove(entry))

    def to(self, until: float) -> None:
        while due := [entry for entry in self._due if entry[0] <= until]:
            entry = min(due, key=itemgetter(0))
            self._due.remove(entry)
            self._now = entry[0]
            entry[1]()
        self._now = until


class Closable(Transport):
    closed, written = False, b""

    def write(self, data: Any) -> None:
        self.written += data

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


class Unanswered(Protocol):
    """Nobody answers before `answered`."""

    started = 0

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        self.started += 1

    def answered(self) -> None:
        self.cycle.response_complete = True
        self.on_response_complete()


async def nobody(scope: object, receive: object, send: object) -> None: ...


def connected(clock: Clock) -> tuple[Unanswered, Closable]:
    config = Config(nobody, interface="asgi3", timeout_keep_alive=65, log_config=None, lifespan="off")
    transport = Closable()
    made = Unanswered(config, ServerState(), {}, clock, receive_seconds=1e9, max_body_bytes=1)
    made.connection_made(transport)
    return made, transport


@pytest.mark.parametrize("name", [b"upgrade", b"Upgrade", b"UPGRADE", b"UpGrAdE", b"upGRADE"])
def test_a_wish_for_another_protocol_makes_no_second_request_of_a_body(name: bytes) -> None:
    """Wherever it is cut, the request is served with its body, or refused with all that comes behind."""
    wish = b"connection: upgrade\r\n%b: h2c\r\ncontent-length: %d\r\n\r\n" % (name, len(HEALTH))
    sent = HEAD + wish + HEALTH
    refused = set()
    for cut in range(len(HEAD), len(sent) + 1):
        clock = Clock()
        one, transport = connected(clock)
        one.data_received(sent[:cut])
        one.data_received(sent[cut:])
        if one.started:
            assert (one.started, bytes(one.cycle.body), len(one.pipeline)) == (1, HEALTH, 0)
            assert not transport.written
        else:
            assert statuses(transport.written) == [400]
            clock.to(10.0)
            assert transport.closed
            refused.add(cut)
    at = sent.index(b"\r\n" + name) + 2
    assert refused == set(range(at - 1, at + len(name) + 1)), "where it is cut in two nobody sees it in time"


def test_a_wish_for_another_protocol_that_is_refused_leaves_an_earlier_answer_whole() -> None:
    one, transport = connected(Clock())
    one.data_received(HEALTH + HEALTH[:-2] + b"connection: upgrade\r\nupgra")
    one.data_received(b"de: h2c\r\n\r\n" + HEALTH)
    assert (one.started, len(one.pipeline), transport.written) == (1, 0, b"")
    assert not one.cycle.keep_alive


@pytest.mark.parametrize(("answered", "idle"), [(False, b""), (False, b"\r\n"), (True, b"\r\n")])
def test_a_connection_without_a_request_is_closed_in_time(answered: bool, idle: bytes) -> None:
    clock = Clock()
    one, transport = connected(clock)
    if answered:
        one.data_received(HEALTH)
        one.answered()
    clock.to(30.0)
    one.data_received(idle)
    clock.to(64.9)
    assert not transport.closed
    clock.to(65.1)
    assert transport.closed


def test_the_wait_for_a_next_request_begins_with_the_answer_to_the_last_one() -> None:
    clock = Clock()
    one, transport = connected(clock)
    for seconds in (10.0, 60.0, 120.0):
        clock.to(seconds)
        one.data_received(HEALTH)
        one.answered()
    clock.to(184.9)
    assert not transport.closed
    clock.to(185.1)
    assert transport.closed


def test_a_request_that_takes_longer_than_one_is_waited_for_is_answered() -> None:
    clock = Clock()
    one, transport = connected(clock)
    one.data_received(HEALTH)
    clock.to(1000.0)
    assert not transport.closed
    one.answered()
    clock.to(1064.9)
    assert not transport.closed
    clock.to(1065.1)
    assert transport.closed


def test_garbage_behind_a_request_does_not_get_into_its_answer(gateway: Gateway) -> None:
    with gateway.connect() as raw:
        raw.sendall(whole(ask({"nats": SURE, "seconds": 0.2})) + b"\x00 garbage\r\n\r\n")
        got = rest(raw)
    assert statuses(got) == [200]
    assert json.loads(got.partition(b"\r\n\r\n")[2])["choices"]


def test_a_heap_of_pipelined_requests_ends_in_a_clean_close(gateway: Gateway) -> None:
    with gateway.connect() as raw:
        raw.sendall(whole(ask({"nats": SURE, "seconds": 0.3})) + HEALTH * 1000)
        told = statuses(rest(raw))
    assert set(told) == {200}
    assert len(told) < 50


def test_a_client_that_pipelined_and_left_frees_the_upstream(gateway: Gateway, upstream: Upstream) -> None:
    def leave() -> float:
        asked = len(upstream.asked("large"))
        with gateway.connect() as raw:
            raw.sendall(whole(ask({}, {"fault": "silent"}) | {"model": "dear"}) + HEALTH)
            until(lambda: len(upstream.asked("large")) > asked)
        return until(lambda: upstream.asked("large")[asked].released_at is not None, SILENCE / 2)

    assert soonest(leave, 1.0) < 1.0


def test_half_a_close_is_a_clean_end(gateway: Gateway, upstream: Upstream) -> None:
    with gateway.connect() as raw:
        raw.sendall(whole(ask({}, {"seconds": 0.5}) | {"model": "dear"}))
        until(lambda: upstream.asked("large"))
        raw.shutdown(socket.SHUT_WR)
        assert statuses(rest(raw)) in ([], [200])


def test_who_asks_whether_to_go_on_is_told(gateway: Gateway) -> None:
    body = json.dumps(ask({"nats": SURE})).encode()
    with gateway.connect() as raw:
        raw.sendall(HEAD + b"expect: 100-continue\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body))
        assert raw.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(body)
        assert statuses(rest(raw)) == [200]


def test_who_is_refused_before_the_body_is_not_waited_for(gateway: Gateway) -> None:
    with gateway.connect() as raw:
        raw.sendall(HEAD.replace(b"json", b"xml") + b"expect: 100-continue\r\ncontent-length: 9\r\n\r\n")
        assert statuses(rest(raw)) == [415]


@pytest.mark.parametrize("told", [b"host: evil.example\r\n", b"", b"host: localhost\r\nhost: localhost\r\n"])
def test_a_name_that_is_not_ours_is_refused(told: bytes, gateway: Gateway, upstream: Upstream) -> None:
    with gateway.connect() as raw:
        raw.sendall(whole(ask()).replace(b"host: localhost\r\n", told + b"connection: close\r\n"))
        assert statuses(rest(raw)) == [400]
    assert not upstream.seen


def test_listed_names_are_answered_to(upstream: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    config = cascade(upstream.url)
    config["server"]["hosts"] = ["Gate.example"]
    with running(tmp_path, config) as named:
        for host, status in (("gate.example", 200), ("GATE.example:8080", 200), ("localhost", 200), ("x", 400)):
            assert httpx2.get(f"{named.url}/health", headers={"host": host}, timeout=PATIENCE).status_code == status


def test_unless_told_otherwise_only_the_loopback_is_choosy() -> None:
    assert hosts.allowed("0.0.0.0", ()) is None
    assert hosts.allowed("gateway.internal", ()) is None
    assert "localhost" in (hosts.allowed("127.0.0.1", ()) or ())
    assert "[::1]" in (hosts.allowed("::1", ()) or ())
    assert hosts.allowed("127.0.0.1", ("*",)) is None


Nested = st.recursive(
    st.none() | st.text(alphabet='[]{}"\\a'), lambda of: st.lists(of) | st.dictionaries(st.text(), of)
)


def depth(tree: object) -> int:
    below = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else None
    return 0 if below is None else 1 + max(map(depth, below), default=0)


@given(Nested, st.integers(0, 70))
def test_depth_is_what_a_parser_would_find(tree: object, more: int) -> None:
    for _ in range(more):
        tree = [tree] if more % 2 else {"[": tree}
    assert limits.too_deep(json.dumps(tree).encode()) is (depth(tree) > limits.MAX_DEPTH)


@given(st.binary(max_size=300), st.sampled_from([b"", b"[" * 200, b"{" * 200 + b'"']))
def test_no_bytes_upset_the_look_at_the_depth(body: bytes, before: bytes) -> None:
    limits.too_deep(before + body)


@pytest.mark.parametrize("unit", [b"[", b"[]", b'\\"', b'"', b"\\", b"{}[", b"]"])
def test_the_look_at_the_depth_is_quick_whatever_comes(unit: bytes) -> None:
    body = b"[" * 100 + b'"' + unit * (2**20 // len(unit)) + b"\\"
    began = time.process_time()
    limits.too_deep(body)
    assert time.process_time() - began < 1.0


def test_deep_json_is_a_400(http: httpx2.Client) -> None:
    deep = json.dumps(ask()).encode()[:-1] + b', "extra": ' + b"[" * 65 + b"]" * 65 + b"}"
    told = http.post("/v1/chat/completions", content=deep, headers={"content-type": "application/json"})
    assert told.status_code == 400
    assert "nested deeper than 64" in told.json()["error"]["message"]
