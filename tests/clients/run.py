"""Foreign clients against our gateway, each in a virtual environment of its own under .clients/, with pinned versions.

    python tests/clients/run.py              all of them
    python tests/clients/run.py langchain    some of them
    python tests/clients/run.py --out docs/results/clients.json    and write down what was tried

Runs with our own environment's Python, which the gateway needs. Everything is offline but the first installation. Ends
with 1 when a client fails, and says which.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLACES = ROOT / ".clients"
NODE_PACKAGE = "openai@6.49.0"  # has no dependencies
TORCH = os.environ.get("TORCH", "torch==2.13.0")  # first, by its exact version: guidellm would take a build for CUDA

# The script of each client.
SCRIPTS = {
    "openai_python": "openai_python.py",
    "langchain": "langchain_openai.py",
    "litellm": "litellm_library.py",
    "openai_node": "openai_node.mjs",
    "lm_eval": "lm_eval_chat.py",
    "inspect": "inspect_eval.py",
    "guidellm": "guidellm_run.py",
    "schemathesis": "schemathesis_cases.py",
}
PACKAGES = {"langchain": "langchain-openai", "inspect": "inspect_ai"}  # others are called as the client is


def environment(client: str) -> list[str]:
    """What runs a client's script; made, or made anew when its pins have changed."""
    if client == "openai_node":
        return node()
    pins = HERE / "requirements" / f"{client}.txt"
    if client == "openai_python":  # the SDK is one of our own test dependencies, pinned in requirements/test.lock
        return [sys.executable]
    place, stamp = PLACES / client, hashlib.sha256(pins.read_bytes()).hexdigest()
    made = place / "made"
    if not made.exists() or made.read_text() != stamp:
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        pip = [str(place / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        if client == "guidellm":
            subprocess.run([*pip, TORCH], check=True)
        subprocess.run([*pip, "-r", str(pins)], check=True)
        made.write_text(stamp)
    return [str(place / "bin" / "python")]


def node() -> list[str]:
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        raise FileNotFoundError("openai_node needs node and npm")
    place = PLACES / "openai_node"
    place.mkdir(parents=True, exist_ok=True)
    (place / "package.json").write_text('{"private": true}')
    if not (place / "node_modules" / "openai").exists():
        install = ["npm", "install", "--no-save", "--no-audit", "--no-fund", "--silent", NODE_PACKAGE]
        subprocess.run(install, cwd=place, check=True)
    shutil.copy(HERE / SCRIPTS["openai_node"], place)  # node looks for packages beside the script
    return [found, "--unhandled-rejections=strict"]


def version(client: str) -> str:
    """The package that was tried, as `name==version`."""
    if client == "openai_node":
        return NODE_PACKAGE
    if client == "openai_python":
        return f"openai=={metadata.version('openai')}"
    name = PACKAGES.get(client, client)
    pins = (HERE / "requirements" / f"{client}.txt").read_text().splitlines()
    return next(pin for pin in pins if pin.startswith(f"{name}=="))


@contextmanager
def host() -> Iterator[dict[str, str]]:
    """The gateway, and what a client has to know of it."""
    told = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(HERE / "host.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=told
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, "the gateway did not start"
        yield {name.upper(): value for name, value in json.loads(line).items()}
    finally:
        process.stdin.close()
        if process.wait(timeout=60) and sys.exc_info()[0] is None:
            raise AssertionError("the gateway did not end well")


def run(client: str) -> tuple[float, float]:
    """Seconds that its environment took, next to nothing where it stood already, and its script. Raises
    CalledProcessError."""
    began = time.monotonic()
    command = environment(client)
    made = time.monotonic() - began
    script = PLACES / client / SCRIPTS[client] if client == "openai_node" else HERE / SCRIPTS[client]
    mine = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    with host() as facts:
        began = time.monotonic()
        subprocess.run([*command, str(script)], check=True, env=mine | facts, timeout=600)
        return made, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="*", default=list(SCRIPTS), metavar="CLIENT", help=", ".join(SCRIPTS))
    parser.add_argument("--out", type=Path, help="a JSON file for versions, outcomes and seconds")
    args = parser.parse_args()
    wanted = args.clients
    wrong = set(wanted) - set(SCRIPTS)
    if wrong:
        parser.error(f"no client {', '.join(sorted(wrong))}; have {', '.join(SCRIPTS)}")
    failed = []
    tried: dict[str, dict[str, object]] = {}
    for client in wanted:
        tried[client] = {"package": version(client)}
        try:
            made, ran = run(client)
            tried[client] |= {"good": True, "seconds": round(ran, 1)}
            print(f"{client}: good, {ran:.1f} s, and {made:.1f} s to install", flush=True)
        except (subprocess.SubprocessError, AssertionError, OSError) as error:
            failed.append(client)
            tried[client] |= {"good": False}
            print(f"{client}: FAILED: {error}", flush=True)
    if args.out:
        known = json.loads(args.out.read_text()) if args.out.exists() else {}
        args.out.write_text(json.dumps(dict(sorted((known | tried).items())), indent=1) + "\n")
    if failed:
        sys.exit(f"{len(failed)} of {len(wanted)} clients failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
