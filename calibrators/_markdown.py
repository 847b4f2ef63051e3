"""Blocks as Markdown. Pictures become their tables; the page has them drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence

from calibrators._blocks import Banner, Block, Bullets, Figure, Gallery, Heading, Table, Text


def write(heading: str, blocks: Sequence[Block]) -> str:
    parts = [f"# {_escaped(heading)}", *(_block(block) for block in blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {_escaped(text)}"
        case Banner(text):
            return f"# **{_escaped(text)}**"
        case Text(text):
            return _escaped(text)
        case Bullets(items):
            return "\n".join(f"- {_escaped(item)}" for item in items)
        case Table():
            return _table(block)
        case Figure(_, caption, table, file=file):
            shown = f"![{_escaped(caption)}]({file})\n\n" if file else ""
            return shown + _escaped(caption) + (f"\n\n{_table(table)}" if table else "")
        case Gallery(figures):
            return "\n\n".join(_block(figure) for figure in figures)


def _table(table: Table) -> str:
    flush_right = [table.numbers and column > 0 and column not in table.words for column in range(len(table.head))]
    rule = ["---:" if right else "---" for right in flush_right]
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
