"""Which names we answer to, and whose pages may ask for something to be done. A web page can make its own name mean
127.0.0.1, but it cannot make it ours; it can have a browser send us what it likes, but the browser says for whom."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.errors import Problem

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


ELSEWHERE = Problem(403, "A page of another site asked for this; it may not.")
READS = ("GET", "HEAD")  # what pages of other sites make a browser read, it does not let them see
OURS = (b"same-origin", b"none")  # of Sec-Fetch-Site; none: no page at all asked


class Hosts:
    """Refuses requests whose Host is not listed. named: lower case, without ports.  setting: where they are listed."""

    def __init__(self, app: ASGIApp, named: Callable[[], frozenset[str] | None], setting: str = "server.hosts") -> None:
        self._app, self._named = app, named
        told = f"This gateway does not go by that host name; its operator can list it under {setting}."
        self._misdirected = Problem(400, told)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        named = self._named()
        if scope["type"] == "http" and named is not None and called(scope) not in named:
            return refuse(self._misdirected, send)
        return self._app(scope, receive, send)


class Pages:
    """Refuses what a page of another site would have done: where no key is needed, an operator's browser is enough."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and scope["method"] not in READS and elsewhere(dict(scope["headers"])):
            return refuse(ELSEWHERE, send)
        return self._app(scope, receive, send)


def elsewhere(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser says that a page of another site asks. Over plain HTTP it tells that page's origin alone."""
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is not None:
        return site not in OURS
    return origin is not None and origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower()


async def refuse(told: Problem, send: Send) -> None:
    headers = [(name.encode(), value.encode()) for name, value in told.headers.items()]
    await send({"type": "http.response.start", "status": told.status, "headers": headers})
    await send({"type": "http.response.body", "body": told.body})


def called(scope: Scope) -> str | None:
    """What the client calls us, without the port; None when it does not say, or says two things."""
    given: list[bytes] = [value for name, value in scope["headers"] if name == b"host"]
    return without_port(given[0]) if len(given) == 1 else None


@lru_cache(maxsize=64)  # nearly all call us the same
def without_port(host: bytes) -> str:
    told = host.decode("latin-1").lower()
    name, colon, port = told.rpartition(":")
    return name if colon and (port.isdigit() or not port) else told


def allowed(host: str, hosts: tuple[str, ...]) -> frozenset[str] | None:
    """The names we go by; None for any. host: where we listen.

    Nothing listed: the loopback's own names on the loopback, and any name elsewhere, where a request has come over a
    network that somebody opened to us on purpose.
    """
    if hosts:
        return None if "*" in hosts else LOOPBACK | {name.lower() for name in hosts}
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    return LOOPBACK | {f"[{host}]" if ":" in host else host} if local else None
