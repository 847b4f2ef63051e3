"""Collecting on a Ray cluster of two nodes, one of which is killed midway. Runs where Ray is: `make test-cluster`."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval import collect as collecting
from eval import records
from eval.collect import Different, Plan
from eval.datasets import Question
from eval.records import Row
from gateway import config as configs
from tests.eval.test_collect import facts, questions, settings
from tests.faults.upstream import Upstream

ray = pytest.importorskip("ray", reason="make test-cluster installs it")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.filterwarnings("default")]

PLAN = Plan(concurrency=4, top_k=3)
# A busy machine takes a minute to start a process, and its nodes must not count as dead for that: a silent node has
# twenty times ten seconds. One that was killed refuses to answer at once: it is gone after twenty times half a second.
PATIENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "180",
    "RAY_worker_register_timeout_seconds": "180",
    "RAY_health_check_failure_threshold": "20",
    "RAY_health_check_period_ms": "500",
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head that computes nothing, and two nodes."""
    from ray.cluster_utils import Cluster

    os.environ.update(PATIENT)
    few = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **few})
    workers = [cluster.add_node(num_cpus=1, num_gpus=1, **few) for _ in range(2)]  # Ray counts GPUs, it looks for none
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    yield cluster, workers
    ray.shutdown()
    cluster.shutdown()


class Killer:
    """Watches rows come in, and pulls the plug of a node at one of them."""

    def __init__(self, at: int, kill: Any) -> None:
        self.seen: list[tuple[str, str, str]] = []
        self._at, self._kill = at, kill

    def __call__(self, total: int, done: int) -> Any:
        self.total = total
        return self.note

    def note(self, row: Row) -> None:
        self.seen.append((row.split, row.question, row.tier))
        if len(self.seen) == self._at:
            self._kill()


def at_work(nodes: list[Any]) -> Any:
    """A node on which a worker is; the head computes nothing, so it has none."""
    from ray._private.state import actors

    busy = {actor["Address"]["NodeID"] for actor in actors(actor_state_name="ALIVE").values()}
    return next(node for node in nodes if node.node_id in busy)


def test_no_row_is_lost_or_doubled_when_a_node_is_killed_and_the_rows_are_those_of_one_machine(
    tmp_path: Path, nodes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from eval import cluster as clusters

    cluster, workers = nodes
    asked = questions(tmp_path, 60, seconds=0.02)
    with Upstream() as upstream:
        config = settings(tmp_path, upstream.url)
        killer = Killer(20, lambda: cluster.remove_node(at_work(workers), allow_graceful=False))
        path = clusters.collect(config, asked, tmp_path / "many", PLAN, killer, workers=1)
        assert "died, another one answers its questions" in caplog.text
        assert len(cluster.list_all_nodes()) == 2
        alone = asyncio.run(collecting.collect(config, asked, tmp_path / "one", PLAN))
        there, here = list(records.read(path)), list(records.read(alone))
        assert facts(there) == facts(here)
        assert len(killer.seen) == len(set(killer.seen)) == killer.total == 120
        assert {file.name for file in path.parent.iterdir()} == {"lock", "manifest.json", "records.parquet"}
        assert records.read_manifest(path.parent / "manifest.json").tiers == records.read_manifest(
            alone.parent / "manifest.json"
        ).tiers  # fmt: skip

        before = len(upstream.asked("small"))  # what is collected is not asked again, and one continues the other
        clusters.collect(config, asked, tmp_path / "one", PLAN, Killer(-1, None))
        assert len(upstream.asked("small")) == before
        with pytest.raises(Different, match="top_k: 3 there, 5 now"):
            clusters.collect(config, asked, tmp_path / "many", Plan(top_k=5), Killer(-1, None))


def test_an_engine_that_is_away_is_told_as_on_one_machine(tmp_path: Path, nodes: Any) -> None:
    from eval import cluster as clusters
    from gateway.errors import EngineDown

    with pytest.raises(EngineDown, match="nobody answers"):
        clusters.collect(
            settings(tmp_path, "http://127.0.0.1:1/v1"),
            questions(tmp_path, 2),
            tmp_path / "out",
            PLAN,
            Killer(-1, None),
        )


def test_a_tier_that_is_served_here_gets_a_model_server_per_worker_each_on_a_gpu_of_its_own(
    tmp_path: Path, nodes: Any
) -> None:
    """A script stands in for `vllm serve`; it says when it starts and ends."""
    from eval import cluster as clusters
    from tests.test_fleet_up import config

    path, told = tmp_path / "cascade.yaml", tmp_path / "told"
    path.write_text(json.dumps(config(tiers=1, env={"STAND_IN_TOLD": str(told)})))
    free = len(nodes[0].list_all_nodes()) - 1  # of the GPUs, after what other tests have killed
    asked = [Question(f"q{n}", f"{n} + {n}?", str(2 * n), "made") for n in range(12)]
    clusters.collect(
        configs.read(path), asked, tmp_path / "out", PLAN, Killer(-1, None), workers=free, start_servers=True
    )
    rows = list(records.read(tmp_path / "out" / "records.parquet"))
    assert [(row.question, row.text) for row in rows] == [(one.id, "#### 4") for one in asked]
    events = [line.split()[2] for line in told.read_text().splitlines()]
    assert events.count("start") == events.count("end") == free >= 1
