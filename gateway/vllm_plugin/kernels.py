"""`signals.py` as one Triton kernel: a program per token reads each logit once and stores the token's record.

The K_MAX largest logits are kept while reading: after the first chunk hardly any value is above the least of them, so
that finding them costs little more than the sums. Equal logits keep their number: half-precision heads make many.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gateway.vllm_plugin.signals import COLUMNS, K_MAX, Step

CHUNK = 4096
K_PAD = triton.next_power_of_2(K_MAX)


@triton.jit(do_not_specialize=["R"])
def store_records(
    logits, stride, V, step, R, pool, flags,
    CHUNK: tl.constexpr, K: tl.constexpr, K_PAD: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One token: its five signals, the confidence summed over its window, and whether that is under its limit.

    step: (FIELDS, R) as Step packs it.
    """
    nth = tl.program_id(0)
    base = logits + tl.load(step + nth) * stride
    places = tl.arange(0, CHUNK)
    kept = tl.arange(0, K_PAD)
    best = tl.where(kept < K, float("-inf"), float("inf"))  # the largest so far, in no order
    floor = float("-inf")  # the least of them
    peak = float("-inf")
    mass = 0.0  # with y = x - peak: the sums of e^y, of y e^y, of y, and of 1
    tilted = 0.0
    plain = 0.0
    count = 0.0
    for start in range(0, V, CHUNK):
        columns = start + places
        x = tl.load(base + columns, mask=columns < V, other=float("-inf"))
        known = x > float("-inf")
        highest, place = tl.max(x, axis=0, return_indices=True)
        new_peak = tl.maximum(peak, highest)
        fall = tl.where(peak > float("-inf"), peak - new_peak, 0.0)
        scale = tl.where(peak > float("-inf"), tl.exp(fall), 0.0)
        y = tl.where(known, x - new_peak, 0.0)
        e = tl.where(known, tl.exp(y), 0.0)
        tilted = scale * (tilted + fall * mass) + tl.sum(y * e, axis=0)
        mass = scale * mass + tl.sum(e, axis=0)
        plain = plain + fall * count + tl.sum(y, axis=0)
        count += tl.sum(known.to(tl.float32), axis=0)
        peak = new_peak
        while highest > floor:
            _, least = tl.min(best, axis=0, return_indices=True)
            best = tl.where(kept == least, highest, best)
            floor = tl.min(best, axis=0)
            x = tl.where(places == place, float("-inf"), x)
            highest, place = tl.max(x, axis=0, return_indices=True)
    log_norm = tl.log(mass)  # of the logits less their peak
    entropy = log_norm - tilted / mass
    self_certainty = log_norm - plain / count - tl.log(count)

    k = tl.load(step + 4 * R + nth)
    best = tl.where(kept < K, best, float("-inf"))
    total = 0.0
    first = 0.0
    second = 0.0
    for j in tl.static_range(K):
        value, largest = tl.max(best, axis=0, return_indices=True)
        nats = value - peak - log_norm
        if j == 0:
            first = nats
        if j == 1:
            second = nats
        total += tl.where(j < k, nats, 0.0)
        best = tl.where(kept == largest, float("-inf"), best)
    confidence = -total / k.to(tl.float32)

    last = tl.load(step + 2 * R + nth)
    gone = tl.load(step + 3 * R + nth)
    before = tl.load(pool + last * COLUMNS + 5, mask=last >= 0, other=0.0)
    less = tl.load(pool + gone * COLUMNS, mask=gone >= 0, other=0.0)
    window_sum = before + confidence - less
    limit = tl.load(step + 6 * R + nth).to(tl.float64, bitcast=True)
    low = window_sum < limit
    into = pool + tl.load(step + R + nth) * COLUMNS
    tl.store(into + 0, confidence)
    tl.store(into + 1, first)
    tl.store(into + 2, tl.exp(first) - tl.exp(second))
    tl.store(into + 3, tl.maximum(entropy, 0.0))
    tl.store(into + 4, self_certainty)
    tl.store(into + 5, window_sum)
    tl.store(into + 6, low.to(tl.float32))
    tl.store(flags + nth, low.to(tl.int32))


@triton.jit(do_not_specialize=["R"])
def force_ends(logits, stride, V, step, R, flags, CHUNK: tl.constexpr):
    """Leaves a flagged row nothing but its end token."""
    chunk, nth = tl.program_id(0), tl.program_id(1)
    if tl.load(flags + nth) != 0:
        columns = chunk * CHUNK + tl.arange(0, CHUNK)
        only = tl.where(columns == tl.load(step + 5 * R + nth), 0.0, float("-inf"))
        tl.store(logits + tl.load(step + nth) * stride + columns, only, mask=columns < V)


class TritonMeter:
    """Measures and stores on one GPU. max_rows: requests a step can hold."""

    def __init__(self, pool: torch.Tensor, *, max_rows: int) -> None:
        self._pool = pool
        self._flags = torch.zeros(max_rows, dtype=torch.int32, device=pool.device)

    def __call__(self, logits: torch.Tensor, step: Step, *, may_abort: bool) -> None:
        """Stores a record per token of the step; forces the end token of those that fell too low."""
        rows, vocabulary = len(step), logits.shape[1]
        store_records[(rows,)](
            logits, logits.stride(0), vocabulary, step.packed, rows, self._pool, self._flags,
            CHUNK=CHUNK, K=K_MAX, K_PAD=K_PAD, COLUMNS=COLUMNS, num_warps=16,
        )  # fmt: skip
        if may_abort:
            grid = (triton.cdiv(vocabulary, CHUNK), rows)
            force_ends[grid](logits, logits.stride(0), vocabulary, step.packed, rows, self._flags, CHUNK=CHUNK)

    def warm_up(self, vocabulary: int) -> None:
        """Compiles the kernels, so that the first request does not wait for it. Stores into the pool's first slot."""
        zero = torch.zeros(Step.FIELDS, 1, dtype=torch.int64, device=self._pool.device)
        zero[2:4] = -1
        zero[4] = 1
        self(torch.zeros((1, vocabulary), device=self._pool.device), Step(zero), may_abort=True)
        torch.cuda.synchronize(self._pool.device)
        self._pool[0] = 0.0
