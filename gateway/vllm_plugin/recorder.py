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
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from gateway.vllm_plugin.params import Wanted
from gateway.vllm_plugin.plan import BLOCK, SHIFT, Plan

log = logging.getLogger(__name__)

BUFFERS = 4  # for plans on their way to the device; vLLM prepares at most two steps ahead

NEVER = 2**62  # number of a step

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

    pages: of the host's pool, in their order; true once `filled` says so, until `release` is called.
    """

    seat: Seat
    pages: list[torch.Tensor]
    filled: torch.cuda.Event | None
    release: Callable[[], None]

    def read(self) -> bytes:
        """The records, (seat.written, COLUMNS) float32. Waits for the device, and releases the pages: call it once."""
        if self.filled is not None:
            self.filled.synchronize()
        told = b"".join(page.numpy().tobytes() for page in self.pages)
        self.release()
        return told


class Recorder:
    """One per worker. meter(logits, plan, rows, now, may_abort=...) measures, and stores in the host's pool; deliver
    takes requests that leave, and sees to it that each is read or released.

    What is known of each row stands in columns by row number: vLLM's moves are copies of columns, and the device has
    the same columns as its plan. A token's number is told by its step's number, so a column stays true while its
    request emits one token a step; only when the batch has changed, or a request has not kept step or needs another
    block, is the plan sent again. Nothing is copied for those that leave: the host has their records already.
    """

    EXPECTED, RECORDED, FULL_AT, HELD, PLAN = range(5)  # rows of `_facts`, see `__init__`

    def __init__(
        self,
        pool: torch.Tensor,
        meter: Callable[..., None],
        deliver: Callable[[list[Leaving]], None],
        *,
        device: torch.device,
        max_rows: int,
        max_tokens: int,
    ) -> None:
        """pool: (blocks x BLOCK, COLUMNS), the host's.  device: the meter's.  max_rows: of the batch.  max_tokens: that
        one request can emit.

        The facts of a row: how many tokens its request has emitted, less the number of the step; 1 where something is
        recorded, else 0; number of the step that needs another block; blocks held; and from there on the plan.
        """
        self._pool, self._meter, self._deliver = pool, meter, deliver
        self._on_gpu = device.type == "cuda"
        self._free = list(range(pool.shape[0] // BLOCK - 1, -1, -1))  # another thread gives back what it has read
        self._seats: list[Seat | None] = [None] * max_rows
        self._outputs: list[Sequence[int]] = [()] * max_rows
        size = (Plan.BLOCKS + (max_tokens >> SHIFT) + 2, max_rows)
        self._facts = np.zeros((self.PLAN + size[0], max_rows), dtype=np.int64)
        self._facts[self.FULL_AT] = NEVER
        self._plan = self._facts[self.PLAN :]
        self._device_plan = torch.zeros(size, dtype=torch.int64, device=device)
        self._whole_buffers = [torch.empty(size, dtype=torch.int64, pin_memory=self._on_gpu) for _ in range(BUFFERS)]
        self._here_plan = self._plan[:0]
        self._cut(Plan.BLOCKS + 1)
        self._sent: list[torch.cuda.Event | None] = [None] * BUFFERS
        self._turn = 0
        self._now = 0  # number of the next step
        self._count = 0  # rows up to the last that is recorded
        self._abortable = 0  # requests
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
        self._seats[row], self._outputs[row] = seat, seat.output
        wanted, now = seat.wanted, self._now
        limit = np.float64(wanted.abort_below * wanted.window).view(np.int64)
        self._facts[: self.PLAN + Plan.BLOCKS, row] = (
            seat.start - now, 1, now, 0, -now, wanted.window, wanted.k, seat.end_token, limit
        )  # fmt: skip
        self._abortable += wanted.abort_below > -math.inf
        self._count = max(self._count, row + 1)
        self._grow(row, seat)

    def remove(self, row: int) -> None:
        """The row's request has finished or was preempted; `arrange` sends what it recorded on its way to the host."""
        seat = self._seats[row]
        if seat is None:
            return
        # a row whose prompt was still being read recorded a token that was never emitted
        recorded = min(int(self._plan[Plan.AT, row]) + self._now, len(seat.blocks) * BLOCK)
        seat.written = min(recorded, len(seat.output) - seat.start)
        pages = [
            self._pool[block * BLOCK : block * BLOCK + min(BLOCK, seat.written - nth * BLOCK)]
            for nth, block in enumerate(seat.blocks)
            if nth * BLOCK < seat.written
        ]
        self._seats[row], self._outputs[row] = None, ()
        self._stop(row)
        self._abortable -= seat.wanted.abort_below > -math.inf
        self._gone.append((seat, pages))

    def move(self, source: int, target: int, *, swap: bool) -> None:
        """vLLM moved a request to another row, or swapped two."""
        if not swap:
            self.remove(target)
        seats, outputs, facts = self._seats, self._outputs, self._facts
        seats[source], seats[target] = seats[target], seats[source]
        outputs[source], outputs[target] = outputs[target], outputs[source]
        coming = facts[:, source].copy()
        facts[:, source] = facts[:, target]
        facts[:, target] = coming
        self._count = max(self._count, source + 1, target + 1)

    def arrange(self) -> None:
        """Sends off those that left. To be called once after a batch has changed, before the next `step`."""
        self._send_off()
        while self._count and self._seats[self._count - 1] is None:
            self._count -= 1
        self._here = self._outputs[: self._count]
        self._expected, self._recorded, full_at = self._facts[: self.HELD, : self._count]
        self._full_at = int(np.minimum.reduce(full_at, initial=NEVER))
        self._told = False

    def step(self, logits: torch.Tensor) -> None:
        """Measures this step's tokens. logits: (batch, V) float32 on its device; changed where one gives up."""
        if not self._count:
            return
        late = np.fromiter(map(len, self._here), dtype=np.int64, count=self._count)
        late -= self._expected
        late -= self._now
        late *= self._recorded
        if np.count_nonzero(late):
            self._catch_up(late)
        if self._now >= self._full_at:
            for row in (self._facts[self.FULL_AT, : self._count] <= self._now).nonzero()[0].tolist():
                self._grow(row, self._seats[row])
            self.arrange()
        if not self._told:
            self._send_plan()
        self._meter(logits, self._device_plan, self._count, self._now, may_abort=self._abortable > 0)
        self._now += 1

    def _catch_up(self, late: Ints) -> None:
        """Some requests have not emitted a token a step: late, (count,), says by how many they are off."""
        self._expected += late
        self._plan[Plan.AT, : self._count] += late
        self._facts[self.FULL_AT, : self._count] -= late
        self.arrange()

    def _grow(self, row: int, seat: Seat | None) -> None:
        """The blocks that a request needs for its next token. Who gets none is recorded no further."""
        while seat is not None and not seat.lost and self._facts[self.FULL_AT, row] <= self._now:
            try:
                block = self._free.pop()
            except IndexError:
                seat.lost = "the pool of records was full"
                self._stop(row)
                if not self._full:
                    log.warning("confidence: %s; CONFGATE_VLLM_POOL_TOKENS makes it larger", seat.lost)
                self._full = True
                return
            self._plan[Plan.BLOCKS + len(seat.blocks), row] = block
            seat.blocks.append(block)
            self._facts[self.HELD, row] += 1
            self._facts[self.FULL_AT, row] += BLOCK

    def _stop(self, row: int) -> None:
        """Nothing more is recorded in this row."""
        self._facts[[self.RECORDED, self.FULL_AT, self.HELD, self.PLAN + Plan.K], row] = (0, NEVER, 0, 0)

    def _send_plan(self) -> None:
        self._cut(Plan.BLOCKS + int(np.maximum.reduce(self._facts[self.HELD, : self._count])))
        self._turn = (self._turn + 1) % BUFFERS
        if (read := self._sent[self._turn]) is not None:
            read.synchronize()  # done long ago
        buffer, writable = self._buffers[self._turn]
        writable[:] = self._here_plan
        self._there_plan.copy_(buffer, non_blocking=True)
        if self._on_gpu:
            self._sent[self._turn] = _mark()
        self._told = True

    def _cut(self, used: int) -> None:
        """Only so many rows of the plan are in use: the longest answer's blocks."""
        if used != len(self._here_plan):
            self._here_plan, self._there_plan = self._plan[:used], self._device_plan[:used]
            self._buffers = [(whole[:used], whole[:used].numpy()) for whole in self._whole_buffers]

    def _send_off(self) -> None:
        if not self._gone:
            return
        filled = _mark() if self._on_gpu else None
        gone, self._gone = self._gone, []
        self._deliver([Leaving(seat, pages, filled, partial(self._free.extend, seat.blocks)) for seat, pages in gone])


def _mark() -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record()
    return event
