"""Request bodies whose text tells the fake upstream what to do."""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]


def plan(small: Json | None = None, large: Json | None = None) -> list[Json]:
    """Messages that make each model behave as planned."""
    told = {"small": small or {}, "large": large or {}}
    return [{"role": "user", "content": json.dumps(told)}]


def ask(small: Json | None = None, large: Json | None = None, **fields: Any) -> Json:
    """A whole request for the cascade."""
    return {"model": "auto", "messages": plan(small, large), **fields}
