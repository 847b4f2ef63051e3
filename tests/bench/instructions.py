"""How many instructions a decision takes, which is the same whatever else the machine does.

    python -m tests.bench.instructions --out docs/results

Seconds of one commit differ by a factor of two on a machine that is shared; instructions by a hundredth. They are not
seconds: an instruction that waits for memory counts as one. Callgrind (Debian's package `valgrind`) counts all of a
process while it answers, and nothing else; monitors rest. The bare pass-through is counted beside the gateway.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uvloop

from tests.bench import load
from tests.bench.bench import CONNECTIONS, LOAD_CORE, Json, Subject, everything, look, machine, subjects
from tests.bench.servers import FEATURES, Server

ROUNDS = 3


def callgrind(folder: Path) -> list[str]:
    """Nothing is counted until it is told to."""
    out = f"--callgrind-out-file={folder / 'counted.%p'}"
    return ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--quiet", out]


def control(server: Server, wish: str) -> None:
    told = ["callgrind_control", wish, str(server.process.pid)]
    subprocess.run(told, check=True, capture_output=True)


def counted(server: Server, folder: Path) -> int:
    """Instructions since the last look, in the newest file that callgrind has written of the server."""
    written = folder.glob(f"counted.{server.process.pid}.*")
    newest = max(written, key=lambda path: int(path.suffix[1:]))
    found = re.search(rb"^totals: (\d+)$", newest.read_bytes(), re.MULTILINE)
    assert found is not None, newest
    return int(found[1])


async def instructions(one: Subject, folder: Path, seconds: float) -> tuple[int, int]:
    """Of all requests of one turn, and how many these were."""
    control(one.server, "--instr=on")
    answered, _ = await load.closed_loop(one.server.port, one.told, CONNECTIONS, seconds)
    control(one.server, "--instr=off")
    control(one.server, "--dump")
    return counted(one.server, folder), answered


async def measure(folder: Path, seconds: float, kinds: Sequence[str]) -> dict[str, list[float]]:
    """Millions of instructions a request, by subject, a number per round."""
    with everything(None, folder, under=callgrind(folder), monitors={"every_seconds": 3600}) as (ours, others, _):
        asked = [one for one in subjects(ours, others) if one.kind in kinds]
        for one in asked:
            await look(one)
            await load.closed_loop(one.server.port, one.told, CONNECTIONS, seconds)  # warm
        rounds: dict[str, list[float]] = {one.name: [] for one in asked}
        for number in range(ROUNDS):
            for one in asked:
                total, answered = await instructions(one, folder, seconds)
                rounds[one.name].append(total / answered / 1e6)
            print(f"round {number + 1} of {ROUNDS}", flush=True)
        return rounds


def page(rounds: dict[str, list[float]], told: Json, kinds: Sequence[str]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    lines = [
        "# Instructions of a decision",
        "",
        f"Written by `python -m tests.bench.instructions`, commit {told['commit']}; do not edit.",
        "",
        f"{told['cpu']}, Python {told['python']}, {versions}. Answers of 200 tokens, {CONNECTIONS} connections. "
        f"Callgrind's millions of instructions a request, mean of {ROUNDS} turns [least, largest].",
        "",
        "| evidence | gateway | bare pass-through | x |",
        "| --- | --: | --: | --: |",
    ]
    for kind in kinds:
        ours, bare = rounds[f"gateway {kind}"], rounds[f"pass-through {kind}"]
        times = sum(ours) / sum(bare)
        lines.append(f"| {kind} | {spread(ours)} | {spread(bare)} | {times:.2f} |")
    return "\n".join([*lines, ""])


def spread(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("kinds", nargs="*", help=f"of evidence: {', '.join(FEATURES)}; all by default")
    cli.add_argument("--seconds", type=float, default=4.0, help="of each turn")
    cli.add_argument("--out", type=Path, help="folder for instructions.md")
    args = cli.parse_args()
    kinds = args.kinds or list(FEATURES)
    os.sched_setaffinity(0, {LOAD_CORE})
    with tempfile.TemporaryDirectory() as folder:
        told = page(uvloop.run(measure(Path(folder), args.seconds, kinds)), machine(None), kinds)
    print(told)
    if args.out:
        (args.out / "instructions.md").write_text(told)


if __name__ == "__main__":
    main()
