"""The pocket cascade on four real vLLM servers: calibrated on the engine's own signals, swept, served, measured.

    python tests/gpu/pocket_cascade.py --out docs/results/vllm_cascade.json     # needs CUDA, vLLM and this distribution

What a user would do, with the commands that a user has: collect, fit, sweep --write, serve; then 1,000 questions
through the gateway over HTTP. Beside it (--parts): accuracy per tier against the in-process engine, the same throughput
with log-probs over HTTP in place of the plugin, the contract with clients (contract.py), and what giving up doomed
answers saves.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from calibrators.scores import wilson
from eval.datasets import pocket
from eval.grade import Grade, grade
from tests.gpu import load, servers
from tests.gpu.contract import Contract, held

TIERS = ("pocket-nano", "pocket-micro", "pocket-small", "pocket-base")
PRICES = (0.110, 0.173, 0.321, 1.527)  # as in deploy/pocket/cascade.yaml
MODELS = Path("deploy/pocket/models")
FIRST_PORT, GATEWAY_PORT = 8401, 8480
CLIENTS = 128
PARTS = ("engine", "contract", "logprobs", "aborts")
ABORT_AT = (0.003, 0.01, 0.03, 0.1)  # share of right answers that may be given up, per tier, on calibration


def cascade(folder: Path, confidence: str, calibrators: str | None) -> Path:
    """A cascade file as a user would write it."""
    tiers = []
    for n, name in enumerate(TIERS):
        engine = {"kind": "openai_http", "url": f"http://127.0.0.1:{FIRST_PORT + n}/v1", "model": name}
        prices = {"usd_per_mtok_in": PRICES[n], "usd_per_mtok_out": PRICES[n]}
        tier: dict[str, Any] = {
            "name": name,
            "engine": engine | {"confidence": confidence},
            "prices": prices,
            "limits": {"in_flight": 2 * CLIENTS},
        }
        if name == TIERS[-1]:
            tier["allows"] = ["response_format"]
        tiers.append(tier | ({"calibrator": f"{calibrators}/{name}.json"} if calibrators else {}))
    accept = [{"tier": name, "accept_at": 0.9} for name in TIERS[:-1]] if calibrators else []
    written = {
        "server": {"host": "127.0.0.1", "port": GATEWAY_PORT},
        "keys": {"allow_anonymous": True},
        "admin": {"port": GATEWAY_PORT + 1, "allow_anonymous": True},  # several workers share one
        "tiers": tiers,
        "policies": {name: {"steps": [*accept, {"tier": TIERS[-1]}]} for name in ("default", "parity")},
    }
    path = folder / f"cascade-{confidence}{'-fitted' if calibrators else ''}.yaml"
    path.write_text(yaml.safe_dump(written, sort_keys=False))
    return path


def confgate(*arguments: object, environment: dict[str, str]) -> str:
    """One command; SystemExit with what it said when it fails."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    print(f"confgate {' '.join(map(str, arguments))}: {time.monotonic() - began:.0f} s", flush=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


@contextlib.contextmanager
def gateway(config: Path, log: Path, environment: dict[str, str], workers: int = 1) -> Iterator[None]:
    command = [sys.executable, "-m", "gateway", "serve", "-c", str(config), "--workers", str(workers)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        for _ in range(120):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{GATEWAY_PORT}/ready", timeout=2).close()
                break
            if process.poll() is not None:
                raise SystemExit(log.read_text()[-3000:])
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait(30)


def asked(model: str, questions: list[pocket.Problem], **more: Any) -> list[dict[str, Any]]:
    return [
        {"model": model, "messages": [{"role": "user", "content": q.text}], "temperature": 0, "max_tokens": 256, **more}
        for q in questions
    ]


def said(reply: dict[str, Any]) -> str:
    return str(reply["choices"][0]["message"]["content"])


def is_right(text: str, question: pocket.Problem) -> bool:
    return grade(text, str(question.answer)).grade is Grade.RIGHT


def share(right: list[bool]) -> dict[str, Any]:
    return {"right": int(sum(right)), **wilson("share", float(sum(right)), len(right)).as_json()}


def through_gateway(policy: str, questions: list[pocket.Problem]) -> dict[str, Any]:
    """Every question once, so many at a time. The cost is of all tiers that were tried."""
    url = f"http://127.0.0.1:{GATEWAY_PORT}/v1/chat/completions"
    done = asyncio.run(load.run(url, asked(policy, questions, route={"debug": True}), CLIENTS, keep=True))
    right = [is_right(said(reply), q) for reply, q in zip(done.replies, questions, strict=True)]
    routes = [reply["route"] for reply in done.replies]
    return {
        "accuracy": share(right),
        "usd": round(sum(route["cost"]["usd"] for route in routes), 6),
        "answered_by": Counter(reply["model"] for reply in done.replies),
        "without_confidence": sum(route["hops"][-1]["confidence"] is None for route in routes),
        "load": done.as_json(),
    }


def plain_load(policy: str, questions: list[pocket.Problem], rounds: int) -> list[dict[str, float]]:
    """Throughput without anything that only this script wants."""
    url = f"http://127.0.0.1:{GATEWAY_PORT}/v1/chat/completions"
    return [asyncio.run(load.run(url, asked(policy, questions), CLIENTS, keep=True)).as_json() for _ in range(rounds)]


def aborts(calibration: list[pocket.Problem], test: list[pocket.Problem]) -> list[dict[str, Any]]:
    """What giving up saves on each tier but the last: limits learned on calibration, run live on the test."""
    from tests.gpu.plugin_truth import arrays

    rows = []
    xargs = {"vllm_xargs": {"confidence": 1, "confidence_arrays": 1, "confidence_window": 16}}
    for n, name in enumerate(TIERS):
        url = f"http://127.0.0.1:{FIRST_PORT + n}/v1/chat/completions"

        def run(problems: list[pocket.Problem], more: dict[str, Any], url: str = url, name: str = name) -> load.Load:
            return asyncio.run(load.run(url, asked(name, problems, **more), CLIENTS, keep=True))

        def rights(done: load.Load, problems: list[pocket.Problem]) -> np.ndarray[Any, Any]:
            texts = [reply["choices"][0]["message"]["content"] for reply in done.replies]
            return np.array(
                [grade(text, str(q.answer)).grade is Grade.RIGHT for text, q in zip(texts, problems, strict=True)]
            )

        learned, base = run(calibration, xargs), run(test, xargs)
        lowest = []
        for reply in learned.replies:
            values = arrays(reply["choices"][0])["confidence"]
            groups = np.convolve(values, np.full(16, 1 / 16), "valid") if values.size >= 16 else np.array([np.inf])
            lowest.append(groups.min())
        right = rights(learned, calibration)
        for epsilon in ABORT_AT:
            limit = float(np.quantile(np.array(lowest)[right], epsilon))
            live = run(test, {"vllm_xargs": xargs["vllm_xargs"] | {"confidence_abort": round(limit, 4)}})
            given_up = [reply["choices"][0]["confidence"]["aborted"] for reply in live.replies]
            reasons = {
                reply["choices"][0]["finish_reason"] for reply, a in zip(live.replies, given_up, strict=True) if a
            }
            was_right, still = rights(base, test), rights(live, test)
            rows.append(
                {
                    "tier": name,
                    "epsilon": epsilon,
                    "limit_nats": round(limit, 4),
                    "given_up": share(given_up),
                    "given_up_that_were_right": int((was_right & np.array(given_up)).sum()),
                    "wrong_answers": int((~was_right).sum()),
                    "right_before": int(was_right.sum()),
                    "right_now": int(still.sum()),
                    "tokens_before": base.tokens,
                    "tokens_now": live.tokens,
                    "tokens_saved_share": round(1 - live.tokens / base.tokens, 4),
                    "finish_reasons_of_those": sorted(reasons),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def in_process(found: dict[str, Any]) -> dict[str, Any]:
    """Right answers of 1,000, by vLLM and by the in-process engine."""
    local = json.loads(Path("deploy/pocket/accuracy.json").read_text())["models"]
    return {
        name: {"vllm": found[name]["accuracy"]["right"], "in_process": local[name]["test"]["right"], "n": 1000}
        for name in TIERS
    }


def cascaded(kind: str, args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Collects, fits, chooses and serves on one kind of evidence; what is found is saved part by part."""
    environment = os.environ | {"PYTHONPATH": args.gateway_path}
    test, found = list(pocket.problems("test", 1000)), result.setdefault(kind, {})
    bare = cascade(args.scratch, kind, None)
    splits = (("calibration", 1500), ("validation", 1000), ("test", 1000))
    for split, many in splits if kind == "engine" else (("calibration", 800),):
        confgate("collect", "-c", bare, "--split", split, "--n", many, "--out", args.scratch / f"{kind}-{split}",
                 "--max-tokens", 256, "--concurrency", CLIENTS, "--top-k", 20, environment=environment)  # fmt: skip
    wished = [] if kind == "engine" else ["--features", "deepconf_average,deepconf_lowest,lp_mean,log_length"]
    confgate("fit", "-r", args.scratch / f"{kind}-calibration", "--out", args.scratch / f"calibrators-{kind}",
             *wished, environment=environment)  # fmt: skip
    fitted = cascade(args.scratch, kind, f"calibrators-{kind}")
    if kind == "engine":
        records = [flag for split in ("validation", "test") for flag in ("-r", args.scratch / f"engine-{split}")]
        told = confgate("sweep", *records, "-c", fitted, "--choose-on", "validation", "--test-on", "test",
                        "--write", fitted, "--policy", "parity", environment=environment)  # fmt: skip
        result["sweep"] = told.splitlines()
    rounds = 3 if kind == "engine" else 1  # over HTTP the servers take five times as long
    with gateway(fitted, args.out.parent / f"gateway-{kind}.log", environment):
        models = ("auto", "auto:parity", *TIERS) if kind == "engine" else ("auto",)
        for model in models:
            found[model] = through_gateway(model, test)
        found["throughput"] = plain_load("auto", test, rounds)
    if kind == "engine":
        result["accuracy_against_in_process"] = in_process(found)
    servers.save(args.out, result)
    with gateway(fitted, args.out.parent / f"gateway-{kind}-4.log", environment, workers=4):
        found["throughput_of_4_workers"] = plain_load("auto", test, rounds)
    servers.save(args.out, result)


def contract(args: argparse.Namespace) -> dict[str, Any]:
    """By the cascade that the engine's part has fitted and chosen."""
    environment, last = os.environ | {"PYTHONPATH": args.gateway_path}, len(TIERS) - 1
    config = args.scratch / "cascade-engine-fitted.yaml"
    confgate("doctor", "-c", config, environment=environment)
    port = FIRST_PORT + last
    with gateway(config, args.out.parent / "gateway-contract.log", environment):
        return held(Contract(f"http://127.0.0.1:{GATEWAY_PORT}/v1", f"http://127.0.0.1:{port}/v1", port, TIERS[last]))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--scratch", type=Path, default=Path("/tmp/pocket-cascade"))
    cli.add_argument("--gateway-path", default=os.environ.get("PYTHONPATH", ""), help="PYTHONPATH of confgate itself")
    cli.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = cli.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    started = [
        servers.Server(
            name, MODELS / name, FIRST_PORT + n,
            ("--dtype", "float16", "--max-model-len", "1024", "--gpu-memory-utilization", "0.05",
             "--kv-cache-memory-bytes", "2G", "--max-num-seqs", "256", *servers.MIDDLEWARE),
        )
        for n, name in enumerate(TIERS)
    ]  # fmt: skip
    result = servers.machine() | {"clients": CLIENTS, "servers": [server.said for server in started]}
    with servers.serving(started, args.out.parent) as seconds:
        result["start_seconds"] = seconds
        for part in args.parts:
            if part == "aborts":
                learned, test = list(pocket.problems("calibration", 800)), list(pocket.problems("test", 1000))
                result["early_abort"] = {"window": 16, "learned_on": 800, "rows": aborts(learned, test)}
            elif part == "contract":
                result["contract"] = contract(args)
            else:
                cascaded(part, args, result)
            servers.save(args.out, result)
    told = result.get("accuracy_against_in_process", {})
    print(json.dumps(told, indent=1))
    broken = [name for name, seen in result.get("contract", {}).items() if "wrong" in seen]
    assert not broken, broken
    assert all(abs(v["vllm"] - v["in_process"]) <= 10 for v in told.values()), "a tier is over a point off"


if __name__ == "__main__":
    main()
