"""`make soak`: minutes of flapping upstreams and clients who leave; nothing lost, cut or mixed, and memory stays flat.

Every question carries a nonce, and each tier answers with the nonce and its own name, so that a part of an answer, or
another request's, cannot pass for a whole one. What breaks, and how long, is drawn from a seed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.faults.ask import ask
from tests.faults.gateway import NEVER_OPEN, SURE, UNSURE, Gateway, cascade, running, write_artifact
from tests.faults.upstream import Upstream

CLIENTS = 24
ABORTS = 0.08
FAULTY = 0.35  # of the answers of a tier, in quiet times
FLAP_SECONDS = 2.0
WARM_SHARE = 0.25  # of the time, before memory is looked at
MEMORY_MB = 5.0
ATTEMPTS = 2  # per tier and request
DEADLINE_SECONDS = 5.0
ROOM_SECONDS = 10.0  # for a machine that stands still

FAULTS = (
    "reset", "hang_up", "reset_in_body", "end_in_body", "bad_status_line", "bad_chunk", "two_lengths", "html",
    "redirect", "no_content", "cut_json", "500", "502", "503", "error_in_200", "no_choices", "abort", "nan_logprob",
    "no_logprobs", "bad_utf8", "stale", "silent",
)  # fmt: skip
WHOLE = ("null_content",)  # in a stream it is a whole, empty answer
IN_STREAM = ("cut_off", "reset_in_stream", "error_event", "garbled_event", "no_finish_reason", "split", "crlf")
REFUSALS = {429, 502, 503, 504}

Json = dict[str, Any]


@dataclass
class Found:
    """What became of it. wrong: a sentence for each answer that broke the promise."""

    outcomes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    most_attempts: int = 0
    upstream_requests: int = 0
    grown_mb: float = 0.0
    memory_mb: list[float] = field(default_factory=list)

    @property
    def asked(self) -> int:
        return self.outcomes.total()

    def told(self) -> Json:
        return {
            "requests": self.asked,
            "outcomes": dict(self.outcomes),
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
            "wrong": self.wrong[:20],
            "most_attempts_for_one_tier": self.most_attempts,
            "attempts_per_request": round(self.upstream_requests / max(1, self.asked), 3),
            "memory_grown_mb": round(self.grown_mb, 2),
            "memory_mb": [round(one, 1) for one in self.memory_mb],
        }


def memory_mb(gateway: Gateway) -> float:
    """Anonymous memory and swap of the gateway's process."""
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "VmSwap:"))) / 1024


def question(rng: random.Random, nonce: str) -> tuple[Json, list[str]]:
    """A request, and the two texts of which one may be its answer."""
    stream = rng.random() < 0.3
    mode = rng.choice(("buffer", "commit"))
    faults = FAULTS + (IN_STREAM if stream and mode == "commit" else WHOLE)
    texts, plans = [], []
    for tier in ("small", "large"):
        text = " ".join([nonce, tier, *(f"{nonce}.{n}" for n in range(rng.randrange(1, 30)))])
        plan: Json = {"text": text, "nats": rng.choice((SURE, UNSURE)), "seconds": rng.choice((0.0, 0.0, 0.01, 0.1))}
        if rng.random() < FAULTY:
            plan |= {"fault": rng.choice(faults), "times": rng.choice((None, 1))}
        texts.append(text)
        plans.append(plan)
    body = ask(*plans, stream=stream)
    if stream:
        body["route"] = {"stream_mode": mode}
    return body, texts


async def one(session: aiohttp.ClientSession, url: str, rng: random.Random, nonce: str, found: Found) -> None:
    body, texts = question(rng, nonce)
    if rng.random() < ABORTS:
        try:
            async with asyncio.timeout(rng.uniform(0.0, 0.15)):
                async with session.post(url, json=body) as reply:
                    await reply.read()
            found.outcomes["answered before the client left"] += 1
        except TimeoutError:
            found.outcomes["client left"] += 1
        return
    try:
        async with asyncio.timeout(DEADLINE_SECONDS + ROOM_SECONDS), session.post(url, json=body) as reply:
            raw = await reply.read()
    except (TimeoutError, aiohttp.ClientError) as error:
        found.outcomes["lost"] += 1
        found.wrong.append(f"{nonce}: no whole HTTP answer ({type(error).__name__}: {error}) to {json.dumps(body)}")
        return
    found.statuses[reply.status] += 1
    fault, outcome = judged(reply.status, raw, texts, stream=body["stream"])
    found.outcomes[outcome] += 1
    if fault:
        found.wrong.append(f"{nonce}: {fault}: {raw[:300]!r} to {json.dumps(body)}")


def judged(status: int, raw: bytes, texts: list[str], *, stream: bool) -> tuple[str, str]:
    """What is wrong with an answer ("" for nothing), and what kind of end it is."""
    if status != 200:
        told = json.loads(raw)["error"]
        good = status in REFUSALS and bool(told["message"])
        return "" if good else f"a {status}", "refused"
    if not stream:
        text = json.loads(raw)["choices"][0]["message"]["content"]
        return ("", "whole") if text in texts else ("cut or mixed", "wrong text")
    events = [line[6:] for line in raw.decode().split("\n") if line.startswith("data: ")]
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    text = "".join(choice["delta"].get("content") or "" for one in chunks for choice in one.get("choices", ()))
    if any("error" in chunk for chunk in chunks):
        part = any(whole.startswith(text) for whole in texts)
        return ("" if part else "a stream mixed before its error"), "stream ended by an error event"
    if events[-1:] != ["[DONE]"]:
        return "a stream that neither ended nor said why", "cut stream"
    return ("", "whole stream") if text in texts else ("a stream cut or mixed", "wrong text")


async def flap(upstream: Upstream, rng: random.Random) -> None:
    """Now and then everything breaks for a while."""
    while True:
        upstream.breaks = ""
        await asyncio.sleep(rng.uniform(1.0, 3.0) * FLAP_SECONDS)
        upstream.breaks = rng.choice(("503", "reset", "hang_up", "500"))
        await asyncio.sleep(rng.uniform(0.1, 0.5) * FLAP_SECONDS)


def count(upstream: Upstream, found: Found, tries: Counter[tuple[str, str]]) -> None:
    """Attempts by nonce and tier; what was counted is forgotten, or the soak would be what grows."""
    for seen in [upstream.seen.pop(0) for _ in range(len(upstream.seen))]:
        if seen.path.endswith("/chat/completions"):
            text = json.loads(seen.body["messages"][-1]["content"])[seen.model]["text"]
            tries[text.split()[0], seen.model] += 1
            found.upstream_requests += 1
    found.most_attempts = max([found.most_attempts, *tries.values()])


async def work(gateway: Gateway, upstream: Upstream, seconds: float, seed: int) -> Found:
    found, rng = Found(), random.Random(seed)
    url = f"{gateway.url}/v1/chat/completions"
    began = time.monotonic()

    async def client(number: int, session: aiohttp.ClientSession) -> None:
        mine, turn = random.Random(f"{seed} {number}"), 0
        while time.monotonic() - began < seconds:
            await one(session, url, mine, f"n{number}x{turn}", found)
            turn += 1

    async def look() -> None:
        while True:
            await asyncio.sleep(max(1.0, seconds / 40))
            found.memory_mb.append(memory_mb(gateway))
            count(upstream, found, tries)

    tries: Counter[tuple[str, str]] = Counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session, asyncio.TaskGroup() as group:
        beside = [group.create_task(flap(upstream, rng)), group.create_task(look())]
        clients = [group.create_task(client(number, session)) for number in range(CLIENTS)]
        await asyncio.wait(clients)
        for task in beside:
            task.cancel()
    found.memory_mb.append(memory_mb(gateway))
    warm = found.memory_mb[int(len(found.memory_mb) * WARM_SHARE)]
    found.grown_mb = found.memory_mb[-1] - warm
    count(upstream, found, tries)
    return found


def soak(seconds: float, seed: int, folder: Path) -> Found:
    """A gateway of its own with breakers as they are by default on the first tier, and so many seconds of it."""
    with Upstream() as upstream:
        write_artifact(folder / "cheap.json")
        config = cascade(upstream.url)
        config["server"]["request_seconds"] = DEADLINE_SECONDS
        config["tiers"][0]["limits"] = {}
        assert config["tiers"][1]["limits"] == NEVER_OPEN
        with running(folder, config) as gateway:
            return asyncio.run(work(gateway, upstream, seconds, seed))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--seconds", type=float, default=600.0)
    cli.add_argument("--seed", type=int, default=1)
    cli.add_argument("--out", type=Path, help="a file for the figures")
    args = cli.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(args.seconds, args.seed, Path(folder))
    told = {"command": f"make soak SOAK_SECONDS={args.seconds:g}", "seed": args.seed} | found.told()
    print(json.dumps(told, indent=1))
    if args.out:
        args.out.write_text(json.dumps(told, indent=1) + "\n")
    good = not found.wrong and found.most_attempts <= ATTEMPTS and found.grown_mb < MEMORY_MB
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
