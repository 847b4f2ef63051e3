"""Stands in for `vllm serve`: takes its flags, takes its time, answers /health, /v1/models and
questions (always alike), and fails when told to.

What it is to do is told through the environment, so that its flags stay vLLM's own:
STAND_IN_START seconds until it answers; STAND_IN_CRASHES starts that fail first (counted in a file beside its log, by
STAND_IN_COUNT); STAND_IN_DRAIN seconds from SIGTERM to the end; STAND_IN_CHILD a file for the pid of a process of its
own, as an engine core is, which ignores signals; STAND_IN_TOLD a file for one line per event; STAND_IN_FAILING a tier
that these are for, by default all.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def main() -> None:
    cli = argparse.ArgumentParser()
    cli.add_argument("--model", required=True)
    cli.add_argument("--served-model-name", required=True)
    cli.add_argument("--host", required=True)
    cli.add_argument("--port", type=int, required=True)
    cli.add_argument("--kv-cache-memory-bytes", type=int, required=True)
    cli.add_argument("--gpu-memory-utilization", type=float, required=True)
    args, _ = cli.parse_known_args()
    name = args.served_model_name
    key = os.environ.get("VLLM_API_KEY")
    failing = os.environ.get("STAND_IN_FAILING", name) == name

    def tell(event: str) -> None:
        if "STAND_IN_TOLD" in os.environ:
            with Path(os.environ["STAND_IN_TOLD"]).open("a") as told:
                told.write(f"{time.monotonic()} {name} {event} {os.getpid()}\n")

    tell("start")
    print(f"starting {name} on GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}", flush=True)
    if "STAND_IN_CHILD" in os.environ:
        deaf = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(600)"
        engine = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
        Path(os.environ["STAND_IN_CHILD"]).write_text(str(engine.pid))
    if failing and "STAND_IN_CRASHES" in os.environ:
        count = Path(os.environ["STAND_IN_COUNT"])
        done = int(count.read_text()) if count.exists() else 0
        count.write_text(str(done + 1))
        if done < int(os.environ["STAND_IN_CRASHES"]):
            print("torch.OutOfMemoryError: CUDA out of memory.", flush=True)
            sys.exit(1)
    time.sleep(float(os.environ.get("STAND_IN_START", "0")) if failing else 0)

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = key is None or self.headers.get("Authorization") == f"Bearer {key}"
            body: dict[str, Any] = {}
            if self.path == "/v1/models":
                body = {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "vllm"}]}
            raw = json.dumps(body).encode()
            self.send_response(200 if allowed or self.path == "/health" else 401)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def do_POST(self) -> None:
            """The same answer to every question, each token with its log-prob."""
            self.rfile.read(int(self.headers["content-length"]))
            said = [
                {"token": token, "logprob": -0.1, "bytes": list(token.encode()), "top_logprobs": []}
                for token in ("####", " 4")
            ]
            choice = {"index": 0, "message": {"role": "assistant", "content": "#### 4"}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 3, "completion_tokens": len(said), "total_tokens": 3 + len(said)}
            body = {"id": "0", "object": "chat.completion", "created": 0, "model": name, "usage": usage}
            raw = json.dumps(body | {"choices": [choice | {"logprobs": {"content": said}}]}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    door = ThreadingHTTPServer((args.host, args.port), Door)

    def drain() -> None:
        time.sleep(float(os.environ.get("STAND_IN_DRAIN", "0")))
        tell("end")
        os._exit(0)

    def on_sigterm(*_: Any) -> None:
        tell("sigterm")
        threading.Thread(target=drain, daemon=True).start()

    signal.signal(signal.SIGTERM, on_sigterm)
    tell("ready")
    door.serve_forever()


if __name__ == "__main__":
    main()
