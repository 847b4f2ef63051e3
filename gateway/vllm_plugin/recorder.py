"""Keeps every request's records apart while vLLM adds, removes, moves and preempts rows of its batch.

Records live in a pool of fixed size on the device, in blocks that requests take as they grow and give back when they
leave. Where a token's record goes is told by how many tokens its request has emitted, so that a row which was computed
twice (a prompt in pieces, a resumed request) simply writes the same place again. Nothing here waits for the device.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from gateway.vllm_plugin.params import Wanted
from gateway.vllm_plugin.signals import COLUMNS, Step

log = logging.getLogger(__name__)

BLOCK = 1024  # tokens; a power of two
SHIFT, WITHIN = BLOCK.bit_length() - 1, BLOCK - 1
STEPS_AHEAD = 4  # buffers for what a step sends to the device; vLLM prepares at most two steps ahead

Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class Seat:
    """A request in the batch. output: vLLM's own growing list of its tokens, of which only the length is read."""

    wanted: Wanted
    greedy: bool
    end_token: int
    choice: int
    output: Sequence[int]
    start: int  # tokens that it had emitted when it took the seat: more than none after a preemption
    blocks: list[int] = field(default_factory=list)
    written: int = 0
    lost: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Leaving:
    """A request that left the batch, finished or preempted, with what was recorded while it sat there.

    records: host tensor (seat.written, COLUMNS) that is being filled; valid once `filled` says so.
    """

    seat: Seat
    records: torch.Tensor
    filled: torch.cuda.Event | None


class Recorder:
    """One per worker. meter(logits, step, may_abort=...) measures and stores; deliver takes requests that leave.

    What a step needs of each row stands in arrays by row number: a step is a dozen operations on them, whatever the
    number of requests, and vLLM's moves are copies of columns. Those that leave at the same step go to the host
    together.
    """

    START, WINDOW, K, END, ABORT_BELOW, WRITTEN = range(6)  # rows of `_facts`; the limit as the bits of a float64

    def __init__(
        self,
        pool: torch.Tensor,
        meter: Callable[..., None],
        deliver: Callable[[list[Leaving]], None],
        *,
        max_rows: int,
        max_tokens: int,
    ) -> None:
        """pool: (blocks x BLOCK, COLUMNS).  max_rows: of the batch.  max_tokens: that one request can emit."""
        self._pool, self._meter, self._deliver = pool, meter, deliver
        self._on_gpu = pool.device.type == "cuda"
        self._free = list(range(pool.shape[0] // BLOCK - 1, -1, -1))
        self._seats: dict[int, Seat] = {}
        self._facts = np.zeros((6, max_rows), dtype=np.int64)
        self._table = np.zeros((max_rows, (max_tokens >> SHIFT) + 2), dtype=np.int64)
        self._held = np.zeros(max_rows, dtype=np.int64)  # blocks
        self._buffers = [torch.empty(Step.FIELDS * max_rows, dtype=torch.int64, pin_memory=self._on_gpu)
                         for _ in range(STEPS_AHEAD)]  # fmt: skip
        self._sent: list[torch.cuda.Event | None] = [None] * STEPS_AHEAD
        self._turn = 0
        self._gone: list[tuple[Seat, list[torch.Tensor]]] = []
        self._full = False
        self.arrange()

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    def add(self, row: int, seat: Seat | None) -> None:
        """A request takes a row, None when it wants no confidence. Whoever still sat there has left."""
        self.remove(row)
        if seat is None:
            return
        self._seats[row] = seat
        limit = np.float64(seat.wanted.abort_below * seat.wanted.window)
        wanted = seat.wanted
        self._facts[:, row] = (seat.start, wanted.window, wanted.k, seat.end_token, limit.view(np.int64), 0)
        self._held[row] = 0

    def remove(self, row: int) -> None:
        """The row's request has finished or was preempted; `arrange` sends what it recorded on its way to the host."""
        seat = self._seats.pop(row, None)
        if seat is None:
            return
        # a row whose prompt was still being read recorded a token that was never emitted
        seat.written = min(int(self._facts[self.WRITTEN, row]), len(seat.output) - seat.start)
        pages = [
            self._pool[block * BLOCK :][: min(BLOCK, seat.written - nth * BLOCK)]
            for nth, block in enumerate(seat.blocks)
            if nth * BLOCK < seat.written
        ]
        self._free.extend(reversed(seat.blocks))  # in the stream's order whatever is written there comes later
        self._gone.append((seat, pages))

    def move(self, source: int, target: int, *, swap: bool) -> None:
        """vLLM moved a request to another row, or swapped two."""
        if not swap:
            self.remove(target)
        coming, going = self._seats.pop(source, None), self._seats.pop(target, None)
        for by_row in (self._facts.T, self._table, self._held):
            by_row[[source, target]] = by_row[[target, source]]
        if coming is not None:
            self._seats[target] = coming
        if going is not None:
            self._seats[source] = going

    def arrange(self) -> None:
        """Sends off those that left, lines the others up for the device. To be called once after a batch has changed,
        before the next `step`."""
        self._send_off()
        rows = [row for row in sorted(self._seats) if not self._seats[row].lost]
        self._outputs = [self._seats[row].output for row in rows]
        self._rows = np.array(rows, dtype=np.int64)
        here = self._facts[:, self._rows]
        self._start, window, k, end, self._limit = here[: self.WRITTEN]
        self._full_at = window - 1
        self._back = np.stack((np.zeros_like(window), np.ones_like(window), window))
        self._same = np.stack((self._rows, k, end))
        self._table_here = self._table[self._rows].ravel()
        self._first = np.arange(len(rows), dtype=np.int64) * self._table.shape[1]
        self._room = self._held[self._rows] << SHIFT
        self._written_in = [False] * STEPS_AHEAD
        self._may_abort = any(self._seats[row].wanted.abort_below > -math.inf for row in rows)

    def step(self, logits: torch.Tensor) -> None:
        """Measures this step's tokens. logits: (batch, V) float32 on the pool's device; changed where one gives up."""
        if not self._outputs:
            return
        at = self._emitted()
        if bool((at >= self._room).any()):
            self._grow(at)
            if not self._outputs:
                return
            at = self._emitted()
        packed, fields = self._buffer()
        if not self._written_in[self._turn]:
            fields[[Step.ROW, Step.K, Step.END]] = self._same
            self._written_in[self._turn] = True
        fields[Step.SLOT : Step.LEAVING + 1] = self._slots(at - self._back)
        fields[Step.ABORT_BELOW] = np.where(at >= self._full_at, self._limit, NEVER) if self._may_abort else NEVER
        sent = packed.to(self._pool.device, non_blocking=True)
        if self._on_gpu:
            self._sent[self._turn] = _mark()
        self._meter(logits, Step(sent), may_abort=self._may_abort)
        self._facts[self.WRITTEN, self._rows] = at + 1

    def _emitted(self) -> Ints:
        """How many tokens each request has emitted since it took its seat: where this step's record goes."""
        lengths = np.fromiter(map(len, self._outputs), dtype=np.int64, count=len(self._outputs))
        lengths -= self._start
        return lengths

    def _slots(self, at: Ints) -> Ints:
        """Where the records of the tokens `at`, (3, R), stand in the pool, -1 where there is no such token."""
        slots: Ints = self._table_here.take(np.maximum(at >> SHIFT, 0) + self._first)
        slots <<= SHIFT
        slots |= at & WITHIN
        slots[at < 0] = -1
        return slots

    def _grow(self, at: Ints) -> None:
        """A block more for those that need one. Who gets none is recorded no further."""
        for row, needed in zip(self._rows.tolist(), (at >> SHIFT).tolist(), strict=True):
            seat = self._seats[row]
            while len(seat.blocks) <= needed and not seat.lost:
                if not self._free:
                    seat.lost = "the pool of records was full"
                    if not self._full:
                        log.warning("confidence: %s; CONFGATE_VLLM_POOL_TOKENS makes it larger", seat.lost)
                    self._full = True
                else:
                    self._table[row, len(seat.blocks)] = self._free[-1]
                    seat.blocks.append(self._free.pop())
            self._held[row] = len(seat.blocks)
        self.arrange()

    def _buffer(self) -> tuple[torch.Tensor, Ints]:
        """The next buffer, (FIELDS, R), once the device has read what it held; as a tensor and as an array."""
        self._turn = (self._turn + 1) % STEPS_AHEAD
        if (read := self._sent[self._turn]) is not None:
            read.synchronize()  # done long ago
        packed = self._buffers[self._turn][: Step.FIELDS * len(self._outputs)].view(Step.FIELDS, -1)
        return packed, packed.numpy()

    def _send_off(self) -> None:
        if not self._gone:
            return
        pages = [page for _, its in self._gone for page in its]
        host = torch.empty((sum(len(page) for page in pages), COLUMNS), pin_memory=self._on_gpu)
        if pages:
            host.copy_(pages[0] if len(pages) == 1 else torch.cat(pages), non_blocking=True)
        filled = _mark() if self._on_gpu and pages else None
        parts = host.split([sum(len(page) for page in its) for _, its in self._gone])
        gone, self._gone = self._gone, []
        self._deliver([Leaving(seat, part, filled) for (seat, _), part in zip(gone, parts, strict=True)])


NEVER = np.float64(-np.inf).view(np.int64)


def _mark() -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record()
    return event
