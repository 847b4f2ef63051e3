"""The demonstration: a real gateway process, held-out questions through the official client, and what came of them.

Half of the questions are from the distribution that the calibrators were fitted on, half from shifted ones. Every
question is asked of the cascade and of each model alone, so that accuracy and cost stand side by side, question by
question. Prompt, models and calibrators are those that are shipped; nothing is recorded beforehand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calibrators.scores import Score, clopper_pearson, wilson
from eval.datasets import Question, pocket
from eval.grade import Grade, grade
from gateway.errors import ConfigError
from gateway.nouns import Finish, Floats

if TYPE_CHECKING:
    from openai import AsyncOpenAI

CASCADE = "auto"
HOME = "test"
RESAMPLES = 2_000
ANSWER_SECONDS = 120.0
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What one model, or the cascade, replied to one question.

    error: what went wrong; then nothing else is known.  route: the gateway's own account of how it came to the answer.
    """

    question: Question
    model: str
    error: str = ""
    grade: Grade = Grade.UNASKED
    answer: str = ""
    route: Mapping[str, Any] | None = None

    @property
    def right(self) -> bool:
        return self.grade is Grade.RIGHT

    @property
    def hops(self) -> Sequence[Json]:
        return () if self.route is None else self.route["hops"]

    @property
    def tokens(self) -> int:
        return 0 if self.route is None else int(self.route["usage_total"]["total_tokens"])

    @property
    def usd(self) -> float:
        return 0.0 if self.route is None else float(self.route["cost"]["usd"])


def held_out(n: int) -> list[Question]:
    """n questions that no fit has seen: half from the split `test`, half spread over the shifted splits."""
    if n < 2 * len(pocket.SHIFTS):
        raise ConfigError(f"need at least {2 * len(pocket.SHIFTS)} questions to show every shift, got {n}")
    home, shifted = n - n // 2, n // 2
    share, rest = divmod(shifted, len(pocket.SHIFTS))
    sizes = [(HOME, home), *((split, share + (place < rest)) for place, split in enumerate(pocket.SHIFTS))]
    return [question for split, size in sizes for question in pocket.load(split=split, n=size)]


async def ask_all(
    client: AsyncOpenAI,
    questions: Sequence[Question],
    models: Sequence[str],
    *,
    concurrency: int,
    note: Callable[[Reply], None],
) -> list[Reply]:
    """Every question to every model, the cascade first, with `concurrency` requests in flight."""
    waiting: Iterator[tuple[int, str, Question]] = iter(
        [(place, model, q) for place, (model, q) in enumerate((m, q) for m in models for q in questions)]
    )
    replies: dict[int, Reply] = {}

    async def work() -> None:
        for place, model, question in waiting:
            replies[place] = await ask(client, question, model)
            note(replies[place])

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())
    return [replies[place] for place in range(len(replies))]


async def ask(client: AsyncOpenAI, question: Question, model: str) -> Reply:
    """One request, as any user of the client would make it, but for the wish to see the route."""
    from openai import OpenAIError

    try:
        told = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question.text}],
            extra_body={"route": {"debug": True}},
        )
    except OpenAIError as error:
        return Reply(question, model, error=f"{type(error).__name__}: {str(error).splitlines()[0]}")
    choice = told.choices[0]
    graded = grade(choice.message.content, question.target, Finish(choice.finish_reason))
    route = (told.model_extra or {}).get("route")
    if route is None:
        return Reply(question, model, error="the answer does not say how it came about")
    return Reply(question, model, grade=graded.grade, answer=graded.answer, route=route)


# What it shows


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the cascade or one model did on some questions.

    accuracy: with its Wilson interval.  tokens, usd: spent on all of them, rejected answers too.
    saving: share of the largest model's cost that was not spent.  gain: accuracy less the largest model's. Both with
    paired bootstrap intervals; both None for the largest model itself.
    """

    model: str
    n: int
    accuracy: Score
    tokens: int
    usd: float
    saving: Score | None
    gain: Score | None


def standings(replies: Sequence[Reply], models: Sequence[str], largest: str, *, seed: int = 0) -> list[Standing]:
    """One row per model, all on the same questions; resamples are shared, so that rows can be compared."""
    right = {model: np.array([r.right for r in replies if r.model == model], dtype=np.float64) for model in models}
    usd = {model: np.array([r.usd for r in replies if r.model == model]) for model in models}
    n = len(right[largest])
    drawn = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    return [
        Standing(
            model=model,
            n=n,
            accuracy=wilson("accuracy", float(right[model].sum()), n),
            tokens=sum(r.tokens for r in replies if r.model == model),
            usd=float(usd[model].sum()),
            saving=None if model == largest else saving(usd[model], usd[largest], drawn),
            gain=None if model == largest else gain(right[model], right[largest], drawn),
        )
        for model in models
    ]


def saving(usd: Floats, largest: Floats, drawn: np.ndarray[Any, Any]) -> Score:
    """1 - cost / cost of the largest model, over the same questions. drawn: (B, N) row numbers."""
    seen = 1 - usd[drawn].sum(axis=1) / largest[drawn].sum(axis=1)
    return _between("saving", float(1 - usd.sum() / largest.sum()), seen, usd.size)


def gain(right: Floats, largest: Floats, drawn: np.ndarray[Any, Any]) -> Score:
    """Accuracy less the largest model's, over the same questions.

    Where no question tells the two apart, every resample says 0; then the interval is that of the share of questions
    that might, none of n having been seen to.
    """
    gap = right - largest
    if not gap.any():
        most = float(clopper_pearson(np.zeros(1), np.array([gap.size]))[1][0])
        return Score(
            name="gain", value=0.0, n=gap.size, low=-most, high=most, how="Clopper-Pearson: no question differs"
        )
    return _between("gain", float(gap.mean()), gap[drawn].mean(axis=1), right.size)


def _between(name: str, value: float, seen: Floats, n: int) -> Score:
    low, high = (float(end) for end in np.quantile(seen, [0.025, 0.975]))
    how = f"paired bootstrap of {RESAMPLES:,} by question"
    return Score(name=name, value=value, n=n, low=low, high=high, how=how)


def verdict(rows: Sequence[Standing], where: str) -> str:
    """What a table shows, in words, whatever it is."""
    cascade = next(row for row in rows if row.model == CASCADE)
    largest = next(row for row in rows if row.saving is None)
    assert cascade.saving is not None, "the cascade is not the largest model"
    assert cascade.gain is not None, "the cascade is not the largest model"
    said = [
        f"{where} (n = {cascade.n}): the cascade is right on {cascade.accuracy.value:.0%}, {largest.model} alone on "
        f"{largest.accuracy.value:.0%}, {_difference(cascade.gain)}; it {_spent(cascade.saving, largest.model)}."
    ]
    rivals = [
        row
        for row in rows
        if row not in (cascade, largest) and row.usd <= cascade.usd and row.accuracy.value >= cascade.accuracy.value
    ]
    if rivals:
        best = max(rivals, key=lambda row: (row.accuracy.value, -row.usd))
        said.append(f"{best.model} alone is as often right here for less: on such questions the cascade does not pay.")
    return " ".join(said)


def _difference(gain: Score) -> str:
    assert gain.low is not None, "a bootstrap has ends"
    assert gain.high is not None, "a bootstrap has ends"
    ends = f"[{100 * gain.low:+.0f}, {100 * gain.high:+.0f}] points"
    if gain.low > 0:
        return f"better by {100 * gain.value:.0f} {ends}"
    if gain.high < 0:
        return f"worse by {-100 * gain.value:.0f} {ends}"
    return f"{100 * gain.value:+.0f} {ends}, no difference that so few questions could show"


def _spent(saving: Score, largest: str) -> str:
    assert saving.low is not None, "a bootstrap has ends"
    assert saving.high is not None, "a bootstrap has ends"
    told = f"{1 - saving.value:.0%} [{1 - saving.high:.0%}, {1 - saving.low:.0%}] of what {largest} costs"
    if saving.low > 0:
        return f"spends {told}"
    return f"spends {told}: more, not less" if saving.high < 0 else f"spends {told}, which may be no saving"


def mistakes(replies: Sequence[Reply]) -> list[str]:
    """What a working system would not show. Empty when all worked.

    An answer that was cut, or that holds no final number, rightly has no confidence; any other hop must have one.
    """
    failed = [f"{r.question.id} to {r.model}: {r.error}" for r in replies if r.error]
    routed = [r for r in replies if r.model == CASCADE and not r.error]
    mute = [
        f"{reply.question.id}: {hop['tier']} gave no confidence ({hop['null_reason'] or hop['reason']})"
        for reply in routed
        for hop in reply.hops
        if hop["confidence"] is None and hop["null_reason"] not in ("truncated", "no_evidence")
    ]
    said = [*failed, *mute]
    if not any(hop["confidence"] is not None for reply in routed for hop in reply.hops):
        said.append("not one answer carried a confidence")
    if not any(reply.route["reason"] == "confident" for reply in routed if reply.route):
        said.append("no question was accepted before the last tier")
    if not any(len(reply.hops) > 1 for reply in routed):
        said.append("no question was escalated")
    return said
