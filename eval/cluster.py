"""Collecting on many machines with Ray. The same questions, engines, journal and records as on one.

Every tier has workers, spread over the cluster's nodes; each opens the tier's engine as the gateway would: an HTTP
engine reaches its servers, a local one computes on the worker's node, on a GPU where its `device` says so. The driver
hands out blocks of questions and alone writes the journal. A worker that dies, or whose node does, takes with it only
its block, which another one answers: no row is lost, and none comes twice, because a block counts when it is back.

Ray and this package must be installed on every node, and model folders lie at the same paths.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from eval import records
from eval._journal import Journal
from eval.card import Absent
from eval.collect import Desk, Plan, Watch, agree, describe, families_of, finish, is_complete, work
from eval.datasets import Question
from eval.grade import Grade
from eval.records import RECORDS, Collected, Record, Row
from gateway.config import Config, TierEntry
from gateway.errors import ConfigError, EngineError, GatewayError
from gateway.snapshot import open_engines

MOST_DEATHS = 3  # of workers over the same block: then it is the block, or the cluster, and not chance
INSTALL = "pip install 'confidence-gateway[ray]', on every node"


class ClusterFailed(GatewayError):
    """The cluster cannot do the work. The message says what it did; what is done stays in the journal."""


@dataclass(slots=True)
class Block:
    """Questions that go to one worker at once. deaths: workers that died over it."""

    tier: str
    questions: Sequence[Question]
    families: Sequence[str]
    deaths: int = 0


class Answering:
    """A worker: one tier's engine, in the one event loop that Ray runs for it."""

    def __init__(self, config: Config, plan: Plan, told: Collected | None, prompt: str) -> None:
        self._config, self._plan, self._told, self._prompt = config, plan, told, prompt
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._desk: Desk | None = None

    async def fingerprint(self) -> Mapping[str, str]:
        """What the engine on this node says of itself. Raises EngineError."""
        (entry,) = self._config.tiers
        async with open_engines(self._config) as engines:
            return dict(await engines[entry.name].fingerprint())

    async def answer(self, questions: Sequence[Question], families: Sequence[str]) -> list[bytes]:
        """A row of the journal for each question. Raises ClusterFailed when this node serves something else."""
        desk, entry = await self._ready(), self._config.tiers[0]
        found: list[Record] = []
        local = entry.engine.kind == "local"
        waiting = iter(questions)
        named = dict(zip(map(id, questions), families, strict=True))
        wave = self._plan.concurrency if local else 1
        async with asyncio.TaskGroup() as group:
            for _ in range(self._plan.concurrency // wave):
                group.create_task(work(desk, waiting, wave, named, found.append))
        return [msgspec.json.encode(records.flatten(record)) for record in found]

    async def _ready(self) -> Desk:
        async with self._opening:
            if self._desk is None:
                (entry,) = self._config.tiers
                assert self._told is not None, "a worker that answers knows what it answers for"
                engine = (await self._stack.enter_async_context(open_engines(self._config)))[entry.name]
                here = dict(await engine.fingerprint())
                if here != dict(self._told.fingerprint):
                    differs = sorted(k for k in here.keys() | self._told.fingerprint.keys()
                                     if here.get(k) != self._told.fingerprint.get(k))  # fmt: skip
                    raise ClusterFailed(
                        f"{entry.name}: another node serves another {', '.join(differs)} than the first"
                    )
                self._desk = Desk(entry, engine, self._told.engine, self._prompt, self._plan)
            return self._desk


def collect(
    config: Config,
    questions: Sequence[Question],
    folder: Path,
    plan: Plan,
    watch: Callable[[int, int], Watch],
    *,
    workers: int | None = None,
) -> Path:
    """`eval.collect.collect` on the Ray cluster that this process is connected to.

    workers: per tier; None takes one for every node that is alive.  Raises what that does, and ClusterFailed.
    """
    if not questions:
        raise ConfigError("no questions to ask")
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder) as journal:
        crew = Crew(config, plan)
        manifest = asyncio.run(describe(config, questions, crew.engines(), plan))
        agree(folder, manifest)
        if is_complete(folder, journal):
            journal.discard()
            return folder / RECORDS
        done = {key for key, grade in journal.grades.items() if grade is not Grade.UNASKED}
        note = watch(len(questions) * len(config.tiers), len(done))
        families = families_of(questions)
        open_rows: dict[str, list[tuple[Question, str]]] = {
            tier.name: [
                (question, family)
                for question, family in zip(questions, families, strict=True)
                if (question.split, question.id, tier.name) not in done
            ]
            for tier in manifest.tiers
        }
        crew.hire({tier.name: tier for tier in manifest.tiers}, manifest.prompt, workers or nodes())
        for row in crew.rows(blocks(open_rows, plan.concurrency)):
            journal.add(row)
            note(row)
        return finish(folder, journal, questions, manifest)


def blocks(open_rows: Mapping[str, Sequence[tuple[Question, str]]], size: int) -> Iterable[Block]:
    for tier, rows in open_rows.items():
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            yield Block(tier, [question for question, _ in some], [family for _, family in some])


def connect() -> None:
    """Join the running cluster: that of RAY_ADDRESS, or the one this machine is a node of. Raises ConfigError."""
    ray = _ray()
    if ray.is_initialized():
        return
    try:
        ray.init(address="auto", log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        told = "no Ray cluster to be found: set RAY_ADDRESS, or start one here with `ray start --head`"
        raise ConfigError(f"{told} ({error})") from None


def nodes() -> int:
    return sum(bool(node["Alive"]) for node in _ray().nodes())


class Crew:
    """The workers, tier by tier."""

    def __init__(self, config: Config, plan: Plan) -> None:
        self._ray = _ray()
        self._config, self._plan, self._prompt = config, plan, ""
        self._told: Mapping[str, Collected] = {}
        self._free: dict[str, list[Any]] = defaultdict(list)

    def engines(self) -> dict[str, Absent]:
        """Stand-ins for the engines that say what those on the nodes say. Raises EngineError."""
        asked = {entry.name: self._worker(entry).fingerprint.remote() for entry in self._config.tiers}
        return {name: Absent(name, self._get(ref)) for name, ref in asked.items()}

    def hire(self, told: Mapping[str, Collected], prompt: str, workers: int) -> None:
        """told: by tier, what its engine must be.  workers: per tier."""
        self._told, self._prompt = told, prompt
        for entry in self._config.tiers:
            self._free[entry.name] = [self._worker(entry) for _ in range(workers)]

    def rows(self, waiting: Iterable[Block]) -> Iterable[Row]:
        """The answers to all blocks, as they come in."""
        queues: dict[str, deque[Block]] = defaultdict(deque)
        for block in waiting:
            queues[block.tier].append(block)
        flying: dict[Any, Flight] = {}
        while flying or any(queues.values()):
            for tier, queue in queues.items():
                while queue and self._free[tier]:
                    block, worker = queue.popleft(), self._free[tier].pop()
                    flying[worker.answer.remote(block.questions, block.families)] = Flight(block, worker)
            (ref,), _ = self._ray.wait(list(flying), num_returns=1)
            flight = flying.pop(ref)
            try:
                answered = self._get(ref)
            except Died as error:
                queues[flight.block.tier].appendleft(again(flight.block, error))
                flight.worker = self._worker(self._entry(flight.block.tier))
            else:
                yield from (msgspec.json.decode(row, type=Row) for row in answered)
            self._free[flight.block.tier].append(flight.worker)

    def _get(self, ref: Any) -> Any:
        """Raises Died when the worker is gone, and what went wrong in it as what it was there."""
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            while isinstance(cause, ExceptionGroup):
                cause = cause.exceptions[0]
            if isinstance(cause, EngineError | GatewayError | OSError):
                raise cause from error
            raise ClusterFailed(f"a worker failed: {cause!r}") from error
        except self._ray.exceptions.RayError as error:
            raise Died(str(error).splitlines()[0]) from error

    def _entry(self, tier: str) -> TierEntry:
        return next(entry for entry in self._config.tiers if entry.name == tier)

    def _worker(self, entry: TierEntry) -> Any:
        """Needs no core of its own, or no tier would start on a small cluster; but a whole GPU where it uses one."""
        gpus = int(str(getattr(entry.engine, "device", "")).startswith("cuda"))
        alone = self._config.model_copy(update={"tiers": (entry,)})
        made = self._ray.remote(Answering).options(num_cpus=0, num_gpus=gpus, scheduling_strategy="SPREAD")
        return made.remote(alone, self._plan, self._told.get(entry.name), self._prompt)


@dataclass(slots=True)
class Flight:
    """A block on its way, and who has it."""

    block: Block
    worker: Any = field(repr=False)


class Died(Exception):
    """A worker is gone, or its node is."""


def again(block: Block, error: Died) -> Block:
    """The block for another worker. Raises ClusterFailed when too many have died over it."""
    block.deaths += 1
    if block.deaths > MOST_DEATHS:
        told = f"{block.deaths} workers of {block.tier} died over the same questions"
        raise ClusterFailed(f"{told}, the last one so: {error}; the same command goes on from what is done") from error
    return block


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"--cluster ray needs: {INSTALL} ({error})") from error
    return ray
