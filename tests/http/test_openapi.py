"""What the gateway says of itself can be read: by generators of clients and of tests, too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2


def references(part: Any) -> Iterator[str]:
    """Every $ref, wherever it stands."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for inner in part.values():
            yield from references(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from references(inner)


def test_every_reference_in_the_description_leads_somewhere(http: httpx2.Client) -> None:
    document = http.get("/openapi.json").json()
    found = set(references(document))
    assert found
    for reference in found:
        assert reference.startswith("#/")
        at = document
        for step in reference[2:].split("/"):
            assert step in at, reference
            at = at[step]
