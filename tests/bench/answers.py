"""What every gateway under the bench is asked, and what the upstream says to it: one answer of 200 tokens.

Bodies are written once, as vLLM writes them: compact JSON, every token with its bytes, candidates with theirs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.vllm_plugin.params import Wanted
from gateway.vllm_plugin.signals import COLUMNS, SIGNALS
from gateway.vllm_plugin.summary import confidence

TOKENS = 200
MODEL = "bench-model"
QUESTION = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. Each clip cost her "
    "3 cents to make, and she sold them at 10 cents in April and at 12 cents in May. How much did she earn altogether?"
)
KINDS = ("plain", "compact", "arrays", "chosen", "top-5", "top-20")
XARGS = {
    "compact": {"confidence": 1, "confidence_k": 20, "confidence_window": 32},
    "arrays": {"confidence": 1, "confidence_k": 20, "confidence_arrays": 1},
}
CANDIDATES = {"chosen": 0, "top-5": 5, "top-20": 20}
RIVALS = "the of and she sold clips in each then half more than that costs friends April May total so a"
VOCABULARY = RIVALS.split()

Json = dict[str, Any]


def words(tokens: int = TOKENS) -> list[str]:
    """The answer's tokens, the end token apart: sums with words between them, and a final number."""
    told: list[str] = []
    left = 41
    while len(told) < tokens - 9:
        told += [" So", " she", " has", " ", *str(left), " +", " ", "2", " =", " ", *str(left + 2), ".", "\n"]
        told += [f" {VOCABULARY[(len(told) * 7 + n) % len(VOCABULARY)]}" for n in range(9)]
        left += 2
    end = ["\n", "####", " ", *str(left)]
    return [*told[: tokens - len(end)], *end]


def nats(rng: np.random.Generator, tokens: int = TOKENS + 1, rivals: int = 20) -> np.ndarray[Any, Any]:
    """Log-probs (tokens, rivals) of a model that is mostly sure, falling along the rivals."""
    logits = np.sort(rng.normal(size=(tokens, 50)) * 2, axis=1)[:, ::-1].copy()
    logits[:, 0] += rng.gamma(2.0, 2.5, size=tokens)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits[:, :rivals]


def spoken(text: str, value: float) -> Json:
    return {"token": text, "logprob": value, "bytes": list(text.encode())}


def entries(told: Sequence[str], values: np.ndarray[Any, Any], candidates: int) -> list[Json]:
    def entry(place: int) -> Json:
        rivals = [told[place], *VOCABULARY][:candidates]
        top = [spoken(text, float(values[place, rank])) for rank, text in enumerate(rivals)]
        return {**spoken(told[place], float(values[place, 0])), "top_logprobs": top}

    return [entry(place) for place in range(len(told))]


def compact(values: np.ndarray[Any, Any], *, arrays: bool) -> Json:
    """What the plugin inside vLLM adds, written by the plugin's own code."""
    rows = values.astype(np.float32)
    p = np.exp(rows)
    columns = {
        "confidence": -rows.mean(axis=1),
        "top1": rows[:, 0],
        "margin": p[:, 0] - p[:, 1],
        "entropy": -(p * rows).sum(axis=1),
        "self_certainty": -rows.mean(axis=1) - math.log(50),
    }
    records = np.zeros((len(rows), COLUMNS), dtype=np.float32)
    for place, name in enumerate(SIGNALS):
        records[:, place] = columns[name]
    return confidence(records, Wanted(k=20, arrays=arrays), greedy=True, ended=True)


def body(kind: str, rng: np.random.Generator) -> bytes:
    """A whole reply. kind: one of KINDS."""
    told, values = words(), nats(rng)
    choice: Json = {
        "index": 0,
        "message": {"role": "assistant", "content": "".join(told), "refusal": None, "tool_calls": []},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
    }
    if kind in CANDIDATES:
        choice["logprobs"] = {"content": entries([*told, "<|im_end|>"], values, CANDIDATES[kind])}
    if kind in XARGS:
        choice["confidence"] = compact(values, arrays=kind == "arrays")
    reply = {
        "id": "chatcmpl-5a9e26a7b0f64a3c9a1d1a6c4b1a7a55",
        "object": "chat.completion",
        "created": 1795338000,
        "model": MODEL,
        "choices": [choice],
        "usage": {"prompt_tokens": 93, "total_tokens": 93 + TOKENS + 1, "completion_tokens": TOKENS + 1},
    }
    return json.dumps(reply, separators=(",", ":")).encode()


def kind_of(asked: bytes) -> str:
    """Which kind of reply a request is for, by what it asks for. Cheap: this is the upstream's whole work."""
    if b'"vllm_xargs"' in asked:
        return "arrays" if b'"confidence_arrays"' in asked else "compact"
    for kind, wanted in (("top-20", b'"top_logprobs":20'), ("top-5", b'"top_logprobs":5')):
        if wanted in asked.replace(b" ", b""):
            return kind
    return "chosen" if b'"logprobs":true' in asked.replace(b" ", b"") else "plain"


def question(kind: str, model: str = MODEL) -> Json:
    """What a client sends who wants that kind of reply passed on to him."""
    told: Json = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0.0}
    if kind in CANDIDATES:
        told |= {"logprobs": True, "top_logprobs": CANDIDATES[kind]}
    if kind in XARGS:
        told["vllm_xargs"] = XARGS[kind]
    return told
