"""Start processes, wait until they answer, start the dead again, stop all in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec

from gateway.errors import ConfigError, GatewayError
from gateway.fleet import keeper

LOOK_SECONDS = 0.5
ASK_SECONDS = 5.0
TELL_SECONDS = 10.0  # between two lines of progress
LAST_LINES = 20
LAST_BYTES = 16_384
STEADY_SECONDS = 60.0  # a server that ran for so long starts again without the delay that its last deaths earned
ATTEMPTS = 3  # before anything was ready: a wrong flag is wrong each time
CLEAN_SECONDS = 10.0  # from SIGKILL until the kernel has cleaned up, GPU memory included


@dataclass(frozen=True, slots=True)
class Job:
    """A process that is kept running. log: without one its output is ours.

    host, port: where it will listen; port 0 is not asked.  path: what answers with 200 when it is ready.
    lists: a name that /v1/models must then list.  key: for asking.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path | None
    host: str
    port: int
    path: str
    lists: str | None
    key: str | None
    start_seconds: float
    stop_seconds: float


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds until the first restart, doubled with each death in a row, up to a most."""

    first: float
    most: float

    def seconds(self, deaths: int) -> float:
        return min(self.most, self.first * 2.0 ** min(deaths - 1, 30))


Note = Callable[[str, str, str], None]
"""Takes a job's name, what happened (starting, waiting, ready, died, stopping, stopped) and a detail."""


class StartFailed(GatewayError):
    """A process did not become ready. lines: the last of its log."""

    def __init__(self, name: str, why: str, lines: Sequence[str], log: Path | None) -> None:
        said = "".join(f"\n  | {line}" for line in lines)
        super().__init__(f"{name} {why}" + (f"; the end of {log}:{said}" if log else ""))
        self.name, self.why, self.lines = name, why, tuple(lines)


class Kept:
    """One job and the process that runs it now."""

    def __init__(self, job: Job, backoff: Backoff, note: Note, session: aiohttp.ClientSession) -> None:
        self.job, self.ready = job, asyncio.Event()
        self._backoff, self._note, self._session = backoff, note, session
        self._process: asyncio.subprocess.Process | None = None
        self._said_from = size(job.log)  # what the log held before is of another run
        self._stopping = False

    async def run(self) -> None:
        """Until stopped. Raises StartFailed when it does not become ready at first, ConfigError for a port in use."""
        deaths, once_ready, now = 0, False, asyncio.get_running_loop().time
        while not self._stopping:
            began = now()
            try:
                check_port(self.job)
            except ConfigError as error:
                if not once_ready:
                    raise
                deaths += 1  # somebody took its port while it was down; the others serve on
                await self._pause(deaths, str(error))
                continue
            self._process = await spawn(self.job)
            self._note(self.job.name, "starting", f"pid {self._process.pid}")
            why = await self._until_ready(self._process)
            if why is None:
                once_ready = True
                self._note(self.job.name, "ready", f"after {now() - began:.0f} s")
                self.ready.set()
                why = f"ended with {await self._process.wait()}"
                self.ready.clear()
            if self._stopping:
                return
            late = self._process.returncode is None
            await end(self._process, self.job)
            deaths = 1 if now() - began > STEADY_SECONDS and once_ready and not late else deaths + 1
            if not once_ready and (late or deaths >= ATTEMPTS):
                raise StartFailed(self.job.name, why, tail(self.job.log, self._said_from), self.job.log)
            await self._pause(deaths, why)

    async def _pause(self, deaths: int, why: str) -> None:
        seconds = self._backoff.seconds(deaths)
        self._note(self.job.name, "died", f"{why}; starting it again in {seconds:g} s")
        await asyncio.sleep(seconds)

    async def _until_ready(self, process: asyncio.subprocess.Process) -> str | None:
        """Nothing when it is ready, otherwise why not."""
        now = asyncio.get_running_loop().time
        began = told = now()
        ended = asyncio.ensure_future(process.wait())
        try:
            while True:
                if self.job.port == 0 or await self._answers():
                    return None
                if ended.done():
                    return f"ended with {ended.result()}"
                if now() - began > self.job.start_seconds:
                    return f"was not ready after {self.job.start_seconds:g} s"
                if now() - told > TELL_SECONDS:
                    told = now()
                    last = tail(self.job.log, self._said_from)[-1:]
                    self._note(
                        self.job.name, "waiting", f"{now() - began:.0f} s" + "".join(f": {line}" for line in last)
                    )
                await asyncio.wait({ended}, timeout=LOOK_SECONDS)
        finally:
            ended.cancel()

    async def _answers(self) -> bool:
        """Whether it is ready, and the one that we wait for."""
        base = f"http://{reached(self.job.host)}:{self.job.port}"
        headers = {"Authorization": f"Bearer {self.job.key}"} if self.job.key else {}
        try:
            async with self._session.get(base + self.job.path) as reply:
                if reply.status != 200:
                    return False
            if self.job.lists is None:
                return True
            async with self._session.get(f"{base}/v1/models", headers=headers) as reply:
                listed = msgspec.json.decode(await reply.read()) if reply.status == 200 else {}
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
            return False
        return any(model.get("id") == self.job.lists for model in listed.get("data", ()))

    def signal(self, number: int) -> None:
        """To the process, when there is one."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self) -> None:
        """Ask it to end, wait for what it still answers, and kill what is left."""
        self._stopping = True
        if self._process is None or self._process.returncode is not None:
            return
        self._note(self.job.name, "stopping", f"within {self.job.stop_seconds:g} s")
        await end(self._process, self.job)
        self._note(self.job.name, "stopped", "")


async def run(
    servers: Sequence[Job],
    gateway: Job | None,
    *,
    backoff: Backoff,
    note: Note,
    stop: asyncio.Event,
    hangup: asyncio.Event,
) -> None:
    """Until `stop`: all servers, then the gateway; and back in this order. hangup: passed on to the gateway.

    Raises StartFailed, or ConfigError, once everything that was started has been stopped.
    """
    for job in [*servers, *([gateway] if gateway else [])]:
        check_port(job)
    timeout = aiohttp.ClientTimeout(total=ASK_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
        kept = [Kept(job, backoff, note, session) for job in servers]
        front = Kept(gateway, backoff, note, session) if gateway else None
        try:
            async with asyncio.TaskGroup() as group:
                watches = [group.create_task(one.run()) for one in kept]
                starting = group.create_task(start_front(kept, front, group, watches))
                passing = group.create_task(pass_on(hangup, front))
                await stop.wait()
                for task in (starting, passing):
                    task.cancel()
                if front is not None:
                    await front.stop()
                await asyncio.gather(*(one.stop() for one in kept))
                for task in watches:
                    task.cancel()
        except ExceptionGroup as several:
            first = several.exceptions[0]
            if isinstance(first, GatewayError):
                raise first from None
            raise
        finally:
            if front is not None:
                await front.stop()
            await asyncio.gather(*(one.stop() for one in kept))


async def start_front(
    kept: Sequence[Kept], front: Kept | None, group: asyncio.TaskGroup, watches: list[asyncio.Task[None]]
) -> None:
    """The gateway, once every server is ready."""
    for one in kept:
        await one.ready.wait()
    if front is not None:
        watches.append(group.create_task(front.run()))


async def pass_on(hangup: asyncio.Event, front: Kept | None) -> None:
    """For ever: SIGHUP makes the gateway read its file again."""
    while True:
        await hangup.wait()
        hangup.clear()
        if front is not None:
            front.signal(signal.SIGHUP)


async def spawn(job: Job) -> asyncio.subprocess.Process:
    """The job under a keeper, whose standard input nobody but us holds open."""
    kept = [sys.executable, "-I", "-S", str(Path(keeper.__file__)), f"{job.stop_seconds:g}", *job.argv]
    log = job.log.open("ab") if job.log else None
    try:
        return await asyncio.create_subprocess_exec(
            *kept, stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, env=dict(job.env), start_new_session=True
        )
    finally:
        if log is not None:
            log.close()


async def end(process: asyncio.subprocess.Process, job: Job) -> None:
    """SIGTERM, then the lifeline is cut, which kills; returns when it is gone."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(job.stop_seconds + CLEAN_SECONDS):
            await process.wait()
    except TimeoutError:
        assert process.stdin is not None, "made with a pipe"
        process.stdin.close()
        await process.wait()


def check_port(job: Job) -> None:
    """Raises ConfigError when somebody else listens where the job is to."""
    if job.port == 0:
        return
    try:
        family, kind, _, _, address = socket.getaddrinfo(job.host, job.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        told = f"{job.name} cannot listen on {job.host}:{job.port} ({error.strerror or error})"
        raise ConfigError(f"{told}; stop what does, or give the tier another port in its engine's url") from None


def reached(host: str) -> str:
    """Where a listener is asked from this machine."""
    plain = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared with, not bound to
    return f"[{plain}]" if ":" in plain else plain


def size(log: Path | None) -> int:
    """Bytes in a log so far."""
    return log.stat().st_size if log is not None and log.exists() else 0


def tail(log: Path | None, start: int = 0) -> list[str]:
    """The last lines of a log, none from before the byte `start`."""
    if log is None or not log.exists():
        return []
    with log.open("rb") as opened:
        opened.seek(max(start, log.stat().st_size - LAST_BYTES))
        lines = opened.read().decode("utf-8", "replace").splitlines()
    return [line.rstrip()[:500] for line in lines if line.strip()][-LAST_LINES:]
