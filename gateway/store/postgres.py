"""The shared store: PostgreSQL, for several processes and replicas. Through psycopg 3 and its pool.

The pool makes connections when they are needed, tries again with jittered pauses, and gives up inside the time that a
label may take; a connection that failed is never used again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool

from gateway.errors import ConfigError, StoreDown
from gateway.store.base import Entry, LabelRow, Outcome, Wish
from gateway.store.sql import MIGRATIONS, SqlStore, Values

MIGRATING = 0x63676174  # the advisory lock that one of several starting gateways holds while it makes the tables
TRIES = 5  # of a transaction that met another one; each is over in milliseconds
IDLE_SECONDS, PROBES = 5, 3  # a server that is gone without a word is noticed after some 10 s

T = TypeVar("T")
MET_ANOTHER = (errors.UniqueViolation, errors.DeadlockDetected, errors.SerializationFailure)


class MetAnother(Exception):
    """Another transaction did the same at the same time; nothing was done, and it can be tried again at once."""


class Postgres(SqlStore):
    """A database. address: a connection string.  seconds: for everything that is done once.

    Raises ConfigError for a string that cannot be one, and, once the server is reached, for tables of a later version.
    """

    def __init__(self, address: str, *, seconds: float = 2.0, connections: int = 4) -> None:
        self.threads, self._seconds, self._made = connections, seconds, False
        try:
            conninfo_to_dict(address)
        except psycopg.Error as error:
            raise ConfigError(f"this is no connection string for PostgreSQL: {str(error).strip()}") from None
        self._pool = ConnectionPool(
            address,
            min_size=0,
            max_size=connections,
            timeout=seconds,
            reconnect_timeout=seconds,
            check=ConnectionPool.check_connection,
            configure=self._configure,
            open=True,
            kwargs={
                "autocommit": True,
                "prepare_threshold": None,  # what stands between us and the server may not know prepared statements
                "application_name": "confidence-gateway",
                "connect_timeout": max(2, math.ceil(seconds)),
                "target_session_attrs": "read-write",  # of several hosts the one that is primary now
                "keepalives_idle": IDLE_SECONDS,
                "keepalives_interval": 2,
                "keepalives_count": PROBES,
                "tcp_user_timeout": 10_000,
            },
        )

    def close(self) -> None:
        self._pool.close(timeout=self._seconds)

    def write(self, entries: Sequence[Entry]) -> None:
        self._again(lambda: super(Postgres, self).write(entries))

    def put(self, wishes: Sequence[Wish]) -> list[tuple[Outcome, LabelRow]]:
        return self._again(lambda: super(Postgres, self).put(wishes))

    def purge(self, before: float, labelled_before: float) -> int:
        return self._again(lambda: super(Postgres, self).purge(before, labelled_before))

    def _again(self, work: Callable[[], T]) -> T:
        for _ in range(TRIES):
            with contextlib.suppress(MetAnother):
                return work()
        raise StoreDown(f"{TRIES} times in a row somebody else wrote the same decisions")

    @contextlib.contextmanager
    def reading(self) -> Iterator[Statements]:
        with self._transaction() as connection:
            yield Statements(connection)

    writing = reading

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection[Any]]:
        try:
            with self._pool.connection() as connection:
                if not self._made:
                    make_tables(connection)
                    self._made = True
                with connection.transaction():
                    yield connection
        except MET_ANOTHER as error:
            raise MetAnother from error
        except (errors.DataError, errors.IntegrityError):
            raise  # what was to be written is at fault, not the store
        except psycopg.Error as error:
            raise StoreDown(f"PostgreSQL: {str(error).strip() or type(error).__name__}") from error

    def _configure(self, connection: psycopg.Connection[Any]) -> None:
        """No statement outlives whoever waits for it, and a commit that returned is on the disk."""
        milliseconds = str(int(self._seconds * 1000))
        connection.execute("SELECT set_config('statement_timeout', %s, false)", (milliseconds,))
        connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )


def make_tables(connection: psycopg.Connection[Any]) -> None:
    """Bring the database to this version; one gateway at a time. Raises ConfigError for a later version."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATING,))
        connection.execute("CREATE TABLE IF NOT EXISTS store_version (version BIGINT NOT NULL)")
        row = connection.execute("SELECT max(version) FROM store_version").fetchone()
        version = (row[0] if row is not None else None) or 0
        if version > len(MIGRATIONS):
            raise ConfigError(
                f"the tables are of version {version}, this gateway knows {len(MIGRATIONS)}; use a later gateway"
            )
        if version == len(MIGRATIONS):
            return
        for step in MIGRATIONS[version:]:
            for statement in step:
                connection.execute(cast("Any", statement))
        connection.execute("INSERT INTO store_version VALUES (%s)", (len(MIGRATIONS),))


class Statements:
    """Statements inside the transaction of a connection."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def rows(self, statement: str, values: Values = ()) -> list[Values]:
        cursor = self._connection.execute(cast("Any", statement), values)
        return cursor.fetchall() if cursor.description is not None else []

    def many(self, statement: str, values: Iterable[Values]) -> None:
        rows = list(values)
        if rows:
            with self._connection.cursor() as cursor:
                cursor.executemany(cast("Any", statement), rows)
