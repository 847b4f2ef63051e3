"""A gateway in a process of its own, on a free port of this machine, for as long as a block lasts."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from gateway.errors import GatewayError

READY_SECONDS = 120.0  # four small models load in about five; a slow disk may take longer
STOP_SECONDS = 20.0
READY = re.compile(r"ready on (\S+)")


class NotServing(GatewayError):
    """The gateway ended, or said nothing, before it was ready. `log`: its last words."""

    def __init__(self, why: str, log: str) -> None:
        super().__init__(f"the gateway {why}" + (f"; it said:\n{log}" if log else ""))
        self.log = log


@contextlib.contextmanager
def gateway(config: Path) -> Iterator[str]:
    """Its address, once it is ready. Stopped at the end, whatever happened. Raises NotServing."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(  # noqa: S603  ourselves
            [sys.executable, "-m", "gateway", "serve", "-c", str(config), "--host", "127.0.0.1", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )
        try:
            address = wait_until_ready(process)
            if address is None:
                log.seek(0)
                ended = process.poll()
                why = f"was not ready after {READY_SECONDS:.0f} s" if ended is None else f"ended with {ended}"
                raise NotServing(why, "".join(log.readlines()[-5:]).strip())
            yield address
        finally:
            stop(process)


def wait_until_ready(process: subprocess.Popen[str]) -> str | None:
    """The address in its ready line; None when it ends, or stays silent for too long."""
    assert process.stdout is not None, "started with a pipe"
    overdue = threading.Timer(READY_SECONDS, process.kill)
    overdue.start()
    try:
        for line in process.stdout:
            if found := READY.search(line):
                return found[1]
        process.wait()
        return None
    finally:
        overdue.cancel()


def stop(process: subprocess.Popen[str]) -> None:
    """Ask it to end; make it, when it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert process.stdout is not None, "started with a pipe"
    process.stdout.close()
