"""Stores to test with: a SQLite file, and a PostgreSQL server of our own in a temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.store.base import Store
from gateway.store.sqlite import Sqlite
from tests.faults.gateway import free_port

SERVER_SECONDS = "60"


@dataclass
class Server:
    """A PostgreSQL server that belongs to these tests."""

    tools: Path
    data: Path
    port: int
    user: str | None

    @property
    def address(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=tester dbname=postgres"

    def control(self, *words: str) -> None:
        command = [str(self.tools / "pg_ctl"), "-D", str(self.data), "-w", "-t", SERVER_SECONDS, *words]
        subprocess.run(command, check=True, user=self.user, cwd=self.data, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.data}"
        self.control("-l", str(self.data / "log"), "-o", options, "start")

    def stop(self) -> None:
        """At once, as if it had crashed."""
        self.control("-m", "immediate", "stop")

    def processes(self) -> list[int]:
        """The server's own, the first of them its parent."""
        first = int((self.data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]


def tools() -> Path | None:
    """The folder of initdb; Debian keeps it off the path."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((place for place in reversed(places) if (place / "initdb").exists()), None)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Skipped where there is no PostgreSQL, unless one was promised (CI): then it is a failure."""
    where = tools()
    if where is None:
        assert not os.environ.get("CI"), "CI has no PostgreSQL: .ci/run is to install it"
        pytest.skip("no PostgreSQL here; apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own folders are shut to other users
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    if user is not None:
        shutil.chown(folder, user)
    made = Server(where, folder / "data", free_port(), user)
    command = [str(where / "initdb"), "-D", str(made.data), "-U", "tester", "--auth=trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


Open = Callable[[], Store]


@pytest.fixture(params=["sqlite", "postgres"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same, at first empty store again and again; all are closed at the end."""
    made: list[Store] = []
    if request.param == "sqlite":

        def opening() -> Store:
            for one in made:
                one.close()
            return Sqlite(tmp_path / "store.db")
    else:
        from gateway.store.postgres import Postgres

        address = emptied(request.getfixturevalue("server"))

        def opening() -> Store:
            return Postgres(address)

    def remembered() -> Store:
        made.append(opening())
        return made[-1]

    yield remembered
    for one in made:
        one.close()


def emptied(server: Server) -> str:
    """The address of a database in which no gateway has ever been."""
    import psycopg

    with psycopg.connect(server.address, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return server.address


@pytest.fixture
def store(opened: Open) -> Store:
    return opened()
