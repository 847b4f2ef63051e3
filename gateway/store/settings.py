"""What people write about the store, `store:`, and about exploring, `exploration:`."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from gateway.errors import ConfigError
from gateway.store.base import Store
from gateway.written import SecretReference, Written, read_secret, resolve, wrong

Redact = Callable[[str], str]


class Texts(Written):
    """Keeping prompts and answers, which is off unless this stands in the file."""

    redact: str = Field(
        description="the function every text goes through first, as module:function from text to text; "
        "gateway.store.redact:contacts takes out addresses and long numbers, gateway.store.redact:nothing keeps all"
    )
    max_kib: int = Field(default=64, ge=1, le=4096, description="longer texts are cut")

    @field_validator("redact")
    @classmethod
    def _is_there(cls, name: str) -> str:
        try:
            found = pkgutil.resolve_name(name) if ":" in name else None
        except (ImportError, AttributeError, ValueError) as error:
            raise wrong("{told}", told=f"cannot find {name}: {error}") from None
        if not callable(found):
            raise wrong("{told}", told=f"{name} is no function; write module:function")
        return name

    def function(self) -> Redact:
        found: Redact = pkgutil.resolve_name(self.redact)
        return found


class StoreEntry(Written):
    """Where decisions and labels are kept: a file of this process's own, or a PostgreSQL that replicas share."""

    sqlite: Path | None = Field(default=None, description="a file; one process writes to it, so workers must be 1")
    postgres: SecretReference | None = Field(
        default=None, description="env:NAME or file:PATH of a connection string; needs the extra `postgres`"
    )
    seconds: float = Field(default=2, gt=0, le=60, description="how long a label may wait before it is refused")
    queue: int = Field(
        default=4096, ge=1, description="decisions that may wait to be written; more are dropped, and counted"
    )
    connections: int = Field(default=4, ge=1, le=64, description="to PostgreSQL, per process")
    retention_days: float = Field(default=90, gt=0, description="of decisions; labels stay")
    labelled_retention_days: float = Field(default=730, gt=0, description="of decisions that have a label")
    texts: Texts | None = Field(default=None, description="keep prompts and answers; else only the prompt's SHA-256")
    labels_per_minute: int = Field(
        default=6000, ge=1000, description="per key, and as many at once; keys may have less: limits.labels_per_minute"
    )

    @field_validator("sqlite")
    @classmethod
    def _beside_the_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        return None if path is None else resolve(path, info)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.sqlite is None) == (self.postgres is None):
            raise wrong("a store is either sqlite (a file) or postgres (env:NAME or file:PATH)")
        return self

    def open(self, moved_aside: Callable[[Path], object] = lambda _: None) -> Store:
        """To write to. Raises ConfigError."""
        if self.sqlite is not None:
            from gateway.store.sqlite import Sqlite

            return Sqlite(self.sqlite, seconds=self.seconds, moved_aside=moved_aside)
        return self._postgres()

    def look(self) -> Store:
        """To read from, beside a gateway that writes. Raises ConfigError, StoreDown."""
        if self.sqlite is not None:
            from gateway.store.sqlite import Sqlite

            return Sqlite(self.sqlite, seconds=self.seconds, read_only=True)
        return self._postgres()

    def _postgres(self) -> Store:
        assert self.postgres is not None, "validated above"
        try:
            from gateway.store.postgres import Postgres
        except ImportError as error:
            told = f"PostgreSQL needs more packages ({error}); pip install 'confidence-gateway[postgres]'"
            raise ConfigError(told) from None
        address = read_secret(self.postgres).get_secret_value()
        return Postgres(address, seconds=self.seconds, connections=self.connections)


class Exploration(Written):
    """Asking all tiers in shadow after an answer was served, for some decisions drawn by a keyed hash."""

    share: float = Field(gt=0, le=1, description="of decisions; .01 to .02 is usual")
    in_flight: int = Field(default=2, ge=1, le=64, description="decisions explored at once")
    waiting: int = Field(default=64, ge=1, description="decisions that wait for that; more are left out, and counted")
    seconds: float = Field(default=120, gt=0, description="for all tiers of one decision together")
