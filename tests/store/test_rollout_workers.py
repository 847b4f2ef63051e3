"""Several workers on one PostgreSQL and one rollout: a step is taken once, and reaches all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2

from calibrators import artifact as artifacts
from gateway.monitor.rollouts import Rollouts
from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, SURE, cascade, running, until, write_artifact
from tests.faults.upstream import Upstream
from tests.store.conftest import Server, emptied
from tests.store.test_feedback import SECRETS, bearer, planned


def test_a_step_by_hand_is_taken_once_and_reaches_every_worker(server: Server, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    labels = [write_artifact(tmp_path / f"new{number}.json", intercept=3.0 + number / 10) for number in range(2)]
    secrets = {**SECRETS, "STORE_URL": emptied(server)}
    with Upstream() as upstream:
        rollout = {"folder": "rollout", "poll_seconds": 0.3, "labels_of": "all", "probe": None}
        plan = planned(upstream.url, store={"postgres": "env:STORE_URL", "seconds": PATIENCE}, rollout=rollout)
        plan["server"] = cascade(upstream.url)["server"] | {"workers": 2}
        with running(tmp_path, plan, **secrets) as gateway:
            registry = Rollouts(tmp_path / "rollout").registry
            for number in range(2):
                found = artifacts.load(tmp_path / f"new{number}.json")
                registry.put(found, parent=None, who="test", at="2026-01-01T00:00:00+00:00", why="")
            where = f"http://127.0.0.1:{plan['admin']['port']}/admin/calibrators"

            def act(step: str, about: str) -> dict[str, Any]:
                body = {"tier": "cheap", "why": "a test"}
                told = httpx2.post(f"{where}/{about}/{step}", json=body, headers=bearer("root"), timeout=PATIENCE)
                assert told.status_code == 200, told.text
                return told.json()  # type: ignore[no-any-return]

            def worn() -> set[str]:
                """By eight connections of their own, so that both workers get some."""
                seen = set()
                for _ in range(8):
                    with httpx2.Client(base_url=gateway.url, headers=bearer("alice"), timeout=PATIENCE) as client:
                        answer = client.post("/v1/chat/completions", json=ask(small={"nats": SURE}))
                        seen.add(answer.headers["x-route-calibrator"])
                return seen

            until(lambda: httpx2.get(where, headers=bearer("root"), timeout=PATIENCE).status_code == 200)
            for label in labels:
                act("promote", label)
                until(lambda label=label: worn() == {label})
            assert act("rollback", labels[1])["live"] == labels[0]  # one step back, not one for each worker
            until(lambda: worn() == {labels[0]})
            told = httpx2.get(where, headers=bearer("root"), timeout=PATIENCE).json()["tiers"]["cheap"]
            assert [event["action"] for event in told["history"]].count("rollback") == 1
