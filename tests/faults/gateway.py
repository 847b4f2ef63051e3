"""The gateway as users start it: a process of its own, reached over loopback."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from calibrators import artifact
from calibrators._linear import Linear
from calibrators.base import Missing, Preprocess
from calibrators.platt import Platt

ROOT = Path(__file__).parents[2]
# How long tests wait for what has to happen anyway. A machine may stand still for seconds or have a tenth of a
# core: only where a time is the promise may a test hold anybody to less, and then beside what the machine itself took.
PATIENCE = 60.0

# The start of a chat request on a raw socket; content-length or transfer-encoding and an empty line are to follow.
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"

# logit p = 10 * mean log-prob + 4: tokens of -0.1 nats give p = .953, of -0.8 p = .018
SURE, UNSURE = -0.1, -0.8
P_SURE, P_UNSURE = 1 / (1 + np.exp(-3)), 1 / (1 + np.exp(4))


def whole(body: dict[str, Any]) -> bytes:
    """A question as it goes over the wire."""
    raw = json.dumps(body).encode()
    return HEAD + b"content-length: %d\r\n\r\n" % len(raw) + raw


def write_artifact(
    path: Path,
    *,
    early_abort: dict[str, Any] | None = None,
    slope: float = 10.0,
    intercept: float = 4.0,
    feature: str = "lp_mean",
    **fingerprint: str,
) -> str:
    """A calibrator of the mean log-prob, or of another feature in nats. Returns its label."""
    pre = Preprocess((feature,), (Missing.REFUSE,), np.zeros(1), np.ones(1), np.array([-20.0]), np.zeros(1))
    sealed = artifact.Artifact.seal(
        id=path.stem,
        kind="platt",
        features=[feature],
        params=Platt(Linear(pre, np.array([slope]), intercept)).to_params(),
        fingerprint={"model": "small", "source": "chosen", "sampling": "greedy"} | fingerprint,
        fit={
            "data_sha256": "0" * 64,
            "n": 100,
            "n_rare": 40,
            "objective": "erm",
            "eta": 0,
            "seed": 0,
            "split": "none",
            "slices": [],
        },
        metrics={},
        validity={"conditions": [], "checks": {}},
        created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        early_abort=early_abort,
    )
    artifact.dump(sealed, path)
    return sealed.label


# For tests that break one tier again and again: it is asked all the same.
NEVER_OPEN = {"breaker": {"in_a_row": 10**6, "least": 10**6}, "waiting_seconds": PATIENCE}
WAITS = {"connect_seconds": 20, "first_byte_seconds": PATIENCE, "idle_seconds": PATIENCE}


def cascade(url: str, **changes: Any) -> dict[str, Any]:
    """Two tiers of one upstream, the small one calibrated; accept it at .8. JSON is YAML, too.

    Nothing in it is over before a slow machine had its time; a test of such a limit sets its own.
    """
    return {
        "server": {"port": 0, "request_seconds": 90, "receive_seconds": 45, "grace_seconds": 20, "max_body_mib": 0.25},
        "keys": {"allow_anonymous": True},
        "tiers": [
            {
                "name": "cheap",
                "engine": {"kind": "openai_http", "url": url, "model": "small", "max_reply_mib": 4, **WAITS},
                "calibrator": "cheap.json",
                "prices": {"usd_per_mtok_in": 1, "usd_per_mtok_out": 2},
                "patience_seconds": PATIENCE,
                "limits": NEVER_OPEN,
            },
            {
                "name": "dear",
                "engine": {"kind": "openai_http", "url": url, "model": "large", **WAITS},
                "prices": {"usd_per_mtok_in": 10, "usd_per_mtok_out": 20},
                "patience_seconds": PATIENCE,
                "limits": NEVER_OPEN,
            },
        ],
        "policies": {
            "default": {"steps": [{"tier": "cheap", "accept_at": 0.8}, {"tier": "dear"}]},
            "strict": {"steps": [{"tier": "cheap", "accept_at": 0.99}, {"tier": "dear"}], "serve_fallback": False},
        },
    } | changes


def confgate(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "gateway", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def confgate_ends(*arguments: str, patience: float = 2 * PATIENCE, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that ends by itself. patience: seconds that it may take."""
    process = confgate(*arguments, **environment)
    out, err = process.communicate(timeout=patience)
    return process.returncode, out, err


@dataclass
class Gateway:
    """A running gateway. log: where its stderr goes.  killed: it was, by `kill`."""

    process: subprocess.Popen[str]
    url: str
    log: Path
    killed: bool = False

    def kill(self) -> None:
        """As kill -9 does."""
        self.process.kill()
        self.process.wait(PATIENCE)
        self.killed = True

    def connect(self) -> socket.socket:
        """A connection of one's own, for what clients hide."""
        address = urlsplit(self.url)
        assert address.hostname is not None
        return socket.create_connection((address.hostname, address.port or 80), timeout=PATIENCE)

    def lines(self) -> list[dict[str, Any]]:
        """What it has written to its log by now; of calm events, all but the last moment's."""
        whole, _, _ = self.log.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def logged(self, like: Callable[[dict[str, Any]], Any], n: int = 1) -> list[dict[str, Any]]:
        """The lines like these, once there are n of them."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [line for line in self.lines() if like(line)]
            return len(found) >= n

        until(there)
        return found


@contextlib.contextmanager
def running(folder: Path, config: dict[str, Any], **environment: str) -> Iterator[Gateway]:
    """A gateway that is ready; terminated, and found to have ended well, at the end."""
    path, log = folder / "cascade.yaml", folder / "gateway.log"
    path.write_text(json.dumps(config, indent=1))
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "gateway", "serve", "--config", str(path)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    with process, process.stdout:
        line = process.stdout.readline()
        assert line.startswith("ready on "), log.read_text()
        made = Gateway(process, line.split()[2], log)
        try:
            yield made
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert process.returncode == (-signal.SIGKILL if made.killed else 0), log.read_text()


def timed(act: Callable[[], object]) -> float:
    """How long it took, s."""
    began = time.monotonic()
    act()
    return time.monotonic() - began


def soonest(took: Callable[[], float], seconds: float, tries: int = 10) -> float:
    """How long something took at its best, in s. took: does it and tells; called again while it took longer than
    `seconds`. A machine that stands still now and then lets some try be in time, a promise that is broken none."""
    best = took()
    while best >= seconds and (tries := tries - 1):
        best = min(best, took())
    return best


def free_port() -> int:
    """A port nobody listens on yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(true: Any, seconds: float = PATIENCE) -> float:
    """Wait for something to become true; how long it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, "it never happened"
        time.sleep(0.005)
    return time.monotonic() - began
