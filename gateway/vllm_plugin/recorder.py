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

BLOCK = 128  # tokens
STEPS_AHEAD = 4  # buffers for what a step sends to the device; vLLM prepares at most two steps ahead


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

    pages: host tensors (BLOCK, COLUMNS) that are being filled; valid once `filled` says so.
    """

    seat: Seat
    pages: tuple[torch.Tensor, ...]
    filled: torch.cuda.Event | None


class Recorder:
    """One per worker. meter(logits, step, may_abort=...) measures and stores; deliver takes requests that leave."""

    def __init__(
        self,
        pool: torch.Tensor,
        meter: Callable[..., None],
        deliver: Callable[[Leaving], None],
        *,
        max_rows: int,
        max_tokens: int,
    ) -> None:
        """pool: (blocks x BLOCK, COLUMNS).  max_rows: of the batch.  max_tokens: that one request can emit."""
        self._pool, self._meter, self._deliver = pool, meter, deliver
        self._on_gpu = pool.device.type == "cuda"
        self._free = list(range(pool.shape[0] // BLOCK - 1, -1, -1))
        self._rows: dict[int, Seat] = {}
        self._table = np.zeros((max_rows, math.ceil(max_tokens / BLOCK) + 1), dtype=np.int64)
        self._buffers = [torch.empty(Step.FIELDS * max_rows, dtype=torch.int64, pin_memory=self._on_gpu)
                         for _ in range(STEPS_AHEAD)]  # fmt: skip
        self._sent: list[torch.cuda.Event | None] = [None] * STEPS_AHEAD
        self._turn = 0
        self.arrange()

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    def add(self, row: int, seat: Seat | None) -> None:
        """A request takes a row, None when it wants no confidence. Whoever still sat there has left."""
        self.remove(row)
        if seat is not None:
            self._rows[row] = seat

    def remove(self, row: int) -> None:
        """The row's request has finished or was preempted; what it recorded goes on its way to the host."""
        seat = self._rows.pop(row, None)
        if seat is None:
            return
        # a row whose prompt was still being read recorded a token that was never emitted
        seat.written = min(seat.written, len(seat.output) - seat.start)
        pages = tuple(self._fetch(block) for block in seat.blocks[: math.ceil(seat.written / BLOCK)])
        self._free.extend(reversed(seat.blocks))  # in the stream's order whatever is written there comes later
        self._deliver(Leaving(seat, pages, _mark() if self._on_gpu else None))

    def move(self, source: int, target: int, *, swap: bool) -> None:
        """vLLM moved a request to another row, or swapped two."""
        coming, going = self._rows.pop(source, None), self._rows.get(target)
        if swap:
            self._rows.pop(target, None)
            if going is not None:
                self._rows[source] = going
        else:
            self.remove(target)
        if coming is not None:
            self._rows[target] = coming

    def step(self, logits: torch.Tensor) -> None:
        """Measures this step's tokens. logits: (batch, V) float32 on the pool's device; changed where one gives up."""
        if not self._seats:
            return
        at = np.fromiter(map(len, self._outputs), dtype=np.int64, count=len(self._seats)) - self._starts
        page = at // BLOCK
        if bool((page >= self._held).any()):
            kept = self._grow(page)
            if not self._seats:
                return
            at, page = at[kept], page[kept]
        n = len(self._seats)
        which = np.arange(n)
        packed = self._buffer()[: Step.FIELDS * n].view(Step.FIELDS, n)
        fields = packed.numpy()
        fields[0] = self._row_numbers
        fields[1] = self._table[which, page] * BLOCK + at % BLOCK
        fields[2] = self._slot_or_none(which, at - 1)
        fields[3] = self._slot_or_none(which, at - self._windows)
        fields[4] = self._ks
        fields[5] = self._end_tokens
        fields[6] = np.where(at + 1 >= self._windows, self._abort_below, -np.inf).view(np.int64)
        sent = packed.to(self._pool.device, non_blocking=True)
        if self._on_gpu:
            self._sent[self._turn] = _mark()
        self._meter(logits, Step(sent), may_abort=self._may_abort)
        for seat, position in zip(self._seats, at.tolist(), strict=True):
            seat.written = position + 1

    def _buffer(self) -> torch.Tensor:
        """The next buffer, once the device has read what it held."""
        self._turn = (self._turn + 1) % STEPS_AHEAD
        if (read := self._sent[self._turn]) is not None:
            read.synchronize()  # done long ago
        return self._buffers[self._turn]

    def _slot_or_none(self, which: npt.NDArray[np.int64], at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        inside = np.maximum(at, 0)
        return np.where(at >= 0, self._table[which, inside // BLOCK] * BLOCK + inside % BLOCK, -1)

    def _grow(self, page: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """A block more for those that need one. Who gets none is recorded no further; returns who is left."""
        for seat, needed in zip(self._seats, page.tolist(), strict=True):
            while len(seat.blocks) <= needed and not seat.lost:
                if self._free:
                    seat.blocks.append(self._free.pop())
                else:
                    seat.lost = "the pool of records was full"
                    log.warning("confidence: %s; CONFGATE_VLLM_POOL_TOKENS makes it larger", seat.lost)
        kept = np.array([not seat.lost for seat in self._seats])
        self.arrange()
        return kept

    def arrange(self) -> None:
        """Lines the seats up for the device. To be called once after a batch has changed, before the next `step`."""
        lined = [(row, self._rows[row]) for row in sorted(self._rows) if not self._rows[row].lost]
        self._seats = [seat for _, seat in lined]
        self._outputs = [seat.output for seat in self._seats]
        self._row_numbers = np.array([row for row, _ in lined], dtype=np.int64)
        self._starts = np.array([seat.start for seat in self._seats], dtype=np.int64)
        self._held = np.array([len(seat.blocks) for seat in self._seats], dtype=np.int64)
        self._windows = np.array([seat.wanted.window for seat in self._seats], dtype=np.int64)
        self._ks = np.array([seat.wanted.k for seat in self._seats], dtype=np.int64)
        self._end_tokens = np.array([seat.end_token for seat in self._seats], dtype=np.int64)
        means = np.array([seat.wanted.abort_below for seat in self._seats], dtype=np.float64)
        self._abort_below = means * self._windows
        self._may_abort = bool(np.isfinite(means).any())
        for nth, seat in enumerate(self._seats):
            self._table[nth, : len(seat.blocks)] = seat.blocks

    def _fetch(self, block: int) -> torch.Tensor:
        page = torch.empty((BLOCK, COLUMNS), pin_memory=self._on_gpu)
        return page.copy_(self._pool[block * BLOCK : (block + 1) * BLOCK], non_blocking=True)


def _mark() -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record()
    return event
