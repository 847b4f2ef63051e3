"""`signals.py` as Triton kernels: each logit is read once, and nothing of the vocabulary's size is written.

The first kernel cuts every row into chunks and keeps of each the K_MAX largest logits and five sums; the second puts a
row's chunks together and stores the token's record. Equal logits keep their number: half-precision heads make many.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gateway.vllm_plugin.signals import COLUMNS, K_MAX, Step

CHUNK = 4096
SUMS = 5


@triton.jit
def measure_chunks(
    logits, stride, rows, top, sums, V, n_chunks,
    CHUNK: tl.constexpr, K: tl.constexpr, K_PAD: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """One chunk of one row: its K largest logits, maximum m, and with y = x - m the sums of e^y, y e^y, y and 1."""
    chunk, nth = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + nth)
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row * stride + columns, mask=columns < V, other=float("-inf"))
    known = x > float("-inf")
    highest = tl.max(x, axis=0)
    y = tl.where(known, x - highest, 0.0)
    e = tl.where(known, tl.exp(y), 0.0)
    out = sums + (nth * n_chunks + chunk) * SUMS
    tl.store(out + 0, highest)
    tl.store(out + 1, tl.sum(e, axis=0))
    tl.store(out + 2, tl.sum(y * e, axis=0))
    tl.store(out + 3, tl.sum(y, axis=0))
    tl.store(out + 4, tl.sum(known.to(tl.float32), axis=0))
    places = tl.arange(0, CHUNK)
    kept = tl.arange(0, K_PAD)
    best = tl.full((K_PAD,), float("-inf"), tl.float32)
    for j in tl.static_range(K):
        value, place = tl.max(x, axis=0, return_indices=True)
        best = tl.where(kept == j, value, best)
        x = tl.where(places == place, float("-inf"), x)
    tl.store(top + (nth * n_chunks + chunk) * K_PAD + kept, best)


@triton.jit
def store_records(
    top, sums, n_chunks, slots, previous, leaving, ks, abort_below, pool, flags,
    CHUNKS_PAD: tl.constexpr, ALL_PAD: tl.constexpr, K: tl.constexpr, K_PAD: tl.constexpr,
    SUMS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One row: its chunks put together, its record stored, and flags[row] = 1 when it fell under its limit."""
    nth = tl.program_id(0)
    chunks = tl.arange(0, CHUNKS_PAD)
    here = chunks < n_chunks
    at = sums + (nth * n_chunks + chunks) * SUMS
    highest = tl.load(at, mask=here, other=float("-inf"))
    count = tl.load(at + 4, mask=here, other=0.0)
    peak = tl.max(highest, axis=0)
    lower = tl.where(count > 0, highest - peak, 0.0)
    scale = tl.where(count > 0, tl.exp(lower), 0.0)
    mass = scale * tl.load(at + 1, mask=here, other=0.0)
    tilted = scale * tl.load(at + 2, mask=here, other=0.0) + lower * mass
    plain = tl.load(at + 3, mask=here, other=0.0) + lower * count
    norm = tl.sum(mass, axis=0)
    log_norm = tl.log(norm)  # of the logits less their peak
    entropy = log_norm - tl.sum(tilted, axis=0) / norm
    n = tl.sum(count, axis=0)
    self_certainty = log_norm - tl.sum(plain, axis=0) / n - tl.log(n)

    every = tl.arange(0, ALL_PAD)
    x = tl.load(top + nth * n_chunks * K_PAD + every, mask=every < n_chunks * K_PAD, other=float("-inf"))
    k = tl.load(ks + nth)
    total = 0.0
    first = 0.0
    second = 0.0
    for j in tl.static_range(K):
        value, place = tl.max(x, axis=0, return_indices=True)
        nats = value - peak - log_norm
        if j == 0:
            first = nats
        if j == 1:
            second = nats
        total += tl.where(j < k, nats, 0.0)
        x = tl.where(every == place, float("-inf"), x)
    confidence = -total / k.to(tl.float32)

    last = tl.load(previous + nth)
    gone = tl.load(leaving + nth)
    before = tl.load(pool + last * COLUMNS + 5, mask=last >= 0, other=0.0)
    less = tl.load(pool + gone * COLUMNS, mask=gone >= 0, other=0.0)
    window_sum = before + confidence - less
    low = window_sum < tl.load(abort_below + nth)
    into = pool + tl.load(slots + nth) * COLUMNS
    tl.store(into + 0, confidence)
    tl.store(into + 1, first)
    tl.store(into + 2, tl.exp(first) - tl.exp(second))
    tl.store(into + 3, tl.maximum(entropy, 0.0))
    tl.store(into + 4, self_certainty)
    tl.store(into + 5, window_sum)
    tl.store(into + 6, low.to(tl.float32))
    tl.store(flags + nth, low.to(tl.int32))


@triton.jit
def force_ends(logits, stride, rows, flags, ends, V, CHUNK: tl.constexpr):
    """Leaves a flagged row nothing but its end token."""
    chunk, nth = tl.program_id(0), tl.program_id(1)
    if tl.load(flags + nth) != 0:
        columns = chunk * CHUNK + tl.arange(0, CHUNK)
        only = tl.where(columns == tl.load(ends + nth), 0.0, float("-inf"))
        tl.store(logits + tl.load(rows + nth) * stride + columns, only, mask=columns < V)


class TritonMeter:
    """Measures and stores on one GPU. max_rows: requests a step can hold; vocabulary: the largest V there will be."""

    def __init__(self, pool: torch.Tensor, *, max_rows: int, vocabulary: int) -> None:
        chunks = triton.cdiv(vocabulary, CHUNK)
        self._pool = pool
        self._k_pad = triton.next_power_of_2(K_MAX)
        self._top = torch.empty(max_rows * chunks * self._k_pad, device=pool.device)
        self._sums = torch.empty(max_rows * chunks * SUMS, device=pool.device)
        self._flags = torch.zeros(max_rows, dtype=torch.int32, device=pool.device)

    def __call__(self, logits: torch.Tensor, step: Step, *, may_abort: bool) -> None:
        """Stores a record per token of the step; forces the end token of those that fell too low."""
        n, vocabulary = step.row.shape[0], logits.shape[1]
        chunks = triton.cdiv(vocabulary, CHUNK)
        stride = logits.stride(0)
        measure_chunks[(chunks, n)](
            logits, stride, step.row, self._top, self._sums, vocabulary, chunks,
            CHUNK=CHUNK, K=K_MAX, K_PAD=self._k_pad, SUMS=SUMS, num_warps=8,
        )  # fmt: skip
        store_records[(n,)](
            self._top, self._sums, chunks, step.slot, step.previous, step.leaving, step.k, step.abort_below,
            self._pool, self._flags,
            CHUNKS_PAD=triton.next_power_of_2(chunks), ALL_PAD=triton.next_power_of_2(chunks * self._k_pad),
            K=K_MAX, K_PAD=self._k_pad, SUMS=SUMS, COLUMNS=COLUMNS, num_warps=4,
        )  # fmt: skip
        if may_abort:
            force_ends[(chunks, n)](logits, stride, step.row, self._flags, step.end, vocabulary, CHUNK=CHUNK)

    def warm_up(self, vocabulary: int) -> None:
        """Compiles the kernels, so that the first request does not wait for it. Stores into the pool's first slot."""
        zero = torch.zeros(Step.FIELDS, 1, dtype=torch.int64, device=self._pool.device)
        zero[2:4] = -1
        zero[4] = 1
        self(torch.zeros((1, vocabulary), device=self._pool.device), Step(zero), may_abort=True)
        torch.cuda.synchronize(self._pool.device)
        self._pool[0] = 0.0
