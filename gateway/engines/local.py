"""Any local or hub model, in this process: transformers on the CPU or a GPU, for laptops, tests and the pocket cascade.

One worker thread owns the model. Requests that arrive while others are being answered are prefilled at once and join
the running batch at the next token, so nobody waits for somebody else's long answer. A cancelled request leaves before
the next token.
"""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import queue
import threading
import time
from bisect import bisect_right
from collections.abc import Mapping
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from gateway import engines
from gateway.errors import BadTrace, ConfigError, EngineDown, EngineTooSmall
from gateway.nouns import Ability, Ask, Completion, Finish, Hear, Piece, Source, TokenTrace

if TYPE_CHECKING:
    from gateway.engines._decode import Batch, Decoder, Row

GATHER_SECONDS = 0.004  # a burst of requests arrives within this; waiting longer costs more than a larger batch saves
HASHED_ENDS = 2**20  # bytes hashed at each end of a weight file too large to read whole at every start


class Options(engines.Options):
    """A model folder (with config.json), or a name on the hub where the hub can be reached."""

    abilities: ClassVar[frozenset[Ability]] = frozenset({Ability.RAW_PROMPT})

    kind: Literal["local"] = "local"
    model: str
    revision: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    device: str = "cpu"
    max_batch: int = Field(default=32, ge=1, le=1024)
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads of one step, for all models of this process; 1 is fastest for models of a few million "
        "parameters; by default torch's own choice, the number of cores",
    )
    max_tokens: int = Field(default=512, ge=1, description="completion limit when the client names none")

    @field_validator("model", mode="after")
    @classmethod
    def _find(cls, value: str, info: ValidationInfo) -> str:
        """A folder beside the configuration wins over a hub name; what looks like a path must exist."""
        folder = engines.resolve(value, info)
        if (folder / "config.json").is_file():
            return str(folder)
        local = folder.exists() or folder.parent.is_dir() or value.startswith((".", "/", "~"))
        if local or value.count("/") != 1:
            raise ValueError(f"no model in {folder}: it needs a config.json, weights and a tokenizer")
        return value


async def open_engine(options: Options, *, name: str) -> LocalEngine:
    """Load the model in a thread. Raises ConfigError when it cannot be had."""
    try:
        import torch

        from gateway.engines._decode import Decoder
    except ImportError as error:
        raise ConfigError(
            f"tier {name!r} runs in process and needs: pip install 'confidence-gateway[local]'"
        ) from error
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        decoder = await asyncio.to_thread(
            Decoder, options.model, dtype=options.dtype, device=options.device, revision=options.revision
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"tier {name!r}: cannot load model {options.model!r}: {reason}") from error
    return LocalEngine(name, decoder, options)


class LocalEngine:
    """One model, one worker thread, any number of concurrent requests."""

    def __init__(self, name: str, decoder: Decoder, options: Options) -> None:
        self._name, self._decoder, self._options = name, decoder, options
        self._fingerprint = fingerprint(decoder, options)
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, name=f"engine-{name}", daemon=True)
        self._jobs: dict[int, _Job] = {}  # by id of their row; the worker's own
        self._closed = False
        self._worker.start()

    @property
    def name(self) -> str:
        return self._name

    async def complete(self, ask: Ask) -> Completion:
        """Answer one Ask. Raises EngineTooSmall for a prompt that leaves no room, EngineDown after close()."""
        if self._closed:
            raise EngineDown(self._name, "the engine is closed")
        job = await asyncio.to_thread(self._prepare, ask, asyncio.get_running_loop())
        self._inbox.put(job)
        try:
            return await job.done
        except asyncio.CancelledError:
            job.row.cancelled = True
            raise

    async def stream(self, ask: Ask, hear: Hear) -> Completion:
        """The same token by token. The model does not wait for who hears: what he has not heard yet is kept for him."""
        if self._closed:
            raise EngineDown(self._name, "the engine is closed")
        job = await asyncio.to_thread(self._prepare, ask, asyncio.get_running_loop())
        job.watched = True
        telling = _Telling(job, self._decoder, self._fingerprint["model"])
        self._inbox.put(job)
        try:
            while not job.done.done():
                await job.stepped.wait()
                job.stepped.clear()
                piece = None if job.done.done() else telling.next()
                if piece is not None:
                    await hear(piece)
            completion = await job.done
            end = telling.end(completion)
            if end is not None:
                await hear(end)
            return completion
        except BaseException:
            job.row.cancelled = True
            raise

    async def ready(self) -> bool:
        return not self._closed and self._worker.is_alive()

    async def fingerprint(self) -> Mapping[str, str]:
        return self._fingerprint

    async def close(self) -> None:
        self._closed = True
        self._inbox.put(None)
        await asyncio.to_thread(self._worker.join)

    def _prepare(self, ask: Ask, loop: asyncio.AbstractEventLoop) -> _Job:
        from gateway.engines._decode import Row

        if ask.prompt is not None:
            prompt = self._decoder.encode_raw(ask.prompt)
        else:
            prompt = self._decoder.encode([{"role": m.role, "content": m.content} for m in ask.messages])
        window = self._decoder.window_tokens
        if len(prompt) >= window:
            raise EngineTooSmall(self._name, len(prompt), window)
        limit = min(ask.max_tokens or self._options.max_tokens, window - len(prompt))
        return _Job(Row(prompt, limit, ask.sampling, ask.top_k), ask, loop)

    def _work(self) -> None:
        """The worker: admit what has arrived, give every row one token, hand over what ended."""
        batches: list[Batch] = []
        while True:
            arrived = self._arrived(wait=not batches, room=self._options.max_batch - len(self._jobs))
            if arrived is None:
                break
            if arrived:
                self._jobs.update((id(job.row), job) for job in arrived)
                batches.append(self._decoder.start([job.row for job in arrived]))
            batches = _joined([batch for batch in batches if self._step(batch)])
        for job in self._jobs.values():
            job.fail(EngineDown(self._name, "the engine was closed while it answered"))

    def _step(self, batch: Batch) -> bool:
        """One token for every row of a batch. Returns whether any row goes on."""
        members = list(batch.rows)
        try:
            ended = batch.step()
        except Exception as error:  # a broken step must fail its own requests, not the worker
            for row in members:
                if failed := self._jobs.pop(id(row), None):
                    failed.fail(EngineDown(self._name, f"{type(error).__name__}: {error}"))
            return False
        for row in batch.rows:  # those that go on, so no stop string is in their texts
            job = self._jobs[id(row)]
            if job.watched and not row.cancelled:
                job.tell()
        for row in ended:
            if done := self._jobs.pop(id(row), None):
                done.succeed(self._completion(done))
        for row in members:
            if row.cancelled:
                self._jobs.pop(id(row), None)
        return bool(batch.rows)

    def _arrived(self, *, wait: bool, room: int) -> list[_Job] | None:
        """Jobs to admit now, at most `room`; None when the engine is being closed."""
        arrived: list[_Job] = []
        until = time.monotonic() + GATHER_SECONDS
        while len(arrived) < room:
            try:
                pause = max(0.0, until - time.monotonic())
                block = wait and not arrived
                job = self._inbox.get(timeout=None if block else (pause if wait else 0))
            except queue.Empty:
                break
            if job is None:
                for waiting in arrived:
                    waiting.fail(EngineDown(self._name, "the engine was closed while it answered"))
                return None
            if block:
                until = time.monotonic() + GATHER_SECONDS
            if not job.row.cancelled:
                arrived.append(job)
        return arrived

    def _completion(self, job: _Job) -> Completion:
        row, decoder = job.row, self._decoder
        ended = row.end_nats is not None
        try:
            trace, no_trace = _trace(row, decoder, texts=job.ask.texts), ""
        except BadTrace as error:
            trace, no_trace = None, str(error)
        return Completion(
            text=row.text or "",
            finish=Finish.LENGTH if row.cut else Finish.STOP,
            prompt_tokens=len(row.prompt),
            completion_tokens=len(row.tokens) + ended,
            engine=self._name,
            model=self._fingerprint["model"],
            seconds=time.monotonic() - job.began,
            trace=trace,
            no_trace=no_trace,
        )


def _joined(batches: list[Batch]) -> list[Batch]:
    """The newest batch joins the oldest, where the model allows it."""
    if len(batches) > 1 and batches[0].can_take(batches[-1]):
        batches[0].take(batches[-1])
        return batches[:-1]
    return batches


class _Job:
    """One request between the loop that waits for it and the worker that does it."""

    def __init__(self, row: Row, ask: Ask, loop: asyncio.AbstractEventLoop) -> None:
        self.row, self.ask = row, ask
        self.began = time.monotonic()
        self._loop = loop
        self.done: asyncio.Future[Completion] = loop.create_future()
        self.stepped = asyncio.Event()  # there is something new to see in the row, or it is done
        self.watched = False
        self.steps = 0  # tokens that may be told

    def tell(self) -> None:
        """Called by the worker after a step that did not end the row."""
        self.steps = len(self.row.tokens)
        self._settle(lambda: None)

    def succeed(self, completion: Completion) -> None:
        self._settle(lambda: self.done.set_result(completion))

    def fail(self, error: Exception) -> None:
        self._settle(lambda: self.done.set_exception(error))

    def _settle(self, act: Any) -> None:
        def on_loop() -> None:
            if not self.done.done():
                act()
            self.stepped.set()

        try:
            self._loop.call_soon_threadsafe(on_loop)
        except RuntimeError:  # the loop has closed: nobody is waiting any more
            self.row.cancelled = True


class _Telling:
    """One answer as pieces. Reads the row while the worker adds to it: lists that only grow."""

    def __init__(self, job: _Job, decoder: Decoder, model: str) -> None:
        self._job, self._decoder, self._model = job, decoder, model
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._read = 0  # tokens
        self._ends = [0]  # of each of them, in bytes
        self._text = ""  # of them, whole characters only
        self._told = 0  # characters
        stops = job.ask.sampling.stop
        self._kept = max(map(len, stops), default=1) - 1  # characters that may turn out to begin a stop string

    def next(self) -> Piece | None:
        """What the newest tokens add."""
        tokens = self._job.row.tokens[: self._job.steps]
        if self._decoder.tells_tokens_apart:
            fresh = self._decoder.token_bytes(tokens[self._read :])
        else:
            fresh = self._decoder.token_bytes(tokens)[self._read :]
        self._read = len(tokens)
        self._text += self._characters.decode(b"".join(fresh))
        stop = len(self._text) - self._kept
        self._ends += accumulate(map(len, fresh), initial=self._ends.pop())
        told = len(self._text[: max(0, stop)].encode())
        counted = bisect_right(self._ends, told) - 1 if self._kept else len(tokens)
        return self._piece(self._text, stop, counted)

    def end(self, completion: Completion) -> Piece | None:
        tokens = 0 if completion.trace is None else completion.trace.chosen.size
        return self._piece(completion.text, len(completion.text), tokens, ends=True)

    def _piece(self, text: str, stop: int, tokens: int, *, ends: bool = False) -> Piece | None:
        if stop <= self._told:
            return None
        new, self._told = text[self._told : stop], stop
        return Piece(new, tokens, self._model, self._part, len(self._job.row.prompt), ends=ends)

    def _part(self, start: int, stop: int) -> TokenTrace:
        """Tokens are there once a piece has told of them; a stop string may only have taken later ones away."""
        ask, row = self._job.ask, self._job.row
        return _trace(row, self._decoder, slice(start, stop), texts=ask.texts)


def _trace(row: Row, decoder: Decoder, span: slice = slice(None), *, texts: bool) -> TokenTrace:
    """The evidence of a row's tokens, or of some; of the end token with all of them."""
    candidates: tuple[tuple[bytes, ...], ...] = ()
    if texts and row.top_k:
        candidates = tuple(tuple(decoder.token_bytes([int(t)])[0] for t in tokens) for tokens in row.top_tokens[span])
    return TokenTrace(
        source=Source.TOP_LOGPROBS if row.top_k else Source.CHOSEN,
        chosen=np.array(row.chosen_nats[span], dtype=np.float64),
        top=np.array(row.top_nats[span], dtype=np.float64) if row.top_k else None,
        tokens=decoder.token_bytes(row.tokens[span])
        if decoder.tells_tokens_apart
        else decoder.token_bytes(row.tokens)[span],
        end_nats=row.end_nats if span == slice(None) else None,
        candidates=candidates,
    )


def fingerprint(decoder: Decoder, options: Options) -> dict[str, str]:
    """Who this engine is, in the names artefacts use. The model's name is its folder's, so that a copy is the same."""
    folder = Path(options.model)
    told = {
        "model": folder.name if folder.is_dir() else options.model,
        "engine": "transformers",
        "engine_version": version("transformers"),
        "dtype": options.dtype,
        "logprobs_mode": "raw_logprobs",
        "tokenizer": _sha256(decoder.tokenizer.backend_tokenizer.to_str().encode()),
        "chat_template": _sha256(str(decoder.tokenizer.chat_template or "").encode()),
    }
    if folder.is_dir():
        told["weights"] = weights_hash(folder)
    elif options.revision:
        told["revision"] = options.revision
    return told


def weights_hash(folder: Path) -> str:
    """SHA-256 over a model's configuration and weights: files to 2 MiB whole, of larger ones size and both ends."""
    from gateway.engines._decode import weight_files

    digest = hashlib.sha256()
    for path in weight_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(HASHED_ENDS))
            file.seek(max(HASHED_ENDS, size - HASHED_ENDS))
            digest.update(file.read())
    return digest.hexdigest()


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
