"""Killed at random moments, under load: what was acknowledged is there, and of a batch all or nothing.

STORE_KILLS says how often; 3 keep the suite quick, 100 are the target's figure.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2

from gateway import ids
from gateway.store.sqlite import Sqlite
from tests.faults.gateway import PATIENCE, ROOT, until, write_artifact
from tests.faults.upstream import Upstream
from tests.store.test_feedback import SEAL, SECRETS, bearer, planned

KILLS = int(os.environ.get("STORE_KILLS", "3"))


def start(path: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--config", str(path), "--log-level", "error"],
        cwd=ROOT,
        env={**os.environ, **SECRETS},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready on "), "it did not open its store again"
    return process, line.split()[2]


class Sender(threading.Thread):
    """Sends labels, one by one or in batches, until nobody answers any more."""

    def __init__(self, url: str, batch: int, seed: int) -> None:
        super().__init__()
        self._url, self._batch, self._chance = url, batch, random.Random(seed)
        self.sent: list[dict[str, bool]] = []
        self.acknowledged: list[dict[str, bool]] = []

    def run(self) -> None:
        with httpx2.Client(base_url=self._url, headers=bearer("alice"), timeout=PATIENCE) as client:
            while True:
                made = {ids.number(1_700_000_000.0): self._chance.random() < 0.5 for _ in range(self._batch)}
                items: Any = [{"id": SEAL.seal(one, "alice"), "label": says} for one, says in made.items()]
                self.sent.append(made)
                try:
                    told = client.post("/v1/feedback", json={"items": items} if self._batch > 1 else items[0])
                except httpx2.TransportError:
                    return
                if told.status_code == 201:
                    self.acknowledged.append(made)


def test_no_acknowledged_label_is_lost_when_killed_and_no_batch_is_torn(tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    path = tmp_path / "cascade.yaml"
    chance, lost, torn, acknowledged = random.Random(7), 0, 0, 0
    with Upstream() as upstream:
        plan = planned(upstream.url)
        del plan["admin"]
        plan["keys"]["admins"] = []
        plan["store"]["labels_per_minute"] = 10**9
        path.write_text(json.dumps(plan))
        for round_ in range(KILLS):
            process, url = start(path)
            senders = [Sender(url, batch, 10 * round_ + batch) for batch in (1, 1, 40)]
            for sender in senders:
                sender.start()
            until(lambda now=senders: any(one.acknowledged for one in now))
            threading.Event().wait(chance.uniform(0.05, 0.7))
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
            for sender in senders:
                sender.join()
            store = Sqlite(tmp_path / "store.db")
            for sender in senders:
                for made in sender.sent:
                    there = {one: row[0].label for one in made if (row := store.labels(one))}
                    torn += len(there) not in (0, len(made))
                    if made in sender.acknowledged:
                        acknowledged += len(made)
                        lost += there != made
            store.close()
    print(f"\n{KILLS} kills, {acknowledged} labels acknowledged, {lost} requests lost, {torn} torn")
    assert not list(tmp_path.glob("*.broken-*"))
    assert (lost, torn) == (0, 0)
    assert acknowledged > 10 * KILLS
