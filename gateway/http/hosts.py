"""Which names we answer to. A web page can make its own name mean 127.0.0.1, but it cannot make it ours."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.errors import Problem

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Hosts:
    """Refuses requests whose Host is not listed. named: lower case, without ports.  setting: where they are listed."""

    def __init__(self, app: ASGIApp, named: Callable[[], frozenset[str] | None], setting: str = "server.hosts") -> None:
        self._app, self._named = app, named
        told = f"This gateway does not go by that host name; its operator can list it under {setting}."
        self._misdirected = Problem(400, told)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        named = self._named()
        if scope["type"] == "http" and named is not None and called(scope) not in named:
            return refuse(send, self._misdirected)
        return self._app(scope, receive, send)


async def refuse(send: Send, problem: Problem) -> None:
    headers = [(name.encode(), value.encode()) for name, value in problem.headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": problem.body})


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
