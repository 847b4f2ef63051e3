"""How the gateway scales on cores: `python -m tests.bench.workers 1 2`.

Answers with 20 candidates, which cost the gateway ten times what they cost upstream and load generator, so that these
can share the cores with it: nothing is pinned. Each count of workers is asked in turn, round after round. Where others
use the cores, too, requests per second say what those left over; requests per core and second do not.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import uvloop

from tests.bench import load, servers
from tests.bench.answers import question
from tests.bench.servers import Server

KIND = "top-20"
CONNECTIONS = 32  # the kernel deals them out by hash: with few, one worker may get none


async def measure(counts: list[int], rounds: int, seconds: float, folder: Path) -> list[dict[str, object]]:
    with contextlib.ExitStack() as stack:
        port = servers.free_port()
        command = [sys.executable, "-m", "tests.bench.upstream", str(port)]
        upstream = stack.enter_context(servers.running("upstream", command, port, None, folder / "upstream.log"))
        running: dict[int, Server] = {}
        for count in counts:
            place = folder / str(count)
            place.mkdir()
            many = {
                "server": {"workers": count},
                "admin": {"port": servers.free_port()},
                "keys": {"admins": [{"name": "bench", "sha256": "0" * 64}]},
            }
            running[count] = stack.enter_context(servers.gateway(f"http://127.0.0.1:{port}/v1", None, place, **many))
        told = load.request(question("plain", f"auto:{KIND}"), "localhost")
        rates: dict[int, list[float]] = {count: [] for count in counts}
        used: dict[int, list[float]] = {count: [] for count in counts}
        others: dict[int, list[float]] = {count: [] for count in counts}
        for count in counts:
            await load.closed_loop(running[count].port, told, CONNECTIONS, seconds / 2)  # warm
        cores = range(os.cpu_count() or 1)
        for _ in range(rounds):
            for count, server in running.items():
                cpu, beside = server.cpu_seconds, upstream.cpu_seconds + sum(os.times()[:2])
                stolen = servers.stolen_seconds(cores)
                answered, took = await load.closed_loop(server.port, told, CONNECTIONS, seconds)
                rates[count].append(answered / took)
                used[count].append((server.cpu_seconds - cpu) / took)
                mine = upstream.cpu_seconds + sum(os.times()[:2]) - beside
                others[count].append((servers.stolen_seconds(cores) - stolen + mine) / took)
        return [
            {
                "workers": count,
                "per_second": statistics.median(rates[count]),
                "least": min(rates[count]),
                "largest": max(rates[count]),
                "cores_used": statistics.median(used[count]),
                "per_core": sum(rates[count]) / sum(used[count]),
                "cores_taken": statistics.median(others[count]),
            }
            for count in counts
        ]


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("workers", type=int, nargs="+", help="how many, as `1 2`")
    cli.add_argument("--rounds", type=int, default=8)
    cli.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    args = cli.parse_args()
    gc.disable()
    with tempfile.TemporaryDirectory() as folder:
        rows = uvloop.run(measure(args.workers, args.rounds, args.seconds, Path(folder)))
    print(f"{KIND}, {CONNECTIONS} connections, {args.rounds} rounds, {os.cpu_count()} cores")
    print("| workers | requests/s | cores they had | requests per core and second | cores of the rest |")
    print("| --: | --: | --: | --: | --: |")
    for row in rows:
        print(
            f"| {row['workers']} | {row['per_second']:.0f} [{row['least']:.0f}, {row['largest']:.0f}] | "
            f"{row['cores_used']:.2f} | {row['per_core']:.0f} | {row['cores_taken']:.2f} |"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
