"""Are the engine's values true? Held against the log-probs of the very same answers, and against transformers.

    python tests/gpu/plugin_truth.py --out docs/results/vllm_truth.json      # needs CUDA, vLLM and this distribution

with, for a tensor-parallel group or several API servers, --model deploy/pocket/models/pocket-base
--flag=--tensor-parallel-size=2 or --flag=--api-server-count=2.

One server with so small a cache that it must preempt, and a crowd of requests of mixed lengths: whole and streamed, one
and three choices, greedy and warm, some left by their clients. Every request asks for the plugin's arrays and for 20
candidates of the same tokens, so each answer carries what its own records must say; a row taken for another shows.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from eval.datasets import pocket
from tests.gpu import servers

CROWD, IN_FLIGHT, K = 1200, 200, 20
F16 = 2.0**-10  # relative; half precision on the wire
ATOL = 2e-3  # nats; the server's own log-probs are computed from the same float32 logits


def body(nth: int, question: str, chance: random.Random, model: str) -> dict[str, Any]:
    """A request of its own length and kind."""
    sent: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": chance.choice((1, 2, 7, 40, 120, 250)),
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": K,
        "return_token_ids": True,
        "vllm_xargs": {"confidence": 1, "confidence_arrays": 1},
    }
    if nth % 5 == 0:
        sent |= {"n": 3, "temperature": 0.8}
    if nth % 3 == 0:
        sent |= {"stream": True}
    if nth % 7 == 0:
        sent["ignore_eos"] = True
    return sent


async def ask(
    session: aiohttp.ClientSession, url: str, sent: dict[str, Any], *, leave: float | None
) -> list[dict[str, Any]]:
    """The choices, whole or put together from a stream; none when the client left."""
    try:
        async with asyncio.timeout(leave):
            async with session.post(url, json=sent) as reply:
                raw = await reply.read()
    except TimeoutError:
        return []
    assert reply.status == 200, raw[:500]
    if not sent.get("stream"):
        return list(json.loads(raw)["choices"])
    choices: dict[int, dict[str, Any]] = {}
    for event in raw.decode().split("\n\n"):
        if not event.startswith("data: {"):
            continue
        for part in json.loads(event[6:])["choices"]:
            whole = choices.setdefault(
                part["index"], {"index": part["index"], "logprobs": {"content": []}, "token_ids": []}
            )
            whole["logprobs"]["content"] += ((part.get("logprobs") or {}).get("content")) or []
            whole["token_ids"] += part.get("token_ids") or []
            whole |= {key: part[key] for key in ("finish_reason", "confidence") if part.get(key)}
    return [choices[at] for at in sorted(choices)]


def arrays(choice: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    packed = choice["confidence"]["arrays"]
    return {
        name: np.frombuffer(base64.b64decode(packed[name]), "<f2").astype(np.float64)
        for name in packed
        if name != "dtype"
    }


def gaps(choice: dict[str, Any]) -> dict[str, float]:
    """The largest gap of each signal from the choice's own 20 candidates, beyond what half precision explains."""
    entries = choice["logprobs"]["content"]
    got = arrays(choice)
    # vLLM lists the emitted token first: one from beyond the 20 pushes the twentieth out, and the mean cannot be told.
    full = np.array([min(c["logprob"] for c in e["top_logprobs"][1:]) <= e["logprob"] for e in entries])
    entries = [entry for entry, whole in zip(entries, full, strict=True) if whole]
    got = {name: values[: len(full)][full] for name, values in got.items()}
    if not entries:
        return {}
    top = np.array([sorted((c["logprob"] for c in e["top_logprobs"]), reverse=True)[:K] for e in entries])
    p = np.exp(top[:, :2])
    want = {"confidence": -top.mean(axis=1), "top1": top[:, 0], "margin": p[:, 0] - p[:, 1]}
    told = {name: float(np.max(np.abs(got[name][: len(top)] - want[name]) - F16 * np.abs(want[name]))) for name in want}
    rest = 1 - np.exp(top).sum(axis=1)
    known = -(np.exp(top) * top).sum(axis=1)
    low = known - np.maximum(rest, 0) * top[:, -1]
    told["entropy_under_its_lower_bound"] = float(np.max(low - got["entropy"][: len(top)] - 2 * F16 * low))
    return told


def neighbours(choices: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each answer with the next one that has as many tokens or more: what a wrong row would have given it."""
    return [
        (one, other)
        for one, other in itertools.pairwise(choices)
        if other["confidence"]["tokens"] >= len(one["logprobs"]["content"])
    ]


async def crowd(
    server: servers.Server, questions: list[str]
) -> tuple[list[tuple[dict[str, Any], list[dict[str, Any]]]], int]:
    chance = random.Random(7)
    seats = asyncio.Semaphore(IN_FLIGHT)
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(nth: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
            sent = body(nth, questions[nth % len(questions)], chance, server.name)
            async with seats:
                return sent, await ask(session, url, sent, leave=0.3 if nth % 11 == 0 else None)

        done = await asyncio.gather(*(one(n) for n in range(CROWD)))
    return [pair for pair in done if pair[1]], sum(not pair[1] for pair in done)


def against_transformers(folder: Path, choices: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Gaps, in nats, from a float32 forward pass over the same tokens; how far vLLM's log-probs over HTTP are from it
    stands beside, because that much is the other forward pass and not the plugin."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to("cuda").eval()
    seen: dict[str, list[np.ndarray[Any, Any]]] = {}
    for choice in choices:
        prompt, ids = choice["prompt"], choice["token_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + ids], device="cuda")).logits[0, len(prompt) - 1 : -1].double()
        nats = logits.log_softmax(-1)
        top = nats.topk(K).values
        want = {
            "confidence": -top.mean(-1),
            "top1": top[:, 0],
            "margin": top[:, 0].exp() - top[:, 1].exp(),
            "entropy": -(nats.exp() * nats).sum(-1),
            "self_certainty": -nats.mean(-1) - np.log(nats.shape[-1]),
        }
        got = arrays(choice)
        for name, values in want.items():
            seen.setdefault(name, []).append(np.abs(got[name] - values.cpu().numpy()))
        over_http = np.array(
            [-np.mean([c["logprob"] for c in e["top_logprobs"]]) for e in choice["logprobs"]["content"]]
        )
        right = want["confidence"].cpu().numpy()[: len(over_http)]
        seen.setdefault("confidence over HTTP", []).append(np.abs(over_http - right))
    joined = {name: np.concatenate(parts) for name, parts in seen.items()}
    return {
        name: {
            "tokens": gap.size,
            "median": float(np.median(gap)),
            "p99": float(np.quantile(gap, 0.99)),
            "max": float(gap.max()),
        }
        for name, gap in joined.items()
    }


async def greedy(server: servers.Server, questions: list[str]) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    async with aiohttp.ClientSession() as session:

        async def one(question: str) -> dict[str, Any]:
            sent = {
                "model": server.name,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": 200,
                "temperature": 0,
                "return_token_ids": True,
                "logprobs": True,
                "top_logprobs": K,
                "vllm_xargs": {"confidence": 1, "confidence_arrays": 1},
            }
            async with session.post(url, json=sent) as reply:
                told = await reply.json()
            return {**told["choices"][0], "prompt": told["prompt_token_ids"]}

        return await asyncio.gather(*(one(q) for q in questions))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--model", type=Path, default=Path("deploy/pocket/models/pocket-small"))
    cli.add_argument("--flag", action="append", default=[], help="one more word for the server, --flag=--no-x")
    cli.add_argument("--port", type=int, default=8301)
    args = cli.parse_args()
    questions = [problem.text for problem in pocket.problems("test", 400)]
    server = servers.Server(
        "truth", args.model, args.port,
        ("--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "96", "--num-gpu-blocks-override", "420",
         "--gpu-memory-utilization", "0.1", "--enforce-eager", "--max-num-batched-tokens", "512",
         *args.flag, *servers.MIDDLEWARE),
    )  # fmt: skip
    result = servers.machine() | {"server": server.said, "requests": CROWD, "in_flight": IN_FLIGHT, "k": K}
    with servers.serving([server], args.out.parent):
        done, left = asyncio.run(crowd(server, questions))
        preempted = servers.metric(server.port, "vllm:num_preemptions_total")
        plain = asyncio.run(greedy(server, questions[:100]))
    choices = [(sent, choice) for sent, several in done for choice in several]
    missing = [c["confidence"]["missing"] for _, c in choices if "missing" in c["confidence"]]
    found = [(sent, c) for sent, c in choices if "missing" not in c["confidence"]]
    wrong_count = sum(c["confidence"]["tokens"] != len(c["token_ids"]) for _, c in found)
    told = [gap for _, choice in found if (gap := gaps(choice))]
    shuffled = [
        gaps({**one, "confidence": other["confidence"]})
        for one, other in neighbours([c for s, c in found if not s.get("n")])
    ]
    result |= {
        "answers": len(choices),
        "streamed": sum(bool(sent.get("stream")) for sent, _ in choices),
        "of_several_choices": sum(sent.get("n", 1) > 1 for sent, _ in choices),
        "clients_that_left": left,
        "preemptions": preempted,
        "missing": Counter(missing),
        "wrong_token_count": wrong_count,
        "tolerance_nats": ATOL,
        "largest_gap_beyond_half_precision": {name: max(t[name] for t in told) for name in told[0]},
        "answers_out_of_tolerance": sum(max(t.values()) > ATOL for t in told),
        "out_of_tolerance_with_the_next_answers_values": sum(max(t.values()) > ATOL for t in shuffled),
        "with_the_next_answers_values": len(shuffled),
        "against_transformers_float32": against_transformers(args.model, plain),
    }
    servers.save(args.out, result)
    print(json.dumps({k: v for k, v in result.items() if k != "server"}, indent=1))
    assert result["answers_out_of_tolerance"] == 0, "a value is not its own answer's"
    assert not missing
    assert not wrong_count
    assert result["out_of_tolerance_with_the_next_answers_values"] > 0.9 * len(shuffled), "the check sees nothing"


if __name__ == "__main__":
    main()
