"""Real vLLM servers for the scripts in this folder: start them, wait, say what they ran on, stop them."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

START_SECONDS = 420
MIDDLEWARE = ["--middleware", "gateway.vllm_plugin.middleware.ConfidenceMiddleware"]
PROCESSOR = ["--logits-processors", "gateway.vllm_plugin.processor:ConfidenceProcessor"]


@dataclass(frozen=True, slots=True)
class Server:
    """name: as clients call the model.  arguments: of `vllm serve`, model and port apart.  path: its own PYTHONPATH."""

    name: str
    model: Path
    port: int
    arguments: tuple[str, ...] = ()
    path: str | None = None

    @property
    def command(self) -> list[str]:
        """Only `vllm serve` itself starts several API servers; the module starts without what the others need."""
        several = any(flag.startswith("--api-server-count") for flag in self.arguments)
        module = ["vllm.entrypoints.cli.main", "serve"] if several else ["vllm.entrypoints.openai.api_server"]
        told = (
            f"--model {self.model} --host 127.0.0.1 --port {self.port} --max-logprobs 20 --logprobs-mode raw_logprobs"
        )
        start = [sys.executable, "-m", *module, *told.split()]
        return [*start, "--generation-config", "vllm", "--served-model-name", self.name, *self.arguments]

    @property
    def said(self) -> str:
        """The command without this machine's paths."""
        return " ".join(["vllm serve", *self.command[self.command.index("--model") :]])


@contextlib.contextmanager
def serving(servers: list[Server], logs: Path) -> Iterator[dict[str, float]]:
    """All of them started at once; yields the seconds each took. SystemExit with the end of its log when one fails."""
    logs.mkdir(parents=True, exist_ok=True)
    running: list[subprocess.Popen[bytes]] = []
    began = time.monotonic()
    try:
        for server in servers:
            with (logs / f"vllm-{server.name}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        server.command,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        env=os.environ | ({} if server.path is None else {"PYTHONPATH": server.path}),
                    )
                )
        yield {
            server.name: wait(server, process, began, logs) for server, process in zip(servers, running, strict=True)
        }
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def wait(server: Server, process: subprocess.Popen[bytes], began: float, logs: Path) -> float:
    """Seconds until the server says that it is healthy."""
    while time.monotonic() - began < START_SECONDS:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=2).close()
            return time.monotonic() - began
        time.sleep(0.5)
    tail = (logs / f"vllm-{server.name}.log").read_text(errors="replace")[-4000:]
    raise SystemExit(f"{server.name} is not up after {time.monotonic() - began:.0f} s:\n{tail}")


def metric(port: int, name: str) -> float:
    """The sum over all labels of one of the server's Prometheus counters."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """What a result ran on."""
    gpu = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        "command": " ".join(["python", *sys.argv]),
        "gpu": gpu.stdout.strip(),
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in ("vllm", "torch", "transformers", "triton")},
    }


def save(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
