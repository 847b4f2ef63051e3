"""Every request gets its own records back, whatever vLLM does to its batch."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gateway.vllm_plugin.params import Wanted
from gateway.vllm_plugin.plan import BLOCK
from gateway.vllm_plugin.recorder import Leaving, Recorder, Seat
from gateway.vllm_plugin.signals import ABORTED, COLUMNS, TOP1, TorchMeter

VOCABULARY, END = 64, 63


def signature(request: int, token: int) -> float:
    """A top log-prob that no other token of any request has."""
    return -math.log1p(0.001 * (1 + request) + 0.00001 * (1 + token))


def row(request: int, token: int) -> torch.Tensor:
    """Logits whose largest log-prob is the signature."""
    p = math.exp(signature(request, token))
    logits = torch.full((VOCABULARY,), math.log((1 - p) / (VOCABULARY - 1)))
    logits[request % END] = math.log(p)
    return logits


@dataclass
class Request:
    """What vLLM knows of a request. wants: whether it opted in."""

    number: int
    length: int
    wants: bool
    output: list[int] = field(default_factory=list)


class Read(NamedTuple):
    """What arrived of a request that left the batch. records: (T, COLUMNS)."""

    seat: Seat
    records: npt.NDArray[np.float32]


class Batch:
    """vLLM 0.22's InputBatch, as far as it moves rows about: a freed row is taken by a newcomer or by the last one, and
    then it is not told as removed (vllm/v1/worker/gpu_input_batch.py)."""

    def __init__(self) -> None:
        self.rows: list[Request | None] = []
        self._free: list[int] = []
        self.added: list[tuple[int, Request]] = []
        self.moved: list[tuple[int, int, bool]] = []

    def remove(self, request: Request) -> None:
        at = self.rows.index(request)
        self.rows[at] = None
        self._free.append(at)

    def add(self, request: Request) -> None:
        self._free.sort(reverse=True)
        at = self._free.pop() if self._free else len(self.rows)
        if at == len(self.rows):
            self.rows.append(request)
        else:
            self.rows[at] = request
        self.added.append((at, request))

    def condense(self) -> None:
        self._free.sort(reverse=True)
        last = len(self.rows) - 1
        while self._free:
            while last in self._free:
                last -= 1
            empty = self._free[-1]
            if empty >= last:
                break
            self._free.pop()
            self.rows[empty], self.rows[last] = self.rows[last], None
            self.moved.append((last, empty, False))
            last -= 1
        while self.rows and self.rows[-1] is None:
            self.rows.pop()

    def swap(self, one: int, other: int) -> None:
        self.rows[one], self.rows[other] = self.rows[other], self.rows[one]
        self.moved.append((one, other, True))

    def tell(self, recorder: Recorder, wanted: Wanted) -> None:
        if not (self._free or self.added or self.moved):
            return
        for at in self._free:
            recorder.remove(at)
        for at, request in self.added:
            seat = (
                Seat(wanted, True, END, request.number, request.output, len(request.output)) if request.wants else None
            )
            recorder.add(at, seat)
        for source, target, swap in self.moved:
            recorder.move(source, target, swap=swap)
        recorder.arrange()
        self._free, self.added, self.moved = [], [], []


@pytest.fixture
def delivered() -> list[Read]:
    return []


def make(delivered: list[Read], *, blocks: int = 64, rows: int = 16, tokens: int = 1000) -> Recorder:
    pool = torch.zeros((blocks * BLOCK, COLUMNS))

    def deliver(leaving: list[Leaving]) -> None:
        for one in leaving:
            records = np.frombuffer(one.read(), np.float32).reshape(-1, COLUMNS)
            assert len(records) == one.seat.written
            delivered.append(Read(one.seat, records))

    return Recorder(pool, TorchMeter(pool), deliver, device=pool.device, max_rows=rows, max_tokens=tokens)


def run(chance: random.Random, requests: list[Request], recorder: Recorder, wanted: Wanted) -> None:
    """Serves the requests with arrivals, endings, preemptions, swaps and prompts in pieces, until all have ended."""
    batch, waiting = Batch(), list(requests)
    while waiting or any(batch.rows):
        for request in [r for r in batch.rows if r is not None]:
            over = len(request.output) >= request.length
            if over or chance.random() < 0.02:
                batch.remove(request)
                if not over:
                    waiting.append(request)  # preempted: it comes back with what it had
        while waiting and len([r for r in batch.rows if r]) < 16 and chance.random() < 0.7:
            batch.add(waiting.pop(chance.randrange(len(waiting))))
        batch.condense()
        if len(batch.rows) > 1 and chance.random() < 0.2:
            batch.swap(*chance.sample(range(len(batch.rows)), 2))
        batch.tell(recorder, wanted)
        if not batch.rows:
            continue
        here = [r for r in batch.rows if r is not None]
        assert len(here) == len(batch.rows)
        in_pieces = [not r.output and chance.random() < 0.3 for r in here]  # a prompt not read to its end yet
        logits = torch.stack(
            [row(999, 999) if piece else row(r.number, len(r.output)) for r, piece in zip(here, in_pieces, strict=True)]
        )
        recorder.step(logits)
        for request, piece in zip(here, in_pieces, strict=True):
            if not piece:
                request.output.append(-1)


def joined(delivered: list[Read]) -> dict[int, dict[int, float]]:
    """Per request: the top log-prob recorded at each token; the same token twice would show as two values."""
    found: dict[int, dict[int, float]] = {}
    for read in delivered:
        for nth, values in enumerate(read.records):
            at = read.seat.start + nth
            assert at not in found.setdefault(read.seat.choice, {})
            found[read.seat.choice][at] = float(values[TOP1])
    return found


@pytest.mark.parametrize("seed", range(8))
def test_every_request_gets_exactly_its_own_records_through_moves_swaps_and_preemptions(
    seed: int, delivered: list[Read]
) -> None:
    chance = random.Random(seed)
    requests = [Request(n, chance.randrange(1, 200), chance.random() < 0.8) for n in range(60)]
    recorder = make(delivered)
    free = recorder.free_blocks
    run(chance, requests, recorder, Wanted(id="x"))
    found = joined(delivered)
    assert set(found) == {r.number for r in requests if r.wants}
    for request in requests:
        if request.wants:
            values = [found[request.number][t] for t in range(request.length)]
            want = [signature(request.number, t) for t in range(request.length)]
            np.testing.assert_allclose(values, want, atol=2e-6)
    assert recorder.free_blocks == free, "a block was lost"


def test_two_rows_taken_for_each_other_do_not_go_unseen(delivered: list[Read]) -> None:
    """The test above sees a wrong mapping: with one swap hidden from the recorder its values differ."""
    recorder = make(delivered)
    one, other = Request(1, 10, True), Request(2, 10, True)
    for at, request in enumerate((one, other)):
        recorder.add(at, Seat(Wanted(id="x"), True, END, request.number, request.output, 0))
    recorder.arrange()
    recorder.step(torch.stack([row(2, 0), row(1, 0)]))
    one.output.append(-1)
    recorder.remove(0)
    recorder.arrange()
    assert abs(float(delivered[0].records[0, TOP1]) - signature(1, 0)) > 5e-4


def test_the_device_is_told_again_only_when_the_batch_has_changed_or_a_request_needs_a_block(
    delivered: list[Read],
) -> None:
    recorder = make(delivered, tokens=3 * BLOCK)
    send, told = recorder._send_plan, []
    outputs: list[list[int]] = [[], [-1] * 7]
    for at, output in enumerate(outputs):
        recorder.add(at, Seat(Wanted(id="x"), True, END, at, output, len(output)))
    recorder.arrange()
    for t in range(BLOCK + 5):
        recorder._send_plan = lambda t=t: (told.append(t), send())
        recorder.step(torch.zeros((2, VOCABULARY)))
        outputs[0].append(-1)
        if t != 3:  # a row whose prompt is still being read emits nothing
            outputs[1].append(-1)
        if t == 20:
            recorder.move(0, 1, swap=True)
            recorder.arrange()
    assert told == [0, 4, 21, BLOCK, BLOCK + 1]


def test_an_answer_longer_than_a_block_keeps_all_its_records_in_their_order(delivered: list[Read]) -> None:
    recorder = make(delivered, tokens=3 * BLOCK)
    requests = [Request(n, 2 * BLOCK + 3 - 700 * n, True) for n in range(3)]
    run(random.Random(1), requests, recorder, Wanted(id="x"))
    found = joined(delivered)
    for request in requests:
        values = [found[request.number][t] for t in range(request.length)]
        np.testing.assert_allclose(values, [signature(request.number, t) for t in range(request.length)], atol=2e-6)


def test_a_full_pool_loses_the_confidence_of_the_newcomer_and_says_so_and_nobody_elses(
    delivered: list[Read],
) -> None:
    recorder = make(delivered, blocks=1)
    outputs: list[list[int]] = [[], []]
    for at in range(2):
        recorder.add(at, Seat(Wanted(id="x"), True, END, at, outputs[at], 0))
    recorder.arrange()
    for t in range(3):
        recorder.step(torch.stack([row(0, t), row(1, t)]))
        for output in outputs:
            output.append(-1)
    recorder.remove(0)
    recorder.remove(1)
    recorder.arrange()
    assert [bool(read.seat.lost) for read in delivered] == [False, True]
    assert joined(delivered[:1])[0][2] == pytest.approx(signature(0, 2), abs=2e-6)
    assert recorder.free_blocks == 1


def test_a_block_is_taken_again_only_when_its_records_have_been_read(delivered: list[Read]) -> None:
    recorder, kept = make(delivered, blocks=2), []
    recorder._deliver = kept.extend
    for number in range(3):
        output: list[int] = []
        recorder.add(0, Seat(Wanted(id="x"), True, END, number, output, 0))
        recorder.arrange()
        recorder.step(row(number, 0)[None])
        output.append(-1)
        recorder.remove(0)
        recorder.arrange()
    assert [one.seat.lost == "" for one in kept] == [True, True, False]
    firsts = [np.frombuffer(one.read(), np.float32)[TOP1] for one in kept[:2]]
    np.testing.assert_allclose(firsts, [signature(0, 0), signature(1, 0)], atol=2e-6)
    assert recorder.free_blocks == 2


def test_giving_up_waits_for_a_full_window_and_marks_the_token(delivered: list[Read]) -> None:
    recorder = make(delivered)
    output: list[int] = []
    recorder.add(0, Seat(Wanted(id="x", window=4, abort_below=1e6), True, END, 0, output, 0))
    recorder.arrange()
    ends = []
    for t in range(4):
        logits = row(5, t)[None, :].clone()
        recorder.step(logits)
        ends.append(int(logits[0].argmax()) == END)
        output.append(-1)
    recorder.remove(0)
    recorder.arrange()
    assert ends == [False, False, False, True]
    assert delivered[0].records[:, ABORTED].tolist() == [0.0, 0.0, 0.0, 1.0]
