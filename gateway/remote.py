"""Asking a running gateway's admin listener, for commands."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.errors import GatewayError
from gateway.written import read_secret

SECONDS = 60.0


def ask(url: str, path: str, key: str | None, params: Mapping[str, str] | None = None) -> str:
    """The body of a GET. url: of the admin listener.  key: env:NAME or file:PATH of an admin's, None for none.

    Raises GatewayError in one line for whatever goes wrong.
    """
    import httpx2  # no gateway needs it to serve

    headers = {} if key is None else {"authorization": f"Bearer {read_secret(key).get_secret_value()}"}
    try:
        told = httpx2.get(url.rstrip("/") + path, headers=headers, params=dict(params or {}), timeout=SECONDS)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise GatewayError(f"{url} does not answer: {error}") from None
    if told.status_code == 200:
        return told.text
    said = told.json().get("error", {}).get("message", "") if "json" in told.headers.get("content-type", "") else ""
    advice = {401: "; name an admin's key, --key env:NAME", 404: "; is this the admin listener's address?"}
    why = f"{told.status_code} {said}".strip()
    raise GatewayError(
        f"{url}{path}: {why}{'' if said and told.status_code == 404 else advice.get(told.status_code, '')}"
    )
