"""What is being served now. A request keeps the snapshot it began with; a reload changes what the next one gets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self

from gateway.config import Config
from gateway.errors import ConfigError
from gateway.http import hosts
from gateway.http.auth import Keyring
from gateway.http.quota import dearest
from gateway.http.readiness import Readiness
from gateway.ids import Seal
from gateway.resilience.ledger import Ledger
from gateway.snapshot import Snapshot, healed, open_cascade

log = logging.getLogger(__name__)

HEAL_SECONDS = 5.0  # between looks at servers that were away when their calibrators were to be held against them


@dataclass(frozen=True, slots=True)
class Lasting:
    """What outlives a reload. spare: the secret for decision ids where none is configured."""

    spare: bytes
    ledger: Ledger


class Generation:
    """One configuration in service: its snapshot, its keys, and how many requests hold it. seal: of decision ids."""

    def __init__(self, snapshot: Snapshot, keyring: Keyring, seal: Seal, stack: AsyncExitStack) -> None:
        self.snapshot, self.keyring, self.seal = snapshot, keyring, seal
        config = snapshot.config
        self.dearest = dearest(tuple(snapshot.tiers.values()))
        self.kinds = {entry.name: entry.engine.kind for entry in config.tiers}
        self.admins = Keyring.of_admins(config)
        self.hosts = hosts.allowed(config.server.host, config.server.hosts)
        self.admin_hosts = hosts.allowed(config.admin.host, config.admin.hosts) if config.admin else None
        self._stack, self._users = stack, 0
        self._unused = asyncio.Event()
        self._unused.set()

    def __enter__(self) -> Self:
        """While this lasts, its engines stay open."""
        self._users += 1
        self._unused.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users:
            self._unused.set()

    async def close(self) -> None:
        """Once nobody holds it any more."""
        await self._unused.wait()
        await self._stack.aclose()


async def open_generation(config: Config, spare: bytes, before: Snapshot | None = None) -> Generation:
    """Opened and ready to be asked; engines that `before` has already are shared with it. Raises ConfigError.

    spare: the secret for decision ids where none is configured.
    """
    async with AsyncExitStack() as stack:
        keyring = Keyring.of(config.keys)
        Keyring.of_admins(config)  # a key that is not there is told before anything is opened
        seal = config.ids.seal(spare)
        snapshot = await stack.enter_async_context(open_cascade(config, before))
        return Generation(snapshot, keyring, seal, stack.pop_all())


async def as_it_is(snapshot: Snapshot) -> Snapshot:
    return snapshot


class Live:
    """The current generation, and whether the process still takes requests.

    read: the configuration as it is written now.
    Set by whoever serves, before `begin`:
    amended: makes of a snapshot what may come into service, with what has been found out since its configuration was
    written; the very same one where that is nothing.
    dress: gives a snapshot the calibrators that rollouts have come to; never raises.
    changed: called with every snapshot that comes into service.
    reloaded: called with every configuration that a reload has brought into service.
    """

    def __init__(self, first: Generation, read: Callable[[], Config], lasting: Lasting) -> None:
        self._now, self._read, self.lasting = first, read, lasting
        self.changed: Callable[[Snapshot], object] = lambda _: None
        self.reloaded: Callable[[Config], object] = lambda _: None
        self.amended: Callable[[Snapshot], Snapshot] = lambda snapshot: snapshot
        self.dress: Callable[[Snapshot], Awaitable[Snapshot]] = as_it_is
        self._lock = asyncio.Lock()
        self.readiness = Readiness(lambda: [*self.snapshot.tiers.values()])
        self.draining = False  # no new requests; set once, by whoever ends the process

    def begin(self) -> None:
        """Bring the first snapshot into service."""
        self._now.snapshot = self.amended(self.snapshot)
        self.changed(self.snapshot)

    @property
    def snapshot(self) -> Snapshot:
        return self._now.snapshot

    @property
    def keyring(self) -> Keyring:
        return self._now.keyring

    @property
    def admins(self) -> Keyring:
        return self._now.admins

    @property
    def hosts(self) -> frozenset[str] | None:
        return self._now.hosts

    @property
    def admin_hosts(self) -> frozenset[str] | None:
        return self._now.admin_hosts

    def held(self) -> Generation:
        """The current generation, to be entered for the length of one request."""
        return self._now

    async def reload(self, group: asyncio.TaskGroup) -> Config:
        """Read the file again and serve by it. Raises ConfigError, and then everything is as it was.

        group: closes the old generation when its last request has ended.
        """
        async with self._lock:
            config = self._read()
            check_listeners(self.snapshot.config, config)
            following = await open_generation(config, self.lasting.spare, self.snapshot)
            following.snapshot = self.amended(await self.dress(following.snapshot))
            old, self._now = self._now, following
            self.changed(self.snapshot)
            group.create_task(old.close())
            self.reloaded(config)
        log.warning("configuration reloaded", extra={"withheld": dict(self.snapshot.withheld)})
        return config

    def amend(self) -> None:
        """Something has been found out about what is in service."""
        self._enter(self._now, self.snapshot)

    def _enter(self, now: Generation, snapshot: Snapshot) -> None:
        better = self.amended(snapshot)
        if better is not now.snapshot:
            now.snapshot = better
            self.changed(better)

    async def heal(self) -> None:
        """For ever: give calibrators that were withheld because a server was away another chance."""
        while True:
            await asyncio.sleep(HEAL_SECONDS)
            async with self._lock:
                now = self._now
                better = await healed(now.snapshot) if now.snapshot.away else now.snapshot
                self._enter(now, better if better is now.snapshot else await self.dress(better))

    async def redress(self) -> None:
        """Serve by what rollouts have come to now. Requests that have begun keep what they began with."""
        async with self._lock:
            now = self._now
            self._enter(now, await self.dress(now.snapshot))

    async def close(self) -> None:
        await self._now.close()


def check_listeners(now: Config, then: Config) -> None:
    """Sockets are bound once. Raises ConfigError for a change that only a restart can bring about."""
    fixed = ("host", "port", "workers", "receive_seconds", "max_body_mib", "grace_seconds", "cors_origins")
    changed = [f"server.{name}" for name in fixed if getattr(now.server, name) != getattr(then.server, name)]
    if (now.admin and now.admin.address) != (then.admin and then.admin.address):
        changed.append("admin")
    if now.store != then.store:
        changed.append("store")
    if now.tracing != then.tracing:
        changed.append("tracing")
    if (now.rollout and now.rollout.folder) != (then.rollout and then.rollout.folder):
        changed.append("rollout.folder")
    if now.keys.ledger != then.keys.ledger:
        changed.append("keys.ledger")
    if changed:
        raise ConfigError(f"{', '.join(changed)}: takes a restart to change; nothing was reloaded")
