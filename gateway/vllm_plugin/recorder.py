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
from gateway.vllm_plugin.plan import BLOCK, SHIFT, Plan
from gateway.vllm_plugin.signals import COLUMNS

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

    records: host tensor (seat.written, COLUMNS) that is being filled; valid once `filled` says so.
    """

    seat: Seat
    records: torch.Tensor
    filled: torch.cuda.Event | None


class Recorder:
    """One per worker. meter(logits, plan, rows, now, may_abort=...) measures and stores; deliver takes requests that
    leave.

    What is known of each row stands in columns by row number: vLLM's moves are copies of columns, and the device has
    the same columns as its plan. A token's number is told by its step's number, so a column stays true while its
    request emits one token a step; only when the batch has changed, or a request has not kept step or needs another
    block, is the plan sent again. Those that leave at the same step go to the host together.
    """

    START, FULL_AT, HELD, PLAN = range(4)  # rows of `_facts`: tokens, a step's number, blocks; then the plan

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
        self._seats: list[Seat | None] = [None] * max_rows
        self._outputs: list[Sequence[int]] = [()] * max_rows
        size = (Plan.BLOCKS + (max_tokens >> SHIFT) + 2, max_rows)
        self._facts = np.zeros((self.PLAN + size[0], max_rows), dtype=np.int64)
        self._plan = self._facts[self.PLAN :]
        self._device_plan = torch.zeros(size, dtype=torch.int64, device=pool.device)
        self._buffers = [torch.empty(size, dtype=torch.int64, pin_memory=self._on_gpu) for _ in range(BUFFERS)]
        self._sent: list[torch.cuda.Event | None] = [None] * BUFFERS
        self._turn = 0
        self._now = 0  # number of the next step
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
        wanted = seat.wanted
        limit = np.float64(wanted.abort_below * wanted.window).view(np.int64)
        self._facts[: self.PLAN + Plan.BLOCKS, row] = (
            seat.start, self._now, 0, -self._now, wanted.window, wanted.k, seat.end_token, limit
        )  # fmt: skip
        self._abortable += wanted.abort_below > -math.inf

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
        self._plan[Plan.K, row] = self._facts[self.HELD, row] = 0
        self._abortable -= seat.wanted.abort_below > -math.inf
        self._free.extend(reversed(seat.blocks))  # in the stream's order whatever is written there comes later
        self._gone.append((seat, pages))

    def move(self, source: int, target: int, *, swap: bool) -> None:
        """vLLM moved a request to another row, or swapped two."""
        if not swap:
            self.remove(target)
        seats, outputs = self._seats, self._outputs
        seats[source], seats[target] = seats[target], seats[source]
        outputs[source], outputs[target] = outputs[target], outputs[source]
        self._facts[:, [source, target]] = self._facts[:, [target, source]]

    def arrange(self) -> None:
        """Sends off those that left. To be called once after a batch has changed, before the next `step`."""
        self._send_off()
        recorded = self._plan[Plan.K] > 0
        rows = recorded.nonzero()[0]
        self._count = int(rows[-1]) + 1 if len(rows) else 0
        self._recorded = recorded[: self._count]
        self._here = self._outputs[: self._count]
        self._expected = self._facts[self.START, : self._count] + self._plan[Plan.AT, : self._count]
        self._full_at = int(self._facts[self.FULL_AT, rows].min(initial=NEVER))
        self._told = False

    def step(self, logits: torch.Tensor) -> None:
        """Measures this step's tokens. logits: (batch, V) float32 on the pool's device; changed where one gives up."""
        if not self._count:
            return
        late = self._late()
        if late.any():
            self._plan[Plan.AT, : self._count] += late
            self._facts[self.FULL_AT, : self._count] -= late
            self.arrange()
        if self._now >= self._full_at:
            self._grow()
            if not self._count:
                return
        if not self._told:
            self._send_plan()
        self._meter(logits, self._device_plan, self._count, self._now, may_abort=self._abortable > 0)
        self._now += 1

    def _late(self) -> Ints:
        """How many tokens each request has emitted more than its column says, (count,); in a batch that goes on as it
        did, and for those that are not recorded, none."""
        late = np.fromiter(map(len, self._here), dtype=np.int64, count=self._count)
        late -= self._expected
        late -= self._now
        late *= self._recorded
        return late

    def _grow(self) -> None:
        """A block more for those that need one. Who gets none is recorded no further."""
        for row in (self._facts[self.FULL_AT, : self._count] <= self._now).nonzero()[0].tolist():
            seat = self._seats[row]
            while seat is not None and not seat.lost and self._facts[self.FULL_AT, row] <= self._now:
                if not self._free:
                    seat.lost = "the pool of records was full"
                    self._plan[Plan.K, row] = 0
                    if not self._full:
                        log.warning("confidence: %s; CONFGATE_VLLM_POOL_TOKENS makes it larger", seat.lost)
                    self._full = True
                else:
                    self._plan[Plan.BLOCKS + len(seat.blocks), row] = self._free[-1]
                    seat.blocks.append(self._free.pop())
                    self._facts[self.HELD, row] += 1
                    self._facts[self.FULL_AT, row] += BLOCK
        self.arrange()

    def _send_plan(self) -> None:
        used = Plan.BLOCKS + int(self._facts[self.HELD, : self._count].max())
        self._turn = (self._turn + 1) % BUFFERS
        if (read := self._sent[self._turn]) is not None:
            read.synchronize()  # done long ago
        buffer = self._buffers[self._turn][:used]
        buffer.numpy()[:] = self._plan[:used]
        self._device_plan[:used].copy_(buffer, non_blocking=True)
        if self._on_gpu:
            self._sent[self._turn] = _mark()
        self._told = True

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


def _mark() -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record()
    return event
