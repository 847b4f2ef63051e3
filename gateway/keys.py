"""`confgate keys`: a key for a client or an admin, and the lines that let it in."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

import yaml
from pydantic import ValidationError

from gateway.config import Client
from gateway.errors import ConfigError

KEY_BYTES = 32


def new() -> str:
    """With a beginning that makes it neither an option of a command nor the SHA-256 that it could be taken for."""
    return f"gw-{secrets.token_urlsafe(KEY_BYTES)}"


def keep(key: str, path: Path) -> None:
    """In a new file, for its owner only. Raises ConfigError; a file that is there stays as it is."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(f"{key}\n")
    except OSError as error:
        raise ConfigError(f"cannot keep the key in {path}: {error.strerror or error}") from None


def entry(name: str, key: str) -> dict[str, str]:
    """A client's or an admin's, as the configuration has it. Raises ConfigError for a name that it would not take."""
    sha256 = hashlib.sha256(key.encode()).hexdigest()
    try:
        Client(name=name, sha256=sha256)
    except ValidationError:
        raise ConfigError(
            "--name wants letters, digits, '.', '_', '/' and '-', 128 at most, a letter or digit first"
        ) from None
    return {"name": name, "sha256": sha256}


def lines(entry: dict[str, str], *, admin: bool) -> str:
    """What to write into the configuration."""
    told: str = yaml.safe_dump({"keys": {"admins" if admin else "clients": [entry]}}, sort_keys=False)
    return told
