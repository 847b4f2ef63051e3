"""Questions with known answers. One dataset per file; the file's name is the dataset's name.

A dataset file exports `load(folder: Path, ...) -> list[Question]` with keyword parameters that have defaults, and finds
its own files in the folder, be it the publisher's layout or one folder per dataset. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from eval.grade import BadTarget, read_target
from gateway.errors import ConfigError, GatewayError

Slice = str | int | float


class BadQuestions(GatewayError):
    """A file of questions that cannot be read. `file` and `line` (from 1, 0 for the file as a whole) say where."""

    def __init__(self, file: Path, line: int, message: str) -> None:
        super().__init__(f"{file}:{line}: {message}" if line else f"{file}: {message}")
        self.file, self.line = file, line


@dataclass(frozen=True, slots=True)
class Question:
    """One question and what a right answer comes to.

    id: unique within dataset and split.  target: canonical spelling, see eval.grade.read_target.
    solution: worked text as published, for few-shot prompts; empty where there is none.
    family: questions of one family vary one seed and never straddle a split; empty: not known to have any.
    slices: by what results are broken down and robust objectives grouped (steps, magnitude, ...).
    """

    id: str
    text: str
    target: str
    dataset: str
    split: str = "test"
    solution: str = ""
    family: str = ""
    slices: Mapping[str, Slice] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slices", MappingProxyType(dict(self.slices)))


def names() -> list[str]:
    """Every dataset there is: the public modules of this package."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(name: str, *args: object, **options: object) -> list[Question]:
    """The questions of the dataset a name stands for: load("gsm8k", folder, split="train").

    What follows the name goes to the dataset's own `load`. Raises ConfigError for a wrong name or option and lists the
    right ones, BadQuestions for a file that is missing or broken.
    """
    if name not in names():
        raise ConfigError(f"no dataset {name!r}; have {', '.join(names())}")
    loader: Callable[..., list[Question]] = importlib.import_module(f"{__name__}.{name}").load
    signature = inspect.signature(loader)
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        raise ConfigError(f"dataset {name}: {error}; it takes {', '.join(signature.parameters) or 'nothing'}") from None
    return loader(*args, **options)


def find_file(folder: Path, *candidates: str) -> Path:
    """The first of the candidates that lies in the folder; a folder that is itself the file is taken as it is."""
    if folder.is_file():
        return folder
    for candidate in candidates:
        if (folder / candidate).is_file():
            return folder / candidate
    raise BadQuestions(folder, 0, f"no {' or '.join(candidates)} here")


def rows(file: Path, *needed: str) -> Iterator[tuple[int, dict[str, object]]]:
    """(line number from 1, object) of a JSONL file; blank lines are passed over. Decimals stay text: 0.1 is exact.

    Raises BadQuestions naming file and line for broken JSON, a line that is no object, or a missing field.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise BadQuestions(file, 0, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadQuestions(file, 0, f"not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_float=str)
        except json.JSONDecodeError as error:
            raise BadQuestions(file, number, f"not JSON: {error.msg} at column {error.colno}") from None
        except (RecursionError, ValueError) as error:
            raise BadQuestions(file, number, f"not readable JSON: {error}") from None
        if not isinstance(row, dict):
            raise BadQuestions(file, number, f"need a JSON object, got {type(row).__name__}")
        for name in needed:
            if row.get(name) in (None, ""):
                raise BadQuestions(file, number, f"no {name!r}; have {', '.join(sorted(row)) or 'nothing'}")
        yield number, row


def target_of(answer: object, file: Path, line: int) -> str:
    """A row's answer in canonical spelling. Raises BadQuestions naming file and line."""
    try:
        return read_target(str(answer))
    except BadTarget as error:
        raise BadQuestions(file, line, str(error)) from None
