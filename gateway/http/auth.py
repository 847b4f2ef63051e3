"""Who is asking. Keys are compared as SHA-256 hashes, in constant time, always against all of them."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Self

from gateway.config import Config, Keys
from gateway.http.errors import RequestError

ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Keyring:
    """clients: (name, SHA-256 of the key)."""

    clients: tuple[tuple[str, bytes], ...]
    allow_anonymous: bool

    @classmethod
    def of(cls, keys: Keys) -> Self:
        """Raises ConfigError for a key whose environment variable is not set."""
        return cls(tuple((client.name, client.digest()) for client in keys.clients), keys.allow_anonymous)

    @classmethod
    def of_admins(cls, config: Config) -> Self:
        """Keys of the other class: a client's opens nothing here, an admin's nothing there."""
        anonymous = config.admin is not None and config.admin.allow_anonymous
        return cls(tuple((admin.name, admin.digest()) for admin in config.keys.admins), anonymous)

    def who(self, authorization: str | None) -> str:
        """The client's name. authorization: the header's value.

        Raises RequestError with 401. Where everybody may ask, an unknown key does no harm: SDKs insist on sending one.
        """
        scheme, _, key = (authorization or "").partition(" ")
        presented = hashlib.sha256(key.strip().encode()).digest()
        found = None
        for name, digest in self.clients:  # no early end: the time taken must not tell which key was close
            if hmac.compare_digest(digest, presented):
                found = name
        if found is not None and scheme.lower() == "bearer":
            return found
        if self.allow_anonymous:
            return ANONYMOUS
        told = "Incorrect API key provided." if key else "No API key provided; send it as Authorization: Bearer <key>."
        raise RequestError(401, told, code="invalid_api_key", close=True)  # the body was not read
