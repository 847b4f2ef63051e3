"""The middleware in a real server, over a stand-in for vLLM's application whose worker sends records as that does."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gateway.vllm_plugin import middleware, params
from gateway.vllm_plugin.channel import Outbox
from gateway.vllm_plugin.middleware import ConfidenceMiddleware
from gateway.vllm_plugin.plan import BLOCK
from gateway.vllm_plugin.recorder import Leaving, Seat
from gateway.vllm_plugin.signals import ABORTED, COLUMNS, SIGNALS
from tests.faults.gateway import PATIENCE

TOKENS = 5


def records(choice: int, tokens: int = TOKENS) -> torch.Tensor:
    made = torch.zeros((BLOCK, COLUMNS))
    made[:tokens, : len(SIGNALS)] = (
        torch.arange(tokens)[:, None] + 100.0 * choice + torch.arange(len(SIGNALS))[None, :] / 8
    )
    return made


class Engine:
    """vLLM's API server and worker, as far as the middleware can tell. seen: the bodies that reached it."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.outbox = Outbox()
        self.silent = False
        self.late_seconds = self.stalled_seconds = 0.0  # of the records of "late"; of the loop, once it has answered
        self.pieces = [(0, TOKENS)]  # stays in the batch, as first token and one behind the last
        self.aborts = False
        self.finish: tuple[str, str | int | None] = ("stop", None)  # finish and stop reason
        self.speculative_config: object | None = None  # as of vLLM's configuration, which the application's state holds

    async def chat(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.seen.append(body)
        if body.get("model") == "null":
            return JSONResponse(None)
        if body.get("model") == "refused":
            return JSONResponse({"error": {"message": "no"}}, 400)
        n = body.get("n", 1)
        if not body.get("stream"):
            if body.get("model") == "late":
                threading.Timer(self.late_seconds, self.work, [body]).start()
                asyncio.get_running_loop().call_later(0.05, time.sleep, self.stalled_seconds)
            else:
                self.work(body)
            return JSONResponse(self.answer(body, n))
        return StreamingResponse(self.events(body, n), media_type="text/event-stream")

    def work(self, body: dict[str, Any], *only: int) -> None:
        """The worker's part, of all choices or of these."""
        wanted = params.read(body.get("vllm_xargs"))
        if wanted is None or self.silent:
            return
        for choice in only or range(body.get("n", 1)):
            whole = records(choice)
            if self.aborts:
                whole[TOKENS - 1, ABORTED] = 1.0
            for start, stop in self.pieces:
                seat = Seat(wanted, True, 0, choice, [], start, written=stop - start)
                self.outbox.send([Leaving(seat, [whole[start:stop]], None, lambda: None)])

    def answer(self, body: dict[str, Any], n: int) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        for index in range(n):
            message = {"role": "assistant", "content": "Größe ✓"}
            finish, stop = self.finish
            choices.append({"index": index, "message": message, "finish_reason": finish, "stop_reason": stop})
            if body.get("return_token_ids"):
                choices[-1]["token_ids"] = list(range(TOKENS))
        usage = {"prompt_tokens": 3, "completion_tokens": TOKENS * n, "total_tokens": 3 + TOKENS * n}
        return {"id": "x", "object": "chat.completion", "choices": choices, "usage": usage}

    async def events(self, body: dict[str, Any], n: int) -> AsyncIterator[bytes]:
        ids = bool(body.get("return_token_ids"))
        for index in range(n):
            for t in range(TOKENS):
                choice: dict[str, Any] = {"index": index, "delta": {"content": f"{t}"}, "finish_reason": None}
                if ids:
                    choice["token_ids"] = [t]
                if t == TOKENS - 1 and n > 1:
                    self.work(body, index)  # of several choices each leaves by itself
                if t == TOKENS - 1:
                    choice |= {"finish_reason": "stop", "stop_reason": None}
                yield event({"id": "x", "choices": [choice]})
                await asyncio.sleep(0.01)
        if n == 1:
            self.work(body)  # a moment after the last event, as a busy server's do
        if (body.get("stream_options") or {}).get("include_usage"):
            yield event({"id": "x", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": TOKENS * n}})
        yield b"data: [DONE]\n\n"


def event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def url(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("CONFGATE_VLLM_DIR", str(tmp_path / "channel"))
    monkeypatch.setattr(middleware, "FIRST_ARRIVAL_SECONDS", PATIENCE)  # a slow machine's worker, too, is in time
    monkeypatch.setattr(middleware, "ARRIVAL_SECONDS", PATIENCE)
    app = Starlette(
        routes=[Route(path, engine.chat, methods=["POST"]) for path in ("/v1/chat/completions", "/v1/completions")]
    )
    app.state.vllm_config = engine
    app.add_middleware(ConfidenceMiddleware)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        pass
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/v1/chat/completions"
    server.should_exit = True
    thread.join()
    assert not list((tmp_path / "channel").glob("*.sock")), "a socket was left behind"
    inbox = app.middleware_stack.app._inbox  # type: ignore[union-attr]  inside Starlette's own
    assert inbox is None or not inbox._waiting, "a request is remembered after its answer"


def body(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [], "vllm_xargs": {"confidence": 1, "confidence_arrays": 1}} | more


async def post(url: str, sent: dict[str, Any]) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.post(url, json=sent) as reply:
        return reply.status, await reply.read()


def whole(url: str, sent: dict[str, Any]) -> dict[str, Any]:
    status, raw = asyncio.run(post(url, sent))
    assert status == 200, raw
    return dict(json.loads(raw))


def streamed(url: str, sent: dict[str, Any]) -> list[dict[str, Any]]:
    status, raw = asyncio.run(post(url, sent | {"stream": True}))
    assert status == 200, raw
    events = raw.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(said.removeprefix("data: ")) for said in events[:-2]]


def array(told: dict[str, Any], name: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(told["arrays"][name]), dtype="<f2")


def test_an_answer_carries_the_arrays_of_its_own_request_and_their_summary(url: str) -> None:
    answer = whole(url, body())
    told = answer["choices"][0]["confidence"]
    assert (told["tokens"], told["ended"], told["aborted"], told["greedy"]) == (TOKENS, True, False, True)
    for nth, name in enumerate(SIGNALS):
        np.testing.assert_allclose(array(told, name), np.arange(TOKENS) + nth / 8, rtol=1e-3)
    assert told["summary"]["confidence"] == {
        "mean": 1.5, "min": 0.0, "max": 3.0, "lowest_group": 1.5, "bottom_groups": 1.5, "tail": 1.5,
        "bottom_tokens": 0.0, "end": 4.0,
    }, "the end token is no part of the text, and stands by itself"  # fmt: skip
    assert answer["choices"][0]["message"]["content"] == "Größe ✓"


@pytest.mark.parametrize(
    ("finish", "ended"),
    [(("stop", None), True), (("stop", 151645), True), (("stop", "\n\n"), False), (("length", None), False)],
)
def test_the_last_record_is_of_an_end_token_only_where_one_ended_the_answer(
    url: str, engine: Engine, finish: tuple[str, str | int | None], ended: bool
) -> None:
    """A stop string and a full answer end with a token of the text."""
    engine.finish = finish
    told = whole(url, body())["choices"][0]["confidence"]
    assert told["ended"] is ended
    assert told["summary"]["confidence"]["mean"] == (1.5 if ended else 2.0)
    assert ("end" in told["summary"]["top1"]) is ended


def test_who_does_not_ask_gets_vllms_bytes_and_vllm_gets_his(url: str, engine: Engine) -> None:
    sent = {"model": "m", "messages": [{"role": "user", "content": 'say "confidence"'}]}
    answer = whole(url, sent)
    assert engine.seen == [sent]
    assert answer == engine.answer(sent, 1)


def test_a_summary_alone_is_small(url: str) -> None:
    told = whole(url, body(vllm_xargs={"confidence": 1}))["choices"][0]["confidence"]
    assert "arrays" not in told
    assert len(json.dumps(told)) < 1200


def test_every_choice_gets_its_own_and_the_token_ids_that_told_them_apart_are_taken_out(
    url: str, engine: Engine
) -> None:
    answer = whole(url, body(n=3))
    assert [array(c["confidence"], "confidence")[0] for c in answer["choices"]] == [0.0, 100.0, 200.0]
    assert all("token_ids" not in choice for choice in answer["choices"])
    assert isinstance(engine.seen[0]["seed"], int), "the seed tells vLLM's choices apart"
    whole(url, body(n=2, seed=7))
    assert engine.seen[1]["seed"] == engine.seen[1]["vllm_xargs"]["confidence_seed"] == 7, "a client's own is kept"
    asked = whole(url, body(n=2, return_token_ids=True))
    assert [choice["token_ids"] for choice in asked["choices"]] == [[*range(TOKENS)]] * 2, (
        "ids that he asked for are his"
    )


def test_pieces_of_a_preempted_request_are_put_together(url: str, engine: Engine) -> None:
    engine.pieces = [(0, 2), (2, TOKENS)]
    told = whole(url, body())["choices"][0]["confidence"]
    np.testing.assert_allclose(array(told, "confidence"), np.arange(TOKENS))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_carries_it_with_the_finish_reason_and_nothing_else_changes(
    url: str, engine: Engine, n: int, usage: bool
) -> None:
    more = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = streamed(url, body(n=n, **more))
    finals = [c["choices"][0] for c in chunks if c["choices"] and c["choices"][0]["finish_reason"]]
    assert [array(c["confidence"], "confidence")[0] for c in finals] == [100.0 * c["index"] for c in finals]
    assert len(finals) == n
    assert sum("usage" in c for c in chunks) == usage
    assert all("token_ids" not in choice for c in chunks for choice in c["choices"])
    text = "".join(c["choices"][0]["delta"]["content"] for c in chunks if c["choices"])
    assert text == "01234" * n
    assert [c for c in chunks if c["choices"] and not c["choices"][0]["finish_reason"] and "confidence" in str(c)] == []


def test_a_stream_of_several_choices_gets_each_its_own(url: str, engine: Engine) -> None:
    original = engine.events

    async def early(sent: dict[str, Any], n: int) -> AsyncIterator[bytes]:
        engine.work(sent)
        engine.silent = True
        async for said in original(sent, n):
            yield said

    engine.events = early  # type: ignore[method-assign]
    chunks = streamed(url, body(n=2))
    finals = [c["choices"][0] for c in chunks if c["choices"] and c["choices"][0]["finish_reason"]]
    assert [array(c["confidence"], "confidence")[0] for c in finals] == [0.0, 100.0]


def test_an_answer_that_was_given_up_says_so_by_its_finish_reason(url: str, engine: Engine) -> None:
    engine.aborts = True
    choice = whole(url, body(vllm_xargs={"confidence": 1, "confidence_abort": 2.0}))["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"], choice["confidence"]["aborted"]) == (
        "length",
        "confidence",
        True,
    )


def test_records_that_never_come_are_called_missing_soon_while_no_worker_ever_sent_any(
    url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "FIRST_ARRIVAL_SECONDS", 0.5)
    engine.silent = True
    told = whole(url, body())["choices"][0]["confidence"]
    assert told["missing"] == "the engine sent no records within 0.5 s; is its logits processor loaded?"


def test_records_that_come_in_time_count_though_the_loop_looks_late(
    url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "FIRST_ARRIVAL_SECONDS", 0.5)
    engine.late_seconds, engine.stalled_seconds = 0.2, 1.0
    assert "summary" in whole(url, body(model="late"))["choices"][0]["confidence"]


def test_records_are_waited_for_longer_once_a_worker_has_sent_any(
    url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "FIRST_ARRIVAL_SECONDS", 0.5)
    engine.late_seconds = 1.5

    async def both() -> list[Any]:
        return await asyncio.gather(post(url, body(model="late")), post(url, body()))

    for _, raw in asyncio.run(both()):
        assert "summary" in json.loads(raw)["choices"][0]["confidence"]
    engine.silent = True
    monkeypatch.setattr(middleware, "ARRIVAL_SECONDS", 0.25)
    told = whole(url, body())["choices"][0]["confidence"]
    assert told["missing"] == "the engine sent no records within 0.75 s; is its logits processor loaded?"


@pytest.mark.parametrize(
    ("xargs", "says"),
    [
        ({"confidence_k": 0}, "confidence_k must be a whole number from 1 to 20"),
        ({"confidence_k": 21}, "from 1 to 20"),
        ({"confidence_window": "many"}, "confidence_window"),
        ({"confidence_abort": -1}, "confidence_abort must be a number of nats > 0"),
        ({"confidence_kk": 3}, "has no 'confidence_kk'"),
    ],
)
def test_a_wrong_wish_is_refused_by_name(url: str, engine: Engine, xargs: dict[str, Any], says: str) -> None:
    status, raw = asyncio.run(post(url, body(vllm_xargs={"confidence": 1} | xargs)))
    assert status == 400
    assert says in json.loads(raw)["error"]["message"]
    assert engine.seen == []


@pytest.mark.parametrize(
    ("asks", "says"),
    [
        ({"prompt": ["a", "b"]}, "one prompt a request: send each by itself"),
        ({"prompt": [[1, 2], [3]]}, "one prompt a request: send each by itself"),
        ({"prompt": "a", "use_beam_search": True, "n": 2}, "cannot be computed under beam search"),
    ],
)
def test_answers_that_could_not_be_told_apart_are_refused(
    url: str, engine: Engine, asks: dict[str, Any], says: str
) -> None:
    status, raw = asyncio.run(post(url.replace("chat/", ""), {"model": "m", "vllm_xargs": {"confidence": 1}} | asks))
    assert status == 400
    assert says in json.loads(raw)["error"]["message"]
    assert engine.seen == []


@pytest.mark.parametrize("prompt", ["a", [1, 2, 3], ["a"]])
def test_one_prompt_is_one_however_it_is_written(url: str, prompt: Any) -> None:
    sent = {"model": "m", "vllm_xargs": {"confidence": 1}, "prompt": prompt}
    assert whole(url.replace("chat/", ""), sent)["choices"][0]["confidence"]["tokens"] == TOKENS


def test_confidence_under_speculative_decoding_is_refused_and_everything_else_served(url: str, engine: Engine) -> None:
    engine.speculative_config = object()
    status, raw = asyncio.run(post(url, body()))
    assert status == 400
    assert "cannot be computed under speculative decoding: start vLLM without it" in json.loads(raw)["error"]["message"]
    assert "confidence" not in whole(url, {"model": "m", "messages": []})["choices"][0]


def test_nobody_but_the_middleware_says_where_records_go(url: str, engine: Engine) -> None:
    whole(url, body(vllm_xargs={"confidence": 1, "confidence_id": "0" * 16 + "-1", "confidence_seed": 5}))
    sent = engine.seen[0]["vllm_xargs"]
    assert sent["confidence_id"] != "0" * 16 + "-1"
    assert "confidence_seed" not in sent


def test_an_error_of_vllms_passes_as_it_is(url: str) -> None:
    assert asyncio.run(post(url, body(model="refused"))) == (400, b'{"error":{"message":"no"}}')


def test_the_null_that_vllm_tells_a_client_who_left_passes_too(url: str) -> None:
    assert asyncio.run(post(url, body(model="null"))) == (200, b"null")


def test_a_hundred_requests_at_once_are_not_mixed_up(url: str, engine: Engine) -> None:
    async def all_of_them() -> list[dict[str, Any]]:
        async with aiohttp.ClientSession() as session:

            async def one(n: int) -> dict[str, Any]:
                async with session.post(url, json=body(n=1 + n % 3)) as reply:
                    return dict(await reply.json())

            return await asyncio.gather(*(one(n) for n in range(100)))

    for answer in asyncio.run(all_of_them()):
        for choice in answer["choices"]:
            assert array(choice["confidence"], "confidence")[0] == 100.0 * choice["index"]


def test_a_channel_that_others_can_write_to_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    os.chmod(open_to_all, 0o777)
    monkeypatch.setenv("CONFGATE_VLLM_DIR", str(open_to_all))
    status, raw = asyncio.run(post(url, body()))
    assert status == 503
    assert "must belong to this user and be closed to all others (chmod 700)" in json.loads(raw)["error"]["message"]


def test_params_are_none_unless_asked() -> None:
    assert params.read(None) is None
    assert params.read({"other": 1}) is None
    assert params.read({"confidence": 0}) is None
    assert params.read({"confidence": 1}) == params.Wanted()
    assert math.isinf(params.Wanted().abort_below)
