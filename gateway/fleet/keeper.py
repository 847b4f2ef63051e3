"""Runs one command, and sees to it that nothing of it outlives whoever started us. Standard library only; run by path.

    python -I -S keeper.py SECONDS COMMAND...

Standard input is the lifeline: when it ends, our parent is gone, however it went (kill -9 too), and everything is
killed at once. SIGTERM is passed on to the command, which then has SECONDS to end by itself. Whatever it leaves behind
(a model server starts processes of its own) is adopted by us and killed. Exits with the command's code, or 128 + its
signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LOOK_SECONDS = 0.2


def prctl(option: int, value: int) -> None:
    """Linux only; elsewhere the lifeline and the process group have to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def keep(command: list[str], grace_seconds: float) -> int:
    """Run it to its end, or ours. Returns its exit code."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    awake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    try:
        child = subprocess.Popen(  # noqa: S603  what we are for
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
        return 127
    watch(child, awake, grace_seconds)
    bury(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def watch(child: subprocess.Popen[bytes], awake: int, grace_seconds: float) -> None:
    """Until the child has ended, was asked to and had its time, or the lifeline is cut."""
    killed_at = float("inf")
    with selectors.DefaultSelector() as selector:
        selector.register(awake, selectors.EVENT_READ)
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while child.poll() is None and time.monotonic() < killed_at:
            for key, _ in selector.select(LOOK_SECONDS):
                came = os.read(key.fd, 64)
                if key.fd != awake:
                    if not came:
                        return
                    continue
                if signal.SIGHUP in came:
                    child.send_signal(signal.SIGHUP)
                if signal.SIGTERM in came or signal.SIGINT in came:
                    child.send_signal(signal.SIGTERM)
                    killed_at = min(killed_at, time.monotonic() + grace_seconds)


def bury(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and everything that it left behind."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for orphan in iter(orphans, []):
        for pid in orphan:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def orphans() -> list[int]:
    """Processes that have become our children because their own parents ended."""
    found = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in found.read_text().split()] if found.exists() else []


if __name__ == "__main__":
    sys.exit(keep(sys.argv[2:], float(sys.argv[1])))
