"""Stands in for model servers in rehearsals: an OpenAI-compatible server that answers GSM8K questions by a known rule.

NOT A MODEL, and nothing measured with it is a result. The rule: a question has a difficulty d ~ N(0, 1) drawn by the
hash of its text. A model of accuracy a is right with probability sigmoid(2 (s - d)), where s makes that a on average;
its coin is drawn by the hash of question and model. Right answers have tokens of exp(-3.0 + z / 2) nats below
certainty, wrong ones of exp(-1.6 + z / 2), z ~ N(0, 1) for the answer as a whole: a confidence that tells something,
and not all.

    python -m tests.eval.stand_in --data tests/data/gsm8k-sample --port 8100
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import math
import re
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from aiohttp import web

from eval.datasets import Question, load
from eval.sanity import REPORTED
from gateway.engines._compact import SCHEMA

# As deploy/qwen2.5 names them; each a little less often right than is reported of the model whose place it takes, so
# that a sample holds enough wrong answers to fit on.
MODELS = {f"qwen2.5-{size}b": 0.97 * accuracy for size, (accuracy, _) in REPORTED.items() if size != "72"}
VERSION = "0.0.stand-in"
GRID = [NormalDist().inv_cdf((i + 0.5) / 400) for i in range(400)]
Json = dict[str, Any]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def skill(accuracy: float) -> float:
    """The s of the rule, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = sum(sigmoid(2 * (middle - d)) for d in GRID) / len(GRID)
        low, high = (middle, high) if mean < accuracy else (low, middle)
    return low


def uniform(*marks: str) -> float:
    """In (0, 1), the same for the same marks."""
    return (int.from_bytes(hashlib.sha256("\0".join(marks).encode()).digest()[:6]) + 0.5) / 2**48


class StandIn:
    """Answers by the rule."""

    def __init__(self, questions: list[Question]) -> None:
        self._known = {question.text: question for question in questions}
        self._skill = {model: skill(accuracy) for model, accuracy in MODELS.items()}

    def reply(self, body: Json) -> Json:
        model, text = body["model"], body["messages"][-1]["content"]
        question = self._known[text]
        difficulty = NormalDist().inv_cdf(uniform("difficulty", text))
        right = uniform("coin", model, text) < sigmoid(2 * (self._skill[model] - difficulty))
        doubt = math.exp((-3.0 if right else -1.6) + NormalDist().inv_cdf(uniform("doubt", model, text)) / 2)
        target = question.target if right else str(int(question.target) + 1 + int(9 * uniform("wrong", model, text)))
        said = f"{question.solution.rpartition('####')[0]}\\boxed{{{target}}}"
        tokens = [*re.findall(r"\s*\S+", said), "<|im_end|>"]
        asked = body.get("vllm_xargs", {}).get("confidence_k")  # of our plugin, as a preset's cascade does
        entries = [entry(token, -doubt * 2 * uniform(model, text, str(i)), asked or body["top_logprobs"])
                   for i, token in enumerate(tokens)]  # fmt: skip
        evidence = {"confidence": in_engine(entries, asked)} if asked else {"logprobs": {"content": entries}}
        return {
            "id": "stand-in", "object": "chat.completion", "created": 0, "model": model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
                        | evidence],
            "usage": {"prompt_tokens": len(text.split()), "completion_tokens": len(tokens)},
        }  # fmt: skip


def entry(token: str, nats: float, k: int) -> Json:
    """The token with its log-prob, and k candidates: itself, and others that share half of what is left."""
    rest = max(-math.expm1(nats), 1e-9)
    others = [{"token": f"~{i}", "logprob": math.log(rest / 2 ** (i + 2))} for i in range(k - 1)]
    top = sorted([{"token": token, "logprob": nats}, *others], key=lambda one: -float(one["logprob"]))  # type: ignore[arg-type]
    return {"token": token, "logprob": nats, "top_logprobs": top[:k]}


def in_engine(entries: list[Json], k: int) -> Json:
    """The same as our plugin's object, for a vocabulary of the k candidates."""
    top = np.array([[one["logprob"] for one in said["top_logprobs"]] for said in entries])
    p = np.exp(top)
    rows = {
        "confidence": -top.mean(axis=1), "top1": top[:, 0], "margin": p[:, 0] - p[:, 1],
        "entropy": -(p * top).sum(axis=1), "self_certainty": -top.mean(axis=1) - math.log(k),
    }  # fmt: skip
    packed = {name: base64.b64encode(row.astype("<f2").tobytes()).decode() for name, row in rows.items()}
    return {"schema": SCHEMA, "tokens": len(entries), "k": k, "greedy": True, "ended": True,
            "arrays": {"dtype": "float16", **packed}}  # fmt: skip


def app(questions: list[Question]) -> web.Application:
    made = StandIn(questions)

    async def complete(request: web.Request) -> web.Response:
        return web.json_response(made.reply(await request.json()))

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": model, "owned_by": "stand-in"} for model in MODELS]})

    async def version(_: web.Request) -> web.Response:
        return web.json_response({"version": VERSION})

    served = web.Application()
    served.add_routes(
        [web.post("/v1/chat/completions", complete), web.get("/v1/models", models), web.get("/version", version)]
    )
    return served


def main() -> None:
    parser = argparse.ArgumentParser(description="Stand in for the six model servers of a GSM8K rehearsal.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    questions = [question for split in ("train", "test") for question in load("gsm8k", given.data, split=split)]
    asyncio.set_event_loop(asyncio.new_event_loop())
    web.run_app(app(questions), host="127.0.0.1", port=given.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
