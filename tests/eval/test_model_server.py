"""A collecting worker with a model server of its own; a small script stands in for vLLM."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eval.cluster import Answering
from eval.collect import Plan
from eval.datasets import Question
from eval.records import Collected, Row
from gateway import config as configs
from gateway.errors import ConfigError
from gateway.fleet.supervise import StartFailed
from tests.test_fleet_up import config, lives

PLAN = Plan(concurrency=2, top_k=0)


def read(folder: Path, written: dict[str, Any]) -> configs.Config:
    path = folder / "cascade.yaml"
    path.write_text(json.dumps(written))
    return configs.read(path)


def test_a_worker_starts_its_server_asks_it_and_leaves_nothing_behind(tmp_path: Path) -> None:
    told, child = tmp_path / "told", tmp_path / "child"
    settings = read(tmp_path, config(tiers=1, env={"STAND_IN_TOLD": str(told), "STAND_IN_CHILD": str(child)}))
    asked = [Question(f"q{n}", f"2 + {n}?", str(2 + n), "made") for n in (2, 3)]

    async def work() -> list[Row]:
        worker = Answering(settings, PLAN, start_server=True)
        found = await worker.fingerprint()
        await worker.prepare(Collected(name="tier-0", fingerprint=dict(found)), "0" * 64)
        rows = await worker.answer(asked, ["f1", "f2"])
        assert lives(int(child.read_text()))
        await worker.close()
        return [msgspec.json.decode(row, type=Row) for row in rows]

    assert {(row.question, row.text, row.grade) for row in asyncio.run(work())} == {
        ("q2", "#### 4", "right"),
        ("q3", "#### 4", "wrong"),
    }
    assert [line.split()[2] for line in told.read_text().splitlines()] == ["start", "ready", "sigterm", "end"]
    assert not lives(int(child.read_text()))


def test_a_server_that_does_not_start_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    env = {"STAND_IN_CRASHES": "99", "STAND_IN_COUNT": str(tmp_path / "count")}
    settings = read(tmp_path, config(tiers=1, env=env, restart_seconds=0.05))
    with pytest.raises(StartFailed, match="CUDA out of memory"):
        asyncio.run(Answering(settings, PLAN, start_server=True).fingerprint())


def test_a_tier_that_does_not_say_how_it_is_served_has_no_server_to_start(tmp_path: Path) -> None:
    written = config(tiers=1)
    del written["tiers"][0]["serve"]
    with pytest.raises(ConfigError, match="give it a serve: section"):
        asyncio.run(Answering(read(tmp_path, written), PLAN, start_server=True).fingerprint())
