"""`make bench`: what one decision costs, side by side with what else there is, in one run.

Every server is asked in turn, round after round, so that a slow minute of the machine slows all of them; medians of the
rounds are told with the least and the largest. All servers share one core, the upstream and the load generator another.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from tests.bench import load, servers
from tests.bench.answers import KINDS, TOKENS, XARGS, body, question
from tests.bench.servers import FEATURES, ROOT, Server

SERVER_CORE, LOAD_CORE = servers.two_cores()
CONNECTIONS = 16
PACED_CONNECTIONS = 64  # for latencies, so that hardly ever a request waits for one
IDLE = 10_000
SHARE = 0.6  # of what a server can do, for latencies
TURN_SECONDS = 1.0  # of latencies
TURNS = 2  # of latencies, for each round of costs
PACE_SECONDS = 0.25  # before each: what the server can do at this moment
REST_SECONDS = 0.004  # of CPU in a fifth of a second: a server that does nothing

Json = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """One server, asked for one kind of answer."""

    server: Server
    kind: str
    told: bytes

    @property
    def name(self) -> str:
        return f"{self.server.name} {self.kind}"


def subjects(ours: Server, others: Sequence[Server], host: str = "localhost") -> list[Subject]:
    made = [Subject(ours, kind, load.request(question("plain", f"auto:{kind}"), host)) for kind in FEATURES]
    for server in others:
        for kind in KINDS:
            if server.name == "litellm" and kind in XARGS:
                continue  # it has no such thing; `plain` is what it is held against
            made.append(Subject(server, kind, load.request(question(kind), host)))
    return made


async def look(subject: Subject) -> None:
    """Raises where a server does not do what it is measured for."""
    [connection] = await load.connect(subject.server.port, 1)
    reply = await connection.ask(subject.told)
    connection.close()
    load.check(reply)
    head, _, told = reply.partition(b"\r\n\r\n")
    text = json.loads(told)["choices"][0]["message"]["content"]
    assert "####" in text, reply[:500]
    if subject.server.name == "gateway":
        assert b"x-route-reason: confident" in head.lower(), head
        assert b"x-route-tier: " + subject.kind.encode() in head.lower(), head


async def costs(asked: Sequence[Subject], rounds: int, seconds: float) -> dict[str, Json]:
    """CPU per request and requests per second at 16 connections."""
    cpu: dict[str, list[float]] = {one.name: [] for one in asked}
    rate: dict[str, list[float]] = {one.name: [] for one in asked}
    count: dict[str, int] = {one.name: 0 for one in asked}
    for turn in range(rounds):
        for one in asked:
            before = one.server.cpu_seconds
            answered, took = await load.closed_loop(one.server.port, one.told, CONNECTIONS, seconds)
            cpu[one.name].append((one.server.cpu_seconds - before) / answered * 1e3)
            rate[one.name].append(answered / took)
            count[one.name] += answered
        print(f"round {turn + 1} of {rounds}, load {os.getloadavg()[0]:.1f}", flush=True)
    return {
        name: {"n": count[name], "rounds": rounds, "cpu_ms": spread(cpu[name]), "per_second": spread(rate[name])}
        for name in cpu
    }


def spread(values: Sequence[float]) -> Json:
    return {"median": statistics.median(values), "least": min(values), "largest": max(values)}


@dataclass
class Seen:
    """Latencies at one rate, turn by turn. taken_seconds: what others had of the cores."""

    turns: list[load.Timed] = field(default_factory=list)
    taken_seconds: float = 0.0
    cpu_seconds: float = 0.0

    async def turn(self, server: Server, told: bytes, per_second: float, seed: int) -> None:
        """One more."""
        connections = await load.warmed(server.port, told, PACED_CONNECTIONS)
        used = server.cpu_seconds
        before = servers.stolen_seconds((SERVER_CORE, LOAD_CORE)) + server.waited_seconds
        self.turns.append(await load.at_rate(connections, told, per_second, TURN_SECONDS, seed))
        self.taken_seconds += servers.stolen_seconds((SERVER_CORE, LOAD_CORE)) + server.waited_seconds - before
        self.cpu_seconds += server.cpu_seconds - used
        for connection in connections:
            connection.close()

    @property
    def all(self) -> list[float]:
        """Of all turns together."""
        return [latency for turn in self.turns for latency in turn.seconds]

    def of_turns_ms(self, at: int) -> list[float]:
        """A quantile of each turn."""
        return [quantile_ms(turn.seconds, at) for turn in self.turns]


def quantile_ms(seconds: Sequence[float], at: int) -> float:
    return 1e3 * float(np.percentile(seconds, at))


async def latencies(one: Subject, bare: Server, upstream: Server, turns: int) -> Json:
    """Through a server, through the bare pass-through and straight to the upstream in turn, all at the same rate: what
    the server adds, and what the least Python proxy on this machine would. The rate is a share of what the server can
    do, looked up anew for each turn: with neighbours a core does twice in one minute what it does in the next.

    The machine is in it, too: one that is slow for a moment, or keeps a core, makes the p99 of all that was asked then.
    So quantiles are those of each turn, as CPU is that of each round; those of all turns together stand beside.
    """
    direct = load.request(question(one.kind), "localhost")
    asked = {
        "through": (one.server, one.told),
        "bare": (bare, direct),
        "straight": (upstream, direct),
    }
    seen = {name: Seen() for name in asked}
    rates = []
    for turn in range(turns):
        answered, took = await load.closed_loop(one.server.port, one.told, CONNECTIONS, PACE_SECONDS)
        rates.append(per_second := SHARE * answered / took)
        for name, (server, told) in asked.items():
            await seen[name].turn(server, told, per_second, seed=turn)
    through, straight = seen["through"], seen["straight"]
    told_of: Json = {
        "per_second": statistics.median(rates),
        "busy_share": through.cpu_seconds / (turns * TURN_SECONDS),
        "n": len(through.all),
        "turns": turns,
        "sent_late": sum(turn.late for turn in through.turns) / len(through.all),
        "taken_share": statistics.mean(of.taken_seconds / (turns * TURN_SECONDS) for of in seen.values()),
    }
    for at in (50, 99):
        for name, of in (("", through), ("bare_", seen["bare"])):
            added = [
                with_it - without for with_it, without in zip(of.of_turns_ms(at), straight.of_turns_ms(at), strict=True)
            ]
            together = quantile_ms(of.all, at) - quantile_ms(straight.all, at)
            told_of[f"{name}p{at}_ms"] = {**spread(added), "together": together}
    return told_of


async def at_rest(server: Server) -> None:
    """Until it has taken, or let go of, all the connections that we have opened or closed: those are not idle yet."""
    used = -1.0
    while server.cpu_seconds - used > REST_SECONDS:
        used = server.cpu_seconds
        await asyncio.sleep(0.2)


async def idle(one: Subject, per_second: float, rounds: int) -> Json:
    """Latency with and without connections that say nothing, as many as the limit on descriptors allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    many = min(IDLE, hard - 500)
    told: Json = {"connections": many, "per_second": per_second}
    before = one.server.memory_mib()
    alone, crowded = Seen(), Seen()
    for lap in range(rounds):
        for turn in range(TURNS):
            await alone.turn(one.server, one.told, per_second, seed=lap * TURNS + turn)
        silent = await load.connect(one.server.port, many)
        await at_rest(one.server)
        for turn in range(TURNS):
            await crowded.turn(one.server, one.told, per_second, seed=lap * TURNS + turn)
        told["memory_mib"] = one.server.memory_mib() - before
        told["still_open"] = sum(not connection._transport.is_closing() for connection in silent)
        for connection in silent:
            connection.close()
        await at_rest(one.server)
    told["cpu_ms"] = {
        name: 1e3 * seen.cpu_seconds / len(seen.all) for name, seen in (("without", alone), ("with", crowded))
    }
    for at in (50, 99):
        told[f"p{at}_ms"] = {
            name: spread(seen.of_turns_ms(at)) for name, seen in (("without", alone), ("with", crowded))
        }
    told["n"] = len(crowded.all)
    return told


@contextlib.contextmanager
def everything(
    peers: Path | None, folder: Path, *, under: Sequence[str] = (), **more: Any
) -> Iterator[tuple[Server, list[Server], Server]]:
    """Ours, the others with the bare one first, and the upstream. under, more: as of servers.gateway; the bare one runs
    under it, too."""
    port = servers.free_port()
    command = [sys.executable, "-m", "tests.bench.upstream", str(port)]
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(servers.running("upstream", command, port, LOAD_CORE, folder / "upstream.log"))
        url = f"http://127.0.0.1:{port}/v1"
        ours = stack.enter_context(servers.gateway(url, SERVER_CORE, folder, under=under, **more))
        bare = servers.uvicorn("pass-through", sys.executable, "passthrough", url, SERVER_CORE, folder, under=under)
        others = [stack.enter_context(bare)]
        if peers is not None:
            python = str(peers / "bin" / "python")
            usual = servers.uvicorn("fastapi+httpx", python, "fastapi_httpx", url, SERVER_CORE, folder)
            others.append(stack.enter_context(usual))
            if (peers / "bin" / "litellm").exists():
                proxy = servers.litellm(peers / "bin" / "litellm", url, SERVER_CORE, folder)
                others.append(stack.enter_context(proxy))
        yield ours, others, upstream


def machine(peers: Path | None) -> Json:
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    names = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "aiohttp", "msgspec", "numpy", "pydantic")
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    told: Json = {
        "cpu": model.partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }
    if peers is not None:
        script = "import importlib.metadata as m; print(*(m.version(n) for n in ('litellm', 'fastapi', 'httpx')))"
        found = subprocess.run([str(peers / "bin" / "python"), "-c", script], capture_output=True, text=True)
        told["peers"] = dict(zip(("litellm", "fastapi", "httpx"), found.stdout.split(), strict=False))
    return told


async def measure(args: argparse.Namespace, folder: Path) -> Json:
    peers = Path(args.peers) if args.peers else None
    with everything(peers, folder) as (ours, others, upstream):
        asked = subjects(ours, others)
        if args.only:
            asked = [one for one in asked if one.name in args.only]
        for one in asked:
            await look(one)
            await load.closed_loop(one.server.port, one.told, CONNECTIONS, args.seconds / 2)  # warm
        found = await costs(asked, args.rounds, args.seconds)
        for one in asked:
            if one.server.name == "gateway" or one.kind == "plain":
                found[one.name]["added"] = await latencies(one, others[0], upstream, TURNS * args.rounds)
        told = {
            "command": f"python -m tests.bench.bench {' '.join(sys.argv[1:])}",
            "machine": machine(peers),
            "load": {"average_before": args.load_before, "average_after": os.getloadavg()[0]},
            "tokens": TOKENS,
            "bytes": {kind: len(body(kind, np.random.default_rng(7))) for kind in KINDS},
            "connections": CONNECTIONS,
            "figures": found,
            "servers": {
                one.name: {"ready_seconds": one.ready_seconds, "resident_mib": one.memory_mib()}
                for one in (ours, *others)
            },
        }
        for one in asked:
            if one.name == "gateway compact":
                rate = SHARE / 2 * found[one.name]["per_second"]["median"]
                told["idle"] = await idle(one, rate, args.rounds)
        return told


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--peers", help="a virtual environment with LiteLLM's proxy, FastAPI and httpx in it")
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--seconds", type=float, default=2.0, help="of each round of costs")
    cli.add_argument("--only", nargs="+", help="names of subjects, as `gateway compact`")
    cli.add_argument("--out", type=Path, help="folder for bench.json and bench.md")
    args = cli.parse_args()
    args.load_before = os.getloadavg()[0]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # inherited by the gateway, for idle connections
    os.sched_setaffinity(0, {LOAD_CORE})
    gc.disable()  # a look through our own ten thousand connections would be a pause that no server made
    began = time.monotonic()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)  # now, and not when all has been measured
    with tempfile.TemporaryDirectory() as folder:
        found = uvloop.run(measure(args, Path(folder)))
    found["seconds"] = round(time.monotonic() - began)
    from tests.bench.table import markdown

    print(markdown(found))
    if args.out:
        (args.out / "bench.json").write_text(json.dumps(rounded(found), indent=1) + "\n")
        (args.out / "bench.md").write_text(markdown(found))


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
