"""Collect: every tier answers every question, through the engines that the gateway serves with.

The outcome is a crossed table of records in a folder: records.parquet and, beside it, manifest.json. On the way there
a journal keeps every finished row, so that whatever ends a collection, running the same command again goes on where it
stopped. Rows that failed are asked again then too.
"""

from __future__ import annotations

import asyncio
import hashlib
import platform
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Container, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from calibrators.scores import wilson
from eval import records, splits
from eval._journal import Journal, Key
from eval.datasets import Question
from eval.grade import Grade, grade
from eval.prompts import Prompt, plain
from eval.records import MANIFEST, RECORDS, Collected, Manifest, Record, Row
from gateway.answers import STRICT
from gateway.cascade import price
from gateway.config import Config, TierEntry
from gateway.errors import ConfigError, EngineError, EngineRefused, EngineSlow, EngineTooSmall, GatewayError
from gateway.nouns import Ask, Completion, Engine, Finish, Prices
from gateway.snapshot import open_engines

PACKAGES = ("confidence-gateway", "numpy", "torch", "transformers", "pyarrow")
GIVE_UP = 10  # rows of one tier that fail in a row before the rest of its rows are not even tried
PAUSE_SECONDS = 0.5  # before the second attempt; it doubles from there


class Different(GatewayError):
    """The folder holds another collection than the one asked for. `facts`: what differs, in words."""

    def __init__(self, folder: Path, facts: Sequence[str]) -> None:
        told = "; ".join(facts)
        super().__init__(f"{folder} holds another collection ({told}); take another --out, or ask for the same again")
        self.folder, self.facts = folder, tuple(facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to ask.

    prompt: how a question is put.  top_k: candidates per token to record.
    concurrency: questions in flight per tier.  attempts: per row and run, at least 1.  patience_seconds: per attempt.
    command, created: for the manifest.
    """

    prompt: Prompt = field(default_factory=plain)
    max_tokens: int | None = None
    top_k: int = 20
    seed: int = 0
    concurrency: int = 32
    attempts: int = 3
    patience_seconds: float = 600.0
    command: str = ""
    created: str = ""


Watch = Callable[[Row], None]


async def collect(
    config: Config,
    questions: Sequence[Question],
    folder: Path,
    plan: Plan,
    watch: Callable[[int, int], Watch] = lambda _total, _done: lambda _row: None,
) -> Path:
    """Ask what is not answered yet, and write the records. Returns the Parquet file's path.

    watch: called once with (rows in all, rows there already), gives the observer of every further row.
    Raises Different, FolderBusy, BadRecords, ConfigError, and EngineError when an engine cannot say who it is.
    """
    if not questions:
        raise ConfigError("no questions to ask")
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  nothing else is running yet
    with Journal(folder) as journal:
        async with open_engines(config) as engines:
            manifest = await describe(config, questions, engines, plan)
            agree(folder, manifest)
            if is_complete(folder, journal):
                journal.discard()
                return folder / RECORDS
            await ask_all(config, questions, engines, manifest, plan, journal, watch)
        return finish(folder, journal, questions, manifest)


async def describe(
    config: Config, questions: Sequence[Question], engines: Mapping[str, Engine], plan: Plan
) -> Manifest:
    """What is being collected, as far as it decides what the records mean."""
    tiers = [
        Collected(
            name=entry.name,
            fingerprint=dict(await engines[entry.name].fingerprint()),
            usd_per_mtok_in=entry.prices.usd_per_mtok_in,
            usd_per_mtok_out=entry.prices.usd_per_mtok_out,
            weights=entry.serve.model if entry.serve is not None else "",
        )
        for entry in config.tiers
    ]
    return Manifest(
        dataset=questions[0].dataset,
        splits=dict(Counter(question.split for question in questions)),
        data_sha256=records.questions_sha256(questions),
        template=plan.prompt.template,
        system=plan.prompt.system,
        shots=tuple(shot.id for shot in plan.prompt.shots),
        prompt=plan.prompt.sha256,
        max_tokens=plan.max_tokens,
        top_k=plan.top_k,
        seed=plan.seed,
        tiers=tuple(tiers),
        versions=dict(versions()),
        command=plan.command,
        created=plan.created,
    )


def versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def agree(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a new collection; hold that of an old one against this one. Raises Different."""
    path = folder / MANIFEST
    if not path.exists():
        records.write_manifest(path, manifest)
    elif facts := records.read_manifest(path).differs(manifest):
        raise Different(folder, facts)


def is_complete(folder: Path, journal: Journal) -> bool:
    """The journal is discarded when every row has been answered, and not before."""
    return (folder / RECORDS).exists() and not journal.grades


async def ask_all(
    config: Config,
    questions: Sequence[Question],
    engines: Mapping[str, Engine],
    manifest: Manifest,
    plan: Plan,
    journal: Journal,
    watch: Callable[[int, int], Watch],
) -> None:
    """Every tier works on its own share with `plan.concurrency` questions in flight, so that none waits for another."""
    families = dict(zip(map(id, questions), families_of(questions), strict=True))
    done = {key for key, grade in journal.grades.items() if grade is not Grade.UNASKED}
    note = watch(len(questions) * len(config.tiers), len(done))

    def keep(record: Record) -> None:
        row = records.flatten(record)
        journal.add(row)
        note(row)

    async with bare_errors(), asyncio.TaskGroup() as group:
        for entry, told in zip(config.tiers, manifest.tiers, strict=True):
            desk = Desk(entry, engines[entry.name], told.engine, manifest.prompt, plan)
            waiting = still_open(questions, entry.name, done)
            # An engine in this process prefills together what arrives together, so its questions come in waves: that
            # answers a third more of them per second. A server does better when it is never waited for.
            wave = plan.concurrency if entry.engine.kind == "local" else 1
            for _ in range(plan.concurrency // wave):
                group.create_task(work(desk, waiting, wave, families, keep))


@asynccontextmanager
async def bare_errors() -> AsyncIterator[None]:
    """The first error of a group of tasks by itself, as if there had been no group: that the disk is full, say."""
    try:
        yield
    except ExceptionGroup as group:
        error: Exception = group
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        raise error from group


def still_open(questions: Sequence[Question], tier: str, done: Container[Key]) -> Iterator[Question]:
    return (question for question in questions if (question.split, question.id, tier) not in done)


async def work(
    desk: Desk,
    waiting: Iterator[Question],
    wave: int,
    families: Mapping[int, str],
    keep: Callable[[Record], None],
) -> None:
    """One of a tier's workers: take the next few questions that nobody has taken, until there are none."""

    async def one(question: Question) -> None:
        keep(await desk.answer(question, families[id(question)]))

    while taken := list(islice(waiting, wave)):
        async with asyncio.TaskGroup() as group:
            for question in taken:
                group.create_task(one(question))


class Desk:
    """One tier while it is being asked: turns a question into a record, whatever the engine does."""

    def __init__(self, entry: TierEntry, engine: Engine, engine_id: str, prompt: str, plan: Plan) -> None:
        self._entry, self._engine, self._engine_id, self._prompt, self._plan = entry, engine, engine_id, prompt, plan
        self._prices = Prices(entry.prices.usd_per_mtok_in, entry.prices.usd_per_mtok_out)
        self._failed_in_a_row = 0

    async def answer(self, question: Question, family: str) -> Record:
        facts: dict[str, Any] = {
            "question": question.id,
            "dataset": question.dataset,
            "split": question.split,
            "family": family,
            "slices": dict(question.slices),
            "tier": self._entry.name,
            "engine": self._engine_id,
            "prompt": self._prompt,
        }
        if self._failed_in_a_row >= GIVE_UP:
            return Record(**facts, grade=Grade.UNASKED, error=f"not asked: {GIVE_UP} rows in a row had failed")
        try:
            completion = await self._ask(question)
        except EngineError as error:
            self._failed_in_a_row += not isinstance(error, EngineTooSmall)  # that is the question's fault
            return Record(**facts, grade=Grade.UNASKED, error=str(error) or type(error).__name__)
        self._failed_in_a_row = 0
        return Record(**facts, **told(completion, question, self._prices))

    async def _ask(self, question: Question) -> Completion:
        """The engine's answer, after as many attempts as the plan allows. Raises the last one's EngineError."""
        for attempt in range(1, self._plan.attempts + 1):
            try:
                return await self._attempt(question)
            except EngineError as error:
                if attempt == self._plan.attempts or is_final(error):
                    raise
                await asyncio.sleep(pause_seconds(error, attempt))
        raise AssertionError("a plan has at least one attempt")

    async def _attempt(self, question: Question) -> Completion:
        patience = self._plan.patience_seconds
        deadline = asyncio.get_running_loop().time() + patience
        messages = self._plan.prompt.messages(question)
        ask = Ask(messages, deadline, self._plan.max_tokens, top_k=self._plan.top_k)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._engine.complete(ask)
        except TimeoutError:
            raise EngineSlow(self._engine.name, patience) from None


def told(completion: Completion, question: Question, prices: Prices) -> dict[str, Any]:
    """What a record says of an answer."""
    graded = grade(completion.text, question.target, completion.finish)
    return {
        "text": completion.text,
        "answer": graded.answer,
        "grade": graded.grade,
        "rule": graded.rule,
        "finish": completion.finish,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "seconds": completion.seconds,
        "usd": price(completion, prices).usd,
        "trace": completion.trace,
        "no_trace": completion.no_trace,
    }


def is_final(error: EngineError) -> bool:
    """Whether asking again cannot help: the prompt is too long, or the request itself is refused, by every server."""
    return isinstance(error, EngineTooSmall) or (
        not error.elsewhere
        and isinstance(error, EngineRefused)
        and error.status < 500
        and error.status not in (408, 409, 429)
    )


def pause_seconds(error: EngineError, attempt: int) -> float:
    """How long to wait after the attempt-th failure: what the server says, or twice as long each time."""
    told = error.retry_after_seconds if isinstance(error, EngineRefused) else None
    return told if told is not None else PAUSE_SECONDS * 2 ** (attempt - 1)


def families_of(questions: Sequence[Question]) -> list[str]:
    """A short name for each question's group of variants, which no split may tear apart."""
    return [hashlib.sha256(group.encode()).hexdigest()[:16] for group in splits.groups(questions)]


def finish(folder: Path, journal: Journal, questions: Sequence[Question], manifest: Manifest) -> Path:
    """The Parquet file, in the questions' order. The journal goes when every row has an answer."""
    order: list[Key] = [(q.split, q.id, tier.name) for q in questions for tier in manifest.tiers]
    records.write(folder / RECORDS, journal.rows(order))
    if Grade.UNASKED not in journal.grades.values():
        journal.discard()
    return folder / RECORDS


# What came of it

SUMMED = ["split", "tier", "grade", "rule", "finish", "prompt_tokens", "completion_tokens", "usd", "error"]


def summary(path: Path) -> list[dict[str, Any]]:
    """One row per split and tier: n asked, accuracy with its 95 % Wilson interval, how many of the right answers were
    marked as such (strict), how many were cut or unreadable, cost."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in records.columns(path, SUMMED):
        cells[row["split"], row["tier"]].append(row)
    return [
        {"split": split, "tier": tier, **tallied([row for row in rows if row["grade"] != Grade.UNASKED]),
         "unasked": sum(row["grade"] == Grade.UNASKED for row in rows)}
        for (split, tier), rows in cells.items()
    ]  # fmt: skip


def tallied(asked: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a row of `summary` counts. asked: answers with the columns SUMMED, none of them UNASKED."""
    n = len(asked)
    right = sum(row["grade"] == Grade.RIGHT for row in asked)
    told = wilson("accuracy", right, n) if n else None
    return {
        "n": n,
        "right": right,
        "strict": sum(row["grade"] == Grade.RIGHT and row["rule"] in STRICT for row in asked),
        "accuracy": told and told.value,
        "low": told and told.low,
        "high": told and told.high,
        "truncated": sum(row["finish"] == Finish.LENGTH for row in asked),
        "unreadable": sum(row["grade"] == Grade.UNREADABLE for row in asked),
        "prompt_tokens": sum(row["prompt_tokens"] for row in asked),
        "completion_tokens": sum(row["completion_tokens"] for row in asked),
        "usd": sum(row["usd"] for row in asked),
    }
