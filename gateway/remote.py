"""Asking a running gateway, for commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gateway.errors import ConfigError, GatewayError
from gateway.written import given_key

if TYPE_CHECKING:
    import httpx2

SECONDS = 60.0


def client(url: str, key: str | None) -> httpx2.Client:
    """For one gateway, past any proxy, which would see the key. key: what --key says, None for none.

    Raises ConfigError.
    """
    import httpx2  # no gateway needs it to serve

    headers = {} if key is None else {"authorization": f"Bearer {given_key('--key', key)}"}
    direct = httpx2.HTTPTransport()  # without one of ours, the environment's; its certificates are trusted all the same
    try:
        return httpx2.Client(base_url=url, headers=headers, timeout=SECONDS, transport=direct)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"{url} is no address: {error}") from None


def ask(url: str, path: str, key: str | None, params: Mapping[str, str] | None = None) -> str:
    """The body of a GET. url: of the admin listener.  key: env:NAME or file:PATH of an admin's, None for none.

    Raises GatewayError in one line for whatever goes wrong.
    """
    import httpx2

    try:
        with client(url, key) as http:
            told = http.get(path, params=dict(params or {}))
    except httpx2.HTTPError as error:
        raise GatewayError(f"{url} does not answer: {error}") from None
    if told.status_code == 200:
        return told.text
    said = told.json().get("error", {}).get("message", "") if "json" in told.headers.get("content-type", "") else ""
    advice = {401: "; name an admin's key, --key env:NAME", 404: "; is this the admin listener's address?"}
    why = f"{told.status_code} {said}".strip()
    raise GatewayError(
        f"{url}{path}: {why}{'' if said and told.status_code == 404 else advice.get(told.status_code, '')}"
    )
