"""A report on disk: one folder that is replaced whole, so that nobody ever reads half an old and half a new one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from calibrators import _markdown, _page
from eval import report_blocks
from eval.report_curve import Pictures
from gateway.errors import GatewayError

TWIN = "report.json"
NAMES = ("report.html", "report.md", TWIN, "curve.png", "curve.svg")


class BadReport(GatewayError):
    """A report that cannot be written where it should be, or not be read. The message says why and what to do."""

    def __init__(self, place: Path, message: str) -> None:
        super().__init__(f"{place}: {message}")
        self.place = place


# Writing


def check_free(folder: Path) -> None:
    """Raises BadReport when a folder holds anything that a report would not overwrite."""
    if folder.exists() and not folder.is_dir():
        raise BadReport(folder, "is a file; name a folder for the report")
    strangers = sorted(entry.name for entry in folder.iterdir() if entry.name not in NAMES) if folder.exists() else []
    if strangers:
        raise BadReport(folder, f"holds {', '.join(strangers[:3])}, no part of a report; name a folder of its own")


def save(folder: Path, twin: Mapping[str, Any], pictures: Pictures) -> list[Path]:
    """All five files. An old report stands until the new one is whole, and then is gone. Raises BadReport, OSError."""
    folder = Path(os.path.abspath(folder))
    check_free(folder)
    heading, blocks = report_blocks.title(twin), report_blocks.blocks(twin, pictures.inline)
    text = json.dumps(twin, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    forms: dict[str, bytes] = {
        "report.html": _page.write(heading.replace(" %", "\N{NO-BREAK SPACE}%"), blocks).encode(),
        "report.md": _markdown.write(heading, blocks).encode(),
        TWIN: text.encode(),
        "curve.png": pictures.png,
        "curve.svg": pictures.svg.encode(),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        draft.chmod(0o755)  # mkdtemp gives 0700, and others may be meant to read this
        for name, content in forms.items():
            with (draft / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _exchange(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return [folder / name for name in NAMES]


def _exchange(draft: Path, folder: Path) -> None:
    """Put the draft where the old folder stands; put the old one back when that fails."""
    if not folder.exists():
        draft.rename(folder)
        return
    old = draft.with_name(f"{draft.name}.old")
    folder.rename(old)
    try:
        draft.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old)


# Reading


class Route(msgspec.Struct, frozen=True):
    tiers: list[str]
    thresholds: list[float]


class Sweep(msgspec.Struct, frozen=True):
    served: Route
    reference: Route
    cost_unit: str


class Model(msgspec.Struct, frozen=True):
    tier: str


class Questions(msgspec.Struct, frozen=True):
    """What the policy to serve did. served: position of a tier in `models`."""

    id: list[str]
    family: list[str]
    right: list[int]
    cost: list[float]
    served: list[int]
    p: list[float | None]


class File(msgspec.Struct, frozen=True):
    path: str
    sha256: str


class Collected(msgspec.Struct, frozen=True):
    """Of a table of the user's own nobody knows questions and prompt."""

    path: str
    sha256: str
    questions_sha256: str = ""
    prompt_sha256: str = ""


class Sealed(msgspec.Struct, frozen=True):
    tier: str
    sha256: str


class Provenance(msgspec.Struct, frozen=True):
    command: str
    config: File | None
    prices: File | None
    wish: dict[str, Any]
    versions: dict[str, str]
    machine: str
    records: list[Collected]
    calibrators: list[Sealed]


class Read(msgspec.Struct, frozen=True):
    """The part of a twin that comparing looks at."""

    schema: str
    schema_version: int
    verdict: str
    sweep: Sweep
    models: list[Model]
    questions: Questions
    provenance: Provenance


def read(place: Path) -> Read:
    """A report from its folder or its report.json. Raises BadReport."""
    path = place / TWIN if place.is_dir() else place
    try:
        return checked(path, path.read_bytes())
    except FileNotFoundError:
        raise BadReport(path, "there is no such report; `confgate report` writes one") from None
    except OSError as error:
        raise BadReport(path, f"cannot be read: {error.strerror or error}") from None


def checked(path: Path, text: bytes) -> Read:
    """A twin from its text. path: for messages. Raises BadReport."""
    from eval.report import SCHEMA_NAME, SCHEMA_VERSION

    with contextlib.suppress(msgspec.DecodeError):
        head = msgspec.json.decode(text)
        if not isinstance(head, dict) or head.get("schema") != SCHEMA_NAME:
            raise BadReport(path, f"no report of ours: its schema is not {SCHEMA_NAME!r}")
        if head.get("schema_version") != SCHEMA_VERSION:
            told = f"schema version {head.get('schema_version')}, this program knows {SCHEMA_VERSION}"
            raise BadReport(path, f"{told}; make the report anew")
    try:
        found = msgspec.json.decode(text, type=Read)
    except msgspec.DecodeError as error:
        raise BadReport(path, f"no whole report ({error}); make it anew") from None
    asked = found.questions
    lengths = {len(getattr(asked, name)) for name in ("id", "right", "cost", "served", "p")}
    if len(lengths) != 1 or not asked.id or len(set(asked.id)) < len(asked.id):
        raise BadReport(path, "its questions do not fit together; make the report anew")
    if not all(0 <= place < len(found.models) for place in asked.served):
        raise BadReport(path, "a question was served by a model that is not in it; make the report anew")
    return found
