"""The journal of a collection: one line per finished row, only ever appended to, so that kill -9 costs at most the line
that was being written.

A line is the row as JSON. What stands behind the last newline was torn and is cut off when the journal is opened. Of
two lines about the same row the later one counts: a row that failed is asked again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from eval.grade import Grade
from eval.records import DRAFT, BadRecords, Row

Key = tuple[str, str, str]  # split, question, tier

JOURNAL, LOCK = "journal.jsonl", "lock"


class Entry(msgspec.Struct):
    """As much of a line as resuming needs to know; the rest is skipped without being decoded."""

    split: str
    question: str
    tier: str
    grade: Grade


class FolderBusy(BadRecords):
    """Another collector writes into the folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "another `confgate collect` is writing here; wait for it, or take another --out")


class Journal:
    """An open journal. `grades` says what became of every row in it.

    Locks its folder for as long as it is open, also against another process; the lock dies with the process.
    Raises FolderBusy, and BadRecords for a line that is no row.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / JOURNAL
        self._lock = (folder / LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise FolderBusy(folder) from None
        for draft in folder.glob(f".*{DRAFT}"):  # of a collector that was killed while it wrote
            draft.unlink()
        self._file: BinaryIO = self.path.open("a+b", buffering=0)
        self._spans: dict[Key, tuple[int, int]] = {}
        self.grades: dict[Key, Grade] = {}
        try:
            self._recall()
        except BadRecords:
            self._close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.fsync(self._file.fileno())
        self._close()

    def add(self, row: Row) -> None:
        """Append one row, in a single write to the operating system: only a power cut can still lose it."""
        line = msgspec.json.encode(row) + b"\n"
        start = os.fstat(self._file.fileno()).st_size
        written = self._file.write(line)
        if written != len(line):
            raise BadRecords(self.path, f"only {written} of {len(line)} bytes could be written; is the disk full?")
        self._note(msgspec.convert(row, Entry, from_attributes=True), start, len(line))

    def rows(self, keys: Iterable[Key]) -> Iterator[Row]:
        """The rows of these keys, in the order given."""
        with self.path.open("rb") as file:
            for key in keys:
                start, size = self._spans[key]
                file.seek(start)
                yield msgspec.json.decode(file.read(size), type=Row)

    def discard(self) -> None:
        """Everything is in the Parquet file: the journal has done its work."""
        self.path.unlink()

    def _close(self) -> None:
        self._file.close()
        self._lock.close()

    def _recall(self) -> None:
        start = 0
        decode = msgspec.json.Decoder(Entry).decode
        for number, line in enumerate(self._lines(), start=1):
            if not line.endswith(b"\n"):
                break  # torn: the rest of this line was never written
            try:
                self._note(decode(line), start, len(line))
            except msgspec.DecodeError as error:
                told = f"line {number} is no row ({error}); delete that line, and its row is asked again"
                raise BadRecords(self.path, told) from None
            start += len(line)
        self._file.truncate(start)

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from file

    def _note(self, entry: Entry, start: int, size: int) -> None:
        key = (entry.split, entry.question, entry.tier)
        self._spans[key], self.grades[key] = (start, size), entry.grade
