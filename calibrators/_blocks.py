"""What a document of ours is made of; the page and the Markdown both print the same list of blocks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Banner:
    """What nobody may overlook. bad: it speaks against what the document claims."""

    text: str
    bad: bool


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """numbers: whether the cells after the first column are numbers, to be set flush right.

    words: columns of such a table that are words all the same, set flush left and broken where they are long.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: bool = True
    words: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Figure:
    """svg: None where there is too little to plot, which `caption` then says. table: the same in numbers, if any.

    wide: as wide as the page.  file: beside the document, which Markdown shows in place of the drawing.
    """

    svg: str | None
    caption: str
    table: Table | None = None
    wide: bool = False
    file: str = ""


@dataclass(frozen=True, slots=True)
class Gallery:
    figures: tuple[Figure, ...]


Block = Heading | Banner | Text | Bullets | Table | Figure | Gallery
