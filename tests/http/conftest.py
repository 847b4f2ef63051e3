"""One fake upstream and one real gateway in front of it, for all tests of the door."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import openai
import pytest

from tests.faults.gateway import PATIENCE, Gateway, cascade, running, write_artifact
from tests.faults.upstream import Upstream


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture(scope="session")
def gateway(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    write_artifact(folder / "cheap.json")
    with running(folder, cascade(upstream.url)) as process:
        yield process


@pytest.fixture(scope="session")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="whatever", max_retries=0, timeout=PATIENCE) as sdk:
        yield sdk


@pytest.fixture(scope="session")
def http(gateway: Gateway) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=gateway.url, timeout=PATIENCE) as plain:
        yield plain


@pytest.fixture(autouse=True)
def forget(upstream: Upstream) -> None:
    """Every test sees its own requests only."""
    upstream.seen.clear()
    upstream.opened.clear()
