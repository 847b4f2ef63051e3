"""Keeps every request's records apart while vLLM adds, removes, moves and preempts rows of its batch.

Records live in a pool of fixed size on the device, in blocks that requests take as they grow and give back when they
leave. Where a token's record goes is told by how many tokens its request has emitted, so that a row which was computed
twice (a prompt in pieces, a resumed request) simply writes the same place again. Nothing here waits for the device.
"""

from __future__ import annotations

import logging
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
    """One per worker. meter(logits, plan, rows, ahead, may_abort=...) measures and stores; deliver takes requests that
    leave.

    What is known of each row stands in an array by row number, so that vLLM's moves are copies of columns, and goes to
    the device as a plan when the batch has changed. A step in between looks whether every request has gone on by one
    token, as the plan says, and launches the meter. Those that leave at the same step go to the host together.
    """

    START, WRITTEN, HELD, PLAN = range(4)  # rows of `_facts`: tokens, tokens, blocks, and from there on the plan

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
        size = (Plan.BLOCKS + (max_tokens >> SHIFT) + 2, max_rows)
        self._facts = np.zeros((self.PLAN + size[0], max_rows), dtype=np.int64)
        self._plan = self._facts[self.PLAN :]
        self._device_plan = torch.zeros(size, dtype=torch.int64, device=pool.device)
        self._buffers = [torch.empty(size, dtype=torch.int64, pin_memory=self._on_gpu) for _ in range(BUFFERS)]
        self._sent: list[torch.cuda.Event | None] = [None] * BUFFERS
        self._turn = 0
        self._gone: list[tuple[Seat, list[torch.Tensor]]] = []
        self._full = False
        self._settled = True
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
        wanted = seat.wanted
        limit = np.float64(wanted.abort_below * wanted.window).view(np.int64)
        self._facts[: self.PLAN, row] = (seat.start, 0, 0)
        self._plan[: Plan.BLOCKS, row] = (0, wanted.window, wanted.k, seat.end_token, limit)

    def remove(self, row: int) -> None:
        """The row's request has finished or was preempted; `arrange` sends what it recorded on its way to the host."""
        self._settle()
        seat = self._seats.pop(row, None)
        if seat is None:
            return
        # a row whose prompt was still being read recorded a token that was never emitted
        seat.written = min(int(self._facts[self.WRITTEN, row]), len(seat.output) - seat.start)
        pages = [
            self._pool[block * BLOCK : block * BLOCK + min(BLOCK, seat.written - nth * BLOCK)]
            for nth, block in enumerate(seat.blocks)
            if nth * BLOCK < seat.written
        ]
        self._plan[Plan.K, row] = 0
        self._free.extend(reversed(seat.blocks))  # in the stream's order whatever is written there comes later
        self._gone.append((seat, pages))

    def move(self, source: int, target: int, *, swap: bool) -> None:
        """vLLM moved a request to another row, or swapped two."""
        self._settle()
        if not swap:
            self.remove(target)
        coming, going = self._seats.pop(source, None), self._seats.pop(target, None)
        self._facts[:, [source, target]] = self._facts[:, [target, source]]
        if coming is not None:
            self._seats[target] = coming
        if going is not None:
            self._seats[source] = going

    def arrange(self) -> None:
        """Sends off those that left, lines the others up. To be called once after a batch has changed, before the next
        `step`."""
        self._settle()
        self._send_off()
        recorded = [(row, seat.output) for row, seat in self._seats.items() if not seat.lost]
        self._outputs = [output for _, output in recorded]
        self._rows = np.array([row for row, _ in recorded], dtype=np.int64)
        self._count = int(self._rows.max(initial=-1)) + 1
        self._start, self._due = self._facts[self.START, self._rows], self._facts[self.WRITTEN, self._rows]
        self._steps_left = 0  # until a request needs another block: none without a plan
        limits = self._plan[Plan.ABORT_BELOW, self._rows].view(np.float64)
        self._may_abort = bool((limits > -np.inf).any())

    def step(self, logits: torch.Tensor) -> None:
        """Measures this step's tokens. logits: (batch, V) float32 on the pool's device; changed where one gives up."""
        if not self._outputs:
            return
        at = self._emitted()
        if self._steps_left == 0 or not (at == self._due).all():
            self._send_plan(at)
            if not self._outputs:
                return
        self._meter(logits, self._device_plan, self._count, self._ahead, may_abort=self._may_abort)
        self._ahead += 1
        self._steps_left -= 1
        self._due += 1
        self._settled = False

    def _emitted(self) -> Ints:
        """How many tokens each request has emitted since it took its seat: where this step's record goes."""
        lengths = np.fromiter(map(len, self._outputs), dtype=np.int64, count=len(self._outputs))
        lengths -= self._start
        return lengths

    def _settle(self) -> None:
        """Notes what each row has written, before rows change their meaning."""
        if not self._settled:
            self._facts[self.WRITTEN, self._rows] = self._due
            self._settled = True

    def _send_plan(self, at: Ints) -> None:
        """Tells the device all it needs until the batch changes or a request needs another block."""
        if bool((at >= self._facts[self.HELD, self._rows] << SHIFT).any()):
            self._grow(at)
            at = self._emitted()
        self._plan[Plan.AT, self._rows] = at
        held = self._facts[self.HELD, self._rows]
        used = Plan.BLOCKS + int(held.max(initial=0))
        self._turn = (self._turn + 1) % BUFFERS
        if (read := self._sent[self._turn]) is not None:
            read.synchronize()  # done long ago
        buffer = self._buffers[self._turn][:used]
        buffer.numpy()[:] = self._plan[:used]
        self._device_plan[:used].copy_(buffer, non_blocking=True)
        if self._on_gpu:
            self._sent[self._turn] = _mark()
        self._due, self._ahead = at, 0
        self._steps_left = int(((held << SHIFT) - at).min(initial=BLOCK))

    def _grow(self, at: Ints) -> None:
        """A block more for those that need one. Who gets none is recorded no further."""
        for row, needed in zip(self._rows.tolist(), (at >> SHIFT).tolist(), strict=True):
            seat = self._seats[row]
            while len(seat.blocks) <= needed and not seat.lost:
                if not self._free:
                    seat.lost = "the pool of records was full"
                    self._plan[Plan.K, row] = 0
                    if not self._full:
                        log.warning("confidence: %s; CONFGATE_VLLM_POOL_TOKENS makes it larger", seat.lost)
                    self._full = True
                else:
                    self._plan[Plan.BLOCKS + len(seat.blocks), row] = self._free[-1]
                    seat.blocks.append(self._free.pop())
            self._facts[self.HELD, row] = len(seat.blocks)
        self.arrange()

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
