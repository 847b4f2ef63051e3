"""How far a collection is: one line that rewrites itself on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from eval.records import Row

ON_TERMINAL, ELSEWHERE = 0.2, 15.0  # seconds between two lines


class Progress:
    """Call it with every finished row. total: rows in all; done: rows that an earlier run has finished.

    clock: seconds, rising.  Rate and ETA are of this run alone.
    """

    def __init__(self, total: int, done: int, stream: TextIO, clock: Callable[[], float]) -> None:
        self._total, self._before, self._stream, self._clock = total, done, stream, clock
        self._terminal = stream.isatty()
        self._began = self._told = clock()
        self._rows = self._tokens = self._failed = 0
        self._usd = 0.0

    def __call__(self, row: Row) -> None:
        self._rows += 1
        self._tokens += row.prompt_tokens + row.completion_tokens
        self._usd += row.usd
        self._failed += bool(row.error)
        pause = ON_TERMINAL if self._terminal else ELSEWHERE
        if self._clock() - self._told >= pause:
            self._told = self._clock()
            self._tell("\r" if self._terminal else "", "\x1b[K" if self._terminal else "\n")

    def close(self) -> None:
        """The last line, if anything was asked."""
        if self._rows:
            self._tell("\r" if self._terminal else "", "\x1b[K\n" if self._terminal else "\n")

    def _tell(self, start: str, end: str) -> None:
        self._stream.write(f"{start}{self.line()}{end}")
        self._stream.flush()

    def line(self) -> str:
        done = self._before + self._rows
        rate = self._rows / max(self._clock() - self._began, 1e-9)
        parts = [
            f"{done:,}/{self._total:,} answers ({done / self._total:.0%})",
            f"{rate:.1f}/s",
            f"{clock_time((self._total - done) / rate)} left" if done < self._total else "done",
            f"{self._tokens:,} tokens",
            f"${self._usd:.4f} so far, ${self._usd / self._rows * (self._total - self._before):.4f} in all",
            *([f"{self._failed:,} failed"] if self._failed else []),
        ]
        return "  ".join(parts)


def clock_time(seconds: float) -> str:
    """61 seconds as 1:01, an hour as 1:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
