"""`confgate up`: the model servers of a configuration and the gateway before them: planned, started, kept, stopped."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import gateway
from calibrators import artifact as artifacts
from gateway import confidence
from gateway.config import Config, TierEntry
from gateway.engines import local, openai_http
from gateway.errors import ConfigError
from gateway.fleet import command, gpus, memory, shapes, supervise
from gateway.fleet.command import Server
from gateway.fleet.memory import GIB
from gateway.fleet.plan import Plan, Wish, aligned, gib
from gateway.fleet.plan import plan as plan_servers
from gateway.fleet.settings import Fleet
from gateway.fleet.supervise import Backoff, Job, Note

NEARBY = ("127.0.0.1", "localhost", "::1", "0.0.0.0", "::")  # noqa: S104  compared with, not bound to
FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
PROCESS_BYTES = int(1.5 * GIB)  # Python and torch with its libraries, once
PROCESSOR = "gateway.vllm_plugin.processor:ConfidenceProcessor"
GATEWAY_KILL_SECONDS = 10.0  # beyond its own grace, and what it takes to kill a worker that hangs

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Launch:
    """What `up` would do. plan: absent when no tier has a server of its own.  in_process: rows about local tiers."""

    plan: Plan | None
    servers: tuple[Server, ...]
    in_process: tuple[Row, ...]

    def told(self) -> dict[str, Any]:
        """For JSON and for tables."""
        return {
            "servers": self.plan.rows() if self.plan else [],
            "gpus": self.plan.gpu_rows() if self.plan else [],
            "in_process": list(self.in_process),
            "commands": [command.shown(server) for server in self.servers],
        }


def plan(config: Config, *, dry: bool, logs: Path, environ: Mapping[str, str] = os.environ) -> Launch:
    """Where each tier goes and how its server is started. dry: plan for the GPUs that the file lists, if it does.
    logs: the folder that `launch` will be given.

    Raises ConfigError, Unfit among them.
    """
    in_process = tuple(host_rows(config, environ))
    wanted = list(wanted_servers(config))
    if not wanted:
        if not in_process:
            raise ConfigError("no tier says how it is served; give each one that `up` is to start a serve: section")
        return Launch(None, (), in_process)
    for one in wanted:
        check_url(one.name, one.url)
    wishes = [wish(one.name, one.entry, environ) for one in wanted]
    present = [] if dry and config.fleet.gpus else gpus.there_are(environ)
    devices = gpus.to_plan_for(config.fleet, present)
    found = plan_servers(wishes, devices, headroom=config.fleet.headroom)
    servers = [
        command.server(
            placed,
            config.fleet,
            url=one.url,
            served_as=one.engine.model,
            api_key=one.engine.api_key,
            top_k=top_k(one.entry),
            plugin=str(packages(logs)) if placed.wish.plugin else None,
        )
        for one, placed in zip(wanted, found.servers, strict=True)
    ]
    check_addresses(servers, config, elsewhere=dry)
    return Launch(found, tuple(servers), in_process)


class Wanted(NamedTuple):
    """One server of a tier."""

    name: str
    entry: TierEntry
    engine: openai_http.Options
    url: str


def wanted_servers(config: Config) -> Iterator[Wanted]:
    """One for each url of each tier that is to be served; of several they are numbered."""
    for entry in config.tiers:
        if entry.serve is None or not isinstance(entry.engine, openai_http.Options):
            continue
        urls = entry.engine.urls or ((entry.engine.url,) if entry.engine.url else ())
        for number, url in enumerate(urls, 1):
            yield Wanted(entry.name if len(urls) == 1 else f"{entry.name}#{number}", entry, entry.engine, url)


def wish(name: str, entry: TierEntry, environ: Mapping[str, str]) -> Wish:
    """What a tier wants, with its model's shape. name: the server's. Raises ConfigError that names the tier."""
    assert entry.serve is not None, "only such entries are planned"
    serve = entry.serve
    try:
        shape = shapes.read(serve.model, revision=serve.revision, config=serve.config, environ=environ)
        memory.need(serve, shape)
    except ConfigError as error:
        raise ConfigError(f"tier {entry.name}: {error}") from None
    return Wish(name, serve, shape, wants_plugin(entry))


def check_url(tier: str, url: str) -> None:
    """Raises ConfigError for a url at which no server that we start would answer."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.path.rstrip("/") != "/v1":
        raise ConfigError(
            f"tier {tier}: its engine's url is {url}; the server that `up` starts speaks plain http and answers under "
            f"/v1: write http://{parts.netloc}/v1, or leave serve: out for a server that runs elsewhere"
        )


def check_program(fleet: Fleet, environ: Mapping[str, str]) -> None:
    """Raises ConfigError when the program that serves is not there: trying again would not bring it."""
    path = (dict(environ) | fleet.env).get("PATH")
    if shutil.which(fleet.command[0], path=path) is None:
        raise ConfigError(
            f"there is no program {fleet.command[0]!r} to serve with; install vLLM 0.22 or newer in an environment of "
            "its own, and say where it is: fleet: {command: [/opt/vllm/bin/vllm, serve]}"
        )


def check_addresses(servers: Sequence[Server], config: Config, *, elsewhere: bool) -> None:
    """Raises ConfigError for two servers in one place, or one that could not be started here.

    elsewhere: they are not to be started here, only planned.
    """
    ours = {"gateway": config.server.port, "gateway's admin": config.admin.port if config.admin else 0}
    taken = {("here", port): name for name, port in ours.items() if port}
    for server in servers:
        if server.host not in NEARBY and not elsewhere:
            raise ConfigError(
                f"tier {server.tier}: its engine's url is on {server.host}; `up` starts servers on this machine: "
                "write 127.0.0.1, or leave serve: out for a server that runs elsewhere"
            )
        place = ("here" if server.host in NEARBY else server.host, server.port)
        if place in taken:
            told = f"the {taken[place]} and the tier {server.tier} have the same port {server.port}"
            raise ConfigError(f"{told}; give one of them another")
        taken[place] = f"tier {server.tier}"


def top_k(entry: TierEntry) -> int:
    """Log-probs per token that the tier's calibrator needs; none when the artefact is not there yet."""
    if entry.calibrator is None or not entry.calibrator.exists():
        return 0
    try:
        return confidence.needs(artifacts.load(entry.calibrator).features).top_k
    except artifacts.ArtifactError as error:
        raise ConfigError(f"tier {entry.name}: {error}") from None


def wants_plugin(entry: TierEntry) -> bool:
    """Whether the tier's confidence is to be computed inside vLLM."""
    return isinstance(entry.engine, openai_http.Options) and entry.engine.confidence == "engine"


def packages(logs: Path) -> Path:
    """Where vLLM's Python finds our packages; made by `link_packages`."""
    return logs.resolve() / "python"


def link_packages(folder: Path) -> None:
    """Nothing but our plugin, with its entry point: the servers' Python must not see the rest of our environment."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "gateway"
    if link.is_symlink():
        link.unlink()
    link.symlink_to(Path(gateway.__file__).parent, target_is_directory=True)
    told = folder / "confidence_gateway-0.dist-info"  # the name we are installed by, so that the two are seen as one
    told.mkdir(exist_ok=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: confidence-gateway\nVersion: 0\n", encoding="utf-8")
    (told / "entry_points.txt").write_text(f"[vllm.logits_processors]\nconfidence = {PROCESSOR}\n", encoding="utf-8")


def host_rows(config: Config, environ: Mapping[str, str]) -> list[Row]:
    """Memory of models in this process, GiB. Raises ConfigError when they do not fit the machine's."""
    rows: list[Row] = []
    for entry in config.tiers:
        if entry.serve is None or not isinstance(entry.engine, local.Options):
            continue
        shape, width = wish(entry.name, entry, environ).shape, FLOAT_BYTES[entry.engine.dtype]
        weights = shape.parameters * width
        cache = memory.kv_tokens(entry.serve) * 2 * shape.layers * shape.kv_heads * shape.head_dim * width
        told = {"weights_gib": gib(weights), "kv_gib": gib(cache), "total_gib": gib(weights + cache)}
        rows.append({"tier": entry.name, **told})
    if rows:
        total = sum(row["total_gib"] for row in rows) + gib(PROCESS_BYTES)
        there_is = config.fleet.host_memory_gib or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
        room = there_is * (1 - config.fleet.headroom)
        if total > room:
            raise ConfigError(
                f"the models in this process do not fit its memory\n{aligned(rows)}\n{total:.2f} GiB with Python and "
                f"torch, {room:.2f} GiB of {there_is:.2f} may be used; what helps: dtype: bfloat16, a shorter context, "
                "less concurrency, fewer tiers"
            )
    return rows


def launch(file: Path, config: Config, launched: Launch, *, logs: Path, with_gateway: bool, note: Note) -> None:
    """Start everything, and keep it running until SIGTERM or SIGINT. Raises StartFailed or ConfigError."""
    if launched.servers:
        check_program(config.fleet, os.environ)
    logs.mkdir(parents=True, exist_ok=True)
    link_packages(packages(logs))
    jobs = [job(server, config, logs, os.environ) for server in launched.servers]
    front = gateway_job(file, config) if with_gateway else None
    if not jobs and front is None:
        raise ConfigError("nothing to start: no tier has a server of its own, and --no-gateway was given")
    backoff = Backoff(config.fleet.restart_seconds, config.fleet.restart_max_seconds)
    with asyncio.Runner() as runner:
        runner.run(until_told(jobs, front, backoff, note))


async def until_told(jobs: Sequence[Job], front: Job | None, backoff: Backoff, note: Note) -> None:
    """Run until a signal says stop."""
    loop, stop, hangup = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    for number, event in ((signal.SIGTERM, stop), (signal.SIGINT, stop), (signal.SIGHUP, hangup)):
        loop.add_signal_handler(number, event.set)
    await supervise.run(jobs, front, backoff=backoff, note=note, stop=stop, hangup=hangup)


def job(server: Server, config: Config, logs: Path, environ: Mapping[str, str]) -> Job:
    """A server as a process to be kept. Raises ConfigError when a secret is missing."""
    try:
        env = command.environment(server, environ)
    except ConfigError as error:
        raise ConfigError(f"tier {server.tier}: {error}") from None
    return Job(
        name=server.tier,
        argv=server.argv,
        env=env,
        log=logs / f"{server.tier.replace('/', '_')}.log",
        host=server.host,
        port=server.port,
        path="/health",
        lists=server.served_as,
        key=env.get("VLLM_API_KEY"),
        start_seconds=config.fleet.start_seconds,
        stop_seconds=config.fleet.stop_seconds + config.fleet.kill_seconds,
    )


def gateway_job(file: Path, config: Config) -> Job:
    """The gateway itself, as `confgate serve` runs it; its output is ours."""
    server = config.server
    return Job(
        name="gateway",
        argv=(sys.executable, "-m", "gateway", "serve", "--config", str(file)),
        env=os.environ,
        log=None,
        host=server.host,
        port=server.port,
        path="/health",
        lists=None,
        key=None,
        start_seconds=config.fleet.start_seconds + server.start_seconds,
        stop_seconds=server.grace_seconds + GATEWAY_KILL_SECONDS,
    )


def note_line(name: str, event: str, detail: str) -> None:
    """One line of progress for people."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {name}: {event} {detail}".rstrip() + "\n")
    sys.stderr.flush()


def note_json(name: str, event: str, detail: str) -> None:
    """The same for programs, on standard output after the plan."""
    sys.stdout.write(json.dumps({"time": time.time(), "name": name, "event": event, "detail": detail}) + "\n")
    sys.stdout.flush()
