"""`signals.py` as one Triton kernel: a program per token reads each logit once and stores the token's record.

While it reads, each lane keeps its own sums and its own three largest logits, so that the loop reduces nothing and runs
as fast as the memory is read. The K_MAX largest of all then lie among those three of each lane, unless one lane holds
more than three of them (about one token in 15,000): that is noticed, and the row is read again. Equal logits keep their
number: half-precision heads make many.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from gateway.vllm_plugin.plan import SHIFT, Plan
from gateway.vllm_plugin.signals import COLUMNS, K_MAX

LANES, WARPS, STAGES = 4096, 16, 3
CHUNK = 4096


@triton.jit
def next_largest(base, V, below, LANES: tl.constexpr):
    """The largest logit under `below`, and how often it occurs. Reads the whole row."""
    lanes = tl.arange(0, LANES)
    best = tl.full((LANES,), float("-inf"), tl.float32)
    often = tl.zeros((LANES,), tl.int32)
    for start in range(0, V, LANES):
        columns = start + lanes
        x = tl.load(base + columns, mask=columns < V, other=float("-inf"))
        x = tl.where(x < below, x, float("-inf"))
        often = tl.where(x > best, 1, often + (x == best).to(tl.int32))
        best = tl.maximum(best, x)
    value = tl.max(best, axis=0)
    return value, tl.sum(tl.where(best == value, often, 0), axis=0)


@triton.jit
def slot(column, width, at, SHIFT: tl.constexpr, BLOCKS: tl.constexpr):
    """Where the record of a request's token `at` stands in the pool."""
    block = tl.load(column + (BLOCKS + (at >> SHIFT)) * width)
    return (block << SHIFT) + (at & ((1 << SHIFT) - 1))


@triton.jit(do_not_specialize=["now"])
def store_records(
    logits, stride, V, plan, width, now, pool, host, flags,
    LANES: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, SHIFT: tl.constexpr,
    AT: tl.constexpr, WINDOW: tl.constexpr, CANDIDATES: tl.constexpr, LIMIT: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One row of the batch: its token's five signals, the confidence summed over its window, and whether that is under
    its limit.  plan: (BLOCKS + blocks, width) as Plan has it.  pool: (N, 2), of each record what later tokens ask for:
    confidence and the window's sum.  host: (N, COLUMNS), the host's memory, which is written only."""
    nth = tl.program_id(0)
    column = plan + nth
    k = tl.load(column + CANDIDATES * width)
    if k == 0:
        tl.store(flags + nth, 0)
        return
    base = logits + nth.to(tl.int64) * stride
    lanes = tl.arange(0, LANES)
    first = tl.full((LANES,), float("-inf"), tl.float32)  # each lane's three largest
    second = first
    third = first
    mass = tl.zeros((LANES,), tl.float32)  # with y = x - first: the sums of e^y and of y e^y
    tilted = mass
    plain = mass  # the sums of x and of 1
    count = mass
    for start in tl.range(0, V, LANES, num_stages=STAGES):
        columns = start + lanes
        x = tl.load(base + columns, mask=columns < V, other=float("-inf"))
        known = x > float("-inf")
        gap = tl.where(known & (first > float("-inf")), x - first, 0.0)
        e = tl.exp(-tl.abs(gap))
        tilted = tl.where(gap > 0.0, e * (tilted - gap * mass), tl.where(known, tilted + gap * e, tilted))
        mass = tl.where(gap > 0.0, e * mass + 1.0, tl.where(known, mass + e, mass))
        plain += tl.where(known, x, 0.0)
        count += known.to(tl.float32)
        less = tl.minimum(first, x)
        first = tl.maximum(first, x)
        least = tl.minimum(second, less)
        second = tl.maximum(second, less)
        third = tl.maximum(third, least)

    peak = tl.max(first, axis=0)
    fall = tl.where(first > float("-inf"), first - peak, 0.0)
    tilt = tl.sum(tl.exp(fall) * (tilted + fall * mass), axis=0)
    total_mass = tl.sum(tl.exp(fall) * mass, axis=0)
    known_tokens = tl.sum(count, axis=0)
    log_norm = tl.log(total_mass)  # of the logits less their peak
    entropy = log_norm - tilt / total_mass
    self_certainty = log_norm + peak - tl.sum(plain, axis=0) / known_tokens - tl.log(known_tokens)

    hidden = tl.max(third, axis=0)  # no lane keeps a logit to itself that is larger
    value = peak
    runner_up = peak
    total = 0.0
    for j in tl.static_range(K):
        value, lane = tl.max(first, axis=0, return_indices=True)
        if j == 1:
            runner_up = value
        total += tl.where(j < k, value - peak - log_norm, 0.0)
        taken = lanes == lane
        first = tl.where(taken, second, first)
        second = tl.where(taken, third, second)
        third = tl.where(taken, float("-inf"), third)
    if hidden > value:
        value = float("inf")
        total = 0.0
        found = 0
        while found < k:
            value, often = next_largest(base, V, value, LANES)
            if (found < 2) & (found + often >= 2):
                runner_up = value
            total += tl.minimum(often, k - found).to(tl.float32) * (value - peak - log_norm)
            found += often
    confidence = -total / k.to(tl.float32)

    at = tl.load(column + AT * width) + now
    window = tl.load(column + WINDOW * width)
    window_sum = confidence
    if at > 0:
        window_sum += tl.load(pool + slot(column, width, at - 1, SHIFT, BLOCKS) * 2 + 1)
    if at >= window:
        window_sum -= tl.load(pool + slot(column, width, at - window, SHIFT, BLOCKS) * 2)
    limit = tl.load(column + LIMIT * width).to(tl.float64, bitcast=True)
    low = (window_sum < limit) & (at >= window - 1)
    here = slot(column, width, at, SHIFT, BLOCKS)
    tl.store(pool + here * 2, confidence)
    tl.store(pool + here * 2 + 1, window_sum)
    here *= COLUMNS
    tl.store(host + here + 0, confidence)
    tl.store(host + here + 1, -log_norm)
    tl.store(host + here + 2, tl.exp(-log_norm) - tl.exp(runner_up - peak - log_norm))
    tl.store(host + here + 3, tl.maximum(entropy, 0.0))
    tl.store(host + here + 4, self_certainty)
    tl.store(host + here + 5, window_sum)
    tl.store(host + here + 6, low.to(tl.float32))
    tl.store(flags + nth, low.to(tl.int32))


@triton.jit
def force_ends(logits, stride, V, plan, width, flags, CHUNK: tl.constexpr, END: tl.constexpr):
    """Leaves a flagged row nothing but its end token."""
    chunk, nth = tl.program_id(0), tl.program_id(1)
    if tl.load(flags + nth) != 0:
        columns = chunk * CHUNK + tl.arange(0, CHUNK)
        only = tl.where(columns == tl.load(plan + END * width + nth), 0.0, float("-inf"))
        tl.store(logits + nth.to(tl.int64) * stride + columns, only, mask=columns < V)


class TritonMeter:
    """Measures on one GPU, and stores into the host's memory: 32 bytes a token, so that nothing is to be fetched when a
    request ends."""

    def __init__(self, pool: torch.Tensor, device: torch.device, *, max_rows: int) -> None:
        """pool: (N, COLUMNS) of the host, pinned.  max_rows: requests a step can hold."""
        self._host = pool
        self._pool = torch.zeros((len(pool), 2), device=device)
        self._flags = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self._compiled: Any = None
        self._compiled_for: tuple[int, ...] = ()

    def __call__(self, logits: torch.Tensor, plan: torch.Tensor, rows: int, now: int, *, may_abort: bool) -> None:
        """Stores a record for each row that the plan names; forces the end token of those that fell too low.

        Triton finds the compiled kernel that fits its arguments anew at each call, which takes longer than the launch;
        the one that fitted last time is launched itself while nothing that it was compiled for has changed.
        """
        stride, vocabulary, width = logits.stride(0), logits.shape[1], plan.shape[1]
        fits = (stride, vocabulary, width, logits.data_ptr() % 16, plan.data_ptr() % 16, now.bit_length() > 31)
        grid = (rows, 1, 1)
        arguments = (
            logits, stride, vocabulary, plan, width, now, self._pool, self._host, self._flags,
            LANES, K_MAX, COLUMNS, STAGES, SHIFT, Plan.AT, Plan.WINDOW, Plan.K, Plan.ABORT_BELOW, Plan.BLOCKS,
        )  # fmt: skip
        if fits == self._compiled_for:
            self._compiled[grid](*arguments)
        else:
            self._compiled, self._compiled_for = store_records[grid](*arguments, num_warps=WARPS), fits
        if may_abort:
            chunks = (triton.cdiv(vocabulary, CHUNK), rows)
            force_ends[chunks](logits, stride, vocabulary, plan, width, self._flags, CHUNK=CHUNK, END=Plan.END)

    def warm_up(self, vocabulary: int) -> None:
        """Compiles the kernels, so that the first request does not wait for it. Stores into the pool's first slot."""
        device = self._pool.device
        plan = torch.zeros((Plan.BLOCKS + 1, len(self._flags)), dtype=torch.int64, device=device)
        plan[Plan.WINDOW, 0] = plan[Plan.K, 0] = 1
        self(torch.zeros((1, vocabulary), device=device), plan, 1, 0, may_abort=True)
        torch.cuda.synchronize(device)
        self._pool[0] = 0.0
        self._host[0] = 0.0
