"""Request bodies whose text tells the fake upstream what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.faults.gateway import SURE, until
from tests.faults.upstream import Upstream

Json = dict[str, Any]


def plan(small: Json | None = None, large: Json | None = None) -> list[Json]:
    """Messages that make each model behave as planned."""
    told = {"small": small or {}, "large": large or {}}
    return [{"role": "user", "content": json.dumps(told)}]


def ask(small: Json | None = None, large: Json | None = None, **fields: Any) -> Json:
    """A whole request for the cascade."""
    return {"model": "auto", "messages": plan(small, large), **fields}


def leave_idle(n: int, post: Callable[[Json], object], upstream: Upstream) -> None:
    """Make n connections to the small model that are kept: of as many questions at once. post: asks as planned."""
    with ThreadPoolExecutor(n) as pool:
        asking = [pool.submit(post, {"nats": SURE, "gate": "idle"}) for _ in range(n)]
        until(lambda: len(upstream.asked("small")) == n)
        upstream.opened.add("idle")
        for one in asking:
            one.result()
