"""The gateways under the bench as processes, each pinned to one core and watched through /proc."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibrators import artifact, logistic
from calibrators.base import FitData
from gateway import confidence
from gateway.engines import _compact, _reply
from gateway.nouns import Ask, Evidence, Summed
from tests.bench.answers import CANDIDATES, MODEL, XARGS, body
from tests.bench.load import KEY

ROOT = Path(__file__).parents[2]
START_SECONDS = 300.0  # LiteLLM takes minutes on a machine that is busy

# What a tier's calibrator looks at; ten features where there are candidates, as the shipped pocket calibrators do.
PLAIN = ("lp_mean", "lp_bottom", "lp_quantile(q=0)", "lp_tail", "end_lp", "length")
FEATURES = {
    "compact": (*PLAIN, "deepconf_average", "deepconf_bottom", "margin_min", "entropy_mean"),
    "arrays": (*PLAIN, "deepconf_average", "deepconf_bottom", "margin_quantile", "entropy_mean"),
    "chosen": (*PLAIN, "calc_min", "ans_min"),
    "top-5": (*PLAIN, "calc_min", "ans_min", "deepconf_average(k=5)", "margin_min"),
    "top-20": (*PLAIN, "calc_min", "ans_min", "deepconf_average", "margin_min"),
}
SOURCES = {
    "compact": "plugin",
    "arrays": "plugin",
    "chosen": "chosen",
    "top-5": "top_logprobs",
    "top-20": "top_logprobs",
}


def core(number: int | None) -> Any:
    """For subprocess: start on this core alone; None: on any."""
    wanted = range(os.cpu_count() or 1) if number is None else {number}
    return lambda: os.sched_setaffinity(0, wanted)


def two_cores() -> tuple[int, int]:
    """The first two that this process may use: `taskset -c 4,6 python -m tests.bench.bench` names others. The same one
    twice where there is only one."""
    mine = sorted(os.sched_getaffinity(0))
    return mine[0], mine[:2][-1]


def stolen_seconds(cores: Iterable[int]) -> float:
    """What the hypervisor has kept of these cores since the start, in steps of 10 ms (Linux)."""
    lines = {line.split()[0]: line.split() for line in Path("/proc/stat").read_text().splitlines()}
    return sum(int(lines[f"cpu{core}"][8]) for core in cores) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *(one for child in children for one in family(int(child)))]
    return [pid]


@dataclass
class Server:
    """A running process. ready_seconds: from its start to its first answer."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    ready_seconds: float

    @property
    def cpu_seconds(self) -> float:
        """CPU that it and its children have used, by the kernel's own clock of each (Linux; 1 ns, where /proc/PID/stat
        counts in steps of 10 ms)."""
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in family(self.process.pid))

    @property
    def waited_seconds(self) -> float:
        """How long its threads were ready to run, and others had their core (Linux)."""
        found = 0
        for pid in family(self.process.pid):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    found += int((thread / "schedstat").read_text().split()[1])
        return found / 1e9

    def memory_mib(self, field: str = "VmRSS") -> float:
        """Resident memory of it and its children."""
        total = 0
        for pid in family(self.process.pid):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(f"{field}:"):
                    total += int(line.split()[1])
        return total / 1024


@contextlib.contextmanager
def running(
    name: str,
    command: list[str],
    port: int,
    on_core: int | None,
    log: Path,
    path: str = "/v1/models",
    **environment: str,
) -> Iterator[Server]:
    """A server that answers; any status will do."""
    began = time.monotonic()
    with log.open("wb") as told:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=told,
            stderr=told,
            preexec_fn=core(on_core),
        )
    try:
        ready = wait(process, port, path, log, began)
        yield Server(name, process, port, ready)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait(process: subprocess.Popen[bytes], port: int, path: str, log: Path, began: float) -> float:
    while time.monotonic() - began < START_SECONDS:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).close()
            return time.monotonic() - began
        except urllib.error.HTTPError:
            return time.monotonic() - began
        except OSError:
            time.sleep(0.01)
    raise RuntimeError(f"{process.args!r} does not answer:\n{log.read_text(errors='replace')[-3000:]}")


def calibrator(kind: str, path: Path) -> None:
    """A logistic regression on features of answers like the upstream's, for which being right was drawn."""
    rng = np.random.default_rng(1)
    rows = [measured(kind, rng) for _ in range(120)]
    X = np.array(rows) + rng.normal(size=(len(rows), len(FEATURES[kind]))) * 1e-3
    y = (rng.random(len(rows)) < 0.8).astype(float)
    fitted = logistic.fit(FitData(X, y, FEATURES[kind]), min_rare=5)
    sealed = artifact.Artifact.seal(
        id=f"bench-{kind}",
        kind="logistic",
        features=FEATURES[kind],
        params=fitted.to_params(),
        fingerprint={"model": MODEL, "source": SOURCES[kind], "sampling": "greedy"},
        fit={
            "data_sha256": "0" * 64,
            "n": len(rows),
            "n_rare": int(min(y.sum(), len(y) - y.sum())),
            "objective": "erm",
            "eta": 0,
            "seed": 1,
            "split": "none",
            "slices": [],
        },
        metrics={},
        validity={"conditions": ["for the bench alone: whether an answer was right was drawn by lot"], "checks": {}},
        created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    )
    artifact.dump(sealed, path)


def measured(kind: str, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    ask = Ask(messages=(), deadline=0.0, top_k=CANDIDATES.get(kind, 0), evidence=kind not in XARGS)
    answered = _reply.read(body(kind, rng), ask, "bench")
    trace = answered.trace
    if kind == "compact":
        summary = _compact.summary(answered.confidence, answered.completion_tokens, 20, confidence.WINDOW)
        return confidence.measure(FEATURES[kind], Summed(summary, answered.text)).values
    if kind == "arrays":
        trace = _compact.read(answered.confidence, answered.completion_tokens, 20, None)
    assert trace is not None, answered.no_trace
    return confidence.measure(FEATURES[kind], Evidence(trace, answered.text)).values


def cascade(upstream: str, port: int) -> dict[str, Any]:
    """One policy per kind of evidence: its first tier decides, and is always sure enough."""

    def tier(kind: str) -> dict[str, Any]:
        engine = {"kind": "openai_http", "url": upstream, "model": MODEL}
        if kind in XARGS:
            engine["confidence"] = "engine"
        prices = {"usd_per_mtok_in": 1, "usd_per_mtok_out": 2}
        return {"name": kind, "engine": engine, "calibrator": f"{kind}.json", "prices": prices}

    dear = {"name": "dear", "engine": {"kind": "openai_http", "url": upstream, "model": MODEL}}
    policies = {kind: {"steps": [{"tier": kind, "accept_at": 0.01}, {"tier": "dear"}]} for kind in FEATURES}
    return {
        "server": {"port": port},
        "keys": {"allow_anonymous": True},
        "tiers": [*(tier(kind) for kind in FEATURES), dear],
        "policies": {**policies, "default": policies["compact"]},
    }


@contextlib.contextmanager
def gateway(
    upstream: str, on_core: int | None, folder: Path, *, under: Sequence[str] = (), **more: Any
) -> Iterator[Server]:
    """Ours, as users start it, with what it logs by default going to a file. under: a program that runs it.
    more: changes to its configuration."""
    for kind in FEATURES:
        calibrator(kind, folder / f"{kind}.json")
    port = free_port()
    config = cascade(upstream, port)
    config |= {key: config.get(key, {}) | value for key, value in more.items()}
    (folder / "cascade.yaml").write_text(json.dumps(config))
    command = [*under, sys.executable, "-m", "gateway", "serve", "--config", str(folder / "cascade.yaml")]
    with running("gateway", command, port, on_core, folder / "gateway.log") as server:
        yield server


@contextlib.contextmanager
def uvicorn(
    name: str, python: str, module: str, upstream: str, on_core: int, folder: Path, *, under: Sequence[str] = ()
) -> Iterator[Server]:
    port = free_port()
    command = [*under, python, "-m", "uvicorn", f"tests.bench.peers.{module}:app", "--port", str(port)]
    command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    with running(name, command, port, on_core, folder / f"{name}.log", BENCH_UPSTREAM=upstream) as server:
        yield server


@contextlib.contextmanager
def litellm(executable: Path, upstream: str, on_core: int, folder: Path) -> Iterator[Server]:
    """LiteLLM's proxy with one model, no database and no logging beyond its default."""
    port = free_port()
    told = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {"model": f"openai/{MODEL}", "api_base": upstream, "api_key": "sk-bench"},
            }
        ]
    }
    (folder / "litellm.yaml").write_text(json.dumps(told))
    command = [str(executable), "--config", str(folder / "litellm.yaml"), "--port", str(port), "--host", "127.0.0.1"]
    quiet = {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command += ["--num_workers", "1"]
    log = folder / "litellm.log"
    with running("litellm", command, port, on_core, log, "/health/liveliness", **quiet) as server:
        yield server
