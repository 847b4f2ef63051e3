"""Serve model folders with real vLLM servers on one GPU and hold them against the in-process engine.

    python tests/gpu/vllm_pocket.py --out result.json deploy/pocket/models/*        # needs CUDA and vLLM

Each model gets a server of its own. Both engines answer the same held-out questions greedily; the result tells each
side's accuracy, how often the texts agree, and how far the log-probs of agreeing answers are apart. One raw reply per
model is kept, with the command that made it: the tests of the HTTP engine read it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from eval.datasets import pocket
from gateway.engines import local, openai_http
from gateway.nouns import Ask, Completion, Message

FIRST_PORT = 8101
START_SECONDS = 240


def command(folder: Path, port: int) -> list[str]:
    told = f"""--model {folder} --served-model-name {folder.name} --host 127.0.0.1 --port {port} --max-model-len 1024
        --max-logprobs 20 --logprobs-mode raw_logprobs --generation-config vllm --dtype float16
        --enforce-eager --gpu-memory-utilization 0.15 --kv-cache-memory-bytes 2G"""
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *told.split()]


def post(port: int, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return dict(json.load(reply))


def wait_ready(port: int, server: subprocess.Popen[bytes]) -> float:
    began = time.monotonic()
    while time.monotonic() - began < START_SECONDS:
        if server.poll() is not None:
            raise SystemExit(f"the server on {port} ended with {server.returncode}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            return time.monotonic() - began
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"the server on {port} was not ready after {START_SECONDS} s")


async def answers(engine: Any, problems: list[pocket.Problem]) -> list[Completion]:
    seats = asyncio.Semaphore(64)

    async def one(problem: pocket.Problem) -> Completion:
        deadline = asyncio.get_running_loop().time() + 600
        async with seats:
            return await engine.complete(Ask((Message("user", problem.text),), deadline, 256, top_k=20))

    try:
        return list(await asyncio.gather(*(one(p) for p in problems)))
    finally:
        await engine.close()


def compare(problems: list[pocket.Problem], here: list[Completion], there: list[Completion]) -> dict[str, Any]:
    gaps, top_gaps, end_gaps, same = [], [], [], 0
    for one, other in zip(here, there, strict=True):
        if one.trace is None or other.trace is None or one.text != other.text:
            continue
        same += 1
        gaps.append(np.abs(one.trace.chosen - other.trace.chosen).max())
        top_gaps.append(np.abs(one.trace.top.mean(1) - other.trace.top.mean(1)).max())
        if one.trace.end_nats is not None and other.trace.end_nats is not None:
            end_gaps.append(abs(one.trace.end_nats - other.trace.end_nats))

    def right(completions: list[Completion]) -> int:
        return sum(c.text.rsplit("#### ", 1)[-1] == str(p.answer) for c, p in zip(completions, problems, strict=True))

    return {
        "n": len(problems),
        "right_in_process": right(here),
        "right_vllm": right(there),
        "same_text": same,
        "without_trace_vllm": sum(c.trace is None for c in there),
        "why_without": sorted({c.no_trace for c in there if c.trace is None}),
        "completion_tokens_equal": sum(
            a.completion_tokens == b.completion_tokens for a, b in zip(here, there, strict=True)
        ),
        "ends_compared": len(end_gaps),
        "max_gap_nats": {
            name: {"median": float(np.median(g)), "max": float(np.max(g))} if g else None
            for name, g in (("chosen", gaps), ("top20_mean", top_gaps), ("end", end_gaps))
        },
    }


async def hold(folder: Path, port: int, problems: list[pocket.Problem]) -> dict[str, Any]:
    """Both engines over the same problems. Returns what the server says of itself and how the two compare."""
    options = openai_http.Options(kind="openai_http", url=f"http://127.0.0.1:{port}/v1", model=folder.name)
    remote = await openai_http.open_engine(options, name=folder.name)
    told = dict(await remote.fingerprint())
    there = await answers(remote, problems)
    near = await local.open_engine(local.Options(model=str(folder), device="cuda"), name=folder.name)
    here = await answers(near, problems)
    return {"fingerprint": told, "compare": compare(problems, here, there)}


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("models", type=Path, nargs="+")
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--questions", type=int, default=200)
    args = cli.parse_args()
    problems = list(pocket.problems("test", args.questions))
    gpu = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], capture_output=True, text=True
    )
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "versions": {name: version(name) for name in ("vllm", "torch", "transformers")},
        "python": platform.python_version(),
        "gpu": gpu.stdout.strip(),
        "models": {},
    }
    servers = []
    try:
        for n, folder in enumerate(args.models):
            log = (args.out.parent / f"vllm-{folder.name}.log").open("wb")
            servers.append(subprocess.Popen(command(folder, FIRST_PORT + n), stdout=log, stderr=log))
        for n, folder in enumerate(args.models):
            port = FIRST_PORT + n
            wait_ready(port, servers[n])
            raw_ask = {
                "model": folder.name,
                "messages": [{"role": "user", "content": problems[0].text}],
                "temperature": 0,
                "max_tokens": 256,
                "logprobs": True,
                "top_logprobs": 5,
            }
            result["models"][folder.name] = {
                "command": " ".join(["python", *command(folder, port)[1:]]),
                **asyncio.run(hold(folder, port, problems)),
                "ask": raw_ask,
                "reply": post(port, raw_ask),
            }
            print(folder.name, json.dumps(result["models"][folder.name]["compare"]), flush=True)
    finally:
        for server in servers:
            server.terminate()
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
