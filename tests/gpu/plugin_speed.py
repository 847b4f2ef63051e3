"""What confidence costs a vLLM server: inside the engine, and as log-probs over HTTP.

    python tests/gpu/plugin_speed.py --sizes 7B --out docs/results/vllm_speed_7B.json   # CUDA, vLLM, this distribution

Random weights of Qwen2.5's shapes, 128 requests in flight, under two loads: answers of 100 to 300 tokens, which end one
by one as answers do, and answers of 200 tokens each, which all end at the same step, so that the API server makes 128
replies while the GPU has nothing to do. Every kind of request runs against the same server, in turn and repeatedly, so
that a slow moment of the machine hits all alike. With --more, two more servers of the first shape say what it costs to
have the plugin loaded and not to use it, and to name it on the command line.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np

from tests.gpu import load, servers, shapes

IN_FLIGHT = 128
LENGTHS = {"100 to 300 tokens": (100, 300), "200 tokens": (200, 200)}  # of the answers of a load
KINDS: dict[str, dict[str, Any]] = {
    "no log-probs": {},
    "in engine, summary": {"vllm_xargs": {"confidence": 1}},
    "in engine, arrays": {"vllm_xargs": {"confidence": 1, "confidence_arrays": 1}},
    "chosen token over HTTP": {"logprobs": True, "top_logprobs": 0},
    "top 5 over HTTP": {"logprobs": True, "top_logprobs": 5},
    "top 20 over HTTP": {"logprobs": True, "top_logprobs": 20},
}
REPEATED = ("no log-probs", "in engine, summary")


def bodies(model: str, n: int, lengths: tuple[int, int], more: dict[str, Any]) -> list[dict[str, Any]]:
    """Prompts of about 60 tokens that share no prefix; the same lengths of answers in the same order at each call."""
    tokens = np.random.default_rng(7).integers(*lengths, size=n, endpoint=True).tolist()
    asked = "apples and pears are given to the children of the house, how many are left in the evening?"
    return [
        {
            "model": model,
            "messages": [{"role": "user", "content": f"{k} {asked} {k * 7}"}],
            "temperature": 0,
            "max_tokens": tokens[k],
            "ignore_eos": True,
            **more,
        }
        for k in range(n)
    ]


def measure(server: servers.Server, kind: str, lengths: tuple[int, int], n: int) -> load.Load:
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    return asyncio.run(load.run(url, bodies(server.name, n, lengths, KINDS[kind]), IN_FLIGHT))


def compare(server: servers.Server, kinds: list[str], lengths: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Tokens a second of every kind. The repeated ones run in turn, forwards and backwards by turns, so that a drift of
    the machine hits all alike; their ratio to no log-probs is taken round by round."""
    repeated = [kind for kind in kinds if kind in REPEATED]
    for kind in repeated:
        measure(server, kind, lengths, IN_FLIGHT)  # warm
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for nth in range(rounds):
        for kind in repeated if nth % 2 == 0 else repeated[::-1]:
            runs[kind].append(measure(server, kind, lengths, 4 * IN_FLIGHT).as_json())
    for kind in kinds:
        if kind not in REPEATED:
            runs[kind].append(measure(server, kind, lengths, IN_FLIGHT).as_json())
    plain = np.array([run["tokens_per_second"] for run in runs["no log-probs"]])
    table = {}
    for kind, seen in runs.items():
        speed = np.array([run["tokens_per_second"] for run in seen])
        ratios = speed / (plain if len(speed) == len(plain) else np.median(plain))
        told = {"tokens_per_second": float(np.median(speed)), "of_no_log_probs": ratio(ratios), "runs": seen}
        table[kind] = told
        print(f"{server.name:24} {kind:24} {told['tokens_per_second']:>9,.0f} {told['of_no_log_probs']}", flush=True)
    return table


def ratio(ratios: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Median, least and largest, and a 95 % bootstrap interval of the median over rounds; none for a single one."""
    told: dict[str, Any] = {
        "median": round(float(np.median(ratios)), 4),
        "range": [round(float(ratios.min()), 4), round(float(ratios.max()), 4)],
        "rounds": len(ratios),
    }
    if len(ratios) > 1:
        drawn = np.random.default_rng(7).choice(ratios, (10_000, len(ratios)))
        told["interval_95"] = [round(float(q), 4) for q in np.quantile(np.median(drawn, axis=1), (0.025, 0.975))]
    return told


def without_plugin() -> str:
    """PYTHONPATH without the folder in which this distribution is installed, so that no entry point is found."""
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(f for f in folders if not list(Path(f or ".").glob("confidence_gateway*.dist-info")))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--scratch", type=Path, default=Path("/tmp/shapes"))
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--sizes", nargs="+", choices=("0.5B", "7B"), default=["0.5B", "7B"])
    cli.add_argument("--port", type=int, default=8201)
    cli.add_argument("--more", action="store_true")
    args = cli.parse_args()
    if not entry_points(group="vllm.logits_processors", name="confidence"):
        raise SystemExit("install this distribution beside vLLM first: pip install --no-deps .")
    shape = ("--load-format", "dummy", "--dtype", "bfloat16", "--max-model-len", "4096", "--max-num-seqs", "256")
    room = {
        "0.5B": ("--kv-cache-memory-bytes", "8G", "--gpu-memory-utilization", "0.2"),
        "7B": ("--kv-cache-memory-bytes", "16G", "--gpu-memory-utilization", "0.4"),
    }
    folders = {size: shapes.folder(f"Qwen2.5-{size}-Instruct", args.scratch) for size in args.sizes}
    started = {
        servers.Server(size, folder, args.port + n, (*shape, *room[size], *servers.MIDDLEWARE)): list(KINDS)
        for n, (size, folder) in enumerate(folders.items())
    }
    small, few = folders[args.sizes[0]], (*shape, *room[args.sizes[0]])
    more = {
        servers.Server("named", small, args.port + 2, (*few, *servers.MIDDLEWARE, *servers.PROCESSOR)): list(REPEATED),
        servers.Server("without", small, args.port + 3, few, path=without_plugin()): ["no log-probs"],
    }
    if args.more:
        started |= more
    result = servers.machine() | {"in_flight": IN_FLIGHT, "servers": {}, "table": {}}
    with servers.serving(list(started), args.out.parent) as seconds:
        for server, kinds in started.items():
            result["servers"][server.name] = {"command": server.said, "start_seconds": round(seconds[server.name], 1)}
            result["table"][server.name] = {}
            for load_name, lengths in LENGTHS.items():
                print(load_name, flush=True)
                result["table"][server.name][load_name] = compare(server, kinds, lengths, args.rounds)
                servers.save(args.out, result)


if __name__ == "__main__":
    main()
