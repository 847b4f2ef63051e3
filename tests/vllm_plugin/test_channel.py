"""Frames between vLLM's workers and its API servers: whole, in their order, and never in the way of the rest."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest
import torch

from gateway.vllm_plugin.channel import FIRST_FRAMES, Frames, Records, frame
from gateway.vllm_plugin.params import Wanted
from gateway.vllm_plugin.recorder import Leaving, Seat
from gateway.vllm_plugin.signals import COLUMNS


def framed(number: int) -> bytes:
    """A frame of as many tokens, each of which says its number."""
    records = torch.full((number, COLUMNS), float(number))
    return frame(Leaving(Seat(Wanted(id="x"), True, 0, number, [], 0), [records], None, lambda: None))


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Worker:
    """One connection as the API server has it, and what was taken from it."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.transport = Transport()
        self.frames = Frames(self._take, set())
        self.frames.connection_made(self.transport)

    def _take(self, told: dict[str, Any], records: Records) -> None:
        np.testing.assert_array_equal(records, np.full((told["choice"], COLUMNS), told["choice"], dtype=np.float32))
        self.taken.append(told["choice"])


@pytest.mark.parametrize("seed", range(5))
def test_frames_arrive_whole_and_in_their_order_however_their_bytes_are_cut(seed: int) -> None:
    chance = random.Random(seed)
    numbers = [chance.randrange(1, 40) for _ in range(60)]
    sent = b"".join(map(framed, numbers))
    cuts = sorted(chance.randrange(len(sent)) for _ in range(chance.choice((0, 3, 500))))

    async def run() -> list[int]:
        worker = Worker()
        for start, stop in zip([0, *cuts], [*cuts, len(sent)], strict=True):
            worker.frames.data_received(sent[start:stop])
            if chance.random() < 0.3:
                await asyncio.sleep(0)
        for _ in numbers:
            await asyncio.sleep(0)
        return worker.taken

    assert asyncio.run(run()) == numbers


def test_a_crowd_that_ends_together_lets_others_have_their_turn_in_between() -> None:
    async def run() -> list[list[int]]:
        worker, told = Worker(), []
        for _ in range(2):  # the second crowd is one like the first
            worker.taken.clear()
            worker.frames.data_received(b"".join(map(framed, range(1, 101))))
            seen = [len(worker.taken)]
            while len(worker.taken) < 100:
                await asyncio.sleep(0)
                seen.append(len(worker.taken))
            told.append(seen)
        return told

    first, second = asyncio.run(run())
    assert first == second == [FIRST_FRAMES, 3 * FIRST_FRAMES, 7 * FIRST_FRAMES, 100]


def test_what_is_no_frame_ends_the_connection_and_nothing_more_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> Worker:
        worker = Worker()
        worker.frames.data_received(framed(3) + b"\xff" * 64 + framed(4))
        for _ in range(5):
            await asyncio.sleep(0)
        return worker

    worker = asyncio.run(run())
    assert worker.taken == [3]
    assert worker.transport.closed
    assert "no frame" in caplog.text
