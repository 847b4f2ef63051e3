"""Replay: the gateway's own cascade over recorded answers. Only the engine differs: it reads where others compute."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice

from eval.grade import Grade
from eval.records import Record
from gateway import cascade, policy
from gateway.errors import EngineDown
from gateway.nouns import Answer, Ask, Completion, Finish, Hear, Hop, Message, Mix, Piece, Policy, Reason
from gateway.resilience.guard import Guard

BATCH = 64  # questions in memory at a time
NEVER = 1.0  # p lies inside (0, 1), so no answer meets this threshold


class Recorded:
    """An engine whose one answer is a record. It has no deadline to miss and nothing to close."""

    def __init__(self, record: Record) -> None:
        self._record = record

    @property
    def name(self) -> str:
        return self._record.tier

    async def complete(self, _ask: Ask) -> Completion:
        """Raises EngineDown where collecting got no answer."""
        record = self._record
        if record.text is None or record.finish is None:
            raise EngineDown(record.tier, record.error or "no answer was recorded")
        return Completion(
            record.text, Finish(record.finish), record.prompt_tokens, record.completion_tokens, record.engine,
            record.tier, record.seconds, record.trace, record.no_trace,
        )  # fmt: skip

    async def stream(self, ask: Ask, hear: Hear) -> Completion:
        """The same token by token, where the record has tokens. Raises what `hear` does, too."""
        completion = await self.complete(ask)
        trace, record = completion.trace, self._record
        if trace is not None:
            characters = codecs.getincrementaldecoder("utf-8")("replace")
            for place, token in enumerate(trace.tokens, start=1):
                text = characters.decode(token, final=place == len(trace.tokens))
                if text:
                    await hear(Piece(text, place, record.tier, trace.part, record.prompt_tokens))
        return completion

    async def ready(self) -> bool:
        return True

    async def fingerprint(self) -> Mapping[str, str]:
        return {}

    async def close(self) -> None:
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """One question: what every tier would say, and which of them the policy serves.

    records: by tier.  hops: one per tier of the policy, in its order, as if none had been accepted; a later tier's p
    may look at the earlier answers, and does not depend on thresholds.  at: position of the tier that is served.
    """

    records: Mapping[str, Record]
    hops: tuple[Hop, ...]
    at: int

    @property
    def first(self) -> Record:
        """Any of the records: what they all share, such as question, split and slices."""
        return next(iter(self.records.values()))

    @property
    def served(self) -> Hop:
        return self.hops[self.at]

    def right(self, tier: str) -> bool:
        return self.records[tier].grade is Grade.RIGHT


def replay(records: Iterable[Record], route: Policy) -> Iterator[Replayed]:
    """The policy over every question that all of its tiers were asked; the others are passed over.

    records: rows of one question one after another, as collecting writes them.
    route: tiers with calibrators and thresholds; what engines they have does not matter.
    """
    everyone = replace(route, tiers=tuple(replace(tier, threshold=NEVER, abort_epsilon=0.0) for tier in route.tiers))
    for told, answer in answers(records, everyone):
        yield Replayed(told, answer.hops, served_at(answer.hops, route))


def answers(
    records: Iterable[Record], route: Policy | Mix, decisions: Mapping[str, str] | None = None
) -> Iterator[tuple[dict[str, Record], Answer]]:
    """What the cascade answers to every question that all of the policy's tiers were asked, and its records by tier.

    decisions: by question, the number of the gateway's decision about it, for a mix to draw by; the question's own id
    where there is none.
    """
    names = {tier.name for one in (route.parts if isinstance(route, Mix) else (route,)) for tier in one.tiers}
    numbers = decisions or {}
    whole = questions(records, names)
    with asyncio.Runner() as runner:
        while batch := list(islice(whole, BATCH)):
            heard: list[Answer] = []  # not a coroutine's result: Runner.run spells that out, arrays and all
            routes = [policy.drawn(route, numbers.get(name := next(iter(told.values())).question, name)) for told in
                      batch]  # fmt: skip
            runner.run(ask_all(batch, routes, heard))
            yield from zip(batch, heard, strict=True)


def questions(records: Iterable[Record], names: Collection[str]) -> Iterator[dict[str, Record]]:
    """Each question's records by tier, of those questions that all the named tiers were asked.

    records: rows of one question one after another, as collecting writes them.
    """
    wanted, groups = set(names), groupby(records, key=lambda record: (record.split, record.question))
    return (told for told in (asked(rows) for _, rows in groups) if wanted <= told.keys())


def asked(rows: Iterable[Record]) -> dict[str, Record]:
    """One question's records by tier, without those of tiers that were not asked in the end."""
    return {record.tier: record for record in rows if record.grade is not Grade.UNASKED}


async def ask_all(batch: Sequence[Mapping[str, Record]], routes: Sequence[Policy], heard: list[Answer]) -> None:
    """Append each question's way through its policy."""
    for told, route in zip(batch, routes, strict=True):
        tiers = tuple(replace(tier, engine=Recorded(told[tier.name]), guard=Guard()) for tier in route.tiers)
        deadline = asyncio.get_running_loop().time() + 3600.0  # nothing here waits for anybody
        ask = Ask((Message("user", "recorded"),), deadline, top_k=max(tier.top_k for tier in tiers))
        heard.append(await cascade.answer(ask, replace(route, tiers=tiers)))


def served_at(hops: Sequence[Hop], route: Policy) -> int:
    """Which of the tiers the policy serves: the gateway's own rule, on what each tier would say."""
    for position, (hop, tier) in enumerate(zip(hops, route.tiers, strict=True)):
        assert hop.completion is not None, "every tier of a replayed question has answered"
        last = position == len(hops) - 1
        threshold = None if last else tier.threshold
        reason = policy.decide(hop.p_correct, threshold, finish=hop.completion.finish, null_reason=hop.null_reason)
        if reason in (Reason.CONFIDENT, Reason.LAST):
            return position
    raise AssertionError("the last tier always answers")
