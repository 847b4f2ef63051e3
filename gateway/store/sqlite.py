"""The embedded store: one SQLite file, written by one process and one thread.

Durable before anything is acknowledged: synchronous=FULL, and WAL only where SQLite is free of the WAL-reset bug
(https://sqlite.org/wal.html#walresetbug), else a rollback journal whose truncation is synced as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gateway.errors import ConfigError, StoreDown
from gateway.store.sql import MIGRATIONS, SqlStore, Values

log = logging.getLogger(__name__)

APPLICATION = 0x63676174  # "cgat": PRAGMA application_id, so that no other program's file is taken for ours
CHECK_BYTES = 256 * 2**20  # up to this size a file is read as a whole at start; about a second
BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
WAITING = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


def wal_is_safe(version: tuple[int, int, int]) -> bool:
    """Whether SQLite has no WAL-reset bug: 3.51.3 fixed it, 3.50.7 and 3.44.6 too; 3.52.0 was withdrawn."""
    return (
        version >= (3, 53, 0)
        or (3, 51, 3) <= version < (3, 52, 0)
        or (3, 50, 7) <= version < (3, 51, 0)
        or (3, 44, 6) <= version < (3, 45, 0)
        or version < (3, 7, 0)
    )


class Sqlite(SqlStore):
    """A file. seconds: how long to wait while somebody else has it locked.  read_only: look, beside a writer.

    moved_aside: called with the new name of a file that was found broken.
    Raises ConfigError when another process writes to it, when it is not ours, or of a later version; StoreDown when it
    cannot even be looked at. One that cannot be written to yet, say on a full disk, is tried again with each use.
    """

    threads = 1

    def __init__(
        self,
        path: Path,
        *,
        seconds: float = 2.0,
        read_only: bool = False,
        moved_aside: Callable[[Path], object] = lambda _: None,
    ) -> None:
        self.path, self._seconds, self._read_only, self._moved_aside = path, seconds, read_only, moved_aside
        self._connection: sqlite3.Connection | None = None
        self._lock = None if read_only else OwnerLock(path)
        try:
            if read_only and not path.exists():
                raise ConfigError(
                    f"there is no store in {path}; a gateway that serves with this configuration makes it"
                )
            self._whole(check=not read_only)
        except StoreDown as error:
            if read_only:
                raise
            log.error("the store cannot be used yet", extra={"why": error.why})  # it is tried again with each use
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[Statements]:
        with self._told() as connection:
            connection.execute("BEGIN")
            yield Statements(connection)
            connection.execute("COMMIT")

    @contextlib.contextmanager
    def writing(self) -> Iterator[Statements]:
        with self._told() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield Statements(connection)
            connection.execute("COMMIT")

    @contextlib.contextmanager
    def _told(self) -> Iterator[sqlite3.Connection]:
        """The connection; after any failure but being locked out, a new one is made next time.

        A failed commit is not repeated on the old one: the kernel may have dropped the pages already.
        """
        connection = self._whole()
        try:
            yield connection
        except sqlite3.Error as error:
            raise self._failed(error) from error
        finally:
            if self._connection is connection and connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")

    def _failed(self, error: sqlite3.Error) -> StoreDown:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code not in WAITING:
            self._drop()
        if code in BROKEN and not self._read_only:
            self._move_aside(str(error))
        return StoreDown(f"{self.path}: {error}")

    def _drop(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _whole(self, *, check: bool = False) -> sqlite3.Connection:
        """The connection, made when there is none; a broken file is moved aside first, once."""
        if self._connection is None:
            try:
                self._connection = self._open(check=check)
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in BROKEN or self._read_only:
                    raise StoreDown(f"{self.path}: {error}") from error
                self._move_aside(str(error))
                try:
                    self._connection = self._open(check=False)
                except sqlite3.Error as again:
                    raise StoreDown(f"{self.path}: {again}") from again
        return self._connection

    def _open(self, *, check: bool) -> sqlite3.Connection:
        mode = "ro" if self._read_only else "rwc"
        if not self._read_only:
            with contextlib.suppress(OSError):  # it is there, or SQLite will say why not
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))  # its journals go by its mode
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=self._seconds,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            if not self._read_only:
                journal = "WAL" if wal_is_safe(sqlite3.sqlite_version_info) else "TRUNCATE"
                connection.execute(f"PRAGMA journal_mode={journal}")
                connection.execute("PRAGMA synchronous=FULL")
            if check and self.path.stat().st_size <= CHECK_BYTES:
                verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
                if verdict != "ok":
                    raise broken(verdict)
            migrate(connection, self.path, read_only=self._read_only)
        except BaseException:
            connection.close()
            raise
        return connection

    def _move_aside(self, why: str) -> None:
        """What is broken is kept for people to look at. The journals go with it: they are part of the file."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = self.path.with_name(f"{self.path.name}.broken-{stamp}-{os.urandom(2).hex()}")
        for ending in ("", "-journal", "-wal", "-shm"):
            try:
                self.path.with_name(self.path.name + ending).rename(aside.with_name(aside.name + ending))
            except FileNotFoundError:
                continue
            except OSError as error:  # a disk that damages files is often read-only soon
                raise StoreDown(f"{self.path}: broken ({why}), and cannot be moved aside ({error})") from error
        log.error("the store was broken; it was moved aside and begun anew", extra={"to": str(aside), "why": why})
        self._moved_aside(aside)


def broken(why: str) -> sqlite3.DatabaseError:
    """The error SQLite raises itself when it stumbles over what a check finds."""
    error = sqlite3.DatabaseError(why)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def migrate(connection: sqlite3.Connection, path: Path, *, read_only: bool) -> None:
    """Bring the file to this version. Raises ConfigError for one that is not ours, or of a later version."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if owner != APPLICATION and not empty:
        raise ConfigError(f"{path} is another program's database; name a file of our own")
    if version > len(MIGRATIONS):
        raise ConfigError(f"{path} is of version {version}, this gateway knows {len(MIGRATIONS)}; use a later gateway")
    if version == len(MIGRATIONS):
        return
    if read_only:
        raise ConfigError(f"{path} is of version {version}; a gateway that serves brings it to {len(MIGRATIONS)}")
    connection.execute("BEGIN IMMEDIATE")
    for step in MIGRATIONS[version:]:
        for statement in step:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id={APPLICATION}")
    connection.execute(f"PRAGMA user_version={len(MIGRATIONS)}")
    connection.execute("COMMIT")


class Statements:
    """Statements inside the transaction of a connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, statement: str, values: Values = ()) -> list[Values]:
        return self._connection.execute(statement.replace("%s", "?"), values).fetchall()

    def many(self, statement: str, values: Iterable[Values]) -> None:
        self._connection.executemany(statement.replace("%s", "?"), values)


class OwnerLock:
    """A file beside the store that names who writes to it. The operating system lets go of it when its holder dies."""

    def __init__(self, store: Path) -> None:
        path = store.with_name(f"{store.name}.lock")
        try:
            self._file = path.open("a+")
        except OSError as error:
            raise ConfigError(f"cannot keep a store in {store.parent}: {error.strerror or error}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().strip()
            self._file.close()
            advice = "SQLite has one writer: end that process, serve with one worker, or use store.postgres"
            raise ConfigError(f"{store} is written by another process ({owner or 'unknown'}); {advice}") from None
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same, it only names nobody
            self._file.truncate(0)
            self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}))
            self._file.flush()

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self._file.truncate(0)
        self._file.close()
