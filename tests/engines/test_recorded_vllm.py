"""The HTTP engine on a reply that a real vLLM server sent; the file says which server and what made it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway import confidence
from gateway.engines.openai_http import Options, open_engine
from gateway.nouns import Ask, Completion, Evidence, Finish, Message, Source

RECORDED = json.loads((Path(__file__).parents[1] / "data/vllm/chat_top5.json").read_text())


class Replay(BaseHTTPRequestHandler):
    """Answers every POST with the recorded reply."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(RECORDED["reply"]).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def completion() -> Iterator[Completion]:
    with HTTPServer(("127.0.0.1", 0), Replay) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield asyncio.run(ask(f"http://127.0.0.1:{server.server_port}/v1"))
        finally:
            server.shutdown()
            thread.join()


async def ask(url: str) -> Completion:
    engine = await open_engine(Options(kind="openai_http", url=url, model="pocket-base"), name="recorded")
    try:
        deadline = asyncio.get_running_loop().time() + 10
        return await engine.complete(Ask((Message("user", "?"),), deadline, top_k=5))
    finally:
        await engine.close()


def test_vllm_lists_the_end_token_and_it_is_kept_apart(completion: Completion) -> None:
    entries: list[dict[str, Any]] = RECORDED["reply"]["choices"][0]["logprobs"]["content"]
    assert entries[-1]["token"] == "<|im_end|>"
    trace = completion.trace
    assert trace is not None
    assert trace.chosen.size == len(entries) - 1
    assert trace.end_nats == pytest.approx(entries[-1]["logprob"])
    assert completion.finish is Finish.STOP
    assert completion.completion_tokens == len(entries)


def test_the_tokens_join_to_the_text_and_the_candidates_fall(completion: Completion) -> None:
    trace = completion.trace
    assert trace is not None
    assert trace.source is Source.TOP_LOGPROBS
    assert b"".join(trace.tokens).decode() == completion.text
    assert trace.top is not None
    assert trace.top.shape == (trace.chosen.size, 5)
    assert (np.diff(trace.top, axis=1) <= 0).all()
    assert (trace.top[:, 0] >= trace.chosen - 1e-9).all()


def test_every_feature_that_five_candidates_allow_is_finite(completion: Completion) -> None:
    assert completion.trace is not None
    specs = ["lp_mean", "lp_bottom", "lp_tail", "deepconf_average(k=5)", "deepconf_bottom(k=5)", "ans_min", "calc_min"]
    features = confidence.measure(specs, Evidence(completion.trace, completion.text))
    assert np.isfinite(features.values).all()
