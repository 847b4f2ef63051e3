"""Rollback by escalation after a release by hand: what is forecast, and the 15 minutes, on a clock of our own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from calibrators import artifact as artifacts
from gateway import card as cards
from gateway import config as configs
from gateway import ids
from gateway.monitor.forecast import forecast
from gateway.monitor.rollout import Action, Minute, escalates_oddly
from gateway.monitor.rollouts import Wish, of
from gateway.rolling import Rolling
from gateway.snapshot import Snapshot, open_cascade
from gateway.store.base import Entry
from gateway.store.sqlite import Sqlite
from tests.faults.gateway import write_artifact
from tests.faults.upstream import Upstream
from tests.monitor.test_telling import report
from tests.store.rows import decision, hop
from tests.store.test_feedback import SECRETS, planned

NOON = 1_700_000_040.0  # a whole minute
A_MINUTE = 20  # requests


def p_of(nats: float, intercept: float) -> float:
    return float(1 / (1 + np.exp(-(10 * nats + intercept))))


def minute(
    store: Sqlite, at: float, label: str, *, escalated: float, rng: np.random.Generator, accept_at: float = 0.8,
    n: int = A_MINUTE, **hops: object,
) -> None:  # fmt: skip
    """A minute of traffic of which the first tier's calibrator passes a share on. nats: what p is made of, slope 10 and
    intercept 4."""
    entries = []
    for place in range(n):
        when = at + 60 * place / n
        number, unsure = ids.number(when), bool(rng.random() < escalated)
        nats = float(rng.uniform(-1.0, -0.35) if unsure else rng.uniform(-0.2, 0.0))
        told = {
            "features": {"lp_mean": nats}, "p_correct": 0.5 if unsure else 0.9, "threshold": accept_at,
            "calibrator": label, "reason": "unsure" if unsure else "confident",
        } | hops  # fmt: skip
        entries.append(Entry(decision(number, at=when, calibrator=label), (hop(number, **told),)))
    store.write(entries)


@dataclass
class Clock:
    now: float = NOON

    def __call__(self) -> float:
        return self.now


@dataclass
class Run:
    rolling: Rolling
    store: Sqlite
    clock: Clock
    rng: np.random.Generator
    snapshot: Callable[[], Snapshot]
    old: str
    new: str

    def stage(self) -> str | None:
        """What is live."""
        state = self.rolling.rollouts.state("cheap")
        assert state is not None
        return of(state.live, "cheap")

    async def pass_a_minute(self, label: str, escalated: float, **more: float) -> None:
        minute(self.store, self.clock.now, label, escalated=escalated, rng=self.rng, **more)  # type: ignore[arg-type]
        self.clock.now += 60
        await self.rolling.turn()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@asynccontextmanager
async def by_hand(folder: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Run]:
    """An hour of traffic with one calibrator, of which a tenth escalates, and then another, promoted by hand."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    old = write_artifact(folder / "cheap.json")
    write_artifact(folder / "other.json", intercept=4.5)
    plan = planned(upstream.url) | {
        "rollout": {"folder": "rollout", "probe": None, "settle_seconds": 0, "labels_of": "all"}
    }
    plan["policies"] = {"default": {"steps": [{"tier": "cheap", "accept_at": 0.8}, {"tier": "dear"}]}}
    (folder / "cascade.yaml").write_text(json.dumps(plan))
    config = configs.read(folder / "cascade.yaml")
    assert config.rollout is not None
    store, clock, rng = Sqlite(folder / "store.db", seconds=5), Clock(NOON - 3600), np.random.default_rng(0)
    rolling = Rolling(config.rollout, store, CollectorRegistry(), wall=clock)
    async with open_cascade(config) as opened:
        snapshot: Snapshot = await rolling.dress(opened)

        async def redress() -> None:
            nonlocal snapshot
            snapshot = await rolling.dress(snapshot)

        rolling.redress = redress
        for at in range(60):
            minute(store, clock.now + 60 * at, old, escalated=0.1, rng=rng)
        clock.now = NOON
        kept = rolling.rollouts.registry.put(
            artifacts.load(folder / "other.json"), parent=None, who="t", at="2026-11-22T00:00:00+00:00", why="t"
        )
        new = kept.artifact.label
        told = {"who": "root", "why": "by hand", "artefact": kept.artifact.sha256, "share": None}
        await rolling.act("cheap", Wish.PROMOTE, **told)  # type: ignore[arg-type]
        try:
            yield Run(rolling, store, clock, rng, lambda: snapshot, old, new)
        finally:
            rolling._lock.release()
            store.close()


def test_a_release_by_hand_that_escalates_thrice_as_much_is_rolled_back_after_fifteen_minutes_and_not_before(
    upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with by_hand(tmp_path, upstream, monkeypatch) as run:
            live = run.stage()
            card = cards.make(run.snapshot(), report(), "default").twin
            assert card["routing"]["steps"][0]["calibrator"] == run.new
            assert any(line.startswith("cheap: platt of 100 answers") for line in card["conditions"])
            for _ in range(14):
                await run.pass_a_minute(run.new, 0.6)
                assert run.stage() == live
            await run.pass_a_minute(run.new, 0.6)
            assert run.stage() != live
            last = run.rolling.rollouts.history("cheap")[-1]
            assert last.action == Action.ROLLBACK
            assert "the escalated share was outside [0.5, 2] times its forecast of 1" in str(last.facts["why"])
            assert last.who.startswith("gateway@")

    asyncio.run(story())


def test_a_release_by_hand_that_does_as_forecast_stays_and_so_does_one_whose_odd_minutes_end(
    upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with by_hand(tmp_path, upstream, monkeypatch) as run:
            live = run.stage()
            for at in range(40):
                await run.pass_a_minute(run.new, 0.6 if 10 <= at < 24 else 0.1)
            for _ in range(16):  # what requests asked for instead of the threshold is no release's doing
                await run.pass_a_minute(run.new, 0.9, accept_at=0.99)
            assert run.stage() == live

    asyncio.run(story())


def test_what_a_calibrator_would_have_done_is_told_from_features_or_from_what_it_said_on_trial(tmp_path: Path) -> None:
    label = write_artifact(tmp_path / "cheap.json")
    sealed, rng = artifacts.load(tmp_path / "cheap.json"), np.random.default_rng(1)
    store = Sqlite(tmp_path / "store.db", seconds=5)
    for at in range(12):
        minute(store, NOON + 60 * at, "cheap@before", escalated=0.25, rng=rng)
    until, at_80 = NOON + 720, {"default": 0.8}
    alike = frozenset({"cheap@before"})
    found = forecast(store, "cheap", sealed, at_80, alike=alike, until=until)
    assert found["escalated"] == pytest.approx(0.25, abs=0.09)
    assert found["truncated"] == 1 / 242  # none of 240
    nobody = {"alike": frozenset[str](), "until": until}
    assert forecast(store, "cheap", sealed, at_80, **nobody) == {}  # type: ignore[arg-type]
    assert forecast(store, "cheap", sealed, {"other": 0.8}, alike=alike, until=until) == {}
    assert forecast(store, "cheap", sealed, at_80, alike=alike, until=NOON + 60) == {}  # twenty are too few
    sure = forecast(store, "cheap", sealed, {"default": 1e-9}, alike=alike, until=until)
    assert sure["escalated"] == 1 / 242
    for at in range(12):
        minute(store, until + 60 * at, "cheap@odd", escalated=0.5, rng=rng, rival=label, rival_p=0.1)
    on_trial = forecast(store, "cheap", sealed, at_80, alike=frozenset(), until=until + 720)
    assert on_trial["escalated"] > 0.99
    store.close()


def test_where_hardly_anything_escalates_a_quarter_of_an_hour_without_any_is_no_news() -> None:
    assert not escalates_oddly((Minute(20, 0),) * 15, 0.01)
    assert escalates_oddly((Minute(20, 0),) * 15, 0.1)
    assert escalates_oddly((Minute(200, 10),) * 15, 0.01)
