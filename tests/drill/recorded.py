"""A model server that says what pocket models once said: their answers, with their log-probs, over real HTTP.

So a drill takes minutes on any machine, and what calibrators see is real all the same.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval.grade import Grade, grade
from gateway.nouns import Evidence, Source, TokenTrace
from tests.faults.upstream import END, Seen, Upstream, candidate, send_json

FILE = Path(__file__).parent / "answers.jsonl.gz"
MODELS = ("pocket-nano", "pocket-micro")  # served as small and large
SPLITS = {  # how many answers of each are kept
    "calibration": 500, "test": 500, "reworded": 300, "larger_numbers": 300, "extra_clause": 300, "new_names": 300,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answered:
    """A question, its target, and what both said to it.

    tokens: T texts, and nats: (T + 1,), the end token's last; of the small one's answer.
    """

    question: str
    target: str
    tokens: tuple[str, ...]
    nats: tuple[float, ...]
    large: str

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def right(self) -> bool:
        return grade(self.text, self.target).grade is Grade.RIGHT

    @property
    def evidence(self) -> Evidence:
        """What a gateway reads from the server's reply."""
        chosen, tokens = np.array(self.nats[:-1]), tuple(token.encode() for token in self.tokens)
        return Evidence(TokenTrace(Source.CHOSEN, chosen, None, tokens, {}, self.nats[-1]), self.text)


def answers() -> dict[str, list[Answered]]:
    """By split, in the order they were asked."""
    found: dict[str, list[Answered]] = {split: [] for split in SPLITS}
    with gzip.open(FILE, "rb") as lines:
        for line in lines:
            told = json.loads(line)
            one = Answered(told["question"], told["target"], tuple(told["tokens"]), tuple(told["nats"]), told["large"])
            found[told["split"]].append(one)
    return found


@dataclass
class Recorded(Upstream):
    """Serves `small` and `large`. Of a question that nobody asked them it says that it has no answer."""

    known: dict[str, Answered] = field(default_factory=dict)

    async def _answer(self, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        if not seen.path.endswith("/chat/completions"):
            return await super()._answer(seen, writer)
        body, one = seen.body, self.known.get(seen.body["messages"][-1]["content"])
        self.seen.clear()  # hours of questions are nobody's to read
        if one is None:  # the one question about the server itself
            tokens, nats = ("no", " answer"), (-0.5, -0.7, -0.1)
        elif body["model"] == "small":
            tokens, nats = one.tokens, one.nats
        else:
            tokens, nats = (one.large,), (-0.01, -0.01)
        return await send_json(writer, told(body, tokens, nats))


def told(body: dict[str, Any], tokens: tuple[str, ...], nats: tuple[float, ...]) -> dict[str, Any]:
    """As vLLM would say it."""
    spoken = [candidate(token, value) | {"top_logprobs": []} for token, value in zip((*tokens, END), nats, strict=True)]
    message = {"role": "assistant", "content": "".join(tokens)}
    logprobs = {"content": spoken} if body.get("logprobs") else None
    prompt = len(body["messages"][-1]["content"]) // 3
    return {
        "id": "chatcmpl-recorded", "object": "chat.completion", "created": 1, "model": body["model"],
        "choices": [{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": prompt, "completion_tokens": len(spoken), "total_tokens": prompt + len(spoken),
        },
    }  # fmt: skip
