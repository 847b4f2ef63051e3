"""Decision ids that prove themselves: who was served, by which tier, how sure it was and by which calibrator.

A label that comes back with its id can be told from a forged one, and used, without any look-up: years later, and even
when the decision's own row was lost. An id is base64url text over

    version (1 byte)  time (6, ms since 1970)  chance (8)            the decision's number: the id's first 20 characters
    tenant (6)  calibrator (1 + 0 or 6)  p_correct (1 + 0 or 8)  tier (the rest)
    MAC (16, BLAKE2s under the gateway's secret, over everything before it)

The number alone stands in log lines that are written before the answer is known. Nothing in an id is hidden: clients
see tier, confidence and calibrator in headers anyway. The tenant is a keyed hash of the client's name.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import os
import struct
from base64 import urlsafe_b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from gateway.errors import BadId, ForeignId

PREFIXES = ("chatcmpl-", "cmpl-")  # what stands before the id in a completion
NUMBER = 20  # characters of the decision's number
VERSION = 1
MAC_BYTES = 16
MAX_CHARACTERS = 512  # an id holds a tier's name, of at most 128 characters, and some 50 bytes
# The alphabets of base64 and base64url, for ids that are ours: `base64` takes four calls to look at what it is given.
URLSAFE, ORDINARY = bytes.maketrans(b"+/", b"-_"), bytes.maketrans(b"-_", b"+/")
SCORE = struct.Struct(">Bd")  # its length, p_correct
LEAST_BYTES = 15 + 6 + 1 + 1 + MAC_BYTES


@dataclass(frozen=True, slots=True)
class Decision:
    """What an id says. tier, calibrator: "" when no tier answered, or it had none.

    number: the id's first characters.  unix_seconds: when the request came, by the clock of then.
    calibrator: first 12 hex digits of the artefact's hash.  p_correct: None when there was none, or not yet.
    """

    number: str
    unix_seconds: float
    tier: str = ""
    calibrator: str = ""
    p_correct: float | None = None


def number(unix_seconds: float, chance: Callable[[int], bytes] = os.urandom) -> str:
    """A new decision's number. Unique by its 64 bits of chance, so whatever a clock does; the time is for people."""
    milliseconds = min(max(0, int(unix_seconds * 1000)), 2**48 - 1)
    return encoded(bytes([VERSION]) + milliseconds.to_bytes(6, "big") + chance(8))


def bare(given: str) -> str:
    """An id without what stands before it in a completion."""
    for prefix in PREFIXES:
        given = given.removeprefix(prefix)
    return given


def number_of(given: str) -> str:
    """The decision's number in an id, with or without its prefix, or by itself; whether it is genuine, only a Seal can
    tell. Raises BadId for what is neither."""
    number = bare(given)[:NUMBER]
    try:
        raw = urlsafe_b64decode(number)
    except (binascii.Error, ValueError):
        raise BadId from None
    if len(number) != NUMBER or encoded(raw) != number or raw[0] != VERSION:
        raise BadId
    return number


class Seal:
    """Makes and reads ids under a secret. previous: secrets of before, whose ids are still taken."""

    def __init__(self, secret: bytes, previous: Sequence[bytes] = ()) -> None:
        self._keys = tuple(hashlib.blake2s(one, person=b"route-id").digest() for one in (secret, *previous))

    def seal(
        self, number: str, tenant: str, *, tier: str = "", calibrator: str = "", p_correct: float | None = None
    ) -> str:
        """The id of a decision. tenant: the client's name.  calibrator: as Tier.calibrator_id, `name@12 hex digits`."""
        key = self._keys[0]
        score = b"\0" if p_correct is None else SCORE.pack(8, p_correct)
        begun = binascii.a2b_base64(number.encode().translate(ORDINARY))
        told = b"".join((begun, decider(key, tenant, calibrator), score, tier.encode()))
        return encoded(told + mac(key, told))

    def open(self, given: str, tenant: str) -> Decision:
        """What an id says. given: with or without what stands before it in a completion.

        Raises BadId for one that we did not make, ForeignId for one that was given to somebody else. All secrets are
        tried in either case, in constant time.
        """
        return self._read(given, tenant)

    def read(self, given: str) -> Decision:
        """What an id says, whoever was served: for operators. Raises BadId for one that we did not make."""
        return self._read(given, None)

    def lot(self, number: str, purpose: str) -> float:
        """A number in [0, 1) that looks random and follows from a decision, a purpose and the secret alone: no client
        can choose it, and every replica draws alike. purpose: at most 8 bytes; different ones draw independently."""
        digest = hashlib.blake2b(number.encode(), digest_size=8, key=self._keys[0], person=purpose.encode()).digest()
        return int.from_bytes(digest) / 2**64

    def salt(self, tenant: str) -> str:
        """Names a client to a model server's prefix cache: nobody can guess it, and every replica says the same."""
        return salt(self._keys[0], tenant)

    def _read(self, given: str, tenant: str | None) -> Decision:
        raw = decoded(bare(given))
        told, proof = raw[:-MAC_BYTES], raw[-MAC_BYTES:]
        ours = theirs = False
        for key in self._keys:
            genuine = hmac.compare_digest(mac(key, told), proof)
            ours |= genuine
            if tenant is not None:
                theirs |= genuine & (not hmac.compare_digest(tag(key, tenant), told[15:21]))
        if not ours:
            raise BadId
        if theirs:
            raise ForeignId
        return unpacked(told)


def unpacked(told: bytes) -> Decision:
    """The facts of an id that has been proven, so its lengths can be trusted."""
    number, rest = told[:15], told[21:]
    digest, rest = rest[1 : 1 + rest[0]], rest[1 + rest[0] :]
    score, tier = rest[1 : 1 + rest[0]], rest[1 + rest[0] :]
    p_correct = struct.unpack(">d", score)[0] if score else None
    return Decision(encoded(number), int.from_bytes(number[1:7], "big") / 1000, tier.decode(), digest.hex(), p_correct)


def mac(key: bytes, told: bytes) -> bytes:
    begun = keyed(key).copy()
    begun.update(told)
    return begun.digest()


@lru_cache(maxsize=16)
def keyed(key: bytes) -> hashlib.blake2s:
    """The hash of a MAC, with nothing but the key in it."""
    return hashlib.blake2s(key=key, person=b"decision", digest_size=MAC_BYTES)


@lru_cache(maxsize=1024)  # of the clients who are asking now
def decider(key: bytes, tenant: str, calibrator: str) -> bytes:
    """What an id says about who was served and what judged."""
    digest = bytes.fromhex(calibrator.rpartition("@")[2]) if "@" in calibrator else b""
    return tag(key, tenant) + bytes([len(digest)]) + digest


def tag(key: bytes, tenant: str) -> bytes:
    return hashlib.blake2s(tenant.encode(), key=key, person=b"tenant", digest_size=6).digest()


@lru_cache(maxsize=1024)
def salt(key: bytes, tenant: str) -> str:
    return hashlib.blake2s(tenant.encode(), key=key, person=b"salt", digest_size=16).hexdigest()


def encoded(raw: bytes) -> str:
    return binascii.b2a_base64(raw, newline=False).translate(URLSAFE).rstrip(b"=").decode()


def decoded(given: str) -> bytes:
    """The bytes of an id. Raises BadId for text that is no id of this version, however it is damaged."""
    if len(given) > MAX_CHARACTERS or not given.isascii():
        raise BadId
    try:
        raw = urlsafe_b64decode(given + "=" * (-len(given) % 4))
    except binascii.Error:
        raise BadId from None
    if len(raw) < LEAST_BYTES or raw[0] != VERSION or encoded(raw) != given:  # one id has one spelling
        raise BadId
    return raw
