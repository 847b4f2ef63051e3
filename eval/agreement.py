"""Does the gateway serve what was scored? The same questions over recorded answers and over HTTP, decision by decision.

Offline every tier's answer is a record and the rest is the gateway's own `cascade.answer`; online a gateway in a
process of its own asks its engines anew. Greedy engines say the same again, to the last bits that depend on which other
questions happen to share a batch; so confidences may differ by TOLERANCE, and nothing else may differ at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import aiohttp

from eval.datasets import Question
from eval.material import open_tiers
from eval.prompts import Prompt
from eval.records import Manifest, Record
from eval.replay import answers
from gateway import snapshot
from gateway.config import Config
from gateway.errors import ConfigError, GatewayError
from gateway.ids import NUMBER
from gateway.nouns import Mix, Policy

TOLERANCE = 1e-4  # of p: log-probs of float32 models move in the sixth digit with the batch they are computed in
SECONDS = 600.0  # for one answer, behind everybody else's


class NotServed(GatewayError):
    """The gateway refused a question that was scored."""


@dataclass(frozen=True, slots=True)
class Decided:
    """What a client got, and why. policy: the part that was followed, where a mix was asked."""

    tier: str
    text: str
    p_correct: float | None
    threshold: float | None
    reason: str
    policy: str
    tiers_tried: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of one decision that is not the same."""

    question: str
    what: str
    scored: object
    served: object

    def __str__(self) -> str:
        return f"{self.question}: {self.what} scored {self.scored!r}, served {self.served!r}"


@dataclass(frozen=True, slots=True)
class Agreement:
    """n questions compared.  largest_gap: of p, among decisions that both have one."""

    n: int
    differences: tuple[Difference, ...]
    largest_gap: float

    @property
    def differing(self) -> int:
        """Questions with at least one difference."""
        return len({one.question for one in self.differences})


def opened(config: Config, name: str, manifests: Sequence[Manifest]) -> Policy | Mix:
    """A policy without its engines, calibrators held against those that the records came from. Raises ConfigError."""
    if name not in config.policies:
        raise ConfigError(f"no policy {name!r}; have {', '.join(config.policies)}")
    entry = config.policies[name]
    parts = {part.policy: config.policies[part.policy] for part in entry.mix} or {name: entry}
    wanted = list(dict.fromkeys(step.tier for part in parts.values() for step in part.steps))
    tiers = {tier.name: tier for tier in open_tiers(config, manifests, wanted)[0]}
    plain = {part: snapshot.policy(part, one, tiers) for part, one in parts.items()}
    return snapshot.mixed(name, entry, plain) if entry.mix else plain[name]


def scored(records: Iterable[Record], route: Policy | Mix, decisions: Mapping[str, str]) -> dict[str, Decided]:
    """By question, over recorded answers. decisions: the numbers of the gateway's own decisions, for a mix."""
    return {
        next(iter(told.values())).question: Decided(
            tier=answer.served.tier,
            text=answer.completion.text,
            p_correct=answer.served.p_correct,
            threshold=answer.served.threshold,
            reason=str(answer.reason),
            policy=answer.policy.name,
            tiers_tried=tuple(hop.tier for hop in answer.hops),
        )
        for told, answer in answers(records, route, decisions)
    }


async def served(
    address: str, model: str, asked: Sequence[Question], prompt: Prompt, max_tokens: int | None, *, concurrency: int
) -> dict[str, tuple[str, Decided]]:
    """By question: the decision's number, and what a gateway answers over HTTP. Raises NotServed."""
    found: dict[str, tuple[str, Decided]] = {}
    waiting = iter(asked)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=SECONDS)

    async def work(session: aiohttp.ClientSession) -> None:
        for question in waiting:
            messages = [{"role": one.role, "content": one.content} for one in prompt.messages(question)]
            body = {"model": model, "messages": messages, "max_tokens": max_tokens, "route": {"debug": True}}
            async with session.post(f"{address}/v1/chat/completions", json=body) as reply:
                told = await reply.json(content_type=None)
                if reply.status != 200:
                    raise NotServed(f"{question.id}: {reply.status} {told}")
            route = told["route"]
            found[question.id] = (
                str(route["id"])[:NUMBER],
                Decided(
                    tier=route["tier"],
                    text=told["choices"][0]["message"]["content"],
                    p_correct=route["confidence"],
                    threshold=route["threshold"],
                    reason=route["reason"],
                    policy=route["policy"],
                    tiers_tried=tuple(hop["tier"] for hop in route["hops"]),
                ),
            )

    async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work(session))
    return found


def compare(offline: Mapping[str, Decided], online: Mapping[str, Decided], tolerance: float = TOLERANCE) -> Agreement:
    """Every field of every decision that both have. Raises ConfigError when they have none in common."""
    shared = [question for question in offline if question in online]
    if not shared:
        raise ConfigError("no question was both recorded and served; name the dataset and split of these records")
    differences: list[Difference] = []
    largest = 0.0
    for question in shared:
        one, other = offline[question], online[question]
        gap = 0.0
        if one.p_correct is not None and other.p_correct is not None:
            gap = abs(one.p_correct - other.p_correct)
            largest = max(largest, gap)
        for field in fields(Decided):
            mine, theirs = getattr(one, field.name), getattr(other, field.name)
            near = field.name == "p_correct" and mine is not None and theirs is not None and gap <= tolerance
            if mine != theirs and not near:
                differences.append(Difference(question, field.name, mine, theirs))
    return Agreement(len(shared), tuple(differences), largest)
