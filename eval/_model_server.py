"""One tier's model server on this machine, for as long as somebody collects from it: `confgate up`, for one tier."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from gateway import launching
from gateway.config import Config
from gateway.engines import openai_http
from gateway.errors import ConfigError
from gateway.fleet import gpus, supervise
from gateway.fleet.supervise import Backoff, Job


@asynccontextmanager
async def model_server(config: Config, environ: Mapping[str, str] = os.environ) -> AsyncIterator[Config]:
    """Start it as its `serve:` says on the GPUs that CUDA_VISIBLE_DEVICES leaves us, wait until it answers, keep it.

    config: of one tier; what comes is the same with an engine that asks this server, whose port is any that is free.
    Raises ConfigError (Unfit among them), and StartFailed with the end of the server's log.
    """
    (entry,) = config.tiers
    if entry.serve is None or not isinstance(entry.engine, openai_http.Options):
        raise ConfigError(f"tier {entry.name} does not say how it is served; give it a serve: section")
    url = f"http://127.0.0.1:{free_port()}/v1"
    engine = entry.engine.model_copy(update={"url": url, "urls": ()})
    # The file may list the GPUs of the machine it was written on; ours are those that are here.
    fleet = config.fleet.model_copy(update={"gpus": ()}) if gpus.there_are(environ) else config.fleet
    here = config.model_copy(update={"tiers": (entry.model_copy(update={"engine": engine}),), "fleet": fleet})
    with tempfile.TemporaryDirectory(prefix="confgate-") as folder:
        logs = Path(folder)
        launching.link_packages(launching.packages(logs))
        (server,) = launching.plan(here, dry=False, logs=logs, environ=environ).servers
        async with kept(launching.job(server, here, logs, environ), here):
            yield here


@asynccontextmanager
async def kept(job: Job, config: Config) -> AsyncIterator[None]:
    """The job, from when it is ready; it is started again when it dies."""
    ready, stop = asyncio.Event(), asyncio.Event()

    def note(_name: str, event: str, _detail: str) -> None:
        if event == "ready":
            ready.set()

    backoff = Backoff(config.fleet.restart_seconds, config.fleet.restart_max_seconds)
    # Not a task group: whoever collects may leave from another task than the one that came in.
    running = asyncio.ensure_future(
        supervise.run([job], None, backoff=backoff, note=note, stop=stop, hangup=asyncio.Event())
    )
    waiting = asyncio.ensure_future(ready.wait())
    try:
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if ready.is_set():
            yield
    finally:
        waiting.cancel()
        stop.set()
        await running


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])
