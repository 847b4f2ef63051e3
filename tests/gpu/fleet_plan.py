"""Serve Qwen2.5 shapes with random weights through `confgate up`, and hold the plan's memory against what vLLM reports.

    python tests/gpu/fleet_plan.py --out docs/results/fleet-h200.json            # needs a GPU and vLLM; no network
    python tests/gpu/fleet_plan.py --out OUT --plugin                            # confidence: engine on every tier
    python tests/gpu/fleet_plan.py --out OUT --sizes 32B --tensor-parallel 2 --unquantized          # needs two GPUs

The configurations are the real ones (deploy/qwen2.5/models), the weights are made up by vLLM (`--load-format dummy`),
the tokenizer is a pocket model's. Everything is started by `confgate up` from a cascade file as a user would write
it; the gateway then answers one question per tier, with --plugin every server says its confidence too, and everything
is stopped while a long answer is on its way, which must come whole. Reported are, per server, what vLLM logged for
weights and KV cache, and what nvidia-smi says its processes hold, each beside the plan's figure. Exits with 1 when a
server or (--plugin) its confidence is missing, when weights or KV cache are off by more than five in a hundred, when
the long answer was cut, or when a process was left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.gpu import servers

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "deploy" / "qwen2.5" / "models"
TOKENIZER = ROOT / "deploy" / "pocket" / "models" / "pocket-base"
TOLERANCE = 0.05
DRAIN_TOKENS, DRAIN_SECONDS = 512, 1.0  # of an answer that is on its way at the stop, and how long it has been
# Those of deploy/qwen2.5/one-141gb.yaml: concurrency, and fp8 where bfloat16 would leave no room.
TIERS: dict[str, dict[str, Any]] = {
    "0.5B": {"concurrency": 64},
    "1.5B": {"concurrency": 64},
    "3B": {"concurrency": 64},
    "7B": {"concurrency": 64},
    "14B": {"concurrency": 32},
    "32B": {"concurrency": 16, "quantization": "fp8"},
}
REPORTS = {
    "weights_gib": r"Model loading took ([\d.]+) GiB",
    "kv_gib": r"reserved ([\d.]+) GiB memory for KV Cache",
    "kv_tokens": r"GPU KV cache size: ([\d,]+) tokens",
    "graphs_gib": r"Graph capturing finished in \d+ secs, took (-?[\d.]+) GiB",
}


def cascade(sizes: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """As a user would write it; JSON is YAML, too."""
    flags = ["--load-format", "dummy", "--tokenizer", str(TOKENIZER), *args.flag]
    tiers = []
    for n, size in enumerate(sizes):
        serve: dict[str, Any] = {"model": str(MODELS / f"Qwen2.5-{size}-Instruct"), "context": 4096}
        serve |= {"tokens_per_request": 1024, "enforce_eager": args.enforce_eager, "flags": flags} | TIERS[size]
        if args.unquantized:
            serve.pop("quantization", None)
        if args.tensor_parallel > 1:
            serve["tensor_parallel"] = args.tensor_parallel
        engine = {"kind": "openai_http", "url": f"http://127.0.0.1:{args.port + 1 + n}/v1", "model": f"qwen2.5-{size}"}
        engine |= {"connect_seconds": 5} | ({"confidence": "engine"} if args.plugin else {})
        tiers.append({"name": f"qwen2.5-{size}", "engine": engine, "serve": serve})
    fleet: dict[str, Any] = {"start_seconds": args.seconds, "command": args.command.split(), "stop_seconds": 5}
    if args.gpus:
        fleet["gpus"] = json.loads(args.gpus)
    return {
        "server": {"port": args.port, "request_seconds": 120},
        "keys": {"allow_anonymous": True},
        "fleet": fleet,
        "tiers": tiers,
        "policies": {"default": {"steps": [{"tier": tiers[-1]["name"]}]}},
    }


def ask(port: int, model: str, **more: Any) -> dict[str, Any]:
    """One question to one tier, through the gateway or not. The answer is noise; that there is one is what counts."""
    content = "Mia has 12 apples. She buys 5 more. How many apples does Mia have now?"
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 16} | more
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            told = json.load(reply)
            confidence = told["choices"][0].get("confidence")
            said = {} if confidence is None else {"confidence": confidence}
            return {"status": reply.status, "served_by": told["model"], "usage": told["usage"]} | said
    except urllib.error.HTTPError as error:
        return {"status": error.code, "told": error.read().decode("utf-8", "replace")[:500]}


def version_of(port: int) -> str | None:
    """vLLM's, as a server tells it: the Python that runs this script may not have it."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/version", timeout=30) as reply:
            return str(json.load(reply).get("version"))
    except OSError:
        return None


def smi(query: str, gpus: list[str]) -> list[list[str]]:
    """Rows that nvidia-smi prints of these GPUs, of all when none is named; nothing where there is none."""
    these = ["-i", ",".join(gpus)] if gpus else []
    try:
        told = subprocess.run(
            ["nvidia-smi", *these, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in told.splitlines() if line.strip()]


def reported(log: Path) -> dict[str, float | None]:
    """What a server's log says of its memory; the last word of each."""
    text = log.read_text(errors="replace") if log.exists() else ""
    found = {name: re.findall(pattern, text) for name, pattern in REPORTS.items()}
    return {name: float(values[-1].replace(",", "")) if values else None for name, values in found.items()}


def off(predicted: float, measured: float | None) -> float | None:
    """(predicted - measured) / measured; absent without a measurement."""
    return None if not measured else round((predicted - measured) / measured, 4)


def wait(process: subprocess.Popen[str], events: Path, last: set[str], seconds: float) -> float:
    """Seconds until all of these are ready. Raises SystemExit with what was said when it never is."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        text = events.read_text()
        if last <= set(re.findall(r'"name": "([^"]+)", "event": "ready"', text)):
            return time.monotonic() - began
        if process.poll() is not None:
            raise SystemExit(f"confgate up ended with {process.returncode}\n{text[-6000:]}")
        time.sleep(1)
    raise SystemExit(f"not ready after {seconds:g} s\n{events.read_text()[-6000:]}")


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--sizes", nargs="+", choices=list(TIERS), default=list(TIERS))
    cli.add_argument("--port", type=int, default=8200)
    cli.add_argument("--seconds", type=float, default=480)
    cli.add_argument("--enforce-eager", action="store_true", help="no CUDA graphs: starts in a third of the time")
    cli.add_argument("--command", default=f"{sys.executable} -m vllm.entrypoints.openai.api_server")
    cli.add_argument("--no-gateway", action="store_true", help="ask the servers themselves")
    cli.add_argument("--unquantized", action="store_true", help="bfloat16 for all: for a vLLM without its fp8 kernels")
    cli.add_argument("--plugin", action="store_true", help="confidence: engine on every tier, and ask each for it")
    cli.add_argument("--tensor-parallel", type=int, default=1, help="GPUs that share each server")
    cli.add_argument("--gpus", help='JSON for fleet.gpus, e.g. [{"index": 0, "memory_gib": 139.8}]')
    cli.add_argument("--flag", action="append", default=[], help="one more word for each server, --flag=--no-x")
    args = cli.parse_args()
    work = args.out.with_suffix(".logs")
    work.mkdir(parents=True, exist_ok=True)
    gpus = [str(gpu["index"]) for gpu in json.loads(args.gpus)] if args.gpus else []
    file, events = work / "cascade.yaml", work / "up.log"
    file.write_text(json.dumps(cascade(args.sizes, args), indent=1))
    before = smi("--query-gpu=index,name,driver_version,memory.total,memory.used", gpus)
    command = [sys.executable, "-m", "gateway", "up", str(file), "--logs", str(work), "--json"]
    command += ["--no-gateway"] if args.no_gateway else []
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environ = (
        os.environ | quiet | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    )
    for log in work.glob("qwen*.log"):
        log.unlink()
    with events.open("w") as told:
        up = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=told, stderr=told, text=True)
    try:
        last = {f"qwen2.5-{size}" for size in args.sizes} if args.no_gateway else {"gateway"}
        ready = wait(up, events, last, args.seconds + 60)
        plan, _ = json.JSONDecoder().raw_decode(events.read_text())
        ports = [args.port + 1 + n if args.no_gateway else args.port for n in range(len(args.sizes))]
        models = [f"qwen2.5-{size}" for size in args.sizes]
        answers = {model: ask(port, model) for port, model in zip(ports, models, strict=True)}
        heard = {
            model: ask(args.port + 1 + n, model, temperature=0, vllm_xargs={"confidence": 1})
            for n, model in enumerate(models if args.plugin else [])
        }
        vllm = version_of(args.port + 1)
        used = smi("--query-gpu=index,memory.total,memory.used", gpus)
        processes = smi("--query-compute-apps=pid,used_memory", gpus)
        with ThreadPoolExecutor(1) as pool:
            long = {"max_tokens": DRAIN_TOKENS, "ignore_eos": True}
            asked = None if args.no_gateway else pool.submit(ask, args.port, models[-1], **long)
            time.sleep(DRAIN_SECONDS)
            on_its_way = asked is not None and not asked.done()
            up.send_signal(signal.SIGTERM)
            drained = None if asked is None else asked.result() | {"on_its_way": on_its_way}
    finally:
        up.send_signal(signal.SIGTERM)
        code = up.wait(120)
    time.sleep(3)
    rows = []
    for row in plan["servers"]:
        logged = reported(work / f"{row['tier']}.log")
        apart = {name: off(row[name], logged[name]) for name in ("weights_gib", "kv_gib", "kv_tokens")}
        rows.append({"tier": row["tier"], "planned": row, "reported": logged, "relative_error": apart})
    held = sum(float(row[2]) for row in used) / 1024
    planned = sum(row["planned_gib"] for row in plan["gpus"])
    errors = [row["relative_error"] for row in rows]
    close = all(abs(value) <= TOLERANCE if value is not None else False for error in errors for value in error.values())
    left = [row for row in smi("--query-compute-apps=pid,used_memory", gpus) if row[0] in {pid for pid, _ in processes}]
    result = {
        "command": " ".join(["python", *sys.argv]),
        "versions": {"vllm": vllm} | {name: servers.installed(name) for name in ("torch", "transformers")},
        "python": platform.python_version(),
        "gpu": before,
        "seconds_until_ready": round(ready, 1),
        "exit_code": code,
        "servers": rows,
        "all_gpus": {
            "planned_gib": round(planned, 2),
            "held_gib": round(held, 2),
            "held_before_gib": round(sum(float(row[4]) for row in before) / 1024, 2),
        },
        "processes_mib": processes,
        "answers": answers,
        "in_engine": heard,
        "drained": drained,
        "left_behind": left,
        "within_tolerance": close,
        "plan": plan,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(row["tier"], json.dumps(row["reported"]), json.dumps(row["relative_error"]))
    print(json.dumps(result["all_gpus"]), "within 5 %" if close else "NOT within 5 %", f"exit {code}")
    served = all(answer["status"] == 200 for answer in answers.values())
    measured = all(
        said.get("confidence", {}).get("tokens") == said.get("usage", {}).get("completion_tokens", 0) > 0
        for said in heard.values()
    )
    print("confidence in the engine:", {model: said.get("confidence", said) for model, said in heard.items()})
    got = (drained or {}).get("usage", {}).get("completion_tokens")
    whole = drained is None or (drained["on_its_way"] and got == DRAIN_TOKENS)
    print("the answer that was on its way:", drained)
    sys.exit(0 if close and served and measured and whole and code == 0 and not left else 1)


if __name__ == "__main__":
    main()
