"""The card as Markdown with YAML front matter. Pictures become their tables; the page has them drawn."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from calibrators._card_blocks import Block, Bullets, Figure, Gallery, Heading, Table, Text, blocks

Json = Mapping[str, Any]


def write(twin: Json) -> str:
    parts = [_front_matter(twin), f"# {_escaped(twin['title'])}", *(_block(block) for block in blocks(twin))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(twin: Json) -> str:
    """A JSON string is a YAML string, so nothing in a title can break the header."""
    told = {
        "schema": twin["schema"],
        "schema_version": twin["schema_version"],
        "title": twin["title"],
        "created": twin["created"],
        "routing": twin["routing"]["type"],
        "calibrators": [tier["calibrator"]["label"] for tier in twin["tiers"]],
        "models": [tier["calibrator"]["fingerprint"]["model"] for tier in twin["tiers"]],
        "evaluated_on": twin["distributions"]["evaluation"],
        "n": twin["routed"]["region"]["n"],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in told.items()]
    return "\n".join(["---", *lines, "---"])


def _block(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {_escaped(text)}"
        case Text(text):
            return _escaped(text)
        case Bullets(items):
            return "\n".join(f"- {_escaped(item)}" for item in items)
        case Table():
            return _table(block)
        case Figure(_, caption, table):
            return _escaped(caption) + (f"\n\n{_table(table)}" if table else "")
        case Gallery(figures):
            return "\n\n".join(_block(figure) for figure in figures)


def _table(table: Table) -> str:
    rule = ["---"] + ["---:" if table.numbers else "---"] * (len(table.head) - 1)
    rows = [table.head, rule, *table.rows]
    return "\n".join("| " + " | ".join(cell if row is rule else _escaped(cell) for cell in row) + " |" for row in rows)


def _escaped(text: str) -> str:
    """Words of a model's or a file's name must not become markup: `code` stays, tags, pipes, stars and links do not."""
    pieces = re.sub(r"\s+", " ", text).split("`")
    if len(pieces) % 2 == 0:  # a tick without its partner would swallow what follows
        pieces = ["".join(pieces)]
    said = [
        piece.replace("|", r"\|") if i % 2 else re.sub(r"([\\|*_\[\]<>])", r"\\\1", piece)
        for i, piece in enumerate(pieces)
    ]
    return "`".join(said)
