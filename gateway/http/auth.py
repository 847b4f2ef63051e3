"""Who is asking. Keys are compared as SHA-256 hashes, in constant time, always against all of them."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Self

from gateway.config import ANONYMOUS, Allowance, Client, Config, Keys, Rights
from gateway.errors import ConfigError
from gateway.http.errors import RequestError

UNLIMITED = Allowance()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. models: the names that may stand in `model`; None for all there are.  priority: as in the Ask."""

    name: str
    limits: Allowance = UNLIMITED
    models: frozenset[str] | None = None
    priority: int = 0

    def check(self, model: str) -> None:
        """Raises RequestError with 403 for a model that is not for this key."""
        if self.models is not None and ("auto" if model == "auto:default" else model) not in self.models:
            raise RequestError(403, "This key may not use this model.", param="model", code="model_not_allowed")


ANYBODY = Caller(ANONYMOUS)


@dataclass(frozen=True, slots=True)
class Keyring:
    """clients: (who, SHA-256 of the key).  anonymous: whoever has no key, where that is allowed."""

    clients: tuple[tuple[Caller, bytes], ...]
    allow_anonymous: bool
    anonymous: Caller = ANYBODY

    @classmethod
    def of(cls, keys: Keys) -> Self:
        """Raises ConfigError for a key that is not where it should be, or that two have, admins among them."""
        if found := keys.shared(Client.digest):
            raise ConfigError(f"keys: {found[1]}")
        known = tuple((caller(one.name, one), one.digest()) for one in keys.clients)
        return cls(known, keys.allow_anonymous, caller(ANONYMOUS, keys.anonymous))

    @classmethod
    def of_admins(cls, config: Config) -> Self:
        """Keys of the other class: a client's opens nothing here, an admin's nothing there."""
        anonymous = config.admin is not None and config.admin.allow_anonymous
        return cls(tuple((Caller(admin.name), admin.digest()) for admin in config.keys.admins), anonymous)

    def known(self, authorization: str | None) -> Caller | None:
        """Who it is by his key alone; None for anybody without one of ours."""
        if not self.clients:
            return None
        scheme, _, key = (authorization or "").partition(" ")
        presented = hashlib.sha256(key.strip().encode()).digest()
        found = None
        for known, digest in self.clients:  # no early end: the time taken must not tell which key was close
            if hmac.compare_digest(digest, presented):
                found = known
        return found if scheme.lower() == "bearer" else None

    def who(self, authorization: str | None) -> Caller:
        """Who it is. authorization: the header's value.

        Raises RequestError with 401. Where everybody may ask, an unknown key does no harm: SDKs insist on sending one.
        """
        found = self.known(authorization)
        if found is not None:
            return found
        if self.allow_anonymous:
            return self.anonymous
        key = (authorization or "").partition(" ")[2]
        told = "Incorrect API key provided." if key else "No API key provided; send it as Authorization: Bearer <key>."
        raise RequestError(401, told, code="invalid_api_key", close=True)  # the body was not read


def caller(name: str, rights: Rights) -> Caller:
    models = None if rights.models is None else frozenset(rights.models)
    if models is not None and "auto:default" in models:
        models |= {"auto"}
    return Caller(name, rights.limits, models, rights.priority)
