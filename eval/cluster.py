"""Collecting on many machines with Ray. The same questions, engines, journal and records as on one.

Every tier has workers, spread over the cluster's nodes; each opens the tier's engine as the gateway would: an HTTP
engine reaches its servers, a local one computes on the worker's node, on a GPU where its `device` says so. The driver
hands out blocks of questions and alone writes the journal. A worker that dies, or whose node does, takes with it only
its block, which another one answers: no row is lost, and none comes twice, because a block counts when it is back.

Ray and this package must be installed on every node, and model folders lie at the same paths.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec

from eval import records
from eval._journal import Journal
from eval._model_server import model_server
from eval.card import Absent
from eval.collect import Desk, Plan, Watch, agree, describe, families_of, finish, is_complete, work
from eval.datasets import Question
from eval.grade import Grade
from eval.records import RECORDS, Collected, Record, Row
from gateway.config import Config, TierEntry
from gateway.errors import ConfigError, EngineError, GatewayError
from gateway.nouns import Engine
from gateway.snapshot import open_engines

MOST_DEATHS = 3  # of workers over the same block: then it is the block, or the cluster, and not chance
LOOK_SECONDS = 5.0
CLOSE_SECONDS = 60.0  # for a model server to drain
SOME_CORE = 0.001  # a thousand workers find room on one core, and none on a node without
INSTALL = "pip install 'confidence-gateway[ray]', on every node"


log = logging.getLogger(__name__)


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

    def __init__(self, config: Config, plan: Plan, *, start_server: bool = False) -> None:
        """config: of one tier.  start_server: its model server is started here, on this worker's GPUs."""
        self._config, self._plan, self._start_server = config, plan, start_server
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._engine: Engine | None = None
        self._desk: Desk | None = None

    async def fingerprint(self) -> Mapping[str, str]:
        """What the engine on this node says of itself. Raises EngineError, and what starting a server raises."""
        async with self._opening:
            if self._engine is None:
                config = self._config
                if self._start_server:
                    config = await self._stack.enter_async_context(model_server(config))
                (self._engine,) = (await self._stack.enter_async_context(open_engines(config))).values()
            return dict(await self._engine.fingerprint())

    async def prepare(self, told: Collected, prompt: str) -> None:
        """Get ready to answer. told: what the engine must be.  Raises ClusterFailed when it is something else here."""
        here, there = dict(await self.fingerprint()), dict(told.fingerprint)
        (entry,) = self._config.tiers
        if here != there:
            differs = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
            raise ClusterFailed(f"{entry.name}: another node serves another {', '.join(differs)} than the first")
        assert self._engine is not None, "it has just told its fingerprint"
        self._desk = Desk(entry, self._engine, told.engine, prompt, self._plan)

    async def answer(self, questions: Sequence[Question], families: Sequence[str]) -> list[bytes]:
        """A row of the journal for each question."""
        assert self._desk is not None, "no worker is given questions before it is prepared"
        found: list[Record] = []
        local = self._config.tiers[0].engine.kind == "local"
        waiting = iter(questions)
        named = dict(zip(map(id, questions), families, strict=True))
        wave = self._plan.concurrency if local else 1
        async with asyncio.TaskGroup() as group:
            for _ in range(self._plan.concurrency // wave):
                group.create_task(work(self._desk, waiting, wave, named, found.append))
        return [msgspec.json.encode(records.flatten(record)) for record in found]

    async def close(self) -> None:
        """Close the engine and stop the server that was started."""
        await self._stack.aclose()


def collect(
    config: Config,
    questions: Sequence[Question],
    folder: Path,
    plan: Plan,
    watch: Callable[[int, int], Watch],
    *,
    workers: int | None = None,
    start_servers: bool = False,
) -> Path:
    """`eval.collect.collect` on the Ray cluster that this process is connected to.

    workers: per tier; None takes one for every node that computes.  start_servers: every worker of a tier that says how
    it is served starts that model server itself, on GPUs of its own.  Raises what that does, and ClusterFailed.
    """
    if not questions:
        raise ConfigError("no questions to ask")
    if nodes() == 0:
        raise ClusterFailed("no node of this Ray cluster has a core to compute on; join one with `ray start`")
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder) as journal, Crew(config, plan, start_servers=start_servers) as crew:
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
    """How many nodes compute. A head that Ray was given no cores of (`ray start --head --num-cpus 0`) does not."""
    return sum(bool(node["Alive"] and node["Resources"].get("CPU")) for node in _ray().nodes())


class Crew:
    """The workers, tier by tier."""

    def __init__(self, config: Config, plan: Plan, *, start_servers: bool = False) -> None:
        self._ray = _ray()
        self._config, self._plan, self._start_servers = config, plan, start_servers
        self._told: Mapping[str, Collected] = {}
        self._prompt = ""
        self._first: dict[str, Any] = {}
        self._workers: list[Any] = []
        self._starting: dict[Any, Start] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let everybody go. A server that a worker started ends with it, and has its GPU's memory back by then."""
        closing = [worker.close.remote() for worker in self._workers]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
        for worker in self._workers:
            self._ray.kill(worker)

    def engines(self) -> dict[str, Absent]:
        """Stand-ins for the engines that say what those on the nodes say. Raises EngineError."""
        self._first = {entry.name: self._worker(entry) for entry in self._config.tiers}
        asked = {name: worker.fingerprint.remote() for name, worker in self._first.items()}
        try:
            return {name: Absent(name, self._get(ref)) for name, ref in asked.items()}
        except Died as error:
            raise ClusterFailed(f"the first worker of a tier died: {error}") from error

    def hire(self, told: Mapping[str, Collected], prompt: str, workers: int) -> None:
        """told: by tier, what its engine must be.  workers: per tier."""
        self._told, self._prompt = told, prompt
        for entry in self._config.tiers:
            self._start(entry.name, self._first[entry.name])
            for _ in range(workers - 1):
                self._start(entry.name, self._worker(entry))

    def rows(self, waiting: Iterable[Block]) -> Iterator[Row]:
        """The answers to all blocks, as they come in. Only a worker that is ready is given any, so nobody waits for
        one that is still starting, or whose node cannot start it."""
        queues: dict[str, deque[Block]] = defaultdict(deque)
        for block in waiting:
            queues[block.tier].append(block)
        free: dict[str, list[Any]] = defaultdict(list)
        flying: dict[Any, Flight] = {}
        while flying or any(queues.values()):
            for tier, queue in queues.items():
                while queue and free[tier]:
                    block, worker = queue.popleft(), free[tier].pop()
                    flying[worker.answer.remote(block.questions, block.families)] = Flight(block, worker)
            done, _ = self._ray.wait([*flying, *self._starting], num_returns=1, timeout=LOOK_SECONDS)
            for ref in done:  # none, when it was only time to look whether somebody wants us to stop
                if ref in self._starting:
                    start = self._starting.pop(ref)
                    if self._lives(ref, start):
                        free[start.tier].append(start.worker)
                    continue
                flight = flying.pop(ref)
                try:
                    answered = self._get(ref)
                except Died as error:
                    log.warning("a worker of %s died, another one answers its questions: %s", flight.block.tier, error)
                    queues[flight.block.tier].appendleft(again(flight.block, error))
                    self._start(flight.block.tier, self._worker(self._entry(flight.block.tier)))
                else:
                    yield from (msgspec.json.decode(row, type=Row) for row in answered)
                    free[flight.block.tier].append(flight.worker)

    def _start(self, tier: str, worker: Any, deaths: int = 0) -> None:
        self._starting[worker.prepare.remote(self._told[tier], self._prompt)] = Start(tier, worker, deaths)

    def _lives(self, ref: Any, start: Start) -> bool:
        """Whether a worker is ready; one that died is started anew. Raises ClusterFailed when that happens too often,
        and what preparing raises."""
        try:
            self._get(ref)
        except Died as error:
            log.warning("a worker of %s died while it started: %s", start.tier, error)
            if start.deaths == MOST_DEATHS:
                raise ClusterFailed(f"{MOST_DEATHS + 1} workers of {start.tier} did not start: {error}") from error
            self._start(start.tier, self._worker(self._entry(start.tier)), start.deaths + 1)
            return False
        return True

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
        """Needs no core of its own, or no tier would start on a small cluster, only a node that has any; but whole GPUs
        where it uses them."""
        gpus = int(str(getattr(entry.engine, "device", "")).startswith("cuda"))
        starts = self._start_servers and entry.serve is not None and entry.engine.kind == "openai_http"
        if starts and entry.serve is not None:
            gpus = entry.serve.tensor_parallel
        alone = self._config.model_copy(update={"tiers": (entry,)})
        made = self._ray.remote(Answering).options(num_cpus=SOME_CORE, num_gpus=gpus, scheduling_strategy="SPREAD")
        self._workers.append(made.remote(alone, self._plan, start_server=starts))
        return self._workers[-1]


@dataclass(slots=True)
class Flight:
    """A block on its way, and who has it."""

    block: Block
    worker: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Start:
    """A worker that is getting ready. deaths: of others in its place, none of which ever was."""

    tier: str
    worker: Any = field(repr=False)
    deaths: int


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
