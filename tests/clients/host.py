"""A gateway in front of a fake tier, for client programs that live in environments of their own.

    python tests/clients/host.py

Writes one line of JSON to stdout: `base`, `key`, `slow_key` (one request a minute), and `upstream`, where GET tells
what reached the model server and what was let go before its end. Ends when stdin does.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.faults.gateway import cascade, running, write_artifact
from tests.faults.upstream import Upstream

KEY, SLOW_KEY = "sk-client-of-the-tests", "sk-slow-client-of-the-tests"


def config(url: str) -> dict[str, Any]:
    """Two tiers; the dear one allows everything."""
    told = cascade(url)
    told["tiers"][1]["allows"] = ["tools", "response_format", "reasoning_effort"]
    for tier in told["tiers"]:
        tier["patience_seconds"] = 60  # machines that run clients are slow now and then
    told["server"] |= {"request_seconds": 90, "receive_seconds": 30, "max_body_mib": 4}
    told["keys"] = {
        "clients": [
            {"name": "alice", "key": "env:KEY"},
            {"name": "slow", "key": "env:SLOW_KEY", "limits": {"requests_per_minute": 1}},
        ]
    }
    return told


def watch(upstream: Upstream) -> ThreadingHTTPServer:
    """What the model server saw, over HTTP."""

    class Watch(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = [seen for seen in upstream.seen if seen.path.endswith("/completions")]
            let_go = sum(seen.released_at is not None for seen in asked)
            told = json.dumps({"asked": len(asked), "let_go": let_go}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Watch)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> None:
    with tempfile.TemporaryDirectory() as name, Upstream() as upstream:
        folder = Path(name)
        write_artifact(folder / "cheap.json")
        with running(folder, config(upstream.url), KEY=KEY, SLOW_KEY=SLOW_KEY) as gateway:
            watching = watch(upstream)
            told = {
                "base": gateway.url,
                "key": KEY,
                "slow_key": SLOW_KEY,
                "upstream": f"http://127.0.0.1:{watching.server_port}",
            }
            print(json.dumps(told), flush=True)
            sys.stdin.read()
            watching.shutdown()
            faults = [line for line in gateway.lines() if line.get("level") == "ERROR" and "exception" in line]
            if faults:
                sys.exit(f"the gateway made mistakes: {faults[:3]}")


if __name__ == "__main__":
    main()
